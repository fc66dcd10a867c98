//! The tokens of a Rust file, as far as paths need them: without comments, literals, and what only
//! tests compile.

/// An identifier, `::`, or one character of punctuation, with its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) line: usize,
}

impl Token<'_> {
    pub(super) fn is_identifier(&self) -> bool {
        self.text.starts_with(|char: char| char.is_alphabetic() || char == '_')
    }
}

pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    without_tests(&lex(text))
}

fn lex(text: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let word = |rest: &str| rest.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(rest.len());
        let (length, is_token) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (block_comment(rest), false)
        } else if let Some(length) = literal(rest) {
            (length, false)
        } else if first.is_alphanumeric() || first == '_' {
            (word(rest), true)
        } else if rest.starts_with("::") {
            (2, true)
        } else {
            (first.len_utf8(), !first.is_whitespace())
        };
        if is_token {
            tokens.push(Token { text: &rest[..length], line });
        }
        line += rest[..length].matches('\n').count();
        at += length;
    }
    tokens
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the literal, or of the lifetime, that the text begins with.
fn literal(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        text.strip_prefix(prefix).is_some_and(|rest| {
            let rest = if prefix.ends_with('r') { rest.trim_start_matches('#') } else { rest };
            rest.starts_with('"') || (rest.starts_with('\'') && !prefix.ends_with('r'))
        })
    })?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let end = format!("\"{}", "#".repeat(rest.find('"')?));
        let open = rest.find('"')? + 1;
        return Some(prefix.len() + open + rest[open..].find(&end).map_or(rest.len() - open, |at| at + end.len()));
    }
    let quote = rest.chars().next()?;
    let mut chars = rest.char_indices().skip(1);
    if quote == '\'' {
        let (mut ahead, next) = (chars.clone(), rest[1..].chars().next()?);
        let is_char = next == '\\' || ahead.nth(1).is_some_and(|(_, char)| char == '\'');
        if !is_char {
            // A lifetime.
            let name = rest[1..].find(|char: char| !char.is_alphanumeric() && char != '_');
            return Some(prefix.len() + 1 + name.unwrap_or(rest.len() - 1));
        }
    }
    while let Some((at, char)) = chars.next() {
        if char == '\\' {
            chars.next();
        } else if char == quote {
            return Some(prefix.len() + at + 1);
        }
    }
    Some(text.len())
}

/// Leaves out every item with an attribute `cfg(test)`.
fn without_tests<'a>(all: &[Token<'a>]) -> Vec<Token<'a>> {
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < all.len() {
        let end = attribute_end(all, at);
        match end {
            Some(end) if is_test(&all[at..end]) => at = item_end(all, end),
            _ => {
                kept.push(all[at]);
                at += 1;
            }
        }
    }
    kept
}

/// End of the attribute `#[…]` that starts at `at`; `None` if none starts there.
fn attribute_end(all: &[Token<'_>], at: usize) -> Option<usize> {
    (all.get(at)?.text == "#" && all.get(at + 1)?.text == "[").then(|| group_end(all, at + 1))
}

fn is_test(attribute: &[Token<'_>]) -> bool {
    let has = |text: &str| attribute.iter().any(|token| token.text == text);
    attribute.get(2).is_some_and(|token| token.text == "cfg") && has("test") && !has("not")
}

/// End of the bracketed group that starts at `at`.
fn group_end(all: &[Token<'_>], at: usize) -> usize {
    let mut depth = 0_usize;
    for (end, token) in all.iter().enumerate().skip(at) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return end + 1;
        }
    }
    all.len()
}

/// End of the item that starts at `at`: after `;` or a block, or, for a field, after a comma.
fn item_end(all: &[Token<'_>], mut at: usize) -> usize {
    const ITEMS: [&str; 13] =
        ["pub", "fn", "mod", "use", "struct", "enum", "impl", "const", "static", "trait", "type", "unsafe", "async"];
    while let Some(end) = attribute_end(all, at) {
        at = end;
    }
    let is_item = all.get(at).is_some_and(|token| ITEMS.contains(&token.text));
    while let Some(token) = all.get(at) {
        match token.text {
            ";" => return at + 1,
            "," if !is_item => return at + 1,
            "}" => return at,
            "{" => {
                let end = group_end(all, at);
                return end + usize::from(all.get(end).is_some_and(|token| token.text == ";"));
            }
            "(" | "[" => at = group_end(all, at),
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn leaves_out_comments_and_literals() {
        let text = "a /* b /* c */ */ \"d\\\"e\" r#\"f\"g\"# 'h' '\\'' &'i j b'k' // l\n m::n";
        assert_eq!(texts(text), ["a", "&", "j", "m", "::", "n"]);
        assert_eq!(tokens(text).last().map(|token| token.line), Some(2));
    }

    #[test]
    fn leaves_out_what_only_tests_compile() {
        assert_eq!(texts("#[cfg(test)] mod tests { use a::{b}; } c"), ["c"]);
        assert_eq!(texts("#[cfg(test)] #[allow(x)] pub(super) fn a<B, C>(d: E) -> [u8; 2] { f } c"), ["c"]);
        assert_eq!(texts("#[cfg(all(test, unix))] use a::{b, c}; d"), ["d"]);
        assert_eq!(texts("A { #[cfg(test)] b: C, d: E }"), ["A", "{", "d", ":", "E", "}"]);
        assert_eq!(texts("#[cfg(not(test))] a").last(), Some(&"a"));
    }
}
