//! Files of processes, whose names and cgroups any user can choose.
#![no_main]

use probe_user::parsers;

libfuzzer_sys::fuzz_target!(|input: (&str, &[u8], u64)| {
    let (text, name, flags) = input;
    let _ = (parsers::process_flags(name), parsers::v1_hierarchy(text), parsers::thread_time(text));
    let stat = [&b"7 ("[..], name, format!(") R 1 7 7 0 -1 {flags} 0 0\n").as_bytes()].concat();
    assert_eq!(parsers::process_flags(&stat), Some(flags), "no name moves the fields after it");
    assert_eq!(parsers::thread_time(&format!("{flags} {text}")), Some(flags));
    assert_eq!(parsers::v1_hierarchy(&format!("4:cpu,cpuacct:/{text}")), Some(4));
});
