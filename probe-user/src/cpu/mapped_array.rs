//! A BPF array mapped into this process: read and written without system calls.

#![allow(unsafe_code)]

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    ptr::NonNull,
};

use aya::{
    Pod,
    maps::{Map, MapData},
};
use probe_ebpf::{CpuState, LongWaits, RunTime, SlotCounts, cpu_bytes, long_waits_at};

/// Slots of each CPU that are mapped at first; the number doubles when more are in use.
const FIRST_SLOTS: usize = 64;

/// The elements of a `BPF_MAP_TYPE_ARRAY` created with `BPF_F_MMAPABLE`.
///
/// A program may write them at any time, so elements are read in words of the size of their fields,
/// and two fields of an element may belong to different moments.
pub(super) struct MappedArray<T> {
    first: NonNull<T>,
    elements: usize,
    bytes: usize,
    of: PhantomData<T>,
}

// SAFETY: the memory belongs to the map, not to a thread.
unsafe impl<T: Send> Send for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// Maps the whole array.
    ///
    /// # Errors
    /// When `map` is not such an array, or no address space is left.
    pub(super) fn new(map: &Map) -> io::Result<Self> {
        Self::map(map, None)
    }

    /// Maps the first elements only: each mapped page counts as resident memory.
    ///
    /// # Errors
    /// As [`Self::new`], or when the array has fewer elements.
    pub(super) fn first(map: &Map, elements: usize) -> io::Result<Self> {
        Self::map(map, Some(elements))
    }

    fn map(map: &Map, elements: Option<usize>) -> io::Result<Self> {
        let (data, all) = array(map, size_of::<T>())?;
        let elements = elements.unwrap_or(all);
        if elements > all || !size_of::<T>().is_multiple_of(8) {
            return Err(io::Error::other("the array has fewer or other elements"));
        }
        let bytes = elements.checked_mul(size_of::<T>()).ok_or_else(|| io::Error::other("the array is too large"))?;
        let descriptor = std::os::fd::AsFd::as_fd(data.fd()).as_raw_fd();
        // SAFETY: a new mapping at an address that the kernel chooses; it replaces no other
        // mapping.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, descriptor, 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { first, elements, bytes, of: PhantomData })
    }

    /// Address of an element, for access to single fields.
    ///
    /// # Panics
    /// When the index is out of range.
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index < self.elements, "element {index} of {}", self.elements);
        // SAFETY: inside the mapping, which lives as long as `self`.
        unsafe { self.first.as_ptr().add(index) }
    }

    /// Reads an element.
    ///
    /// # Panics
    /// When the index is out of range.
    pub(super) fn get(&self, index: usize) -> T {
        // SAFETY: in bounds; every bit pattern is a `T`; volatile because an eBPF program may write
        // it at the same time.
        unsafe { self.at(index).read_volatile() }
    }

    /// Writes an element that no program writes at the same time.
    ///
    /// # Panics
    /// When the index is out of range.
    pub(super) fn set(&self, index: usize, value: T) {
        // SAFETY: in bounds; volatile because eBPF programs read it.
        unsafe { self.at(index).write_volatile(value) }
    }
}

/// An array whose elements have `size` bytes, and their number.
fn array(map: &Map, size: usize) -> io::Result<(&MapData, usize)> {
    let Map::Array(data) = map else { return Err(io::Error::other("not an array")) };
    let info = data.info().map_err(io::Error::other)?;
    if usize::try_from(info.value_size()).ok() != Some(size) {
        return Err(io::Error::other("the elements have another size"));
    }
    Ok((data, usize::try_from(info.max_entries()).map_err(io::Error::other)?))
}

/// The state and bank of each CPU ([`probe_ebpf::cpu_bytes`]), at addresses that are reserved for
/// all slots. Of the banks only the first slots are mapped: each mapped page counts as resident
/// memory, and 4,096 slots have 81 of them on each CPU.
pub(super) struct MappedBanks {
    first: NonNull<u8>,
    bytes: usize,
    file: OwnedFd,
    cpus: usize,
    slots: usize,
    mapped: usize,
}

// SAFETY: the memory belongs to the map, not to a thread.
unsafe impl Send for MappedBanks {}

impl MappedBanks {
    /// Maps the states of `cpus`, and the first of `slots` of each.
    ///
    /// # Errors
    /// As [`MappedArray::new`].
    pub(super) fn new(map: &Map, cpus: usize, slots: usize) -> io::Result<Self> {
        let (data, elements) = array(map, cpu_bytes(slots))?;
        if elements != cpus {
            return Err(io::Error::other("another number of CPUs"));
        }
        let file = data.fd().as_fd().try_clone_to_owned()?;
        let too_large = || io::Error::other("the array is too large");
        let bytes = cpu_bytes(slots).checked_mul(cpus).ok_or_else(too_large)?;
        let bytes = bytes.checked_next_multiple_of(rustix::param::page_size()).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new addresses that the kernel chooses; nothing can be read or written there.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        let mut this = Self { first, bytes, file, cpus, slots, mapped: 0 };
        this.extend(FIRST_SLOTS)?;
        Ok(this)
    }

