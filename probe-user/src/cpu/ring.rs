//! A ring buffer that eBPF programs write records to. Its records are mapped only while they are
//! read.
//!
//! Each mapped page of a BPF map counts as resident memory of this process, used or not, and the
//! data of a ring can be mapped twice in a row, so that a record across its end is in one piece.
//! That would be 3 MB for the rings of the probe, which contain some hundred bytes at most ticks.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence},
};

use aya::maps::Map;

/// The flags in the length of a record, and the size of the header that it begins
/// (include/uapi/linux/bpf.h, `BPF_RINGBUF_BUSY_BIT`, `BPF_RINGBUF_DISCARD_BIT` and
/// `BPF_RINGBUF_HDR_SZ`).
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEADER: usize = 8;
/// Records begin at multiples of this (kernel/bpf/ringbuf.c, __bpf_ringbuf_reserve).
const ALIGNMENT: usize = 8;

/// A `BPF_MAP_TYPE_RINGBUF`. Its file has a page with the position of the reader, which only that
/// one may be mapped for writing, a page with the position of the writers, and the data twice
/// (kernel/bpf/ringbuf.c, ringbuf_map_mmap_kern).
pub(super) struct Ring {
    name: &'static str,
    file: OwnedFd,
    /// Size of the data, a power of two.
    bytes: usize,
    page: usize,
    /// The end of the records that were read: where the kernel may write again.
    reader: Pages,
    /// The end of the records that were begun.
    writer: Pages,
    /// Like `reader`. Positions only grow; the place in the data is their remainder.
    position: usize,
    /// The last call failed, which was logged.
    failed: bool,
}

impl Ring {
    /// Opens a ring.
    ///
    /// # Errors
    /// When `map` is no ring, or cannot be mapped.
    pub(super) fn new(name: &'static str, map: &Map) -> io::Result<Self> {
        let Map::RingBuf(data) = map else { return Err(io::Error::other("not a ring")) };
        let bytes = data.info().map_err(io::Error::other)?.max_entries();
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        Self::open(name, data.fd().as_fd().try_clone_to_owned()?, bytes)
    }

    fn open(name: &'static str, file: OwnedFd, bytes: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        if !bytes.is_power_of_two() || !bytes.is_multiple_of(page) {
            return Err(io::Error::other(format!("a ring of {bytes} bytes")));
        }
        let reader = Pages::map(file.as_raw_fd(), 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let writer = Pages::map(file.as_raw_fd(), page, page, libc::PROT_READ)?;
        let position = reader.position();
        Ok(Self { name, file, bytes, page, reader, writer, position, failed: false })
    }

    /// Calls `each` with the records that are complete, in order. Records that follow an incomplete
    /// one, or the last one at the time of the call, are read next time. Returns false if records
    /// cannot be read; they stay in the ring.
    pub(super) fn drain(&mut self, each: impl FnMut(&[u8])) -> bool {
        let read = self.read(each);
        if let (Err(error), false) = (&read, self.failed) {
            tracing::warn!("cannot read the ring {}: {error}; trying again at each tick", self.name);
        }
        self.failed = read.is_err();
        read.is_ok()
    }

    fn read(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let damaged = || io::Error::other("a record is damaged");
        let unread = self.writer.position().wrapping_sub(self.position);
        if unread == 0 {
            return Ok(());
        }
        if unread > self.bytes {
            return Err(damaged());
        }
        let first = self.position & (self.bytes - 1);
        // From the start of its page, in the window that is mapped.
        let mut at = first % self.page;
        let (start, end) = (first - at, at + unread);
        let offset = 2 * self.page + start;
        let window = Pages::map(self.file.as_raw_fd(), offset, end.next_multiple_of(self.page), libc::PROT_READ)?;
        while at < end {
            let header = window.header(at).ok_or_else(damaged)?;
            if header & BUSY != 0 {
                break;
            }
            let length = usize::try_from(header & !DISCARDED).map_err(io::Error::other)?;
            let next = (at + HEADER + length).next_multiple_of(ALIGNMENT);
            if next > end {
                return Err(damaged());
            }
            if header & DISCARDED == 0 {
                each(window.slice(at + HEADER, length).ok_or_else(damaged)?);
            }
            self.position = self.position.wrapping_add(next - at);
            self.reader.set_position(self.position);
            at = next;
        }
        Ok(())
    }
}

/// A shared mapping of pages of a ring.
struct Pages {
    first: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to the map, not to a thread.
unsafe impl Send for Pages {}

impl Pages {
    fn map(file: RawFd, offset: usize, bytes: usize, protection: libc::c_int) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address that the kernel chooses; it replaces no other
        // mapping.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file, offset) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { first, bytes })
    }

    /// The position at the start of the mapping. What was written before it is visible afterwards.
    fn position(&self) -> usize {
        // SAFETY: the first word of a mapping, which is aligned to a page and lives as long as
        // `self`. A relaxed load works in memory that is mapped for reading only.
        let position = unsafe { self.first.cast::<AtomicUsize>().as_ref() }.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        position
    }

    /// Stores the position, in a mapping for writing.
    fn set_position(&self, position: usize) {
        // SAFETY: as above. The kernel writes over the records before it afterwards, which were
        // read.
        unsafe { self.first.cast::<AtomicUsize>().as_ref() }.store(position, Ordering::Release);
    }

