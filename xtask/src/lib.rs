//! What one does with this tree, and the means that the tests share: clients, child processes, cgroups, containers.

pub mod api;
pub mod bench;
pub mod build_ebpf;
pub mod cgroup;
mod demo;
pub mod docker;
pub mod ping_pong;
pub mod program;
mod results_bench;
pub mod shell;
pub mod sim;
mod stop;
pub mod test;
pub mod up;
pub mod vm;
