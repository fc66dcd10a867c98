//! Cycles between the files of a crate: a file that imports an item, directly or over others, from
//! a file that imports from it.
//!
//! An import counts for the file that defines the item: `pub use` in a parent is followed to the
//! child, and is no import of the parent unless the parent uses the name itself. Test modules do
//! not count. Paths are read from the tokens; macros are not expanded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    SourceFile,
    rust_tokens::{Token, tokens},
};

/// The path of a module below its crate, empty for the root.
type ModulePath = Vec<String>;
/// The names that one file imports from another, with the line of the first use.
type Names = BTreeMap<String, usize>;
type Graph<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Names>>;

/// More steps than any chain of re-exports has; ends those that lead to themselves.
const MAX_STEPS: usize = 16;

pub(super) fn check(files: &[SourceFile]) -> Vec<String> {
    let by_path: BTreeMap<&str, &str> = files.iter().map(|file| (&*file.path, &*file.text)).collect();
    let roots = by_path.keys().filter(|path| path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs"));
    roots.flat_map(|root| cycles(&Crate::read(root, &by_path).graph())).collect()
}

/// A `use` declaration of one name.
struct Import<'a> {
    /// The name in this file; `*` for all names of a module.
    name: &'a str,
    path: Vec<&'a str>,
    line: usize,
    is_public: bool,
}

/// A module with a file of its own.
struct Module<'a> {
    file: &'a str,
    imports: Vec<Import<'a>>,
    /// Paths outside of `use` declarations.
    paths: Vec<(Vec<&'a str>, usize)>,
    /// Names that are used outside of `use` declarations.
    used: BTreeSet<&'a str>,
    /// Names that are defined here.
    defined: BTreeSet<&'a str>,
}

/// The modules of a crate by path.
struct Crate<'a>(BTreeMap<ModulePath, Module<'a>>);

impl<'a> Crate<'a> {
    /// Follows the declarations `mod name;` from the root file.
    fn read(root: &'a str, files: &BTreeMap<&'a str, &'a str>) -> Self {
        let dir = root.rsplit_once('/').map_or("", |(dir, _)| dir);
        let mut modules = BTreeMap::new();
        let mut open = VecDeque::from([(ModulePath::new(), root)]);
        while let Some((path, file)) = open.pop_front() {
            let Some(text) = files.get(file) else { continue };
            let tokens = tokens(text);
            for name in declared_modules(&tokens) {
                let child: ModulePath = path.iter().cloned().chain([name.to_owned()]).collect();
                let stem = format!("{dir}/{}", child.join("/"));
                let found = [format!("{stem}.rs"), format!("{stem}/mod.rs")];
                let file = found.iter().find_map(|file| files.get_key_value(&**file));
                open.extend(file.map(|(file, _)| (child, *file)));
            }
            modules.insert(path, Module::read(file, &tokens));
        }
        Self(modules)
    }

    fn graph(&self) -> Graph<'a> {
        let mut graph = Graph::new();
        for (path, module) in &self.0 {
            let mut add = |segments: &[&str], line: usize, name: Option<&str>| {
                let Some((target, item)) = self.resolve(path, segments, name, MAX_STEPS) else { return };
                let (Some(target), Some(item)) = (self.0.get(&target), item) else { return };
                if target.file != module.file {
                    let names = graph.entry(module.file).or_default().entry(target.file).or_default();
                    names.entry(item).or_insert(line);
                }
            };
            for import in &module.imports {
                if !import.is_public || module.used.contains(import.name) {
                    add(&import.path, import.line, Some(import.name));
                }
            }
            for (segments, line) in &module.paths {
                add(segments, *line, None);
            }
        }
        graph
    }

    /// The module that defines what a path names in the module `base`, and the name of the item,
    /// which is absent where the path names a module. `None` for other crates.
    ///
    /// `own` is the name that the path itself is imported under, so that `use a::a` ends.
    fn resolve(
        &self,
        base: &ModulePath,
        segments: &[&str],
        own: Option<&str>,
        steps: usize,
    ) -> Option<(ModulePath, Option<String>)> {
        let steps = steps.checked_sub(1)?;
        let mut module = base.clone();
        let mut segments = segments.iter().copied().peekable();
        if segments.next_if_eq(&"crate").is_some() {
            module.clear();
        } else {
            let mut is_relative = segments.next_if_eq(&"self").is_some();
            while segments.next_if_eq(&"super").is_some() {
                module.pop()?;
                is_relative = true;
            }
            if !is_relative {
                let first = segments.peek()?;
                let here = self.0.get(base)?;
                let imported = || own != Some(first) && here.imports.iter().any(|import| import.name == *first);
                if !self.is_child(base, first) && !imported() {
                    return None;
                }
            }
        }
        while let Some(segment) = segments.next() {
            if self.is_child(&module, segment) {
                module.push(segment.to_owned());
                continue;
            }
            let here = self.0.get(&module)?;
            let item = Some((module.clone(), Some(segment.to_owned())));
            if segment == "*" || here.defined.contains(segment) {
                return item;
            }
            if let Some(import) = here.imports.iter().find(|import| import.name == segment) {
                match self.resolve(&module, &import.path, Some(segment), steps)? {
                    (target, None) if segments.peek().is_some() => module = target,
                    found => return Some(found),
                }
                continue;
            }
            let globs = here.imports.iter().filter(|import| import.name == "*");
            let found = globs.filter_map(|glob| {
                let of = glob.path.split_last()?.1;
                let (target, None) = self.resolve(&module, of, None, steps)? else { return None };
                let known = self.0.get(&target)?;
                let has = known.defined.contains(segment) || known.imports.iter().any(|import| import.name == segment);
                if has { self.resolve(&target, &["self", segment], None, steps) } else { None }
            });
            return found.into_iter().next().or(item);
        }
        Some((module, None))
    }

    fn is_child(&self, module: &ModulePath, name: &str) -> bool {
        let mut child = module.clone();
        child.push(name.to_owned());
        self.0.contains_key(&child)
    }
}

