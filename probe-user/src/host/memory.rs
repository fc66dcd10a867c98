//! Memory of this process: free memory that the allocator keeps, and pages of the program that only
//! its start needed.

#![allow(unsafe_code)]

use std::{fs, ops::Range, ptr};

/// Size from which a block has pages of its own, which the kernel gets back when it is freed.
///
/// glibc raises its own limit to the largest block that was freed, up to 32 MiB: then the pages of
/// metrics, which grow while they are written, leave holes of their size between smaller blocks.
#[cfg(target_env = "gnu")]
const OWN_PAGES: libc::c_int = 512 << 10;

/// Makes all threads share one arena of glibc's allocator, which keeps no large free blocks. Call
/// it before a second thread starts.
///
/// Each thread would get an arena, which keeps what the thread has freed, for itself. Threads of
/// the probe allocate seldom at the same time.
pub(crate) fn configure_allocator() {
    // SAFETY: mallopt changes a setting of the allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_PAGES);
    }
}

/// Returns free memory to the kernel, which the allocator would keep.
pub(crate) fn trim_heap() {
    // SAFETY: malloc_trim returns free memory to the kernel and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Mappings of the program and of the libraries that it needs, which are never unmapped. Call it
/// before a second thread starts, which could load or unload others.
pub(crate) fn program_mappings() -> Vec<Range<usize>> {
    fs::read_to_string("/proc/self/maps").unwrap_or_default().lines().filter_map(read_only).collect()
}

/// Returns to the kernel what the start needed and the following ticks do not: free memory of the
/// allocator, and unmodified pages of [`program_mappings`], which a later use maps again from the
/// page cache.
///
/// The start parses flags, files and the kernel's types, and loads programs: most of the code, and
/// none of it runs again. Each of its pages would count as resident memory until the kernel runs
/// out of memory.
pub(crate) fn release_start(program: &[Range<usize>]) {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for mapping in unmodified(&smaps).into_iter().filter(|mapping| program.contains(mapping)) {
        let (first, bytes) = (ptr::with_exposed_provenance_mut(mapping.start), mapping.end - mapping.start);
        // SAFETY: a private mapping of a file that cannot be written and has no page of its own,
        // so its content is that of the file, also after its pages were unmapped. It is not that of
        // a library which another thread loads or unloads meanwhile. A failure changes nothing.
        unsafe { libc::madvise(first, bytes, libc::MADV_DONTNEED) };
    }
    trim_heap();
}

/// Private mappings of files without write access, none of whose pages was modified: code and
/// constants, without those that the loader has changed (man 5 proc, smaps).
fn unmodified(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !first.ends_with(':') {
            mapping = read_only(line);
        } else if first == "Anonymous:" && second == "0" {
            found.extend(mapping.take());
        }
    }
    found
}

/// The range in the line of a mapping, if it is a private one of a file without write access.
fn read_only(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_ascii_whitespace();
    let (addresses, access) = (words.next()?, words.next()?);
    let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    range(addresses).filter(|_| is_file && matches!(access, "r-xp" | "r--p"))
}

fn range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?).filter(|range| range.start < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modified_writable_and_shared_mappings_are_kept() {
        let smaps = "\
5600-5700 r-xp 00001000 fe:00 42    /usr/bin/program
Rss:                   4 kB
Anonymous:             0 kB
5700-5800 r--p 00002000 fe:00 42    /usr/bin/program
Anonymous:             4 kB
5800-5900 rw-p 00003000 fe:00 42    /usr/bin/program
Anonymous:             0 kB
5900-5a00 r--s 00000000 00:10 1038  anon_inode:bpf-map
Anonymous:             0 kB
5a00-5b00 r--p 00000000 00:00 0
Anonymous:             0 kB
5b00-5c00 r--p 00000000 fe:00 43    /usr/lib/with space.so
Anonymous:             0 kB
";
        assert_eq!(unmodified(smaps), [0x5600..0x5700, 0x5b00..0x5c00]);
        assert_eq!(unmodified("5c00-5b00 r--p 0 0 0 /x\nAnonymous: 0 kB\nz-y r--p 0 0 0 /x\n"), []);
    }

    #[test]
    fn the_program_continues_with_its_code_and_constants() {
        static CONSTANTS: [u8; 8192] = [7; 8192];
        configure_allocator();
        let program = program_mappings();
        assert!(!program.is_empty());
        let before: u64 = CONSTANTS.iter().map(|byte| u64::from(*byte)).sum();
        release_start(&program);
        let after: u64 = std::hint::black_box(&CONSTANTS).iter().map(|byte| u64::from(*byte)).sum();
        assert_eq!((before, after), (7 * 8192, 7 * 8192));
    }
}
