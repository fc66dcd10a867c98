//! Inserts the field offsets of the running kernel into the instructions of the eBPF object, as
//! CO-RE does for C ([`probe_ebpf::Field`]), and the values of the programs' settings.

use probe_ebpf::{FIELD_MARK, Field, LOAD_MARK, SETTING_MARK, SETTINGS};

/// Replaces each marked constant with its field's offset, or its setting's value, and the marked
/// offset of each load with its field's. Marks of fields without an offset stay; their programs are
/// not loaded.
///
/// # Errors
/// When the object is malformed or lacks a field, there is no such setting, or a number is out of
/// range.
pub(super) fn patch(object: &mut [u8], offsets: &[(Field, u64)], settings: &[(&str, u64)]) -> Result<(), String> {
    /// The first half of `dst = imm64` (Documentation/bpf/standardization/instruction-set.rst).
    const LOAD_64: u8 = 0x18;
    if let Some((name, _)) = settings.iter().find(|(name, _)| !SETTINGS.contains(name)) {
        return Err(format!("there is no setting {name}"));
    }
    let mut missing: Vec<Field> = offsets.iter().map(|(field, _)| *field).collect();
    for (start, end) in programs(object).ok_or("not a 64-bit ELF object")? {
        let code = object.get_mut(start..end).ok_or("a section exceeds the file")?;
        let mut at = 0;
        while let Some(instruction) = code.get_mut(at..at + 8) {
            at += if instruction[0] == LOAD_64 { 16 } else { 8 };
            match Mark::of(instruction) {
                Some(Mark::Setting(position)) => {
                    let name = SETTINGS.get(position).ok_or_else(|| format!("there is no setting {position}"))?;
                    let value = settings.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| *value);
                    let value = i32::try_from(value).map_err(|_| format!("{name} = {value} is out of range"))?;
                    instruction[4..8].copy_from_slice(&value.to_ne_bytes());
                }
                Some(Mark::Field(number, load)) => {
                    let Some((field, offset)) = offsets.iter().find(|(field, _)| *field as u32 == number) else {
                        continue;
                    };
                    let range = |_| format!("offset {offset} of {field:?} is out of range");
                    if load {
                        let offset = i16::try_from(*offset).map_err(range)?;
                        instruction[2..4].copy_from_slice(&offset.to_ne_bytes());
                    } else {
                        let offset = i32::try_from(*offset).map_err(range)?;
                        instruction[4..8].copy_from_slice(&offset.to_ne_bytes());
                    }
                    missing.retain(|missing| missing != field);
                }
                None => {}
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("no instruction reads {missing:?}")) }
}

/// What an instruction has a mark of.
enum Mark {
    /// The number of a field; true in a load, false in an addition.
    Field(u32, bool),
    /// The position of a setting.
    Setting(usize),
}

impl Mark {
    fn of(instruction: &[u8]) -> Option<Self> {
        /// `dst += imm` and `dst = imm` on 64 bits.
        const ADD: u8 = 0x07;
        const ASSIGN: u8 = 0xb7;
        /// `dst = *(src + offset)`, without the bits of its size.
        const LOAD: u8 = 0x61;
        const SIZE: u8 = 0x18;
        let [operation, _, low, high, number @ ..] = <[u8; 8]>::try_from(instruction).ok()?;
        let number = u32::from_ne_bytes(number);
        match operation {
            ADD if number & !0xff == FIELD_MARK => Some(Self::Field(number & 0xff, false)),
            ASSIGN if number & !0xff == SETTING_MARK => Some(Self::Setting(usize::try_from(number & 0xff).ok()?)),
            _ if operation & !SIZE == LOAD => {
                let field = i32::from(i16::from_ne_bytes([low, high])).checked_add(i32::try_from(LOAD_MARK).ok()?)?;
                u32::try_from(field).ok().filter(|field| *field <= 0xff).map(|field| Self::Field(field, true))
            }
            _ => None,
        }
    }
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
        patch(&mut marked, &[(Field::TaskPid, 2480)], &[]).unwrap();
        assert_eq!(marked, code([2480, 24]));
        assert!(patch(&mut marked, &[(Field::TaskPid, 1)], &[]).unwrap_err().contains("TaskPid"));
        assert!(
            patch(&mut code([mark, mark]), &[(Field::TaskPid, 1 << 40)], &[]).unwrap_err().contains("1099511627776")
        );
    }

    /// A load or store with an offset.
    fn load(operation: u8, offset: i16) -> [u8; 8] {
        let [low, high] = offset.to_ne_bytes();
        [operation, 0x21, low, high, 0, 0, 0, 0]
    }

    #[test]
    fn offset_of_a_marked_load_is_its_field() {
        let mark = -i16::try_from(LOAD_MARK).unwrap() + i16::try_from(Field::TaskPid as u32).unwrap();
        let code =
            |at: i16| object(&[load(0x79, at), load(0x61, at), load(0x79, -512), load(0x79, 0), load(0x7b, mark)]);
        let mut marked = code(mark);
        patch(&mut marked, &[(Field::TaskPid, 2480)], &[]).unwrap();
        assert_eq!(marked, code(2480));
        assert!(patch(&mut code(mark), &[(Field::TaskPid, 40_000)], &[]).unwrap_err().contains("40000"));
    }

    #[test]
    fn setting_replaces_its_mark_and_is_0_if_it_is_not_set() {
        let marks = ["SIBLINGS", "COUNTING"].map(probe_ebpf::setting_mark);
        let code = |at: [u32; 2]| object(&[instruction(0xb7, at[0]), instruction(0xb7, at[1]), instruction(0xb7, 9)]);
        let mut marked = code(marks);
        patch(&mut marked, &[], &[("SIBLINGS", 7)]).unwrap();
        assert_eq!(marked, code([7, 0]));
        assert!(patch(&mut code(marks), &[], &[("SIBLINGS", 1 << 31)]).unwrap_err().contains("2147483648"));
        assert!(patch(&mut code(marks), &[], &[("SIBLING", 1)]).unwrap_err().contains("no setting SIBLING"));
    }

    #[test]
    fn malformed_object_is_refused() {
        for bytes in [&b""[..], b"\x7fELF\x01", b"\x7fELF\x02"] {
            assert!(patch(&mut bytes.to_vec(), &[], &[]).is_err());
        }
        let mut torn = object(&[]);
        torn[64 + 32..64 + 40].copy_from_slice(&8u64.to_ne_bytes());
        assert!(patch(&mut torn, &[], &[]).is_err());
    }
}
