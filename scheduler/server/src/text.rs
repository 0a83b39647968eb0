//! Texts from outside: names that people give, and what builders say.
//!
//! Must not know: what they are used for.

/// Whether a character can make a line look like another one: control characters, and those that have no width or change the
/// direction of what follows (Unicode's Cc, Cf, Zl and Zp, as far as they are in use).
pub(crate) fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A text of somebody who is not trusted, cut to `max` bytes, with spaces in the place of control characters other than the
/// end of a line.
pub(crate) fn bounded(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
    if text.chars().any(|c| c != '\n' && misleads(c)) {
        let plain = |c: char| if c != '\n' && misleads(c) { ' ' } else { c };
        text = text.chars().map(plain).collect();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_hide_or_turn_a_text_is_found() {
        for c in [
            '\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}', '\n', '\u{1b}', '\u{85}',
        ] {
            assert!(misleads(c), "{c:?}");
        }
        for c in ['a', ' ', 'ß', '日', '🚢', '-'] {
            assert!(!misleads(c), "{c:?}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(bounded("äää".to_owned(), 3), "ä…");
        assert_eq!(bounded("a\u{1b}[2J\nb\u{202e}".to_owned(), 99), "a [2J\nb ");
        assert_eq!(bounded("as it was".to_owned(), 9), "as it was");
    }
}
