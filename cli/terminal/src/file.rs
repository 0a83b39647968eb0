//! Small files that people write: read whole, within a bound.

use crate::exit::{Failure, Outcome};
use crate::limits::CONFIG_BYTES_MAX;
use std::io::Read;
use std::path::Path;

/// Reads a text file of at most [`CONFIG_BYTES_MAX`] bytes.
///
/// # Errors
/// The caller's fault.
pub fn read_small(path: &Path) -> Outcome<String> {
    let fail = |error: std::io::Error| {
        Failure::user_caused(format_args!("read {}", path.display()), &error)
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut text = String::new();
    let read = file
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(fail)?;
    if read as u64 > CONFIG_BYTES_MAX {
        return Err(Failure::user(format!(
            "{} is larger than {CONFIG_BYTES_MAX} bytes",
            path.display()
        )));
    }
    Ok(text)
}