impl<'a> Module<'a> {
    fn read(file: &'a str, tokens: &[Token<'a>]) -> Self {
        let (imports, rest) = split_imports(tokens);
        let used = rest.iter().map(|token| token.text).collect();
        let keywords = ["struct", "enum", "union", "fn", "const", "static", "type", "trait", "mod"];
        let defines = |pair: &[Token<'a>]| keywords.contains(&pair[0].text).then_some(pair[1].text);
        let macros = rest.windows(3).filter(|three| three[0].text == "macro_rules").map(|three| three[2].text);
        let defined = rest.windows(2).filter_map(defines).chain(macros).collect();
        Self { file, imports, paths: paths(&rest), used, defined }
    }
}

/// The names of `mod name;`.
fn declared_modules<'a>(tokens: &[Token<'a>]) -> Vec<&'a str> {
    let is_declaration = |three: &&[Token<'a>]| three[0].text == "mod" && three[2].text == ";";
    tokens.windows(3).filter(is_declaration).map(|three| three[1].text).collect()
}

/// Splits the `use` declarations from all other tokens.
///
/// A path in an inline module begins with `super` once more for each module that it is in; those
/// are taken off, since the file is what counts.
fn split_imports<'a>(tokens: &[Token<'a>]) -> (Vec<Import<'a>>, Vec<Token<'a>>) {
    let (mut imports, mut rest): (Vec<Import<'a>>, Vec<Token<'a>>) = (Vec::new(), Vec::new());
    let (mut braces, mut inline, mut at) = (0_usize, Vec::new(), 0);
    while let Some(token) = tokens.get(at) {
        let next = |text: &str| tokens.get(at + 1).is_some_and(|token| token.text == text);
        if token.text == "use" && !next("<") {
            let is_public = rest.last().is_some_and(|before| before.text == "pub" || before.text == ")");
            let before = imports.len();
            at = use_tree(tokens, at + 1, &[], is_public, &mut imports);
            for import in &mut imports[before..] {
                leave_inline_modules(&mut import.path, inline.len());
            }
            continue;
        }
        if token.text == "mod" && tokens.get(at + 2).is_some_and(|token| token.text == "{") {
            inline.push(braces);
        }
        match token.text {
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if inline.last() == Some(&braces) {
                    inline.pop();
                }
            }
            "super" if !inline.is_empty() && next("::") => {
                // Stands for as many inline modules as the path leaves.
                let supers = tokens[at..].chunks(2).take_while(|pair| pair[0].text == "super").count();
                let left = supers.saturating_sub(inline.len());
                rest.extend(tokens[at..at + 2 * left].iter().copied());
                rest.extend(
                    (left == 0).then_some([Token { text: "self", ..*token }, tokens[at + 1]]).into_iter().flatten(),
                );
                at += 2 * supers;
                continue;
            }
            _ => {}
        }
        rest.push(*token);
        at += 1;
    }
    (imports, rest)
}

fn leave_inline_modules(path: &mut Vec<&str>, depth: usize) {
    if depth > 0 && path.first() == Some(&"self") {
        // A name of the inline module.
        path.clear();
    }
    for _ in 0..depth {
        if path.first() == Some(&"super") {
            path.remove(0);
            if path.first() != Some(&"super") {
                path.insert(0, "self");
                break;
            }
        }
    }
}

/// Reads a tree of a `use` declaration up to its `,`, `}` or `;`; returns where that is.
fn use_tree<'a>(
    tokens: &[Token<'a>],
    mut at: usize,
    prefix: &[&'a str],
    is_public: bool,
    imports: &mut Vec<Import<'a>>,
) -> usize {
    let (mut path, mut alias, mut line) = (prefix.to_vec(), None, 0);
    while let Some(token) = tokens.get(at) {
        match token.text {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}" && token.text != ";") {
                    at = use_tree(tokens, at, &path, is_public, imports);
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "::" => {}
            "as" => {
                at += 1;
                alias = tokens.get(at).map(|token| token.text);
            }
            text => path.push(text),
        }
        line = token.line;
        at += 1;
    }
    if path.len() > 1 && path.last() == Some(&"self") {
        // `a::{self}` is `a`.
        path.pop();
    }
    let name = alias.or(path.last().copied());
    imports.extend(name.map(|name| Import { name, path, line, is_public }));
    at
}

