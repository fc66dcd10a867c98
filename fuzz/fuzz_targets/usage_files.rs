//! Files with the CPU time of cgroups, and files of counters and sensors: any text is a value or
//! refused, and what the kernel prints is read back.
#![no_main]

use probe_user::{host::topology::MAX_CPUS, parsers};

libfuzzer_sys::fuzz_target!(|input: (&str, u64, Vec<u64>)| {
    let (text, value, columns) = input;
    assert!(parsers::cpu_stat(text).is_none_or(|ns| ns.len() == 1 && ns[0] % 1000 == 0));
    let stat = format!("usage_usec {value}\n{text}");
    assert_eq!(parsers::cpu_stat(&stat), value.checked_mul(1000).map(|ns| vec![ns]));
    assert!(parsers::usage_percpu(text).is_none_or(|ns| (1..=MAX_CPUS).contains(&ns.len())));
    let percpu: Vec<String> = columns.iter().map(u64::to_string).collect();
    let valid = (1..=MAX_CPUS).contains(&columns.len());
    assert_eq!(parsers::usage_percpu(&(percpu.join(" ") + " \n")), valid.then_some(columns));
    let _ = parsers::counter_value(text.as_bytes());
    assert_eq!(parsers::counter_value(format!("{value}\n").as_bytes()), Some(value));
});
