//! What differs between operating systems, under one name each: the rest of the client is the same everywhere.
//!
//! Must not know what any of it is for.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub(crate) use unix::{
    AGENT_PIPE, DOCKER_SOCKET, LocalStream, connect_local, create_private, is_listening, is_socket,
    keep_private, let_others_read,
};
#[cfg(windows)]
pub(crate) use windows::{
    AGENT_PIPE, DOCKER_SOCKET, LocalStream, connect_local, create_private, is_listening, is_socket,
    keep_private, let_others_read,
};
