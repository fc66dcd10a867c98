//! An array of the kernel side in our own memory: read and written without a system call.

use std::{io, marker::PhantomData, os::fd::AsRawFd as _, ptr::NonNull};

use aya::{
    Pod,
    maps::{Map, MapData},
};

/// The elements of a `BPF_MAP_TYPE_ARRAY` that was made with `BPF_F_MMAPABLE`.
///
/// A program writes them at any moment, so an element is read by whole words of the size of its fields, and no two fields of it
/// belong to the same moment.
pub(super) struct Mapped<T> {
    first: NonNull<T>,
    elements: usize,
    bytes: usize,
    of: PhantomData<T>,
}

// SAFETY: the memory belongs to the map, not to a thread.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// Maps the whole array.
    ///
    /// # Errors
    /// When it is no such array, or there is no address space.
    pub(super) fn of(map: &Map) -> io::Result<Self> {
        let Map::Array(data) = map else { return Err(io::Error::other("not an array")) };
        Self::of_array(data)
    }

    fn of_array(data: &MapData) -> io::Result<Self> {
        let info = data.info().map_err(io::Error::other)?;
        if usize::try_from(info.value_size()).ok() != Some(size_of::<T>()) || !size_of::<T>().is_multiple_of(8) {
            return Err(io::Error::other("an array of something else"));
        }
        let elements = usize::try_from(info.max_entries()).map_err(io::Error::other)?;
        let bytes = elements.checked_mul(size_of::<T>()).ok_or_else(|| io::Error::other("too large an array"))?;
        let descriptor = std::os::fd::AsFd::as_fd(data.fd()).as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours lies there.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, descriptor, 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { first, elements, bytes, of: PhantomData })
    }

    /// The address of an element, for reading single fields of it.
    ///
    /// # Panics
    /// When there is no such element.
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index < self.elements, "element {index} of {}", self.elements);
        // SAFETY: inside of the mapping, which lives as long as we do.
        unsafe { self.first.as_ptr().add(index) }
    }

    /// Elements in a row.
    ///
    /// # Panics
    /// When there are not so many.
    pub(super) fn part(&self, first: usize, elements: usize) -> Part<'_, T> {
        assert!(first.checked_add(elements).is_some_and(|end| end <= self.elements), "{elements} from {first}");
        // SAFETY: inside of the mapping, which the part does not outlive.
        Part { first: unsafe { self.first.add(first) }, elements, of: PhantomData }
    }

    /// An element.
    ///
    /// # Panics
    /// When there is no such element.
    pub(super) fn get(&self, index: usize) -> T {
        // SAFETY: in bounds; every bit pattern is a `T`; volatile because a program of the kernel writes it meanwhile.
        unsafe { self.at(index).read_volatile() }
    }

    /// Writes an element that no program writes now.
    ///
    /// # Panics
    /// When there is no such element.
    pub(super) fn set(&self, index: usize, value: T) {
        // SAFETY: in bounds; volatile because programs of the kernel read it.
        unsafe { self.at(index).write_volatile(value) }
    }
}

/// Elements in a row, whose bounds are known to lie in the mapping.
pub(super) struct Part<'a, T> {
    first: NonNull<T>,
    elements: usize,
    of: PhantomData<&'a T>,
}

impl<T: Pod> Part<'_, T> {
    /// An element.
    ///
    /// # Panics
    /// When there is no such element.
    pub(super) fn get(&self, index: usize) -> T {
        assert!(index < self.elements);
        // SAFETY: in bounds; every bit pattern is a `T`; volatile because a program of the kernel writes it meanwhile.
        unsafe { self.first.add(index).read_volatile() }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of this size, which nobody refers to any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.bytes) };
    }
}
