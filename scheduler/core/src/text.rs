//! Characters of texts from outside that do not belong before people's eyes.
//!
//! Must not know: whose texts, or where they are shown.

/// Whether a character can make a line look like another one: control characters, and those that have no width or change the
/// direction of what follows (Unicode's Cc, Cf, Zl and Zp, as far as they are in use).
pub fn misleads(c: char) -> bool {
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
}
