//! What one does with this tree, and the means that the tests share: clients, child processes, cgroups, containers.

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
pub mod places;
mod results_bench;
pub mod scrape;
pub mod sim;
mod stop;
pub mod test;
pub mod up;
pub mod vm;
mod web_bench;
