//! Words to avoid, each with the terms that replace it.
//!
//! They are found in prose and in identifiers: `told apart`, `told_apart` and `ToldApart` are the
//! same two words, also where a line ends between them.

use std::{collections::HashMap, sync::LazyLock};

use super::SourceFile;

/// The word or phrase, in lower case, and its replacement.
const AVOIDED: [(&str, &str); 38] = [
    ("nobody", "unattributed, no container, no process, no user"),
    ("somebody", "a user, a process, a client"),
    ("whoever", "the user, the process, the client that"),
    ("anew", "again"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("mending", "fixing"),
    ("tell apart", "distinguish"),
    ("tells apart", "distinguishes"),
    ("told apart", "distinguished"),
    ("telling apart", "distinguishing"),
    ("stint", "context switch, time slice"),
    ("stints", "context switches, time slices"),
    ("beside", "next to, with, alongside"),
    ("besides", "also, apart from"),
    ("stranger", "unknown"),
    ("strangers", "unknown"),
    ("christen", "resolve name"),
    ("christens", "resolves name"),
    ("christened", "resolved"),
    ("christening", "name resolution"),
    ("bury", "mark gone, retire"),
    ("buries", "marks gone, retires"),
    ("buried", "marked gone, retired"),
    ("bereave", "detach"),
    ("bereaved", "detached"),
    ("newcomer", "new"),
    ("newcomers", "new"),
    ("kernel side", "eBPF programs"),
    ("kernel sides", "eBPF programs"),
    ("untyped twin", "raw tracepoint variant"),
    ("untyped twins", "raw tracepoint variants"),
    ("replaced exporter", "legacy exporter"),
    ("replaced exporters", "legacy exporters"),
    ("replaced stack", "legacy stack"),
    ("replaced dashboard", "legacy dashboard"),
    ("seed layer", "compat layer"),
];

static BY_FIRST_WORD: LazyLock<HashMap<&str, Vec<(&str, &str)>>> = LazyLock::new(|| {
    let mut phrases: HashMap<_, Vec<_>> = HashMap::new();
    for phrase in AVOIDED {
        phrases.entry(phrase.0.split(' ').next().unwrap_or_default()).or_default().push(phrase);
    }
    phrases
});

/// Names that others chose, and keys of files and APIs that do not change: file, and what its line
/// contains.
const ALLOWED: [(&str, &str); 7] = [
    ("xtask/src/local_images.rs", "nobody:x:65534:65534"),
    ("analysis/tests/runner.rs", "beside_microjoules"),
    ("crates/experiment/src/runner/output.rs", "beside_microjoules"),
    ("docs/results-schema.json", "beside_microjoules"),
    ("docs/results-schema.md", "beside_microjoules"),
    ("crates/experiment/src/runner/journal.rs", "rename = \"beside"),
    ("probe-user/src/gpu/mod.rs", "rename = \"anew\""),
];

/// The list itself.
const THIS_FILE: &str = "xtask/src/source_checks/words.rs";

pub(super) fn check(files: &[SourceFile]) -> Vec<String> {
    files.iter().filter(|file| file.path != THIS_FILE).flat_map(faults).collect()
}

fn faults(file: &SourceFile) -> Vec<String> {
    let words = words(&file.text);
    let lines: Vec<&str> = file.text.lines().collect();
    let is_allowed = |line: usize| ALLOWED.iter().any(|(path, text)| *path == file.path && lines[line].contains(text));
    let mut faults = Vec::new();
    for (at, (line, word)) in words.iter().enumerate() {
        let Some(phrases) = BY_FIRST_WORD.get(&**word) else { continue };
        let begins = |phrase: &str| {
            let mut rest = words[at..].iter();
            phrase.split(' ').all(|part| rest.next().is_some_and(|(_, word)| word == part))
        };
        for (phrase, replacement) in phrases.iter().filter(|(phrase, _)| begins(phrase)) {
            if !is_allowed(*line) {
                faults.push(format!("{}:{}: \"{phrase}\"; write: {replacement}", file.path, line + 1));
            }
        }
    }
    faults
}

/// The words of a text in lower case with the index of their line; identifiers are split into
/// words.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    for (line, text) in text.lines().enumerate() {
        let chars: Vec<char> = text.chars().collect();
        let mut word = String::new();
        for (at, char) in chars.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|at| chars.get(at));
            let after = chars.get(at + 1);
            // `toldApart`, and the last capital of `HTTPServer`.
            let begins = char.is_uppercase()
                && before.is_some_and(|before| {
                    before.is_lowercase() || before.is_uppercase() && after.is_some_and(|after| after.is_lowercase())
                });
            if !char.is_alphanumeric() || begins {
                words.extend((!word.is_empty()).then(|| (line, std::mem::take(&mut word))));
            }
            if char.is_alphanumeric() {
                word.extend(char.to_lowercase());
            }
        }
        words.extend((!word.is_empty()).then_some((line, word)));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_with_faults(text: &str) -> Vec<String> {
        let file = SourceFile { path: "a.rs".to_owned(), text: text.to_owned() };
        let start = |fault: String| fault.split(';').next().unwrap_or_default().to_owned();
        faults(&file).into_iter().map(start).collect()
    }

    #[test]
    fn finds_avoided_words_in_prose_and_identifiers() {
        let text =
            "nobody's joules\nfn mend_it() {}\nstruct ToldApart;\nlet KERNEL_SIDE\nis told\n/// apart\nsetHTTPNewcomer";
        assert_eq!(
            lines_with_faults(text),
            [
                "a.rs:1: \"nobody\"",
                "a.rs:2: \"mend\"",
                "a.rs:3: \"told apart\"",
                "a.rs:4: \"kernel side\"",
                "a.rs:5: \"told apart\"",
                "a.rs:7: \"newcomer\"",
            ]
        );
    }

    #[test]
    fn leaves_words_that_contain_an_avoided_one() {
        assert_eq!(lines_with_faults("recommended amendment, Canew, the kernel's side-effect"), Vec::<String>::new());
    }

    #[test]
    fn allows_the_user_name_where_it_is_listed() {
        let file = |path: &str| SourceFile { path: path.to_owned(), text: "nobody:x:65534:65534::/".to_owned() };
        assert_eq!(faults(&file(ALLOWED[0].0)).len(), 0);
        assert_eq!(faults(&file("other.rs")).len(), 1);
    }
}
