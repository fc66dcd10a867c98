//! Field offsets of the running kernel, read from its own type information.
//!
//! Reads the few facts needed from `/sys/kernel/btf/vmlinux`: field offsets, enumerator values and
//! the ids of what typed programs are attached to. The types stay where they are; the index has
//! about 1 MB for the 150,000 types of a distribution's kernel.
//! Format: Documentation/bpf/btf.rst of the kernel. The one maintained crate for it is LGPL, which
//! a statically linked MIT program cannot include.

use thiserror::Error;

/// Maximum size of the type information. Debian's and Ubuntu's kernels have 5 to 8 MB.
pub const MAX_BYTES: usize = 64 << 20;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_POINTER: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// Kinds that are looked up by name.
const INDEXED: [u32; 4] = [KIND_STRUCT, KIND_ENUM, KIND_TYPEDEF, KIND_FUNC];

/// Kinds between a member and its struct type: typedef, volatile, const, restrict, type tag.
const MODIFIERS: [u32; 5] = [8, 9, 10, 11, 18];

/// Why a lookup failed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The bytes are not BTF, or are truncated.
    #[error("not BTF: {0}")]
    Malformed(&'static str),
    /// The kernel has no such structure.
    #[error("the kernel's BTF has no struct {0}")]
    NoStruct(String),
    /// The kernel has no such function.
    #[error("this kernel has no {0}")]
    NoFunction(String),
    /// The structure has no such field.
    #[error("struct {0} has no field {1} in this kernel")]
    NoField(String, String),
}

/// Parsed type information, borrowing the bytes it came from.
pub struct Btf<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// Byte position of each type, by type id; id 0 is `void`.
    types: Vec<u32>,
    /// Ids of the types of each kind in [`INDEXED`].
    by_kind: [Vec<u32>; INDEXED.len()],
}

struct Type {
    name: u32,
    kind: u32,
    count: usize,
    /// Whether the upper byte of member offsets contains a bit-field size.
    bitfields: bool,
    size_or_type: u32,
    /// Byte position after the common part.
    rest: usize,
}

