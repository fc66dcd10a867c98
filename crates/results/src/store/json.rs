//! JSON of untrusted files, read in a stream: what is kept is bounded by the types that keep it,
//! not by the text. Text that is only not strict is accepted: a byte order mark, and the numbers
//! `NaN` and `Infinity` that Python, JavaScript and C write.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Maximum length of the lists of a row: outputs, energy counters, scores. Hosts with eight boards
/// and eight packages have some 30 counters.
pub(super) const MAX_LIST: usize = 1024;
/// Maximum number of outputs of a row, which each repeat of a configuration copies. Ladders have
/// about ten.
pub(super) const MAX_OUTPUTS: usize = 64;
/// Maximum number of samples in one list. At one a second it lasts 11 days.
pub(super) const MAX_ROW_SAMPLES: usize = 1_000_000;

/// Text as strict JSON, and the number of values that were replaced. Accepts UTF-8 and UTF-16 with
/// a byte order mark; bytes that are no UTF-8 become U+FFFD. A number that is not finite becomes
/// `null`, because JSON has no notation for it (RFC 8259, section 6).
#[must_use]
pub fn strict(bytes: Vec<u8>) -> (String, usize) {
    let utf16: Option<fn([u8; 2]) -> u16> = match bytes.get(..2) {
        Some([0xff, 0xfe]) => Some(u16::from_le_bytes),
        Some([0xfe, 0xff]) => Some(u16::from_be_bytes),
        _ => None,
    };
    if let Some(unit) = utf16 {
        let units = bytes[2..].chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
        let text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        return without_non_finite(text);
    }
    let mut text =
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    if text.starts_with('\u{feff}') {
        text.replace_range(..'\u{feff}'.len_utf8(), "");
    }
    without_non_finite(text)
}

/// Replaces the numbers outside of strings that are not finite by `null`.
fn without_non_finite(text: String) -> (String, usize) {
    let bytes = text.as_bytes();
    let (mut strict, mut replaced, mut copied, mut at) = (String::new(), 0, 0, 0);
    while let Some(byte) = bytes.get(at) {
        if *byte == b'"' {
            at = end_of_string(bytes, at);
        } else if is_of_word(*byte) {
            let end = bytes[at..].iter().position(|byte| !is_of_word(*byte)).map_or(bytes.len(), |length| at + length);
            if is_non_finite(&bytes[at..end]) {
                strict.push_str(&text[copied..at]);
                strict.push_str("null");
                (replaced, copied) = (replaced + 1, end);
            }
            at = end;
        } else {
            at += 1;
        }
    }
    if replaced == 0 {
        return (text, 0);
    }
    strict.push_str(&text[copied..]);
    (strict, replaced)
}

/// The index after the string that starts at `at`.
fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    at += 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'#' | b'(' | b')' | b'_')
}

/// True for `NaN`, `-Infinity`, `inf`, for what the C libraries of GNU (`-nan`, `nan(0x1)`) and
/// Microsoft (`1.#INF`, `-1.#IND`) print, and for numbers above the range of a double (`1e999`).
fn is_non_finite(word: &[u8]) -> bool {
    let word = word.strip_prefix(b"-").or_else(|| word.strip_prefix(b"+")).unwrap_or(word);
    let is_name = ["nan", "inf", "infinity"].iter().any(|name| word.eq_ignore_ascii_case(name.as_bytes()));
    let is_printed = word.starts_with(b"1.#") || word.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"nan("));
    // Only such numbers can be above 1.8e308.
    let may_be_large = word.len() > 300 || word.iter().any(|byte| matches!(byte, b'e' | b'E'));
    let value = || std::str::from_utf8(word).ok()?.parse::<f64>().ok();
    is_name || is_printed || (may_be_large && value().is_some_and(f64::is_infinite))
}

/// Calls `each` with every key of an object and the text of its value.
///
/// # Errors
/// If `object` is not an object.
pub(super) fn for_each_entry<'a>(
    object: &'a str,
    each: &mut dyn FnMut(String, &'a RawValue),
) -> serde_json::Result<()> {
    struct Entries<'f, 'a>(&'f mut dyn FnMut(String, &'a RawValue));
    impl<'a> Visitor<'a> for Entries<'_, 'a> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<String>()? {
                (self.0)(key, map.next_value()?);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_str(object);
    Deserializer::deserialize_map(&mut json, Entries(each))?;
    json.end()
}

