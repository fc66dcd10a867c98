//! The live page's API: `/api/v1/now`, `/api/v1/series` and `/api/v1/events`.
//!
//! A tick costs the sampler a few figures that the ring does not have. Everything else is rendered
//! on request, on another thread than the sampler's, once per tick and request, and shared: fifty
//! pages cost what one does.

mod about;
mod columns;
mod events;
mod now;
mod series;
mod state;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
    routing::get,
};
use serde::Deserialize;

use self::{
    series::SeriesQuery,
    state::{DEFAULT_CONTAINERS, MAX_CONTAINERS, Request},
};
use crate::endpoints::error::error_response;

pub use self::about::ShownRecording;
pub(super) use self::state::Live;

/// The routes of the live page's API.
pub(super) fn routes(live: Arc<Live>) -> Router {
    Router::new()
        .route("/api/v1/now", get(now))
        .route("/api/v1/series", get(series))
        .route("/api/v1/events", get(events::events))
        .with_state(live)
}

#[derive(Deserialize)]
struct NowQuery {
    containers: Option<usize>,
}

async fn now(State(live): State<Arc<Live>>, query: Result<Query<NowQuery>, QueryRejection>) -> Response {
    let Ok(Query(NowQuery { containers })) = query else {
        return error_response(
            StatusCode::BAD_REQUEST,
            "invalid_query",
            "containers must be a number: /api/v1/now?containers=20",
        );
    };
    live.answer(Request::Now(containers.unwrap_or(DEFAULT_CONTAINERS).min(MAX_CONTAINERS))).await
}

async fn series(State(live): State<Arc<Live>>, query: Result<Query<SeriesQuery>, QueryRejection>) -> Response {
    let request = query.ok().and_then(|Query(query)| query.request(live.tick()));
    let Some(request) = request else {
        return error_response(
            StatusCode::BAD_REQUEST,
            "invalid_query",
            "seconds, step and containers must be numbers: /api/v1/series?seconds=900&step=5&containers=8",
        );
    };
    live.answer(Request::Series(request)).await
}
