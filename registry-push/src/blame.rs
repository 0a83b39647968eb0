//! Who can mend a failure. Knows no failure.

/// Who can mend a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The one who asked for the push: wrong name, credential or size.
    User,
    /// The registry: it failed or broke the protocol.
    Registry,
    /// The way to the registry.
    Network,
    /// This machine: its layers, memory or certificates.
    Local,
}
