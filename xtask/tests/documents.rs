//! Commands in the documents: the programs know every subcommand and flag, `cargo xtask` has every
//! task, and files of the repository exist. Nothing is run but `--help`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::shell::{output, programs, root};

/// Directories whose files commands name.
const DIRECTORIES: [&str; 4] = ["deploy/", "grafana/", "docs/", ".ci/"];

/// A command in a document, without `sudo`, variables and redirections.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    line: usize,
    words: Vec<String>,
}

/// The commands in fenced blocks of shell commands, and in code spans that begin with a program.
fn commands(document: &str) -> Vec<Listed> {
    let (mut commands, mut fence, mut continued) = (Vec::new(), None, String::new());
    for (line, text) in (1..).zip(document.lines()) {
        let text = text.trim_end();
        if let Some(language) = text.trim_start().strip_prefix("```") {
            fence = if fence.is_none() { Some(language.to_owned()) } else { None };
            continued.clear();
            continue;
        }
        let Some(language) = &fence else {
            let spans = text.split('`').skip(1).step_by(2);
            let spans = spans.filter(|span| PREFIXES.iter().any(|prefix| span.starts_with(prefix)));
            commands.extend(spans.flat_map(|span| simple_commands(span, line)));
            continue;
        };
        let command = match &**language {
            "sh" | "bash" | "shell" => Some(text),
            // In a session, the other lines are output.
            "console" => text.strip_prefix("$ ").or((!continued.is_empty()).then_some(text)),
            // A block without a language may hold anything.
            "" => PREFIXES.iter().any(|prefix| text.trim_start_matches("sudo ").starts_with(prefix)).then_some(text),
            _ => None,
        };
        let Some(command) = command else { continue };
        match command.strip_suffix('\\') {
            Some(start) => continued.push_str(start),
            None => commands.extend(simple_commands(&(std::mem::take(&mut continued) + command), line)),
        }
    }
    commands
}

const PREFIXES: [&str; 3] = ["wattcast-probe ", "wattcast-analysis ", "cargo xtask "];

