//! Counters that several CPUs add to.

/// Adds to a word of a map to which other CPUs may add concurrently. The compiler supports
/// `AtomicU64::fetch_add` on this target only for newer instruction sets; this instruction is in
/// the oldest.
///
/// # Safety
/// `word` points to the value of a map element.
#[inline(always)]
pub unsafe fn add(word: *mut u64, by: u64) {
    // SAFETY: the caller's contract; one instruction that changes this word and nothing else.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) by, options(nostack)) }
}
