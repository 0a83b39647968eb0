//! The body of a builder's answer on its way to the client, and what is held while it is.
//!
//! Must not know: what is in it.

use super::Activity;
use super::pool::Pool;
use crate::builds::Tap;
use crate::farm::BuilderKey;
use crate::http::{Body, BodyError};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use slipway_core::generation::Generation;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Where the connection goes when the answer has been read to its end.
pub(super) struct Return {
    pub(super) pool: Arc<Pool>,
    pub(super) key: BuilderKey,
    pub(super) generation: Generation,
    pub(super) sender: SendRequest<Body>,
}

struct Relay {
    body: Incoming,
    ended: bool,
    activity: Option<Activity>,
    back: Option<Return>,
    /// Takes note of what passes.
    tap: Option<Tap>,
    token_ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Passes `body` on. It counts as activity until its end, and breaks off when the token is good no longer.
pub(super) fn relay(
    body: Incoming,
    activity: Activity,
    back: Option<Return>,
    tap: Option<Tap>,
    token_ended: &CancellationToken,
) -> Body {
    let token_ended = Box::pin(token_ended.clone().cancelled_owned());
    Relay {
        body,
        ended: false,
        activity: Some(activity),
        back,
        tap,
        token_ended,
    }
    .boxed_unsync()
}

impl hyper::body::Body for Relay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.token_ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the token is good no longer".into())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None) = polled {
            self.ended = true;
        }
        if let (Some(tap), Poll::Ready(Some(Ok(frame)))) = (&mut self.tap, &polled)
            && let Some(bytes) = frame.data_ref()
        {
            tap.told(bytes);
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let whole = self.ended || hyper::body::Body::is_end_stream(&self.body);
        if let Some(tap) = self.tap.take().filter(|_| whole) {
            tap.end();
        }
        if let Some(Return {
            pool,
            key,
            generation,
            sender,
        }) = self.back.take()
            && whole
        {
            pool.put(&key, generation, sender);
        }
        // After the connection is back, so that a busy client keeps its builder without a gap.
        drop(self.activity.take());
    }
}
