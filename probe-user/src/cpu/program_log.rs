//! Messages of the eBPF programs about rare events, which are written with `--log.level=debug`
//! only.
//!
//! The programs write them with aya-log-ebpf, in whose format they are read here. Its own reader,
//! aya-log, takes the ring from aya's loader, which this probe does not use, or by the id of a
//! program, for which the kernel wants CAP_SYS_ADMIN; and it ends the process at a damaged record.

use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::Map;
use aya_log_common::{ArgumentKind, DisplayHint, Level, RecordFieldKind};

use super::ring::Ring;
use crate::host::availability::{Reason, Unavailable};

/// The setting of the programs, of one byte, and their ring (aya-log-ebpf, `macro_support`).
pub(super) const LEVEL: &str = "AYA_LOG_LEVEL";
pub(super) const RING: &str = "AYA_LOGS";

/// Size of the ring in bytes: room for about 60 messages between two ticks. Further ones are lost.
const RING_BYTES: u32 = 32 << 10;
/// Messages of one tick that are logged; the others are counted.
const MAX_LINES: u64 = 20;
/// A record with more parts is damaged.
const MAX_PARTS: u32 = 32;

/// The kernel refused programs that write messages.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// The least severe level that programs loaded now write; 0 for none.
pub(super) fn level() -> u8 {
    let enabled = tracing::enabled!(tracing::Level::DEBUG) && !REFUSED.load(Ordering::Relaxed);
    if enabled { Level::Debug as u8 } else { 0 }
}

/// The size of a map by its name, if it is the ring of messages. Without messages it is the
/// smallest: a ring has at least a page.
pub(super) fn ring_bytes(map: &str, level: u8) -> Option<u32> {
    (map == RING).then_some(if level == 0 { 1 } else { RING_BYTES })
}

/// Loads programs with messages, and without them where the kernel refuses that: its verifier
/// checks more instructions then, and a log level must not change what is measured.
///
/// # Errors
/// That of the last attempt.
pub(super) fn or_without<T>(load: impl Fn() -> Result<T, Unavailable>) -> Result<T, Unavailable> {
    let result = load();
    if let Err(Unavailable { reason: Reason::Broken, detail }) = &result
        && level() != 0
    {
        tracing::debug!("the eBPF programs write no messages: {detail}");
        REFUSED.store(true, Ordering::Relaxed);
        return load();
    }
    result
}

/// The messages of the programs of one object.
pub(super) struct ProgramLog {
    ring: Ring,
}

impl ProgramLog {
    /// The messages in the ring `map`; `None` where the programs write none.
    pub(super) fn open(map: &Map) -> Option<Self> {
        if level() == 0 {
            return None;
        }
        match Ring::new(RING, map) {
            Ok(ring) => Some(Self { ring }),
            Err(error) => {
                tracing::debug!("cannot read the messages of the eBPF programs: {error}");
                None
            }
        }
    }

    /// Logs the messages since the last call.
    pub(super) fn drain(&mut self) {
        let mut lines = Lines { messages: 0, log: |line: &str| tracing::debug!("eBPF program: {line}") };
        self.ring.drain(|record| lines.add(record));
        lines.end();
    }
}

/// Passes at most [`MAX_LINES`] messages to `log`, and the number of the others.
struct Lines<F> {
    messages: u64,
    log: F,
}

impl<F: FnMut(&str)> Lines<F> {
    fn add(&mut self, record: &[u8]) {
        self.messages += 1;
        if self.messages <= MAX_LINES {
            (self.log)(text(record).as_deref().unwrap_or("a damaged message"));
        }
    }

    fn end(mut self) {
        if self.messages > MAX_LINES {
            (self.log)(&format!("{} more messages since the last tick", self.messages - MAX_LINES));
        }
    }
}

/// The text of a message: its parts in order, which follow six fields about its origin. `None` for
/// a record that is not whole.
///
/// A record begins with its length in 16 bits, and is padded. A field or part is a kind of one
/// byte, a length of two, and a value (aya-log-common, `Field`).
pub(crate) fn text(record: &[u8]) -> Option<String> {
    let (length, rest) = record.split_first_chunk()?;
    let mut rest = rest.get(..usize::from(u16::from_ne_bytes(*length)).checked_sub(size_of::<u16>())?)?;
    let mut parts = None;
    for _ in 0..=RecordFieldKind::NumArgs as u8 {
        let (kind, value, after) = field(rest)?;
        if kind == RecordFieldKind::NumArgs as u8 {
            parts = Some(u32::from_ne_bytes(value.try_into().ok()?)).filter(|parts| *parts <= MAX_PARTS);
        }
        rest = after;
    }
    let (mut text, mut hint) = (String::new(), DisplayHint::Default as u8);
    for _ in 0..parts? {
        let (kind, value, after) = field(rest)?;
        rest = after;
        if kind == ArgumentKind::DisplayHint as u8 {
            hint = *value.first()?;
            continue;
        }
        if kind == ArgumentKind::Str as u8 {
            text.push_str(std::str::from_utf8(value).ok()?);
        } else {
            text.push_str(&number(kind, value, hint)?);
        }
        hint = DisplayHint::Default as u8;
    }
    Some(text)
}

