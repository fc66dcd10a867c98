//! `cargo xtask vm-test`: tests the probe on other kernels and CPU topologies, in QEMU guests.
//!
//! A guest boots a kernel of Debian's archive and an initramfs with busybox, the probe and a
//! script. It mounts cgroup v2 only. The script uses CPU time in two cgroups and prints the figures
//! of the probe and of the kernel, which are compared here. In other guests it prints the energy
//! that the probe divides, which is compared with what the probe of its host attributes to it.

mod archive;
mod energy;
mod guest;
mod initramfs;
mod matrix;
mod verify;

use std::{
    fs,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use testkit::shell::{self, packages, target, which};

use self::matrix::{Guest, KERNELS, Machine, Script, Setup, name};
use crate::build_ebpf;

/// Concurrent guests. Each spends much of its time waiting.
const WORKERS: usize = 2;

#[derive(Debug, clap::Args)]
pub struct VmTest {
    /// Only guests whose name contains this, for example "6.1, two sockets" or "energy over HTTPS"
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
}

/// Boots every kernel on every machine. The last line on standard output counts the guests:
/// `10 passed, 0 failed, 0 skipped`. Guests are skipped with a reason where their kernel cannot be
/// downloaded, or this machine lacks what they need.
pub fn vm_test(args: &VmTest) -> Result<()> {
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
    let (guests, skipped) = select(&args.only, &dir);
    ensure!(!guests.is_empty() || skipped > 0, "no name of a guest contains {:?}", args.only);
    let setup = Setup { dir, probe, initramfs, kvm: AtomicBool::new(guest::has_kvm()) };
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

/// The guests whose names contain a text, and the number of those that cannot run here.
fn select(only: &str, dir: &Path) -> (Vec<Guest<'static>>, usize) {
    let (mut guests, mut skipped) = (Vec::new(), 0);
    let https = energy::requirements();
    for kernel in &KERNELS {
        let is_wanted = |(machine, script): &(&Machine, Script)| name(kernel.version, machine, *script).contains(only);
        let mut tests: Vec<_> = kernel.tests().filter(is_wanted).collect();
        let wanted = tests.len();
        if let Err(why) = &https {
            tests.retain(|(machine, script)| {
                let can_run = *script != Script::Https;
                if !can_run {
                    println!("skipped: {}: {why}", name(kernel.version, machine, *script));
                }
                can_run
            });
        }
        skipped += wanted - tests.len();
        if tests.is_empty() {
            continue;
        }
        match archive::image(kernel, dir) {
            Ok(image) => {
                let guest = |(machine, script)| Guest { kernel, machine, script, image: image.clone() };
                guests.extend(tests.into_iter().map(guest));
            }
            Err(error) => {
                println!("skipped: {} ({}): {error:#}", kernel.version, kernel.package);
                skipped += tests.len();
            }
        }
    }
    (guests, skipped)
}

/// Installs QEMU and the other tools that guests need.
fn install() -> Result<()> {
    let programs = ["qemu-system-x86_64", "busybox", "openssl"].iter().all(|program| which(program).is_some());
    let keyring = which("apt-get").is_none() || Path::new(archive::KEYRING).exists();
    if !programs || !keyring {
        packages(
            &["qemu-system-x86", "busybox-static", "openssl", "debian-archive-keyring"],
            "boot other kernels",
            "your package manager for QEMU, a static busybox, openssl and Debian's archive keyring",
        )?;
    }
    Ok(())
}

/// Runs all guests and prints each outcome; returns the number of failures.
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

/// Boots one guest and checks its figures; returns whether it passed, and the text to print.
fn run(guest: &Guest<'_>, setup: &Setup) -> (bool, String) {
    let start = Instant::now();
    let release = guest.image.file.file_name().unwrap_or_default().to_string_lossy();
    let name = name(release.trim_start_matches("vmlinuz-"), guest.machine, guest.script);
    let log = |attempt| setup.dir.join(format!("console-{}{attempt}.txt", name.replace(", ", "-").replace(' ', "-")));
    let mut report = String::new();
    let kvm = setup.kvm.load(Ordering::Relaxed);
    // The outer result is that of the guest, the inner one that of its figures.
    let boot = |kvm, log: &Path| match guest.script {
        Script::Tiers => {
            let console = guest::run(&mut guest::command(guest, &setup.initramfs, kvm, ""), log, |_| Ok(()))?;
            Ok(verify::verify(&console, guest.kernel, guest.machine))
        }
        Script::Https => energy::over_https(guest, setup, kvm, log),
        Script::Vsock => energy::over_vsock(guest, setup, kvm, log),
    };
    let outcome = boot(kvm, &log("")).or_else(|error| {
        // A 6.1 guest locked up once in nine boots after its CPU had been offline, for an unknown
        // reason.
        report.push_str(&format!("retry: {name}: {error:#}; its console is {}\n", log("").display()));
        setup.kvm.store(false, Ordering::Relaxed);
        boot(false, &log("-again"))
    });
    let outcome = outcome.flatten();
    let seconds = start.elapsed().as_secs_f64();
    match &outcome {
        Ok(findings) => {
            report.push_str(&format!("ok: {name} ({seconds:.0} s)"));
            findings.iter().for_each(|finding| report.push_str(&format!("\n    {finding}")));
        }
        Err(error) => report.push_str(&format!("FAILED: {name} ({seconds:.0} s): {error:#}")),
    }
    (outcome.is_ok(), report)
}
