//! Buffers of one size that are used again and again, so that reading a layer touches the same memory all the time.
//!
//! Knows nothing of what is in them.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps buffers that came back, up to a bound; more are made when none is there.
#[derive(Clone)]
pub(crate) struct Pool {
    free: Arc<Mutex<Vec<Box<[u8]>>>>,
    size: usize,
    keep: usize,
}

impl Pool {
    /// Buffers of `size` bytes, of which at most `keep` wait for use.
    pub(crate) fn new(size: usize, keep: usize) -> Pool {
        Pool {
            free: Arc::default(),
            size,
            keep,
        }
    }

    /// A buffer whose content is left from before.
    pub(crate) fn take(&self) -> Buffer {
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Buffer {
            bytes: free.unwrap_or_else(|| vec![0; self.size].into_boxed_slice()),
            length: 0,
            home: self.clone(),
        }
    }
}

/// One buffer on loan. It goes home when the last of its [`Bytes`] is dropped.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    length: usize,
    home: Pool,
}

impl Buffer {
    /// All of it, to be filled.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Its first `length` bytes, to be read by anyone.
    pub(crate) fn freeze(mut self, length: usize) -> Bytes {
        self.length = length.min(self.bytes.len());
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self
            .home
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.home.keep {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_reader_is_done() {
        let pool = Pool::new(8, 1);
        let mut buffer = pool.take();
        buffer.room()[..3].copy_from_slice(b"abc");
        let at = buffer.room().as_ptr();
        let bytes = buffer.freeze(3);
        let other = bytes.clone();
        drop(bytes);
        assert_ne!(pool.take().room().as_ptr(), at, "still read");
        assert_eq!(&other[..], b"abc");
        // The one taken above fills the pool; make room for this one.
        let held = pool.take();
        drop(other);
        assert_eq!(pool.take().room().as_ptr(), at);
        drop(held);
        assert!(pool.free.lock().expect("free").len() <= 1);
    }
}
