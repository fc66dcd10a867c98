//! Errors of the JSON API.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;

/// An error for programs.
#[derive(Serialize)]
struct ErrorResponse {
    code: &'static str,
    error: String,
}

pub(super) fn error_response(status: StatusCode, code: &'static str, error: impl Into<String>) -> Response {
    (status, Json(ErrorResponse { code, error: error.into() })).into_response()
}

/// Before the first tick.
pub(super) fn starting() -> Response {
    error_response(StatusCode::SERVICE_UNAVAILABLE, "starting", "no measurement yet; try again in a second")
}
