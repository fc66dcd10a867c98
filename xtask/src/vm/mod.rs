//! `cargo xtask vm-test`: the probe on other kernels and other machines, in QEMU guests.
//!
//! A guest is a kernel of Debian's archive and an initramfs that holds busybox, the probe and a
//! script. Its only tree is cgroup v2. The script burns CPU time in two cgroups and prints what the
//! probe and the kernel say of them; the comparison is here.

mod archive;
mod guest;
mod initramfs;
mod judge;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Result, bail};
use testkit::shell::{self, packages, target, which};

use crate::build_ebpf;

/// A kernel for guests.
struct Kernel {
    /// What its release begins with.
    version: &'static str,
    suite: &'static str,
    /// The package that depends on the newest build.
    package: &'static str,
    /// The tiers of CPU time that work on it.
    tiers: &'static [&'static str],
}

/// The oldest kernel that Wattcast supports, and two of Debian 12.
const KERNELS: [Kernel; 3] = [
    // The iterator over cgroups, which the tier `kernel` needs, came with 6.1.
    Kernel {
        version: "5.10",
        suite: "bullseye-security",
        package: "linux-image-cloud-amd64",
        tiers: &["switch", "files"],
    },
    Kernel { version: "6.1", suite: "bookworm-security", package: "linux-image-cloud-amd64", tiers: &TIERS },
    Kernel { version: "6.12", suite: "bookworm-security", package: "linux-image-6.12-cloud-amd64", tiers: &TIERS },
];

/// Every tier of CPU time that a guest can have. QEMU shows no hardware counters.
const TIERS: [&str; 3] = ["switch", "kernel", "files"];

/// The topology that QEMU shows.
struct Machine {
    name: &'static str,
    smp: &'static str,
    packages: usize,
    /// Two threads on a core.
    siblings: bool,
}

const MACHINES: [Machine; 2] = [
    Machine { name: "two sockets", smp: "2,sockets=2", packages: 2, siblings: false },
    Machine { name: "two threads a core", smp: "2,threads=2", packages: 1, siblings: true },
];

/// Guests that run at once. Each waits for a good part of its time.
const WORKERS: usize = 2;

/// What the guests of a run share.
struct Setup {
    dir: PathBuf,
    initramfs: PathBuf,
    /// False once a guest stood still under KVM.
    kvm: AtomicBool,
}

/// One boot of the matrix.
struct Guest<'a> {
    kernel: &'a Kernel,
    machine: &'a Machine,
    image: PathBuf,
}

/// Boots every kernel on every machine. The last line on standard output counts the guests:
/// `6 passed, 0 failed, 0 skipped`.
///
/// # Errors
/// When a guest shows a wrong figure. A kernel that the archive does not have is skipped, with its
/// reason.
pub fn vm_test() -> Result<()> {
    let start = Instant::now();
    install()?;
    if std::env::var_os(shell::PROGRAMS).is_none() {
        build_ebpf::build_ebpf()?;
    }
    let probe = shell::programs()?.join("wattcast-probe");
    let dir = target().join("vm");
    fs::create_dir_all(&dir)?;
    let initramfs = dir.join("initramfs.cpio");
    initramfs::pack(&probe, &initramfs)?;
    let (mut guests, mut skipped) = (Vec::new(), 0);
    for kernel in &KERNELS {
        match archive::image(kernel.suite, kernel.package, &dir) {
            Ok(image) => guests.extend(MACHINES.iter().map(|machine| Guest { kernel, machine, image: image.clone() })),
            Err(error) => {
                println!("skipped: {} ({}): {error:#}", kernel.version, kernel.package);
                skipped += MACHINES.len();
            }
        }
    }
    let setup = Setup { dir, initramfs, kvm: AtomicBool::new(guest::has_kvm()) };
    let accelerator = if setup.kvm.load(Ordering::Relaxed) { "KVM" } else { "software emulation (no VT-x or AMD-V)" };
    println!("{} guests, {WORKERS} at a time, by {accelerator}", guests.len());
    let failed = run_all(&guests, &setup);
    println!("{:.0} s", start.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed, {skipped} skipped", guests.len() - failed);
    if failed > 0 {
        bail!("{failed} guests failed; their consoles are in {}", setup.dir.display());
    }
    Ok(())
}

/// Installs what boots guests.
fn install() -> Result<()> {
    let programs = which("qemu-system-x86_64").is_some() && which("busybox").is_some();
    let keyring = which("apt-get").is_none() || Path::new(archive::KEYRING).exists();
    if !programs || !keyring {
        packages(
            &["qemu-system-x86", "busybox-static", "debian-archive-keyring"],
            "boot other kernels",
            "your package manager for QEMU, a static busybox and Debian's archive keyring",
        )?;
    }
    Ok(())
}

/// Runs all guests and prints each outcome; gives how many failed.
fn run_all(guests: &[Guest<'_>], setup: &Setup) -> usize {
    let (next, failed, printing) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(()));
    let work = || {
        while let Some(guest) = guests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (passed, report) = run(guest, setup);
            if !passed {
                failed.fetch_add(1, Ordering::Relaxed);
            }
            let _whole = printing.lock().unwrap_or_else(PoisonError::into_inner);
            println!("{report}");
        }
    };
    thread::scope(|scope| (0..WORKERS).for_each(|_| drop(scope.spawn(work))));
    failed.into_inner()
}

/// Boots one guest and judges its figures; gives whether it passed, and what to print.
fn run(guest: &Guest<'_>, setup: &Setup) -> (bool, String) {
    let start = Instant::now();
    let release = guest.image.file_name().unwrap_or_default().to_string_lossy();
    let what = format!("{}, {}", release.trim_start_matches("vmlinuz-"), guest.machine.name);
    let log = |attempt| setup.dir.join(format!("console-{}{attempt}.txt", what.replace(", ", "-").replace(' ', "-")));
    let mut report = String::new();
    let kvm = setup.kvm.load(Ordering::Relaxed);
    let console = guest::boot(guest, setup, kvm, &log("")).or_else(|error| {
        // A guest of 6.1 locked up once in nine boots after its CPU had been offline; the cause is
        // not known.
        report.push_str(&format!("again: {what}: {error:#}; its console is {}\n", log("").display()));
        setup.kvm.store(false, Ordering::Relaxed);
        guest::boot(guest, setup, false, &log("-again"))
    });
    let outcome = console.and_then(|console| judge::judge(&console, guest.kernel, guest.machine));
    let seconds = start.elapsed().as_secs_f64();
    match &outcome {
        Ok(findings) => {
            report.push_str(&format!("ok: {what} ({seconds:.0} s)"));
            findings.iter().for_each(|finding| report.push_str(&format!("\n    {finding}")));
        }
        Err(error) => report.push_str(&format!("FAILED: {what} ({seconds:.0} s): {error:#}")),
    }
    (outcome.is_ok(), report)
}
