//! The figures from which the headroom of a host is forecast.

use super::{
    gpu::{BOARD, board, used},
    *,
};
use crate::{gpu::engines::Engine, snapshot::HostCpu};

#[test]
fn host_cpu_time_is_that_of_every_target() {
    let mut machine = Machine::new(setup(&[package(0)], 2), IdlePolicy::Separate, 1);
    machine.uses(0, 10).runs(1, 1, SECOND / 2).runs(10, 0, SECOND).tick(SECOND);
    let snapshot = machine.uses(0, 10).runs(10, 0, SECOND / 4).tick(SECOND);
    let time = RunTime::alone(SECOND / 2 + SECOND + SECOND / 4);
    assert_eq!(snapshot.host_cpu, HostCpu { time, online: 2, siblings_known: true });
}

#[test]
fn engine_use_is_known_by_gpu_and_by_job() {
    let mut machine = Machine::new(setup(&[package(0)], 1), IdlePolicy::Separate, 2);
    machine.add_zone(board(BOARD));
    let mut of_job = used(Some(0), Engine::Encoder, SECOND / 4);
    of_job.job = Some(7);
    machine.set_usage(BOARD, vec![of_job, used(None, Engine::Encoder, SECOND / 2)]).second();
    let snapshot = machine.second();
    let encoder = |job| snapshot.engine_use.get(&(BOARD, job)).map(|times| times[Engine::Encoder.index()]);
    assert_eq!((encoder(Some(7)), encoder(None)), (Some(SECOND / 2), Some(3 * SECOND / 2)));
    machine.raw.changes.jobs_gone = vec![7];
    let snapshot = machine.set_usage(BOARD, Vec::new()).second();
    assert_eq!(snapshot.engine_use.keys().collect::<Vec<_>>(), [&(BOARD, None)], "a removed job leaves nothing");
}
