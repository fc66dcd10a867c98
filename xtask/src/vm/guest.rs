//! Runs one guest in QEMU.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use testkit::{
    program::{cpu_seconds, kill_on_parent_exit},
    wait::Deadline,
};

use super::matrix::Guest;

/// Time limit between two lines of the guest's script, counted as a [`Deadline`]. A working guest
/// takes a few seconds at most, for its boot or for using CPU time.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of QEMU's CPU seconds between two lines: the CPUs of a locked-up guest spin.
const MAX_CPU_SECONDS: f64 = 60.0;

/// True if KVM can run guests, which needs VT-x or AMD-V.
///
/// A `/dev/kvm` without them belongs to another module, which cannot run QEMU guests: QEMU opens it
/// without an error, and the guest hangs.
pub(super) fn has_kvm() -> bool {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") && Path::new("/dev/kvm").exists()
}

/// QEMU for a guest. With `kvm`, it falls back to software emulation if it cannot open KVM.
/// `parameters` are further words of the kernel's command line.
pub(super) fn command(guest: &Guest<'_>, initramfs: &Path, kvm: bool, parameters: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", "q35", "-cpu", "max,vendor=GenuineIntel"])
        .args(["-accel", "kvm"].iter().filter(|_| kvm))
        // With a thread per CPU, an emulated CPU can run a breakpoint that the kernel has already
        // replaced, while it switches a tracepoint on, and panics with "Oops: int3"
        // (https://bugzilla.redhat.com/show_bug.cgi?id=2216496; here in 1 of 19 boots of 6.12).
        .args(["-accel", "tcg,thread=single"])
        .args(["-m", "768", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-smp", guest.machine.smp, "-kernel"])
        .arg(&guest.image.file)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        // The boot stops if the check of timer interrupts fails, which happens when the host gives
        // the guest no CPU time. KVM guests skip this check as well (arch/x86/kernel/kvm.c).
        .arg(format!(
            "console=ttyS0 quiet panic=-1 no_timer_check {} tiers={} {parameters}",
            guest.script.parameters(),
            guest.kernel.tiers.join(",")
        ));
    command
}

/// Runs QEMU until the guest ends; returns its console output, which is also written to a file.
/// `watch` gets the output of each tenth of a second so far.
///
/// # Errors
/// When QEMU does not start, the guest makes no progress, or `watch` fails.
pub(super) fn run(command: &mut Command, log: &Path, mut watch: impl FnMut(&str) -> Result<()>) -> Result<String> {
    let console = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stderr(console.try_clone()?).stdout(console);
    kill_on_parent_exit(command);
    let mut qemu = command.spawn().context("cannot start QEMU")?;
    let read = || Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(log)?).into_owned());
    let mut progress = Progress::new(qemu.id());
    let mut check = || {
        let console = read()?;
        if let Some(stuck) = progress.stuck(&console) {
            bail!("{stuck}");
        }
        watch(&console)
    };
    while qemu.try_wait()?.is_none() {
        if let Err(error) = check() {
            let _ = qemu.kill();
            let _ = qemu.wait();
            return Err(error);
        }
        thread::sleep(Duration::from_millis(100));
    }
    read()
}

/// The state of a guest since the last line of its script.
struct Progress {
    pid: u32,
    lines: usize,
    since: Instant,
    deadline: Deadline,
    /// CPU seconds of QEMU at that line.
    cpu_seconds: f64,
}

impl Progress {
    fn new(pid: u32) -> Self {
        Self {
            pid,
            lines: 0,
            since: Instant::now(),
            deadline: Deadline::after(OUTPUT_TIMEOUT),
            cpu_seconds: cpu_seconds(pid).unwrap_or(0.0),
        }
    }

    /// The reason to stop the guest, once it makes no progress.
    fn stuck(&mut self, console: &str) -> Option<String> {
        let lines = script_lines(console);
        if lines > self.lines {
            *self = Self { lines, ..Self::new(self.pid) };
            return None;
        }
        let used = cpu_seconds(self.pid)? - self.cpu_seconds;
        let passed = self.deadline.passed();
        (passed || used > MAX_CPU_SECONDS).then(|| {
            let (seconds, lines) = (self.since.elapsed().as_secs_f64(), self.lines);
            format!("no line for {seconds:.0} s after {lines} lines, in which QEMU used {used:.0} s of CPU time")
        })
    }
}

/// The number of lines from the guest's script. Kernel messages are no progress: a locked-up kernel
/// repeats them.
fn script_lines(console: &str) -> usize {
    console.lines().filter(|line| line.starts_with("VM ") || line.starts_with("doctor: ")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_script_lines_are_progress() {
        assert_eq!(script_lines("[ 1.0] rcu: stall\nVM kernel 6.1\r\ndoctor: cpu usable\nwatchdog: BUG\n"), 2);
        let mut progress = Progress::new(std::process::id());
        assert!(progress.stuck("VM kernel 6.1\n").is_none());
        assert_eq!(progress.lines, 1);
        progress.deadline = Deadline::after(Duration::ZERO);
        assert!(progress.stuck("VM kernel 6.1\n[ 1.0] rcu: stall\n").is_some_and(|why| why.contains("after 1 lines")));
    }
}