/// Splits a line of shell at pipes and lists, and each part into words.
fn simple_commands(line: &str, number: usize) -> Vec<Listed> {
    let (mut all, mut words, mut word, mut quote) = (Vec::new(), Vec::new(), String::new(), None);
    let mut chars = line.chars().peekable();
    let mut finish = |words: &mut Vec<String>| all.push(Listed { line: number, words: std::mem::take(words) });
    while let Some(char) = chars.next() {
        match char {
            '\\' if quote != Some('\'') => word.extend(chars.next()),
            '"' | '\'' if quote.is_none() => quote = Some(char),
            _ if quote == Some(char) => quote = None,
            _ if quote.is_some() => word.push(char),
            '#' if word.is_empty() => break,
            ' ' | '|' | '&' | ';' | '(' | ')' => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                if char != ' ' {
                    finish(&mut words);
                }
            }
            _ => word.push(char),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    finish(&mut words);
    all.into_iter().map(without_prefix).filter(|command| !command.words.is_empty()).collect()
}

/// Leaves out `sudo`, `env`, their flags, assignments of variables, and redirections.
fn without_prefix(mut command: Listed) -> Listed {
    let is_assignment = |word: &str| word.split_once('=').is_some_and(|(name, _)| !name.starts_with('-'));
    let prefixes = command
        .words
        .iter()
        .take_while(|word| ["sudo", "-E", "env", "exec", "time"].contains(&word.as_str()) || is_assignment(word));
    let count = prefixes.count();
    command.words.drain(..count);
    if let Some(end) = command.words.iter().position(|word| word.starts_with(['>', '<', '…']) || word == "2>") {
        command.words.truncate(end);
    }
    command
}

/// The fault of a command, if it has one.
fn fault(words: &[String], bin: &Path) -> Option<String> {
    let missing = words.iter().map(|word| word.trim_start_matches("./")).find(|word| {
        let is_path = DIRECTORIES.iter().any(|dir| word.starts_with(dir)) && !word.contains(['*', '$']);
        is_path && !root().join(word).exists()
    });
    if let Some(path) = missing {
        return Some(format!("{path} does not exist"));
    }
    let name = Path::new(&words[0]).file_name()?.to_str()?;
    let (program, arguments) = match name {
        "wattcast-probe" | "wattcast-analysis" => (bin.join(name), &words[1..]),
        "cargo" if words.get(1).is_some_and(|word| word == "xtask") => {
            (PathBuf::from(env!("CARGO_BIN_EXE_xtask")), &words[2..])
        }
        _ => return None,
    };
    // What comes after `--` is for another program. Flags before --help are parsed before it.
    let own = arguments.iter().take_while(|word| *word != "--");
    let mut command = Command::new(program);
    output(command.args(own).arg("--help")).err().map(|error| format!("{error:#}"))
}

fn documents() -> Vec<PathBuf> {
    let names = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md"];
    let (mut documents, mut open) = (names.map(|name| root().join(name)).to_vec(), vec![root().join("docs")]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    documents
}

#[test]
fn documented_commands_exist() {
    // As `cargo xtask test` built them, or as cargo did with this test.
    let built = PathBuf::from(env!("CARGO_BIN_EXE_xtask")).parent().map(Path::to_owned).unwrap_or_default();
    let has_both = ["wattcast-probe", "wattcast-analysis"].iter().all(|name| built.join(name).exists());
    let is_set = std::env::var_os(testkit::shell::PROGRAMS).is_some();
    let bin = if has_both && !is_set { built } else { programs().unwrap() };
    let (mut count, mut faults) = (0, Vec::new());
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for command in commands(&text) {
            count += 1;
            let fault = fault(&command.words, &bin);
            let place = format!("{}:{}", document.display(), command.line);
            faults.extend(fault.map(|fault| format!("{place}: {}: {fault}", command.words.join(" "))));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count >= 10, "the documents list only {count} commands");
}

/// Files and directories of the source tree that code spans name.
fn source_paths(document: &str) -> impl Iterator<Item = &str> {
    let spans = document.split('`').skip(1).step_by(2).filter(|span| !span.contains(['{', '*', '<', ' ', '\n', '…']));
    spans.filter(|span| SOURCES.iter().any(|dir| span.starts_with(dir)))
}

const SOURCES: [&str; 6] = ["analysis/", "crates/", "fuzz/", "probe-ebpf/", "probe-user/", "xtask/"];

#[test]
fn source_paths_in_documents_exist() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let dirs = [root(), document.parent().unwrap().to_owned()];
        let paths = source_paths(&text).filter(|path| !dirs.iter().any(|dir| dir.join(path).exists()));
        missing.extend(paths.map(|path| format!("{}: {path}", document.display())));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert_eq!(source_paths("in `xtask/src/a.rs`, `crates/{a,b}` and `cargo xtask`").count(), 1);
}

#[test]
fn commands_are_read_from_blocks_and_code_spans() {
    let document = "Use `wattcast-probe doctor --json` or `other`.\n\
        ```sh\nsudo -E env A=\"$B\" cargo xtask up --demo # note\nwattcast-analysis run \\\n  --name 'a b' | tee x && ls docs/\n```\n\
        ```console\n$ wattcast-probe exec -- ffmpeg …\noutput\n```\n```json\nwattcast-probe no\n```\n\
        ```\nwattcast-probe doctor\nSources\n```\n";
    let words: Vec<String> = commands(document).iter().map(|command| command.words.join("_")).collect();
    assert_eq!(
        words,
        [
            "wattcast-probe_doctor_--json",
            "cargo_xtask_up_--demo",
            "wattcast-analysis_run_--name_a b",
            "tee_x",
            "ls_docs/",
            "wattcast-probe_exec_--_ffmpeg",
            "wattcast-probe_doctor",
        ]
    );
}

#[test]
fn unknown_tasks_flags_and_files_are_faults() {
    let fault = |line: &str| fault(&simple_commands(line, 1)[0].words, Path::new("/"));
    assert_eq!(fault("cargo xtask bench web --seconds 5"), None);
    assert!(fault("cargo xtask no-such-task").is_some());
    assert!(fault("cargo xtask bench --no-such-flag").is_some());
    assert_eq!(fault("docker build -f deploy/docker/Dockerfile ."), None);
    assert!(fault("docker build -f deploy/no-such-file .").is_some());
}
