//! YAML of files whose format other programs define: the web configuration of exporter-toolkit and
//! the scrape configuration of Prometheus.
//!
//! The type that is read decides what a scalar means, as in Go: `1` is a text where a text is
//! expected. Aliases and merge keys (`<<`) are supported. The size of the result is limited,
//! because a few lines of aliases can stand for gigabytes. An error has a line and no values, which
//! may be secrets. A general library for this is larger, for its messages and for encodings other
//! than UTF-8.

use std::{
    collections::{HashMap, HashSet},
    fmt, slice,
    str::FromStr,
};

use granit_parser::{Event, Parser, ScalarStyle, StrInput};
use serde::{
    de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer as _, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};

/// Most collections inside each other, with those that aliases stand for.
const MAX_DEPTH: usize = 64;
/// Most scalars and collections, with those that aliases stand for.
const MAX_NODES: usize = 250_000;

/// Why a document was refused: with the line, and without values of the document.
#[derive(Debug)]
pub struct YamlError {
    line: Option<usize>,
    message: String,
}

impl YamlError {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line: Some(line), message: message.into() }
    }

    /// With the line if it has none.
    fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for YamlError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(out, "line {line}: ")?;
        }
        out.write_str(&self.message)
    }
}

impl std::error::Error for YamlError {}

impl de::Error for YamlError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { line: None, message: message.to_string() }
    }
}

/// Reads the document in `text`. A text without a document is one that contains null.
///
/// # Errors
/// When it is not YAML, exceeds a limit, has several documents or a key twice, or does not fit `T`.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let reader = Reader { events: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    let root = reader.document()?;
    T::deserialize(&root).map_err(|error| error.at(root.line))
}

/// A part of a document.
#[derive(Clone, Debug)]
struct Node {
    line: usize,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    /// `plain`: without quotes and without the tag of a text, so it may be null.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Clone, Debug)]
struct Entry {
    line: usize,
    key: String,
    value: Node,
}

impl Node {
    /// The number of nodes, and of collections inside each other.
    fn size(&self) -> (usize, usize) {
        let add = |(nodes, depth): (usize, usize), inside: &Self| {
            let one = inside.size();
            (nodes + one.0, depth.max(one.1 + 1))
        };
        match &self.value {
            Value::Scalar { .. } => (1, 0),
            Value::Sequence(items) => items.iter().fold((1, 1), add),
            Value::Mapping(entries) => entries.iter().map(|entry| &entry.value).fold((1, 1), add),
        }
    }

    /// Null, or nothing where a value could be.
    fn is_null(&self) -> bool {
        const WORDS: [&str; 5] = ["", "~", "null", "Null", "NULL"];
        matches!(&self.value, Value::Scalar { text, plain: true } if WORDS.contains(&&**text))
    }

    fn expected(&self, what: &str) -> YamlError {
        YamlError::new(self.line, format!("expected {what}"))
    }

    fn text(&self, what: &str) -> Result<&str, YamlError> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Ok(text),
            _ => Err(self.expected(what)),
        }
    }

    fn number<T: FromStr>(&self) -> Result<T, YamlError> {
        const WHAT: &str = "a number within the limits of this setting";
        self.text(WHAT)?.parse().map_err(|_| self.expected(WHAT))
    }
}

