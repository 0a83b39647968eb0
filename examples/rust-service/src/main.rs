//! Answers every HTTP request with how many there were.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

fn response(count: u64) -> String {
    let mut digits = itoa::Buffer::new();
    let body = digits.format(count);
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:8080")?;
    for (count, stream) in (1..).zip(listener.incoming()) {
        let mut stream = stream?;
        let mut head = BufReader::new(&stream).lines();
        while head.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        stream.write_all(response(count).as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn says_how_long_the_body_is() {
        assert!(super::response(1234).contains("content-length: 4\r\n"));
        assert!(super::response(1234).ends_with("\r\n\r\n1234"));
    }
}
