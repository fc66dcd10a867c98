//! The commands of `cargo xtask`, as a library for its tests.

#![allow(missing_docs, reason = "no API: for its own binary and tests")]

pub mod accuracy;
mod background;
pub mod bench;
pub mod build_ebpf;
mod cgroup_load;
pub mod chart;
pub mod check_dashboards;
mod compare_bench;
pub mod cross_lint;
pub mod dashboards;
mod demo;
pub mod dist;
pub mod generate;
pub mod hosts_bench;
pub mod local_images;
mod marks;
pub mod package_test;
mod peers_bench;
pub mod pictures;
mod plot;
mod process;
mod results_bench;
mod rounds;
mod scale_bench;
pub mod scrape_config;
mod scrapers;
mod search_bench;
pub mod shipped_config;
pub mod sim;
#[cfg(test)]
mod source_checks;
mod stop;
pub mod test;
mod trial;
pub mod up;
pub mod vm;
mod web_bench;
