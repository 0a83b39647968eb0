//! Compares a text with the one on file. `UPDATE_SNAPSHOTS=1 cargo test -p slipway-host` writes the file anew.

use std::path::Path;

/// Panics with both texts when they differ. `file` is below `src`.
pub(crate) fn check(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{file} differs. Now:\n{text}\nOn file:\n{expected}"
    );
}