/// Builds the nodes from the events of the parser.
struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// The nodes with an anchor, by its number.
    anchors: HashMap<usize, Node>,
    /// Number of nodes up to now.
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn event(&mut self) -> Result<(Event<'a>, usize), YamlError> {
        match self.events.next_event() {
            Some(Ok((event, place))) => Ok((event, place.start.line())),
            Some(Err(error)) => Err(YamlError::new(error.marker().line(), error.info())),
            None => Err(de::Error::custom("the document has no end")),
        }
    }

    fn document(mut self) -> Result<Node, YamlError> {
        let mut root = None;
        loop {
            let (event, line) = self.event()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event if root.is_none() => root = Some(self.node(event, line, 0)?),
                _ => return Err(YamlError::new(line, "a second document, where one is expected")),
            }
        }
        Ok(root.unwrap_or(Node { line: 1, value: Value::Scalar { text: String::new(), plain: true } }))
    }

    /// The node that begins with `event`, inside of `depth` collections.
    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, YamlError> {
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, depth, line)?;
                let is_text = tag.as_deref().is_some_and(|tag| tag.core_suffix() == Some("str"));
                let plain = style == ScalarStyle::Plain && !is_text;
                (anchor, Value::Scalar { text: text.into_owned(), plain })
            }
            Event::SequenceStart(_, anchor, _) => {
                self.count(1, depth + 1, line)?;
                (anchor, Value::Sequence(self.sequence(depth + 1)?))
            }
            Event::MappingStart(_, anchor, _) => {
                self.count(1, depth + 1, line)?;
                (anchor, Value::Mapping(self.mapping(depth + 1)?))
            }
            Event::Alias(anchor) => return self.alias(anchor, line, depth),
            _ => return Err(YamlError::new(line, "expected a value")),
        };
        let node = Node { line, value };
        if anchor != 0 {
            self.count(node.size().0, depth, line)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Node>, YamlError> {
        let mut all = Vec::new();
        loop {
            match self.event()? {
                (Event::SequenceEnd, _) => return Ok(all),
                (event, line) => all.push(self.node(event, line, depth)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Vec<Entry>, YamlError> {
        let (mut all, mut merged, mut known) = (Vec::new(), Vec::new(), HashSet::new());
        loop {
            let key = match self.event()? {
                (Event::MappingEnd, _) => break,
                (event, line) => self.node(event, line, depth)?,
            };
            let (event, line) = self.event()?;
            let mut value = self.node(event, line, depth)?;
            if value.is_null() {
                // The parser finds out that there is none at the next line with something.
                value.line = key.line;
            }
            match key.value {
                Value::Scalar { text, plain: true } if text == "<<" => merged.extend(sources(value)?),
                Value::Scalar { text, .. } => {
                    if !known.insert(text.clone()) {
                        return Err(YamlError::new(key.line, "this key occurs twice"));
                    }
                    all.push(Entry { line: key.line, key: text, value });
                }
                _ => return Err(YamlError::new(key.line, "expected a text as key")),
            }
        }
        // The entries of the mapping itself go first, then those of the first source.
        all.extend(merged.into_iter().filter(|entry| known.insert(entry.key.clone())));
        Ok(all)
    }

    fn alias(&mut self, anchor: usize, line: usize, depth: usize) -> Result<Node, YamlError> {
        let size = self.anchors.get(&anchor).map(Node::size);
        let (nodes, inside) = size.ok_or_else(|| YamlError::new(line, "an alias of the value that contains it"))?;
        self.count(nodes, depth + inside, line)?;
        self.anchors.get(&anchor).cloned().ok_or_else(|| YamlError::new(line, "an unknown alias"))
    }

    /// Counts nodes before they are stored.
    fn count(&mut self, nodes: usize, depth: usize, line: usize) -> Result<(), YamlError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES || depth > MAX_DEPTH {
            return Err(YamlError::new(
                line,
                format!("more than {MAX_NODES} values, or more than {MAX_DEPTH} inside each other"),
            ));
        }
        Ok(())
    }
}

/// The entries of the mapping, or of the list of mappings, of a merge key.
fn sources(value: Node) -> Result<Vec<Entry>, YamlError> {
    let expected = value.expected("a mapping, or a list of mappings, to merge");
    match value.value {
        Value::Mapping(entries) => Ok(entries),
        Value::Sequence(items) => {
            let mut all = Vec::new();
            for item in items {
                let Value::Mapping(entries) = item.value else { return Err(expected) };
                all.extend(entries);
            }
            Ok(all)
        }
        Value::Scalar { .. } => Err(expected),
    }
}

/// The items of a sequence.
struct Items<'a>(slice::Iter<'a, Node>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = YamlError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, YamlError> {
        let Some(node) = self.0.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|error| error.at(node.line))
    }
}

/// The entries of a mapping.
struct Entries<'a> {
    left: slice::Iter<'a, Entry>,
    /// The value of the last key.
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = YamlError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, YamlError> {
        let Some(entry) = self.left.next() else { return Ok(None) };
        self.value = Some(&entry.value);
        let key = seed.deserialize(entry.key.as_str().into_deserializer());
        key.map(Some).map_err(|error: YamlError| error.at(entry.line))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, YamlError> {
        let node = self.value.take().ok_or_else(|| <YamlError as de::Error>::custom("a value without a key"))?;
        seed.deserialize(node).map_err(|error| error.at(node.line))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
            visitor.$visit(self.number()?)
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = YamlError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        match &self.value {
            Value::Sequence(_) => self.deserialize_seq(visitor),
            Value::Mapping(_) => self.deserialize_map(visitor),
            Value::Scalar { .. } if self.is_null() => visitor.visit_unit(),
            Value::Scalar { text, plain: true } => match (&**text, text.parse::<i64>(), text.parse::<f64>()) {
                ("true" | "True" | "TRUE", ..) => visitor.visit_bool(true),
                ("false" | "False" | "FALSE", ..) => visitor.visit_bool(false),
                (_, Ok(number), _) => visitor.visit_i64(number),
                (_, _, Ok(number)) if text.contains(|c: char| c.is_ascii_digit()) => visitor.visit_f64(number),
                _ => visitor.visit_str(text),
            },
            Value::Scalar { text, .. } => visitor.visit_str(text),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        // The words of YAML 1.1 too, which Go accepts for a boolean.
        match &*self.text("true or false")?.to_lowercase() {
            "true" | "yes" | "on" | "y" => visitor.visit_bool(true),
            "false" | "no" | "off" | "n" => visitor.visit_bool(false),
            _ => Err(self.expected("true or false")),
        }
    }

    numbers! {
        deserialize_i8 visit_i8
        deserialize_i16 visit_i16
        deserialize_i32 visit_i32
        deserialize_i64 visit_i64
        deserialize_u8 visit_u8
        deserialize_u16 visit_u16
        deserialize_u32 visit_u32
        deserialize_u64 visit_u64
        deserialize_f32 visit_f32
        deserialize_f64 visit_f64
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        visitor.visit_str(self.text("a text")?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, YamlError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        match &self.value {
            Value::Sequence(items) => visitor.visit_seq(Items(items.iter())),
            _ if self.is_null() => visitor.visit_seq(Items(slice::Iter::default())),
            _ => Err(self.expected("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        match &self.value {
            Value::Mapping(entries) => visitor.visit_map(Entries { left: entries.iter(), value: None }),
            _ if self.is_null() => visitor.visit_map(Entries { left: slice::Iter::default(), value: None }),
            _ => Err(self.expected("a mapping of keys to values")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, YamlError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, YamlError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { char bytes byte_buf unit unit_struct tuple tuple_struct enum }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        name: String,
        count: u32,
        on: Option<bool>,
        list: Vec<String>,
        map: BTreeMap<String, String>,
        inside: Option<Box<Settings>>,
        any: Option<serde_json::Value>,
    }

    fn read(text: &str) -> Settings {
        from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn error(text: &str) -> String {
        from_str::<Settings>(text).err().unwrap_or_else(|| panic!("{text} was accepted")).to_string()
    }

    #[test]
    fn the_expected_type_decides_what_a_scalar_means() {
        let settings = read("name: 12\ncount: 7\non: yes\nlist: [1, true, 'null', !!str null]\nmap: {a: 1.50}\n");
        assert_eq!((&*settings.name, settings.count, settings.on), ("12", 7, Some(true)));
        assert_eq!((settings.list.join(" "), &*settings.map["a"]), ("1 true null null".to_owned(), "1.50"));
        let any = read("any: [1, 1.5, true, ~, text, '1', {k: -2}, nan]").any.unwrap();
        assert_eq!(any, serde_json::json!([1, 1.5, true, null, "text", "1", {"k": -2}, "nan"]));
    }

    #[test]
    fn an_empty_value_is_null_and_an_empty_text_has_none() {
        assert_eq!(from_str::<Option<Settings>>("# nothing\n").unwrap(), None);
        assert_eq!(read("on:\ninside: ~\nlist:\nmap: null\n"), Settings::default());
        assert_eq!(error("count: 1\nname:\n"), "line 2: expected a text");
        assert_eq!(read("\u{feff}name: ''\n").name, "");
    }

    #[test]
    fn an_error_has_the_line_and_no_value() {
        for (text, expected) in [
            ("name: a\ncount: secret\n", "line 2: expected a number within the limits of this setting"),
            ("count: -1", "line 1: expected a number within the limits of this setting"),
            ("on: secret", "line 1: expected true or false"),
            ("\nmap: secret", "line 2: expected a mapping of keys to values"),
            ("map:\n  a: [secret]\n", "line 2: expected a text"),
            ("list: secret", "line 1: expected a list"),
            ("inside: {secret: {}, secret: {}}", "line 1: this key occurs twice"),
            ("--- {}\n--- {}\n", "line 2: a second document, where one is expected"),
            ("- a", "line 1: expected a mapping of keys to values"),
            ("[a]: b", "line 1: expected a text as key"),
            ("<<: secret", "line 1: expected a mapping, or a list of mappings, to merge"),
        ] {
            assert_eq!(error(text), expected, "{text}");
        }
        assert!(error("name: a\nnmae: b\n").starts_with("line 2: unknown field `nmae`, expected one of `name`"));
        assert!(error("[1").starts_with("line 1: "));
    }

    #[test]
    fn aliases_and_merge_keys_are_resolved() {
        let settings = read("list: &l [a, b]\nmap: &m {k: v, other: own}\ninside: {list: *l, map: {<<: *m, k: w}}\n");
        let inside = settings.inside.unwrap();
        assert_eq!(inside.list, ["a", "b"]);
        assert_eq!((&*inside.map["k"], &*inside.map["other"]), ("w", "own"));
        let merged = read("map: {<<: [{a: '1'}, {a: '2', b: '2'}]}").map;
        assert_eq!((&*merged["a"], &*merged["b"]), ("1", "2"));
        assert!(error("list: *unknown").starts_with("line 1: "));
        assert!(error("inside: &i {inside: *i}").starts_with("line 1: "));
    }

    #[test]
    fn a_few_lines_cannot_stand_for_gigabytes() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{before}]\n");
        }
        let why = from_str::<BTreeMap<String, serde_json::Value>>(&text).unwrap_err().to_string();
        assert!(why.contains("more than 250000 values"), "{why}");
        let chain: String = (1..100).map(|level| format!("a{level}: &a{level} [[*a{}]]\n", level - 1)).collect();
        let why = from_str::<BTreeMap<String, serde_json::Value>>(&("a0: &a0 x\n".to_owned() + &chain)).unwrap_err();
        assert!(why.to_string().contains("64 inside each other"), "{why}");
        assert!(error(&"[".repeat(10_000)).starts_with("line 1: "));
    }
}
