//! One file per verb: what each command asks for and prints. No command knows another.

pub(crate) mod apps;
pub(crate) mod builders;
pub(crate) mod builds;
pub(crate) mod buildx;
pub(crate) mod completions;
mod confirm;
pub(crate) mod context;
pub(crate) mod docker_context;
pub(crate) mod docs;
pub(crate) mod init;
pub(crate) mod login;
pub(crate) mod orgs;
pub(crate) mod registry;
pub(crate) mod status;
pub(crate) mod tokens;
pub(crate) mod volumes;
pub(crate) mod whoami;
