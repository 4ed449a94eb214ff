//! What the layout and the manner of the source ask for, as failing tests: layers, file heads, sizes, bans, links.
//!
//! Each test reads the files as text and prints every finding, one a line, as `file:line: what, and what to do`. The
//! readers here know just enough Rust for this source: whole-line and trailing comments are left out, strings are not.
//! The layer table is the one of src/ARCHITECTURE.md.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/tags.rs"]
mod tags;

/// Layers from the bottom; each may use those of lower rank, and itself.
const LAYERS: &[(&str, u8)] = &[
    ("base", 0),
    ("sip", 1),
    ("route", 2),
    ("engine", 3),
    ("control", 3),
    ("cluster", 3),
    ("shell", 4),
    ("admin", 4),
    ("fuzzing", 4),
    ("demo", 5),
    ("cli", 6),
];

/// These use `base` alone and may be read by every layer above it.
const READ_BY_ALL: [&str; 2] = ["config", "metrics"];

/// Layers that see no clock, no thread, no socket and no executor.
const PURE: [&str; 7] = ["base", "sip", "route", "engine", "control", "cluster", "fuzzing"];

const IMPURE: [(&str, &str); 10] = [
    ("std::time::Instant", "time is told; see base/time.rs"),
    ("SystemTime", "time is told; see base/time.rs"),
    ("std::thread", "threads are the shell's"),
    ("thread_local!", "state is owned, not ambient"),
    ("UdpSocket", "sockets are the shell's"),
    ("TcpStream", "sockets are the shell's"),
    ("std::fs", "files are for config"),
    ("tokio", "executors are the shell's"),
    ("glommio", "executors are the shell's"),
    ("async fn", "executors are the shell's"),
];

/// The largest source file, in lines.
const LINES_MAX: usize = 600;

/// A file of more lines than this says in a head of some lines what it is and why.
const LINES_WITHOUT_HEAD: usize = 100;