impl<'a> Btf<'a> {
    /// Builds the index of `bytes`.
    ///
    /// # Errors
    /// When the header is wrong, a section exceeds the file, or a type exceeds its section.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        if bytes.len() > MAX_BYTES {
            return Err(BtfError::Malformed("larger than 64 MiB"));
        }
        let half = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
        if half(0) != Some(MAGIC) {
            return Err(BtfError::Malformed("wrong magic"));
        }
        let word = |at: usize| word(bytes, at).ok_or(BtfError::Malformed("header ends early"));
        let header = word(4)?;
        let section = |offset: u32, length: u32| {
            let start = header.checked_add(offset).ok_or(BtfError::Malformed("section out of range"))?;
            let end = start.checked_add(length).ok_or(BtfError::Malformed("section out of range"))?;
            if bytes.len() < end as usize {
                return Err(BtfError::Malformed("section out of range"));
            }
            Ok((start as usize, end as usize))
        };
        let (mut at, end) = section(word(8)?, word(12)?)?;
        let (strings, strings_end) = section(word(16)?, word(20)?)?;
        /// Average size of a type in the kernels of distributions.
        const USUAL_TYPE_BYTES: usize = 24;
        let mut types = Vec::with_capacity(end.saturating_sub(at) / USUAL_TYPE_BYTES + 1);
        types.push(u32::MAX);
        let mut btf = Self { bytes, strings: &bytes[strings..strings_end], types, by_kind: Default::default() };
        while at < end {
            let this = btf.at(at).ok_or(BtfError::Malformed("type ends early"))?;
            let too_many = |_| BtfError::Malformed("too many types");
            if let Some(kind) = INDEXED.iter().position(|kind| *kind == this.kind) {
                btf.by_kind[kind].push(u32::try_from(btf.types.len()).map_err(too_many)?);
            }
            btf.types.push(u32::try_from(at).map_err(too_many)?);
            let size = match this.kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => this.count * 12,
                KIND_ENUM | KIND_FUNC_PROTO => this.count * 8,
                _ => 0,
            };
            at = this.rest + size;
        }
        if at != end {
            return Err(BtfError::Malformed("type ends early"));
        }
        Ok(btf)
    }

    fn at(&self, at: usize) -> Option<Type> {
        let info = word(self.bytes, at + 4)?;
        Some(Type {
            name: word(self.bytes, at)?,
            kind: info >> 24 & 0x1f,
            count: (info & 0xffff) as usize,
            bitfields: info >> 31 == 1,
            size_or_type: word(self.bytes, at + 8)?,
            rest: at + 12,
        })
    }

    fn ty(&self, id: u32) -> Option<Type> {
        self.types.get(id as usize).filter(|at| **at != u32::MAX).and_then(|at| self.at(*at as usize))
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        let end = tail.iter().position(|byte| *byte == 0).unwrap_or(tail.len());
        &tail[..end]
    }

    /// Whether the string at `offset` is `name`, without a search for its end.
    fn is_named(&self, offset: u32, name: &[u8]) -> bool {
        let rest = self.strings.get(offset as usize..).and_then(|tail| tail.strip_prefix(name));
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(0)))
    }

    /// The types of that name and kind, one of [`INDEXED`], with their ids.
    fn named<'s>(&'s self, kind: u32, name: &'s str) -> impl Iterator<Item = (u32, Type)> + 's {
        let ids = INDEXED.iter().position(|known| *known == kind).map(|at| self.by_kind[at].as_slice());
        let types = ids.unwrap_or_default().iter().filter_map(move |id| Some((*id, self.ty(*id)?)));
        types.filter(move |(_, ty)| self.is_named(ty.name, name.as_bytes()))
    }

    /// Byte offset of `structure.path[0].path[1]…`, including members of anonymous structs and
    /// unions.
    ///
    /// # Errors
    /// When the kernel has no such structure or field.
    pub fn field(&self, structure: &str, path: &[&str]) -> Result<u64, BtfError> {
        let mut found = false;
        for (_, ty) in self.named(KIND_STRUCT, structure) {
            found = true;
            if let Some(bits) = self.walk(&ty, path, 0) {
                return Ok(bits / 8);
            }
        }
        if found {
            Err(BtfError::NoField(structure.to_owned(), path.join(".")))
        } else {
            Err(BtfError::NoStruct(structure.to_owned()))
        }
    }

    /// Bit offset of `path` inside `ty`; `depth` bounds a malformed, self-containing type.
    fn walk(&self, ty: &Type, path: &[&str], depth: u8) -> Option<u64> {
        let (first, rest) = path.split_first()?;
        if depth > 16 {
            return None;
        }
        for index in 0..ty.count {
            let at = ty.rest + index * 12;
            let name = self.name(word(self.bytes, at)?);
            let offset = word(self.bytes, at + 8)?;
            let offset = u64::from(if ty.bitfields { offset & 0x00ff_ffff } else { offset });
            let inner = || self.aggregate(word(self.bytes, at + 4)?);
            if name == first.as_bytes() {
                if rest.is_empty() {
                    return Some(offset);
                }
                return Some(offset + self.walk(&inner()?, rest, depth + 1)?);
            }
            if name.is_empty()
                && let Some(found) = inner().and_then(|inner| self.walk(&inner, path, depth + 1))
            {
                return Some(offset + found);
            }
        }
        None
    }

    /// The struct or union that `id` refers to through modifiers.
    fn aggregate(&self, mut id: u32) -> Option<Type> {
        for _ in 0..16 {
            let ty = self.ty(id)?;
            match ty.kind {
                KIND_STRUCT | KIND_UNION => return Some(ty),
                kind if MODIFIERS.contains(&kind) => id = ty.size_or_type,
                _ => return None,
            }
        }
        None
    }

    /// For each argument of the function type behind `typedef name`, the name of the struct that it
    /// points to, or an empty name for any other type. Empty if the kernel has no such type.
    #[must_use]
    pub fn arguments(&self, name: &str) -> Vec<&'a [u8]> {
        let function = self.named(KIND_TYPEDEF, name).find_map(|(_, ty)| {
            let pointer = self.ty(ty.size_or_type).filter(|ty| ty.kind == KIND_POINTER)?;
            self.ty(pointer.size_or_type).filter(|ty| ty.kind == KIND_FUNC_PROTO)
        });
        let Some(function) = function else { return Vec::new() };
        let pointee = |index: usize| {
            let pointer = self.ty(word(self.bytes, function.rest + index * 8 + 4)?)?;
            let pointee = self.ty(pointer.size_or_type).filter(|_| pointer.kind == KIND_POINTER)?;
            (pointee.kind == KIND_STRUCT).then(|| self.name(pointee.name))
        };
        (0..function.count).map(|index| pointee(index).unwrap_or_default()).collect()
    }

    /// Whether the kernel has a function of that name.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.function_id(name).is_some()
    }

    /// The type id of a function; `None` if the kernel has none of that name.
    #[must_use]
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.named(KIND_FUNC, name).next().map(|(id, _)| id)
    }

    /// The type id of a typedef; `None` if the kernel has none of that name.
    #[must_use]
    pub fn typedef_id(&self, name: &str) -> Option<u32> {
        self.named(KIND_TYPEDEF, name).next().map(|(id, _)| id)
    }

    /// The value of `name` in `enum enumeration`; absent when the kernel was built without it.
    #[must_use]
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        self.named(KIND_ENUM, enumeration).find_map(|(_, ty)| {
            (0..ty.count)
                .map(|index| ty.rest + index * 8)
                .find(|at| word(self.bytes, *at).is_some_and(|offset| self.name(offset) == name.as_bytes()))
                .and_then(|at| word(self.bytes, at + 4))
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Builds a type section; `push` returns the type id.
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Builder {
        fn new() -> Self {
            Self { strings: vec![0], ..Self::default() }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn push(&mut self, name: &str, kind: u32, size: u32, rest: &[[u32; 3]], words: usize) -> u32 {
            let name = self.name(name);
            let info = kind << 24 | u32::try_from(rest.len()).unwrap();
            for word in [name, info, size] {
                self.types.extend(word.to_ne_bytes());
            }
            for entry in rest {
                for word in &entry[..words] {
                    self.types.extend(word.to_ne_bytes());
                }
            }
            self.count += 1;
            self.count
        }

        fn bytes(&self) -> Vec<u8> {
            let mut out = MAGIC.to_ne_bytes().to_vec();
            out.extend([1, 0]);
            let types = u32::try_from(self.types.len()).unwrap();
            for word in [24, 0, types, types, u32::try_from(self.strings.len()).unwrap()] {
                out.extend(word.to_ne_bytes());
            }
            out.extend(&self.types);
            out.extend(&self.strings);
            out
        }
    }

    fn sample() -> Vec<u8> {
        let mut b = Builder::new();
        let sum = b.name("sum");
        let entity = b.push("entity", KIND_STRUCT, 16, &[[sum, 0, 64]], 3);
        let constant = b.push("", 10, entity, &[], 0);
        let (pid, hidden) = (b.name("pid"), b.name("hidden"));
        let anonymous = b.push("", KIND_UNION, 8, &[[hidden, 0, 0]], 3);
        let se = b.name("se");
        b.push("task", KIND_STRUCT, 64, &[[pid, 0, 32], [0, anonymous, 64], [se, constant, 128]], 3);
        let (cpuset, cpu) = (b.name("cpuset_cgrp_id"), b.name("cpu_cgrp_id"));
        b.push("cgroup_subsys_id", KIND_ENUM, 4, &[[cpuset, 0, 0], [cpu, 1, 0]], 2);
        let prototype = b.push("", KIND_FUNC_PROTO, 0, &[], 0);
        b.push("bpf_iter_task", KIND_FUNC, prototype, &[], 0);
        let pointer = b.push("", KIND_POINTER, prototype, &[], 0);
        b.push("btf_trace_sched", KIND_TYPEDEF, pointer, &[], 0);
        b.bytes()
    }

    #[test]
    fn finds_fields_through_modifiers_and_anonymous_members() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.field("task", &["pid"]), Ok(4));
        assert_eq!(btf.field("task", &["hidden"]), Ok(8));
        assert_eq!(btf.field("task", &["se", "sum"]), Ok(16 + 8));
        assert_eq!(btf.enumerator("cgroup_subsys_id", "cpu_cgrp_id"), Some(1));
        assert_eq!(btf.enumerator("cgroup_subsys_id", "freezer_cgrp_id"), None);
    }

    #[test]
    fn ids_count_every_type_and_names_match_whole() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!((btf.function_id("bpf_iter_task"), btf.typedef_id("btf_trace_sched")), (Some(7), Some(9)));
        for other in ["bpf_iter_tas", "bpf_iter_task_", "btf_trace_sched", ""] {
            assert_eq!(btf.function_id(other), None, "{other}");
        }
    }

    #[test]
    fn error_names_missing_struct_or_field() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.field("missing", &["x"]), Err(BtfError::NoStruct("missing".into())));
        assert_eq!(btf.field("task", &["se", "x"]), Err(BtfError::NoField("task".into(), "se.x".into())));
    }

    #[test]
    fn running_kernel_has_task_struct_fields() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux");
        let bytes = testkit::or_skip!(bytes.map_err(|error| format!("this kernel publishes no BTF: {error}")));
        let btf = Btf::parse(&bytes).unwrap();
        assert!(btf.field("task_struct", &["se", "sum_exec_runtime"]).unwrap() > 0);
        assert!(btf.field("task_struct", &["pid"]).unwrap() > 0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400) {
            let _ = Btf::parse(&bytes);
            let mut good = sample();
            for (at, byte) in bytes.drain(..).enumerate().take(6) {
                let len = good.len();
                good[(usize::from(byte) * 7 + at) % len] = byte;
            }
            good.truncate(cut.max(1));
            if let Ok(btf) = Btf::parse(&good) {
                let _ = btf.field("task", &["se", "sum"]);
                let _ = btf.enumerator("cgroup_subsys_id", "cpu_cgrp_id");
                let _ = (btf.arguments("task"), btf.has_function("task"), btf.typedef_id("btf_trace_sched"));
            }
        }
    }
}
