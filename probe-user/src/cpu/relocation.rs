//! Inserts the field offsets of the running kernel into the instructions of the eBPF object, as
//! CO-RE does for C ([`probe_ebpf::Field`]).

use probe_ebpf::{FIELD_MARK, Field};

/// Replaces each marked constant with its field's offset. Marks of fields without an offset stay;
/// their programs are not loaded.
///
/// # Errors
/// When the object is malformed or lacks a field, or an offset is out of range.
pub(super) fn patch_offsets(object: &mut [u8], offsets: &[(Field, u64)]) -> Result<(), String> {
    /// `dst += imm` on 64 bits, and the first half of `dst = imm64`
    /// (Documentation/bpf/standardization/instruction-set.rst).
    const ADD: u8 = 0x07;
    const LOAD_64: u8 = 0x18;
    let mut missing: Vec<Field> = offsets.iter().map(|(field, _)| *field).collect();
    for (start, end) in programs(object).ok_or("not a 64-bit ELF object")? {
        let code = object.get_mut(start..end).ok_or("a section exceeds the file")?;
        let mut at = 0;
        while let Some(instruction) = code.get_mut(at..at + 8) {
            at += if instruction[0] == LOAD_64 { 16 } else { 8 };
            let number = u32::from_ne_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
            if instruction[0] != ADD || number & !0xff != FIELD_MARK {
                continue;
            }
            let Some((field, offset)) = offsets.iter().find(|(field, _)| *field as u32 == number & 0xff) else {
                continue;
            };
            let offset = i32::try_from(*offset).map_err(|_| format!("offset {offset} of {field:?} is out of range"))?;
            instruction[4..8].copy_from_slice(&offset.to_ne_bytes());
            missing.retain(|missing| missing != field);
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("no instruction reads {missing:?}")) }
}

/// File ranges of the sections that contain code: start and end (man 5 elf).
fn programs(object: &[u8]) -> Option<Vec<(usize, usize)>> {
    const SHF_EXECINSTR: u64 = 4;
    let half = |at: usize| Some(u16::from_ne_bytes(object.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(object.get(at..at + 8)?.try_into().ok()?));
    if object.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (table, size, count) = (usize::try_from(long(40)?).ok()?, usize::from(half(58)?), usize::from(half(60)?));
    let mut all = Vec::new();
    for section in 0..count {
        let header = table.checked_add(section.checked_mul(size)?)?;
        if long(header + 8)? & SHF_EXECINSTR != 0 {
            let start = usize::try_from(long(header + 24)?).ok()?;
            all.push((start, start.checked_add(usize::try_from(long(header + 32)?).ok()?)?));
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object with one code section.
    fn object(code: &[[u8; 8]]) -> Vec<u8> {
        let mut out = vec![0; 64 + 64];
        out[..5].copy_from_slice(b"\x7fELF\x02");
        out[40..48].copy_from_slice(&64u64.to_ne_bytes());
        out[58..60].copy_from_slice(&64u16.to_ne_bytes());
        out[60..62].copy_from_slice(&1u16.to_ne_bytes());
        out[64 + 8..64 + 16].copy_from_slice(&6u64.to_ne_bytes());
        out[64 + 24..64 + 32].copy_from_slice(&128u64.to_ne_bytes());
        out[64 + 32..64 + 40].copy_from_slice(&(code.len() as u64 * 8).to_ne_bytes());
        out.extend(code.concat());
        out
    }

    fn instruction(operation: u8, number: u32) -> [u8; 8] {
        let mut all = [operation, 1, 0, 0, 0, 0, 0, 0];
        all[4..].copy_from_slice(&number.to_ne_bytes());
        all
    }

    #[test]
    fn offset_replaces_its_mark_and_nothing_else() {
        let mark = FIELD_MARK | Field::TaskPid as u32;
        let code = |at: [u32; 2]| {
            // The second half of a 16-byte load may look like any instruction.
            object(&[
                instruction(0x18, 5),
                instruction(0x07, mark),
                instruction(0x07, at[0]),
                instruction(0xb7, mark),
                instruction(0x07, at[1]),
            ])
        };
        let mut marked = code([mark, 24]);
        patch_offsets(&mut marked, &[(Field::TaskPid, 2480)]).unwrap();
        assert_eq!(marked, code([2480, 24]));
        assert!(patch_offsets(&mut marked, &[(Field::TaskPid, 1)]).unwrap_err().contains("TaskPid"));
        assert!(
            patch_offsets(&mut code([mark, mark]), &[(Field::TaskPid, 1 << 40)]).unwrap_err().contains("1099511627776")
        );
    }

    #[test]
    fn malformed_object_is_refused() {
        for bytes in [&b""[..], b"\x7fELF\x01", b"\x7fELF\x02"] {
            assert!(patch_offsets(&mut bytes.to_vec(), &[]).is_err());
        }
        let mut torn = object(&[]);
        torn[64 + 32..64 + 40].copy_from_slice(&8u64.to_ne_bytes());
        assert!(patch_offsets(&mut torn, &[]).is_err());
    }
}
