//! Go's regular expressions to those of the `regex` crate: nearly the same language; here is the rest.
//! It must not know of patterns.

use std::iter::Peekable;
use std::str::Chars;

/// Translates an expression. `None` where Go's own parser would refuse an escape.
pub(super) fn from_go(expression: &str) -> Option<String> {
    let mut out = String::with_capacity(expression.len() + 8);
    let mut chars = expression.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => out.push_str(&escape(&mut chars, false)?),
            '[' => class(&mut chars, &mut out)?,
            '{' => {
                // A brace that is no repetition is itself in Go, and an error here.
                if !is_repetition(chars.clone()) {
                    out.push('\\');
                }
                out.push('{');
            }
            other => out.push(other),
        }
    }
    Some(out)
}

/// `{2}`, `{2,}` or `{2,3}`, after the brace.
fn is_repetition(mut chars: Peekable<Chars<'_>>) -> bool {
    let mut digits = 0;
    while chars.next_if(char::is_ascii_digit).is_some() {
        digits += 1;
    }
    if digits == 0 {
        return false;
    }
    if chars.next_if_eq(&',').is_some() {
        while chars.next_if(char::is_ascii_digit).is_some() {}
    }
    chars.next() == Some('}')
}

fn class(chars: &mut Peekable<Chars<'_>>, out: &mut String) -> Option<()> {
    out.push('[');
    if chars.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut first = true;
    loop {
        match chars.next()? {
            ']' if !first => {
                out.push(']');
                return Some(());
            }
            '\\' => out.push_str(&escape(chars, true)?),
            '[' if is_named_class(chars.clone()) => out.push('['),
            // Set operations and nested classes are this dialect's own.
            special @ ('[' | ']' | '&' | '~') => {
                out.push('\\');
                out.push(special);
            }
            '-' if chars.peek() == Some(&'-') => out.push_str("\\-"),
            ':' if named_class_end(chars, out) => {}
            other => out.push(other),
        }
        first = false;
    }
}

/// `[:alpha:]`, after its first bracket.
fn is_named_class(mut chars: Peekable<Chars<'_>>) -> bool {
    if chars.next() != Some(':') {
        return false;
    }
    chars.next_if_eq(&'^');
    while chars.next_if(char::is_ascii_lowercase).is_some() {}
    chars.next() == Some(':') && chars.next() == Some(']')
}

/// The `:]` that ends a named class must not end the class around it. A `:` right before the `]` of an ordinary class
/// is told from it by what was written so far.
fn named_class_end(chars: &mut Peekable<Chars<'_>>, out: &mut String) -> bool {
    let Some(open) = out.rfind("[:") else {
        return false;
    };
    let inside = out[open + 2..].trim_start_matches('^');
    let ends = chars.peek() == Some(&']') && inside.chars().all(|char| char.is_ascii_lowercase());
    if ends {
        chars.next();
        out.push_str(":]");
    }
    ends
}

/// An escape after its backslash. Go's short classes are ASCII only.
fn escape(chars: &mut Peekable<Chars<'_>>, in_class: bool) -> Option<String> {
    let escaped = chars.next()?;
    let plain = match escaped {
        'd' if in_class => "0-9",
        'w' if in_class => "0-9A-Za-z_",
        's' if in_class => "\\t\\n\\x0c\\r ",
        'd' => "[0-9]",
        'w' => "[0-9A-Za-z_]",
        's' => "[\\t\\n\\x0c\\r ]",
        'D' => "[^0-9]",
        'W' => "[^0-9A-Za-z_]",
        'S' => "[^\\t\\n\\x0c\\r ]",
        'b' if !in_class => "(?-u:\\b)",
        'B' if !in_class => "\\B",
        'A' if !in_class => "\\A",
        'z' if !in_class => "\\z",
        'a' => "\\x07",
        'f' => "\\x0c",
        'n' => "\\n",
        'r' => "\\r",
        't' => "\\t",
        'v' => "\\x0b",
        'x' => "\\x",
        'p' => "\\p",
        'P' => "\\P",
        '<' => "<",
        '>' => ">",
        punctuation if punctuation.is_ascii_punctuation() => {
            return Some(format!("\\{punctuation}"));
        }
        ' ' => " ",
        _refused => return None,
    };
    Some(plain.to_owned())
}
