//! A BPF array mapped into this process: read and written without system calls.

#![allow(unsafe_code)]

use std::{io, marker::PhantomData, os::fd::AsRawFd as _, ptr::NonNull};

use aya::{
    Pod,
    maps::{Map, MapData},
};

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
        let Map::Array(data) = map else { return Err(io::Error::other("not an array")) };
        Self::map(data)
    }

    fn map(data: &MapData) -> io::Result<Self> {
        let info = data.info().map_err(io::Error::other)?;
        if usize::try_from(info.value_size()).ok() != Some(size_of::<T>()) || !size_of::<T>().is_multiple_of(8) {
            return Err(io::Error::other("the elements have another size"));
        }
        let elements = usize::try_from(info.max_entries()).map_err(io::Error::other)?;
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

    /// A range of elements.
    ///
    /// # Panics
    /// When the range exceeds the array.
    pub(super) fn slice(&self, first: usize, elements: usize) -> ArraySlice<'_, T> {
        assert!(first.checked_add(elements).is_some_and(|end| end <= self.elements), "{elements} from {first}");
        // SAFETY: inside the mapping, which outlives the slice.
        ArraySlice { first: unsafe { self.first.add(first) }, elements, of: PhantomData }
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
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by `self`, has this size, and is not used any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.bytes) };
    }
}