const HEAD_MIN: usize = 3;

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    /// `route` for `src/route/key.rs`; `main` and `lib` for those.
    fn layer(&self) -> &str {
        let inner = self.path.strip_prefix("src/").unwrap_or_default();
        inner.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("tests.rs") || self.path.starts_with("tests/")
    }

    /// Numbered lines without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }

    fn line_of(&self, offset: usize) -> usize {
        1 + self.text[..offset].matches('\n').count()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, ending: &str) -> Vec<Source> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                // Expectations hold whatever bytes a message may hold.
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
                found.push(Source { path: path.strip_prefix(root()).unwrap().display().to_string(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// All Rust of the workspace.
fn rust() -> Vec<Source> {
    ["src", "bench-harness/src", "bench-harness/tests", "benches", "tests"]
        .map(|f| files(f, "rs"))
        .into_iter()
        .flatten()
        .collect()
}

fn check(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// The modules at the top of the crate that a file names, and the lines where it does.
fn named_modules(source: &Source) -> Vec<(usize, String)> {
    let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
    let mut named = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let line = 1 + code[..at].matches('\n').count();
            let rest = &code[at + start.len()..];
            let names = if rest.starts_with('{') { first_segments(rest) } else { vec![segment(rest)] };
            named.extend(names.into_iter().map(|name| (line, name.to_owned())));
        }
    }
    named
}

fn segment(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// `a` and `b` of `{a::{x, y}, b::z}`.
fn first_segments(text: &str) -> Vec<&str> {
    let (mut depth, mut names) = (0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == '{' || c == ',') && depth == 1 {
            names.push(segment(&text[at + 1..]));
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn may_use(user: &str, used: &str) -> bool {
    let rank = |layer| LAYERS.iter().find(|(name, _)| *name == layer).map(|(_, rank)| *rank);
    match (rank(user), rank(used)) {
        _ if user == used => true,
        // Not a layer: a submodule, a macro.
        (_, None) if !READ_BY_ALL.contains(&used) => true,
        (Some(user), None) => user > 0,
        (None, Some(used)) if READ_BY_ALL.contains(&user) => used == 0,
        (None, None) => !READ_BY_ALL.contains(&user),
        // lib.rs and main.rs.
        (None, Some(_)) => true,
        (Some(user), Some(used)) => user > used,
    }
}

#[test]
fn each_layer_uses_only_those_below_it() {
    let mut findings = Vec::new();
    for source in files("src", "rs") {
        for (line, used) in named_modules(&source) {
            if !may_use(source.layer(), &used) {
                findings.push(format!("{}:{line}: {} may not use {used}", source.path, source.layer()));
            }
        }
    }
    check(&findings);
}

#[test]
fn layer_rule_sees_what_it_should() {
    let named = |text: &str| {
        let source = Source { path: "src/sip/via.rs".to_owned(), text: text.to_owned() };
        named_modules(&source)
            .into_iter()
            .map(|(_, name)| name)
            .filter(|name| !may_use("sip", name))
            .collect::<Vec<_>>()
    };
    assert_eq!(named("use crate::base::span::Span;\nuse super::scan::Scan;\nuse crate::metrics::Reason;"), [""; 0]);
    assert_eq!(named("use crate::{\n    base::id,\n    route::{key, verdict},\n    shell,\n};"), ["route", "shell"]);
    assert_eq!(named("fn f() -> crate::engine::Engine { super::super::route::f() }"), ["engine", "route"]);
    assert_eq!(named("// crate::shell is elsewhere"), [""; 0]);
    assert!(!may_use("engine", "control") && !may_use("config", "sip") && !may_use("base", "config"));
    assert!(may_use("main", "cli") && may_use("cli", "demo") && may_use("config", "base"));
}

#[test]
fn every_folder_of_the_source_has_its_place_in_the_layers() {
    let known = |layer: &str| {
        LAYERS.iter().any(|(name, _)| *name == layer)
            || READ_BY_ALL.contains(&layer)
            || ["main", "lib"].contains(&layer)
    };
    let strangers: Vec<String> = files("src", "rs")
        .iter()
        .filter(|source| !known(source.layer()))
        .map(|source| format!("{}: {} is no layer; add it to LAYERS here", source.path, source.layer()))
        .collect();
    check(&strangers);
}

#[test]
fn pure_layers_touch_no_clock_thread_or_socket() {
    let mut findings = Vec::new();
    for source in files("src", "rs").iter().filter(|source| PURE.contains(&source.layer())) {
        for (number, line) in source.code() {
            for (word, reason) in IMPURE.iter().filter(|(word, _)| line.contains(word)) {
                findings.push(format!("{}:{number}: {word}: {reason}", source.path));
            }
        }
    }
    check(&findings);
}

#[test]
fn every_file_says_what_it_is_and_stays_small() {
    let mut findings = Vec::new();
    for source in rust() {
        let head = source.text.lines().take_while(|line| line.starts_with("//!") || line.starts_with("#!")).count();
        let lines = source.text.lines().count();
        let head_min = if lines > LINES_WITHOUT_HEAD && !source.is_test() { HEAD_MIN } else { 1 };
        if head < head_min {
            findings.push(format!("{}: a head of {head} lines; say in {head_min} or more what it is", source.path));
        }
        if lines > LINES_MAX && !source.is_test() {
            findings.push(format!("{}: {lines} lines; split it by its nouns, {LINES_MAX} are the limit", source.path));
        }
    }
    check(&findings);
}

#[test]
fn files_are_named_after_what_they_hold() {
    let vague = ["utils", "util", "helpers", "helper", "manager", "common", "context", "misc"];
    let findings: Vec<String> = rust()
        .iter()
        .flat_map(|source| {
            source.path.split(['/', '.']).filter(|part| vague.contains(part)).map(|_| source.path.clone())
        })
        .collect();
    check(&findings);
}

#[test]
fn unsafe_stands_in_one_folder() {
    let mut findings = Vec::new();
    for source in rust() {
        // The counting allocator of a test cannot be written without.
        let places = ["bench-harness/src/sys.rs", "tests/no_alloc.rs", "tests/tls_memory.rs"];
        if source.path.starts_with("src/shell/sys/") || places.contains(&source.path.as_str()) {
            continue;
        }
        for (number, line) in source.code() {
            // Quotes: this file and tests about the word.
            if line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
                && !line.contains('"')
            {
                findings.push(format!("{}:{number}: unsafe belongs in shell/sys/", source.path));
            }
            if line.contains("allow(unsafe_code") && !line.contains('"') {
                findings.push(format!("{}:{number}: unsafe_code is allowed where sys is declared, alone", source.path));
            }
        }
    }
    // The two declarations of the modules that may.
    findings
        .retain(|finding| !finding.starts_with("src/shell/mod.rs") && !finding.starts_with("bench-harness/src/lib.rs"));
    check(&findings);
}

#[test]
fn nothing_unfinished_and_no_stray_output() {
    let mut findings = Vec::new();
    for source in files("src", "rs") {
        let speaks = ["cli", "demo", "main"].contains(&source.layer());
        for (number, line) in source.code() {
            let banned = ["todo!(", "unimplemented!(", "dbg!("];
            let output = ["println!(", "print!(", "eprint!("];
            let is_loud = !speaks && output.iter().any(|word| line.contains(word));
            if is_loud || banned.iter().any(|word| line.contains(word)) {
                findings.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
        for (at, _) in source.text.match_indices("FIXME").chain(source.text.match_indices("TODO")) {
            findings.push(format!("{}:{}: do it or leave it", source.path, source.line_of(at)));
        }
    }
    check(&findings);
}

#[test]
fn words_are_those_of_the_glossary() {
    // Avoided word and the one to write; only words that have no other honest use in this source.
    let avoided = [
        ("vserver", "service"),
        ("virtual server", "service"),
        ("server farm", "pool"),
        ("upstream", "backend"),
        ("sticky", "bound"),
        ("stickiness", "binding"),
        ("blacklist", "denied"),
        ("whitelist", "allowed"),
    ];
    let mut findings = Vec::new();
    for source in files("src", "rs") {
        let text = source.text.to_lowercase();
        for (word, better) in avoided {
            let places = text.match_indices(word).map(|(at, _)| 1 + text[..at].matches('\n').count());
            findings.extend(places.map(|line| format!("{}:{line}: {word}; write {better}", source.path)));
        }
    }
    check(&findings);
}

#[test]
fn every_rfc_is_named_by_its_number() {
    let mut findings = Vec::new();
    for source in files("src", "rs").into_iter().chain(files("src", "md")) {
        for (at, _) in source.text.match_indices("RFC") {
            let rest = source.text[at + 3..].trim_start_matches(['s', ' ', '\n', '/', '!']);
            // "The RFC" is the one just named.
            let is_named = source.text[..at].trim_end_matches([' ', '\n', '/', '!']).ends_with("the");
            if !is_named && !rest.starts_with(|c: char| c.is_ascii_digit()) {
                findings.push(format!("{}:{}: RFC without its number", source.path, source.line_of(at)));
            }
        }
    }
    check(&findings);
}

/// Markdown files of the repository, and where their links lead.
fn markdown() -> Vec<Source> {
    let mut all = ["src", "perf", "bench-harness", "config", "tests"]
        .map(|folder| files(folder, "md"))
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    for name in ["README.md", "PERFORMANCE.md", "SECURITY.md"] {
        if let Ok(text) = fs::read_to_string(root().join(name)) {
            all.push(Source { path: name.to_owned(), text });
        }
    }
    all
}

#[test]
fn links_in_markdown_lead_to_files() {
    let mut findings = Vec::new();
    for source in markdown() {
        let folder = root().join(&source.path).parent().map(Path::to_owned).unwrap_or_default();
        for (at, _) in source.text.match_indices("](") {
            let target = source.text[at + 2..].split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            let is_elsewhere = target.contains("://") || target.starts_with("crate::") || target.starts_with("mailto:");
            if !is_elsewhere && !file.is_empty() && !PathBuf::from(&folder).join(file).exists() {
                findings.push(format!("{}:{}: no file {file}", source.path, source.line_of(at)));
            }
        }
    }
    check(&findings);
}
