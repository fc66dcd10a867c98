//! `/api/v1/events`: server-sent events, one for each tick.
//!
//! A client that reads slowly skips ticks; no queue grows for it.

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready as poll_ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse as _, Response},
};
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::state::{Feed, Live, MAX_CLIENTS};
use crate::endpoints::error::error_response;

/// Interval of comments while there is no event, so that a connection that has ended is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The first line: clients connect again after two seconds.
const FIRST: &[u8] = b"retry: 2000\n\n";
const COMMENT: &[u8] = b":\n\n";
const END: &[u8] = b"event: end\ndata: {}\n\n";

/// One client.
struct Subscription {
    live: Arc<Live>,
    feed: watch::Receiver<Feed>,
    _permit: OwnedSemaphorePermit,
}

impl Subscription {
    /// The next text, and the subscription while there is more.
    async fn next(mut self) -> (Bytes, Option<Self>) {
        let changed = tokio::time::timeout(KEEP_ALIVE, self.feed.changed()).await;
        let feed = match changed {
            Err(_) => return (Bytes::from_static(COMMENT), Some(self)),
            Ok(Err(_)) => Feed::End,
            Ok(Ok(())) => self.feed.borrow_and_update().clone(),
        };
        match feed {
            Feed::Starting => (Bytes::from_static(COMMENT), Some(self)),
            Feed::Tick(tick) => (self.live.event(&tick), Some(self)),
            Feed::End => (Bytes::from_static(END), None),
        }
    }
}

type Next = Pin<Box<dyn Future<Output = (Bytes, Option<Subscription>)> + Send>>;

/// The body of a response. It ends with the program.
struct Events {
    next: Option<Next>,
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let (text, subscription) = poll_ready!(next.as_mut().poll(context));
        self.next = subscription.map(|subscription| -> Next { Box::pin(subscription.next()) });
        Poll::Ready(Some(Ok(Frame::data(text))))
    }
}

pub(super) async fn events(State(live): State<Arc<Live>>) -> Response {
    let Some((feed, permit)) = live.subscribe() else {
        return error_response(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_clients",
            format!("{MAX_CLIENTS} clients read events already; use /api/v1/now"),
        );
    };
    let subscription = Subscription { live, feed, _permit: permit };
    let next: Next = Box::pin(ready((Bytes::from_static(FIRST), Some(subscription))));
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    (headers, Body::new(Events { next: Some(next) })).into_response()
}
