//! Type information of a kernel (BTF) from any bytes.
#![no_main]

use probe_user::cpu::btf::Btf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(btf) = Btf::parse(bytes) {
        let _ = btf.field("task_struct", &["se", "sum_exec_runtime"]);
        let _ = btf.field("css_set", &["subsys"]);
        let _ = btf.arguments("btf_trace_sched_switch");
        let _ = btf.enumerator("cgroup_subsys_id", "cpu_cgrp_id");
    }
});
