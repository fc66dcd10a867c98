//! One guest in QEMU, from its start to its end.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use testkit::{program::die_with_us, wait::Deadline};

use super::{Guest, Setup};

/// How long a guest may print no line of its script while it could have had a CPU. The longest
/// silence of a good one is a few seconds: its boot, or the wait for CPU time.
const SILENCE: Duration = Duration::from_secs(30);
/// The CPU time that QEMU may use meanwhile: both CPUs of a guest that is locked up spin.
const SPINNING: f64 = 60.0;

/// Whether guests can be run by KVM, which needs VT-x or AMD-V.
///
/// A `/dev/kvm` without them is that of another module, which runs guests of its own kind only: QEMU
/// opens it and does not fall back, and the guest stands still.
pub(super) fn has_kvm() -> bool {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") && Path::new("/dev/kvm").exists()
}

/// Runs a guest to its end; gives its console, which is also written to a file. With `kvm`, QEMU
/// falls back to its own emulation where it cannot open KVM.
///
/// # Errors
/// When QEMU does not start, or the guest makes no progress.
pub(super) fn boot(guest: &Guest<'_>, setup: &Setup, kvm: bool, log: &Path) -> Result<String> {
    let console = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", "q35", "-cpu", "max,vendor=GenuineIntel"])
        .args(["-accel", "kvm"].iter().filter(|_| kvm))
        .args(["-accel", "tcg,thread=multi"])
        .args(["-m", "768", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-smp", guest.machine.smp, "-kernel"])
        .arg(&guest.image)
        .arg("-initrd")
        .arg(&setup.initramfs)
        .arg("-append")
        // The check of the timer's interrupts fails, and the boot stops, where the host gives the
        // guest no CPU meanwhile. KVM guests leave it out as well (arch/x86/kernel/kvm.c).
        .arg(format!("console=ttyS0 quiet panic=-1 no_timer_check tiers={}", guest.kernel.tiers.join(",")))
        .stdin(Stdio::null())
        .stderr(console.try_clone()?)
        .stdout(console);
    die_with_us(&mut command);
    let mut qemu = command.spawn().context("cannot start QEMU")?;
    let read = || fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut progress = Progress::new(qemu.id());
    while qemu.try_wait()?.is_none() {
        if let Some(stuck) = progress.stuck(&read()?) {
            let _ = qemu.kill();
            let _ = qemu.wait();
            bail!("{stuck}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(read()?)
}

/// What a guest did since it last printed a line of its script.
struct Progress {
    pid: u32,
    lines: usize,
    since: Instant,
    deadline: Deadline,
    /// CPU time that QEMU had used then.
    used: f64,
}

impl Progress {
    fn new(pid: u32) -> Self {
        Self {
            pid,
            lines: 0,
            since: Instant::now(),
            deadline: Deadline::after(SILENCE),
            used: cpu_seconds(pid).unwrap_or(0.0),
        }
    }

    /// Why the guest is given up, once it is.
    fn stuck(&mut self, console: &str) -> Option<String> {
        let lines = script_lines(console);
        if lines > self.lines {
            *self = Self { lines, ..Self::new(self.pid) };
            return None;
        }
        let used = cpu_seconds(self.pid)? - self.used;
        let passed = self.deadline.passed();
        (passed || used > SPINNING).then(|| {
            let (seconds, lines) = (self.since.elapsed().as_secs_f64(), self.lines);
            format!("no line for {seconds:.0} s after {lines} lines, in which QEMU used {used:.0} s of CPU time")
        })
    }
}

/// Lines that the guest's script printed. What a kernel that is locked up prints, again and again,
/// is no progress.
fn script_lines(console: &str) -> usize {
    console.lines().filter(|line| line.starts_with("VM ") || line.starts_with("doctor: ")).count()
}

/// CPU time that a process used: fields 14 and 15 of its stat, in units of 1/100 s (USER_HZ).
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let times = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().ok());
    Some(times.sum::<Option<f64>>()? / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_the_script_are_progress() {
        assert_eq!(script_lines("[ 1.0] rcu: stall\nVM kernel 6.1\r\ndoctor: cpu usable\nwatchdog: BUG\n"), 2);
        let mut progress = Progress::new(std::process::id());
        assert!(progress.stuck("VM kernel 6.1\n").is_none());
        assert_eq!(progress.lines, 1);
        progress.deadline = Deadline::after(Duration::ZERO);
        assert!(progress.stuck("VM kernel 6.1\n[ 1.0] rcu: stall\n").is_some_and(|why| why.contains("after 1 lines")));
    }

    #[test]
    fn the_cpu_time_of_a_process_is_read_from_its_stat() {
        assert!(cpu_seconds(std::process::id()).is_some_and(|seconds| seconds >= 0.0));
        assert_eq!(cpu_seconds(u32::MAX), None);
    }
}