/// Splits the first field or part off: kind, value, and what follows.
fn field(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, low, high], rest) = bytes.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_ne_bytes([low, high])))?;
    Some((kind, value, rest))
}

/// A number; other values are not in the messages of these programs.
fn number(kind: u8, value: &[u8], hint: u8) -> Option<String> {
    let signed = kind == ArgumentKind::I64 as u8;
    let known = [ArgumentKind::U32 as u8, ArgumentKind::U64 as u8].contains(&kind) || signed;
    if !known {
        return None;
    }
    let bits = match *value {
        [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        _ => return None,
    };
    Some(if hint == DisplayHint::LowerHex as u8 {
        format!("{bits:x}")
    } else if signed {
        bits.cast_signed().to_string()
    } else {
        bits.to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap().to_ne_bytes();
        [&[kind][..], &length, value].concat()
    }

    /// A record as the macros of aya-log-ebpf write it, in a buffer of the next power of two.
    fn record(parts: &[Vec<u8>]) -> Vec<u8> {
        let number = u32::try_from(parts.len()).unwrap().to_ne_bytes();
        let head = [
            part(RecordFieldKind::Target as u8, b"wattcast_bpf::log"),
            part(RecordFieldKind::Level as u8, &[Level::Debug as u8]),
            part(RecordFieldKind::Module as u8, b"wattcast_bpf::log"),
            part(RecordFieldKind::File as u8, b"probe-ebpf/src/log.rs"),
            part(RecordFieldKind::Line as u8, &7u32.to_ne_bytes()),
            part(RecordFieldKind::NumArgs as u8, &number),
        ];
        let content = [head.concat(), parts.concat()].concat();
        let length = u16::try_from(content.len() + 2).unwrap();
        let mut all = [&length.to_ne_bytes()[..], &content].concat();
        all.resize(all.len().next_power_of_two(), 0xee);
        all
    }

    fn text_part(text: &str) -> Vec<u8> {
        part(ArgumentKind::Str as u8, text.as_bytes())
    }

    fn hint(hint: DisplayHint) -> Vec<u8> {
        part(ArgumentKind::DisplayHint as u8, &[hint as u8])
    }

    #[test]
    fn a_message_is_its_text_with_its_numbers() {
        let parts = [
            text_part("cannot read the hardware counter "),
            hint(DisplayHint::Default),
            part(ArgumentKind::U64 as u8, &2u64.to_ne_bytes()),
            text_part(" of CPU "),
            hint(DisplayHint::LowerHex),
            part(ArgumentKind::U32 as u8, &255u32.to_ne_bytes()),
            text_part(": error "),
            hint(DisplayHint::Default),
            part(ArgumentKind::I64 as u8, &(-22i64).to_ne_bytes()),
        ];
        assert_eq!(text(&record(&parts)).unwrap(), "cannot read the hardware counter 2 of CPU ff: error -22");
        assert_eq!(text(&record(&[])).unwrap(), "");
    }

    #[test]
    fn messages_of_a_tick_beyond_the_limit_are_counted() {
        let (message, mut logged) = (record(&[text_part("x")]), Vec::new());
        let mut lines = Lines { messages: 0, log: |line: &str| logged.push(line.to_owned()) };
        (0..MAX_LINES + 4).for_each(|_| lines.add(&message));
        lines.add(&[]);
        lines.end();
        assert_eq!((logged.len(), &*logged[0], &*logged[20]), (21, "x", "5 more messages since the last tick"));
    }

    #[test]
    fn damaged_messages_have_no_text() {
        let whole = record(&[text_part("a"), part(ArgumentKind::U32 as u8, &[0; 4])]);
        assert!(text(&whole).is_some());
        let length = usize::from(u16::from_ne_bytes([whole[0], whole[1]]));
        for end in 0..length {
            assert_eq!(text(&whole[..end]), None, "{end} of {length} bytes");
        }
        // A length of less than itself, of all that follows, and values of other sizes and kinds.
        assert_eq!(text(&[&1u16.to_ne_bytes()[..], &whole[2..]].concat()), None);
        assert_eq!(text(&[&[0xff, 0xff][..], &whole[2..]].concat()), None);
        for broken in [
            part(ArgumentKind::U32 as u8, &[0; 3]),
            part(ArgumentKind::Str as u8, &[0xff]),
            part(ArgumentKind::Bytes as u8, b"bytes"),
            part(0xfe, &[0; 4]),
            hint(DisplayHint::Default)[..1].to_vec(),
        ] {
            assert_eq!(text(&record(&[broken])), None);
        }
        assert_eq!(text(&record(&vec![text_part("x"); 33])), None, "more parts than a message has");
    }
}
