//! What one does with this tree, and the means that the tests share: clients, child processes, cgroups, containers.

pub mod api;
pub mod bench;
pub mod build_ebpf;
pub mod certs;
pub mod cgroup;
pub mod check_dashboards;
pub mod dashboards;
pub mod databases;
mod demo;
pub mod dist;
pub mod docker;
pub mod generate;
pub mod local_images;
pub mod nginx;
pub mod pictures;
pub mod ping_pong;
pub mod places;
pub mod program;
mod results_bench;
pub mod scrape;
pub mod shell;
pub mod sim;
mod stop;
pub mod test;
pub mod up;
pub mod vm;
mod web_bench;
