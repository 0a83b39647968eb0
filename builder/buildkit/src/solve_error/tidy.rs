//! Messages as a person may read them. Pure.
//!
//! It must not know what a message says.

use crate::limits;
use regex::Regex;
use std::borrow::Cow;
use std::sync::LazyLock;

/// Directories in which an engine keeps layers and mounts them for a step, up to the root that the step sees.
static STORES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let store = r#"(?:/[^/\s"':]+)*/(?:overlay2/[^/\s"':]+/(?:merged|diff)|(?:btrfs/subvolumes|vfs/dir)/[^/\s"':]+|snapshots/\d+/fs|(?:buildkit|containerd)-mount\d+)"#;
    Regex::new(store).ok()
});

/// A message without the builder's own paths and without the words of RPCs, within its bound.
pub(crate) fn tidy(message: &str) -> Cow<'_, str> {
    let mut text = Cow::from(message);
    let rpc = "rpc error: code = Unknown desc = ";
    if text.contains(rpc) {
        text = text.replace(rpc, "").into();
    }
    if let Some(stores) = STORES.as_ref()
        && stores.is_match(&text)
    {
        text = stores.replace_all(&text, "").into_owned().into();
    }
    if text.len() > limits::ERROR_MESSAGE_BYTES_MAX {
        let cut = text.ceil_char_boundary(text.len() - limits::ERROR_MESSAGE_BYTES_MAX);
        text = format!("... {}", &text[cut..]).into();
    }
    text
}
