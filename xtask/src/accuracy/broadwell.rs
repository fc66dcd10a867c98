//! Mean watts of a two-socket Xeon Broadwell: RAPL of both packages and their memory, artifact of
//! "An Experimental Setup to Evaluate RAPL Energy Counters for Heterogeneous Memory", ICPE 2024
//! (lukalt/icpe-2024-rapl-validation).

use std::path::Path;

use anyhow::{Context, Result};

use super::csv::Csv;

const FILE: &str = "icpe24-broadwell-mean-power.csv";
/// CPUs of a package here: as many as the largest number of threads of a run.
pub(super) const CPUS: usize = 32;
/// Standard deviation of the watts of a second.
pub(super) const NOISE: f64 = 0.4;

/// One run.
struct Run {
    config: String,
    workload: String,
    watts: [f64; 2],
}

/// All runs.
pub(super) struct Broadwell(Vec<Run>);

/// The configurations whose threads and memory are on one socket: the end of their names, and the
/// socket.
pub(super) const PINNED: [(&str, usize); 2] = [("socket0", 0), ("socket1", 1)];

impl Broadwell {
    /// Reads the file in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let csv = Csv::read(&dir.join(FILE))?;
        let (configs, workloads) = (csv.column("config")?, csv.column("workload")?);
        let (first, second) = (csv.numbers("pkg0_w")?, csv.numbers("pkg1_w")?);
        let runs = configs.into_iter().zip(workloads).zip(first.into_iter().zip(second));
        let runs = runs.map(|((config, workload), (first, second))| Run {
            config: config.to_owned(),
            workload: workload.to_owned(),
            watts: [first, second],
        });
        Ok(Self(runs.collect()))
    }

    /// Watts of both packages while a workload runs in the configurations with this ending; the
    /// mean of several.
    pub(super) fn watts(&self, config: &str, workload: &str) -> Result<[f64; 2]> {
        let fits = |run: &&Run| run.config.ends_with(config) && run.workload == workload;
        let found: Vec<[f64; 2]> = self.0.iter().filter(fits).map(|run| run.watts).collect();
        let mean = |package: usize| found.iter().map(|watts| watts[package]).sum::<f64>() / found.len() as f64;
        (!found.is_empty()).then(|| [mean(0), mean(1)]).with_context(|| format!("{FILE}: no {workload} in {config}"))
    }

    /// As [`Broadwell::watts`], with the copy benchmark on this number of threads; 0 for none.
    pub(super) fn at(&self, config: &str, threads: usize) -> Result<[f64; 2]> {
        if threads == 0 { self.watts(config, "idle") } else { self.watts(config, &format!("stream_copy_{threads}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_by_the_end_of_their_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let text = "machine,config,workload,seconds,pkg0_w,pkg1_w,ram0_w,ram1_w\n\
                    b,a-socket0,idle,10.1,14,12,1,1\nb,b-socket0,idle,10.1,16,13,1,1\n\
                    b,a-socket1,stream_copy_4,1,31,46,1,4\n";
        std::fs::write(dir.path().join(FILE), text).unwrap();
        let runs = Broadwell::read(dir.path()).unwrap();
        assert_eq!(runs.at("socket0", 0).unwrap(), [15.0, 12.5]);
        assert_eq!(runs.at("socket1", 4).unwrap(), [31.0, 46.0]);
        assert!(runs.at("socket1", 0).is_err());
    }
}