/// Calls `each` with the text of every element of a list.
///
/// # Errors
/// If `list` is not a list.
pub(super) fn for_each_element<'a>(list: &'a RawValue, each: &mut dyn FnMut(&'a RawValue)) -> serde_json::Result<()> {
    struct Elements<'f, 'a>(&'f mut dyn FnMut(&'a RawValue));
    impl<'a> Visitor<'a> for Elements<'_, 'a> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
            while let Some(element) = list.next_element()? {
                (self.0)(element);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_str(list.get());
    Deserializer::deserialize_seq(&mut json, Elements(each))?;
    json.end()
}

/// True for a key that exists, also with the value `null`.
pub(super) fn present<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(from).map(|_| true)
}

/// A list of at most [`MAX_LIST`] elements; `null` is an empty one.
pub(super) fn few<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct Few<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(element) = list.next_element()? {
                if all.len() == MAX_LIST {
                    return Err(A::Error::custom(format!("a list with more than {MAX_LIST} elements")));
                }
                all.push(element);
            }
            Ok(all)
        }
    }
    from.deserialize_any(Few(PhantomData))
}

/// At most [`MAX_ROW_SAMPLES`] samples, which are finite and not negative; `null` is an empty list.
pub(super) fn samples<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    struct Samples;
    impl<'de> Visitor<'de> for Samples {
        type Value = Vec<f64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of numbers")
        }

        fn visit_unit<E>(self) -> Result<Vec<f64>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<f64>, A::Error> {
            let mut all = Vec::new();
            while let Some(sample) = list.next_element::<Option<f64>>()? {
                let sample = sample.ok_or_else(|| A::Error::custom("a sample is not a number"))?;
                if !sample.is_finite() || sample < 0.0 {
                    return Err(A::Error::custom(format!("a sample is {sample}")));
                }
                if all.len() == MAX_ROW_SAMPLES {
                    return Err(A::Error::custom(format!("more than {MAX_ROW_SAMPLES} samples")));
                }
                all.push(sample);
            }
            // A vector grows by doubling: up to half of it may be unused.
            all.shrink_to_fit();
            Ok(all)
        }
    }
    from.deserialize_any(Samples)
}

/// A score: absent unless it is a finite number.
pub(super) fn score<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    let text = <&'de RawValue>::deserialize(from)?.get();
    Ok(text.parse::<f64>().ok().filter(|value| value.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> (String, usize) {
        strict(bytes.to_vec())
    }

    #[test]
    fn numbers_that_are_not_finite_become_null() {
        for word in
            ["NaN", "Infinity", "-Infinity", "nan", "-nan", "inf", "-inf", "nan(0x8)", "1.#INF", "-1.#IND", "1e999"]
        {
            let (strict, replaced) = text(format!("[1.5e-3, {word},{word}]").as_bytes());
            assert_eq!((&*strict, replaced), ("[1.5e-3, null,null]", 2), "{word}");
        }
        for kept in [r#"{"NaN": "inf \" NaN", "a": [true, null, -1E+5]}"#, "\"NaN", "\"\\", "", "é: inform"] {
            assert_eq!(text(kept.as_bytes()), (kept.to_owned(), 0));
        }
    }

    #[test]
    fn byte_order_marks_and_other_encodings_are_read() {
        assert_eq!(text("\u{feff}{}".as_bytes()).0, "{}");
        let utf16 =
            |unit: fn(u16) -> [u8; 2]| -> Vec<u8> { "\u{feff}[\"ü\"]".encode_utf16().flat_map(unit).collect() };
        assert_eq!(strict(utf16(u16::to_le_bytes)).0, "[\"ü\"]");
        assert_eq!(strict(utf16(u16::to_be_bytes)).0, "[\"ü\"]");
        assert_eq!(text(b"[\"caf\xe9\"]").0, "[\"caf\u{fffd}\"]");
    }
}