    /// The length of the record at `at`, with its flags. `None` outside the mapping.
    fn header(&self, at: usize) -> Option<u32> {
        let inside = at.checked_add(HEADER).is_some_and(|end| end <= self.bytes);
        if !inside || !at.is_multiple_of(ALIGNMENT) {
            return None;
        }
        // SAFETY: inside the mapping and aligned. A relaxed load works in memory that is mapped for
        // reading only.
        let header = unsafe { self.first.add(at).cast::<AtomicU32>().as_ref() }.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        Some(header)
    }

    /// The bytes of a complete record, which nothing writes until the reader's position is behind
    /// it. `None` outside the mapping.
    fn slice(&self, at: usize, length: usize) -> Option<&[u8]> {
        let inside = at.checked_add(length).is_some_and(|end| end <= self.bytes);
        // SAFETY: inside the mapping, which lives as long as the slice.
        inside.then(|| unsafe { std::slice::from_raw_parts(self.first.add(at).as_ptr(), length) })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by `self`, has this size, and is not used any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use super::*;

    /// A file with the layout of a ring, and the records that were written to it.
    struct Writer {
        file: File,
        page: usize,
        /// One page of data.
        data: Vec<u8>,
        position: usize,
    }

    impl Writer {
        /// A ring whose records so far, up to `position`, were read.
        fn new(position: usize) -> (Self, Ring) {
            let (file, page) = (tempfile::tempfile().unwrap(), rustix::param::page_size());
            file.set_len(u64::try_from(4 * page).unwrap()).unwrap();
            file.write_all_at(&position.to_ne_bytes(), 0).unwrap();
            let writer = Self { file, page, data: vec![0; page], position };
            writer.publish();
            let ring = Ring::open("TEST", writer.file.try_clone().unwrap().into(), page).unwrap();
            (writer, ring)
        }

        fn publish(&self) {
            let at = |pages: usize| u64::try_from(pages * self.page).unwrap();
            self.file.write_all_at(&self.data, at(2)).unwrap();
            self.file.write_all_at(&self.data, at(3)).unwrap();
            self.file.write_all_at(&self.position.to_ne_bytes(), at(1)).unwrap();
        }

        fn write(&mut self, flags: u32, content: &[u8]) {
            let header = u32::try_from(content.len()).unwrap() | flags;
            let record = [&header.to_ne_bytes()[..], &[0; 4], content].concat();
            for (at, byte) in record.iter().enumerate() {
                let place = (self.position + at) % self.page;
                self.data[place] = *byte;
            }
            self.position += record.len().next_multiple_of(ALIGNMENT);
            self.publish();
        }

        /// The position up to which the ring was read.
        fn read(&self) -> usize {
            let mut word = [0; size_of::<usize>()];
            self.file.read_exact_at(&mut word, 0).unwrap();
            usize::from_ne_bytes(word)
        }
    }

    fn drained(ring: &mut Ring) -> (bool, Vec<Vec<u8>>) {
        let mut all = Vec::new();
        let whole = ring.drain(|record| all.push(record.to_vec()));
        (whole, all)
    }

    #[test]
    fn records_across_the_end_are_read_once_and_in_order() {
        let page = rustix::param::page_size();
        // The second record begins 16 bytes before the end of the data.
        let (mut writer, mut ring) = Writer::new(7 * page - 32);
        assert_eq!(drained(&mut ring), (true, Vec::new()));
        writer.write(0, b"first");
        writer.write(0, b"across the end");
        writer.write(DISCARDED, b"discarded");
        writer.write(0, b"");
        let all = [&b"first"[..], b"across the end", b""].map(<[u8]>::to_vec).to_vec();
        assert_eq!(drained(&mut ring), (true, all));
        assert_eq!(writer.read(), writer.position);
        assert_eq!(drained(&mut ring), (true, Vec::new()));
    }

    #[test]
    fn a_full_ring_is_read() {
        let (mut writer, mut ring) = Writer::new(24);
        let content = vec![b'x'; writer.page - 16];
        writer.write(0, &content);
        assert_eq!(drained(&mut ring), (true, vec![content.clone()]));
        writer.write(0, &content);
        assert_eq!(drained(&mut ring), (true, vec![content]));
    }

    #[test]
    fn a_record_that_is_being_written_waits_with_those_after_it() {
        let (mut writer, mut ring) = Writer::new(0);
        writer.write(0, b"one");
        let at = writer.position;
        writer.write(BUSY, b"two");
        writer.write(0, b"three");
        assert_eq!(drained(&mut ring), (true, vec![b"one".to_vec()]));
        assert_eq!(writer.read(), at);
        writer.data[at..at + 4].copy_from_slice(&3u32.to_ne_bytes());
        writer.publish();
        assert_eq!(drained(&mut ring), (true, vec![b"two".to_vec(), b"three".to_vec()]));
    }

    #[test]
    fn damaged_lengths_and_positions_are_refused() {
        let (mut writer, mut ring) = Writer::new(0);
        writer.write(1000, b"longer than what was written");
        assert_eq!(drained(&mut ring), (false, Vec::new()));
        assert_eq!(writer.read(), 0);
        writer.position = 2 * writer.page;
        writer.publish();
        assert_eq!(drained(&mut ring), (false, Vec::new()));
        let odd = Ring::open("TEST", writer.file.into(), 3 * writer.page);
        assert!(odd.is_err());
    }
}
