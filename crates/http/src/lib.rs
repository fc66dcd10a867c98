//! HTTP server of both programs.
//!
//! - [`server`]: listeners, routes, graceful shutdown
//! - [`negotiate`]: choice of the response format from request headers
//! - [`web`]: TLS, authentication and rate limit from `--web.config.file`
//! - `connections` and `peers`: connection limit and eviction of idle connections
//! - [`rejections`]: counters of rejected connections and requests
//! - [`index_page`]: the HTML page at `/`
//! - [`healthcheck`]: client for container health checks
//! - [`flags`] and [`listen`]: the `--web.*` flags and listen addresses

#![forbid(unsafe_code)]

mod connections;
pub mod flags;
pub mod healthcheck;
pub mod index_page;
pub mod listen;
pub mod negotiate;
mod peers;
pub mod rejections;
pub mod server;
pub mod web;
