//! Texts from outside: names that people give, and what builders say.
//!
//! Must not know: what they are used for.

pub(crate) use slipway_core::text::misleads;

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
    fn texts_are_cut_between_characters() {
        assert_eq!(bounded("äää".to_owned(), 3), "ä…");
        assert_eq!(bounded("a\u{1b}[2J\nb\u{202e}".to_owned(), 99), "a [2J\nb ");
        assert_eq!(bounded("as it was".to_owned(), 9), "as it was");
    }
}