/// Every `a::b`, without generic arguments.
fn paths<'a>(tokens: &[Token<'a>]) -> Vec<(Vec<&'a str>, usize)> {
    let mut paths: Vec<(Vec<&str>, usize)> = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let mut path = vec![token.text];
        while token.is_identifier()
            && tokens.get(at + 1).is_some_and(|next| next.text == "::")
            && tokens.get(at + 2).is_some_and(Token::is_identifier)
        {
            path.push(tokens[at + 2].text);
            at += 2;
        }
        if path.len() > 1 {
            paths.push((path, token.line));
        }
        at += 1;
    }
    paths
}

/// One line per cycle, the shortest through each file, with the names that its imports have.
fn cycles(graph: &Graph<'_>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let cycles = graph.keys().filter_map(|start| shortest_cycle(graph, start));
    let cycles = cycles.filter(|cycle| seen.insert(cycle.iter().copied().collect::<BTreeSet<_>>()));
    let text = |cycle: Vec<&str>| {
        let pairs = cycle.iter().zip(cycle.iter().cycle().skip(1));
        let steps = pairs.map(|(from, to)| {
            let names = &graph[from][to];
            let line = names.values().min().copied().unwrap_or(1);
            let names: Vec<&str> = names.keys().map(String::as_str).collect();
            format!("{from}:{line} imports {} from {to}", names.join(", "))
        });
        steps.collect::<Vec<_>>().join("; ")
    };
    cycles.map(text).collect()
}

fn shortest_cycle<'a>(graph: &Graph<'a>, start: &'a str) -> Option<Vec<&'a str>> {
    let targets = |from: &str| graph.get(from).into_iter().flat_map(|targets| targets.keys().copied());
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(from) = open.pop_front() {
        for to in targets(from) {
            if to == start {
                let mut cycle = vec![from];
                while let Some(before) = came_from.get(cycle[cycle.len() - 1]) {
                    cycle.push(before);
                }
                cycle.reverse();
                return Some(cycle);
            }
            if !came_from.contains_key(to) {
                came_from.insert(to, from);
                open.push_back(to);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycles_of(files: &[(&str, &str)]) -> Vec<String> {
        let file = |(path, text): &(&str, &str)| SourceFile { path: format!("c/src/{path}"), text: (*text).to_owned() };
        check(&files.iter().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn finds_files_that_import_from_each_other() {
        let a = "use crate::b::{self, B};\npub struct A;\nfn f() { b::help(); }";
        let b = "pub struct B;\npub fn help() {}\nfn f(a: super::a::A) {}";
        let found = cycles_of(&[("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", b)]);
        assert_eq!(found, ["c/src/a.rs:1 imports B, help from c/src/b.rs; c/src/b.rs:3 imports A from c/src/a.rs"]);
    }

    #[test]
    fn finds_a_cycle_over_three_files() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::B as D;"),
            ("b.rs", "use crate::c::*;"),
            ("c.rs", "use super::a::A;"),
        ];
        assert_eq!(cycles_of(&files).len(), 1);
    }

    #[test]
    fn finds_an_item_of_the_parent_in_its_child() {
        let parent = "mod b;\nuse b::B;\npub struct P;\nfn f(b: B) {}";
        let files = [("lib.rs", "mod a;"), ("a/mod.rs", parent), ("a/b.rs", "use super::P;\npub struct B;")];
        assert_eq!(cycles_of(&files).len(), 1);
        let inside = "pub struct B;\nmod inner { use super::super::P; }";
        assert_eq!(cycles_of(&[files[0], files[1], ("a/b.rs", inside)]).len(), 1);
    }

    #[test]
    fn leaves_re_exports_of_children() {
        let files = [
            ("lib.rs", "pub mod a;"),
            ("a/mod.rs", "mod b; mod c;\npub use b::B;\npub(crate) use self::c::*;"),
            ("a/b.rs", "use super::C;\npub struct B;"),
            ("a/c.rs", "use std::fmt;\npub struct C;"),
        ];
        assert_eq!(cycles_of(&files), Vec::<String>::new());
        // The parent uses what it re-exports.
        let parent = "mod b;\npub use b::B;\npub struct P(B);";
        assert_eq!(cycles_of(&[files[0], ("a/mod.rs", parent), ("a/b.rs", "use super::P;")]).len(), 1);
    }

    #[test]
    fn leaves_tests_and_other_crates() {
        let files = [
            ("lib.rs", "mod a; mod b; #[cfg(test)] mod t;"),
            ("a.rs", "use crate::b::B;\npub struct A;"),
            ("b.rs", "use a::A;\nuse std::a::A as C;\n#[cfg(test)]\nmod tests { use crate::a::A; }"),
            ("t.rs", "use crate::a::A; use crate::b::B;"),
        ];
        assert_eq!(cycles_of(&files), Vec::<String>::new());
    }
}
