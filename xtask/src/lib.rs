//! The commands of `cargo xtask`, as a library for its tests.

#![allow(missing_docs, reason = "no API: for its own binary and tests")]

pub mod accuracy;
mod background;
pub mod bench;
pub mod build_ebpf;
pub mod check_dashboards;
pub mod cross_lint;
pub mod dashboards;
mod demo;
pub mod dist;
pub mod generate;
pub mod local_images;
pub mod package_test;
pub mod pictures;
mod results_bench;
pub mod scrape_config;
pub mod shipped_config;
pub mod sim;
#[cfg(test)]
mod source_checks;
mod stop;
pub mod test;
pub mod up;
pub mod vm;
mod web_bench;