    /// Number of slots of each CPU that can be read.
    pub(super) fn mapped(&self) -> usize {
        self.mapped
    }

    /// Maps at least the first `slots` of each CPU, or all.
    ///
    /// # Errors
    /// When the kernel has no room for a mapping; those so far remain.
    pub(super) fn extend(&mut self, slots: usize) -> io::Result<()> {
        let slots = slots.max(2 * self.mapped).min(self.slots);
        for cpu in 0..self.cpus {
            let start = cpu * cpu_bytes(self.slots);
            let waits = start + long_waits_at(self.slots);
            self.map(start, start + long_waits_at(slots))?;
            self.map(waits, waits + slots * size_of::<LongWaits>())?;
        }
        self.mapped = slots;
        Ok(())
    }

    /// Maps the pages of the array that contain these bytes.
    fn map(&self, start: usize, end: usize) -> io::Result<()> {
        let page = rustix::param::page_size();
        let (start, end) = (start - start % page, end.next_multiple_of(page));
        let offset = libc::off_t::try_from(start).map_err(io::Error::other)?;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: inside the reserved addresses, where at most the same pages of the same array are
        // mapped.
        let at = unsafe {
            let at = self.first.as_ptr().add(start).cast();
            libc::mmap(at, end - start, access, flags, self.file.as_raw_fd(), offset)
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Address of a CPU's state, for access to single fields.
    ///
    /// # Panics
    /// When there is no such CPU.
    pub(super) fn state(&self, cpu: usize) -> *mut CpuState {
        assert!(cpu < self.cpus, "CPU {cpu} of {}", self.cpus);
        // SAFETY: inside the mapping, which lives as long as `self`, and starts at a page.
        unsafe { self.first.as_ptr().add(cpu * cpu_bytes(self.slots)).cast() }
    }

    /// The counters of the mapped slots of a CPU.
    ///
    /// # Panics
    /// When there is no such CPU.
    pub(super) fn counts(&self, cpu: usize) -> ArraySlice<'_, SlotCounts> {
        // SAFETY: they follow the state; not null.
        let first = unsafe { NonNull::new_unchecked(self.state(cpu).add(1).cast()) };
        ArraySlice { first, elements: self.mapped, of: PhantomData }
    }

    /// The rare counters of the mapped slots of a CPU.
    ///
    /// # Panics
    /// When there is no such CPU.
    pub(super) fn long_waits(&self, cpu: usize) -> ArraySlice<'_, LongWaits> {
        // SAFETY: they follow the counters; not null.
        let first = unsafe { NonNull::new_unchecked(self.state(cpu).byte_add(long_waits_at(self.slots)).cast()) };
        ArraySlice { first, elements: self.mapped, of: PhantomData }
    }
}

impl Drop for MappedBanks {
    fn drop(&mut self) {
        // SAFETY: the addresses are owned by `self`, and are not used any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.bytes) };
    }
}

/// A range of elements whose bounds were checked.
pub(super) struct ArraySlice<'a, T> {
    first: NonNull<T>,
    elements: usize,
    of: PhantomData<&'a T>,
}

impl<T: Pod> ArraySlice<'_, T> {
    /// Reads an element.
    ///
    /// # Panics
    /// When the index is out of range.
    pub(super) fn get(&self, index: usize) -> T {
        assert!(index < self.elements);
        // SAFETY: in bounds; every bit pattern is a `T`; volatile because an eBPF program may write
        // it at the same time.
        unsafe { self.first.add(index).read_volatile() }
    }

    /// Writes an element that no program writes at the same time.
    ///
    /// # Panics
    /// When the index is out of range.
    pub(super) fn set(&self, index: usize, value: T) {
        assert!(index < self.elements);
        // SAFETY: in bounds; volatile because eBPF programs read it.
        unsafe { self.first.add(index).write_volatile(value) }
    }
}

impl ArraySlice<'_, SlotCounts> {
    /// Reads the run time of a slot, and not its other counters.
    ///
    /// # Panics
    /// When the index is out of range.
    pub(super) fn get_time(&self, index: usize) -> RunTime {
        assert!(index < self.elements);
        // SAFETY: as in `get`.
        unsafe { (&raw const (*self.first.add(index).as_ptr()).time).read_volatile() }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by `self`, has this size, and is not used any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.bytes) };
    }
}
