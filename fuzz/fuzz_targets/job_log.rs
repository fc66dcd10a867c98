//! The end of a job log: any bytes give the jobs of its lines, and a repair after which the last
//! line is complete.
#![no_main]

use analysis::streams::job_log::logged_jobs;
use cli::line_file::{LineFormat, Repair, needed_repair};

libfuzzer_sys::fuzz_target!(|tail: &[u8]| {
    let before = logged_jobs(tail);
    let mut repaired = tail.to_vec();
    match needed_repair(tail, true, LineFormat::Json) {
        Repair::None => {}
        Repair::EndLine => repaired.push(b'\n'),
        Repair::Remove(bytes) => repaired.truncate(tail.len() - usize::try_from(bytes).unwrap()),
    }
    assert_eq!(needed_repair(&repaired, true, LineFormat::Json), Repair::None);
    assert!(logged_jobs(&repaired).is_subset(&before));
});
