//! Pushes a built image from the place where its layers lie to an OCI registry.
//!
//! Owns the layer sources (dockerd's overlay2 store, containerd's content store, OCI layouts and `docker save` archives), compression,
//! the upload and its proof. Knows nothing of Slipway: no orgs, builds or machines. One push is [`push`]; `slipway-push` is the same thing for a shell.
//!
//! ```text
//! layer directory + tar-split ─▶ read, sha256 (diffID) ─▶ compress members in parallel ─▶ sha256 (digest) ─▶ upload
//! ```
//!
//! Every arrow is a bounded queue, so a slow registry slows the reading down and memory stays flat. The manifest is sent
//! only when each layer was read whole, hashed to the diffID that the config names, and stored by the registry.

mod blame;
mod challenge;
mod compress;
mod digest;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod index;
mod lend;
pub mod limits;
mod manifest;
mod options;
mod pipeline;
mod pool;
mod push;
mod registry;
mod report;
mod source;
pub mod spool;
mod target;

pub use blame::Blame;
pub use challenge::ChallengeError;
pub use compress::{Codec, CodecError};
pub use digest::{Digest, DigestError};
pub use error::{ProtocolFault, PushError, Said};
pub use index::IndexError;
pub use lend::{Lender, Lent, NotLent, Reach, Scope};
pub use manifest::Packing;
pub use options::PushOptions;
pub use push::{Checker, Push, push};
pub use registry::{Exchange, Wanted};
pub use report::{Progress, PushState, Pushed, PushedLayer};
pub use source::{
    Content, DockerStore, Export, ImageSource, IndexSource, LayerReader, LayerSource, Layout,
    Packed, Place, Platform, SourceError, Statement,
};
pub use target::{Credential, Target, TargetError};
