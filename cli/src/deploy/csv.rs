//! `KEY=VALUE,KEY=VALUE`, as flags of docker and buildx take it: comma-separated fields, any of which may be in double quotes.

use slipway_terminal::exit::{Failure, Outcome};

/// The fields of one line.
///
/// # Errors
/// The caller's fault: a quote that does not close, or text behind one.
pub(super) fn fields(text: &str) -> Outcome<Vec<String>> {
    let bad = || {
        Failure::user("a quote does not close, or has text behind it")
            .hint("put the whole field in quotes and write a quote in it twice: '\"src=a,b\",id=x'")
    };
    let mut fields = vec![];
    let mut rest = text.chars().peekable();
    loop {
        let mut field = String::new();
        if rest.next_if_eq(&'"').is_some() {
            loop {
                match rest.next() {
                    Some('"') if rest.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(other) => field.push(other),
                    None => return Err(bad()),
                }
            }
            fields.push(field);
            match rest.next() {
                None => return Ok(fields),
                Some(',') => continue,
                Some(_) => return Err(bad()),
            }
        }
        loop {
            match rest.next() {
                Some(',') => break,
                Some(other) => field.push(other),
                None => {
                    fields.push(field);
                    return Ok(fields);
                }
            }
        }
        fields.push(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_may_be_quoted() {
        for (text, want) in [
            ("", vec![""]),
            ("a=1,b=2", vec!["a=1", "b=2"]),
            ("\"id=a\",\"src=we,ird\"", vec!["id=a", "src=we,ird"]),
            ("\"a=\"\"b\"\"\",", vec!["a=\"b\"", ""]),
            ("a=\"b\"", vec!["a=\"b\""]),
        ] {
            assert_eq!(fields(text).unwrap(), want, "{text}");
        }
        for text in ["\"a", "\"a\"b", "\""] {
            assert_eq!(fields(text).unwrap_err().code(), 1, "{text}");
        }
    }
}
