//! The configuration as an operator meets it: broken files with their messages in full, and the shipped files.
//!
//! Each `tests/data/config/NAME.toml` is broken in one way, and `NAME.expected` holds every message it must get, one
//! a line. `RENDER=1 cargo test --test config` writes the messages and `config/reference.toml` anew; read the diff.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tandem::config::memory::{MAGLEV_ENTRIES, MAGLEV_ENTRY_BYTES};
use tandem::config::{Problem, Surroundings, load, parse_in, render_reference};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a file with what it should hold, or writes it when asked to.
fn assert_file_holds(path: &Path, text: &str) {
    if std::env::var_os("RENDER").is_some() {
        fs::write(path, text).unwrap();
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(committed, text, "{} differs; RENDER=1 cargo test --test config", path.display());
}

/// The number of warnings, or the errors, without a look at this machine.
fn check(text: &str, file: &str) -> Result<usize, Vec<Problem>> {
    let surroundings =
        Surroundings { host_name: "edge7".to_owned(), read_secret: &|_| Err("there is no such file".to_owned()) };
    parse_in(text, file, &surroundings).map(|loaded| loaded.warnings.len())
}

#[test]
fn every_broken_file_gets_the_messages_beside_it() {
    let mut files: Vec<PathBuf> =
        fs::read_dir(root().join("tests/data/config")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let name = format!("{}.toml", path.file_stem().unwrap().display());
        let problems = check(&text, &name).expect_err(&name);
        let lines: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        assert_file_holds(&path.with_extension("expected"), &lines);
        for problem in problems {
            assert!(problem.line > 0 && !problem.what.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
        }
    }
}

#[test]
fn reference_is_the_key_table_rendered_and_parses() {
    let path = root().join("config/reference.toml");
    assert_file_holds(&path, &render_reference());
    let loaded = load(&path).unwrap();
    let keys: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(keys, ["node.secret"], "a shipped secret would be nobody's secret");
}

#[test]
fn shipped_example_parses_with_three_backends() {
    let loaded = load(&root().join("config/tandem.toml")).unwrap();
    assert_eq!(loaded.config.pools[0].backends.len(), 3);
    let keys: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(keys, ["node.secret"]);
}

#[test]
fn memory_table_reckons_with_the_tables_that_are_built() {
    // The configuration may not look at the layers above it, so it repeats their sizes; here is where they meet.
    assert_eq!(MAGLEV_ENTRIES, tandem::route::select::maglev::SLOTS as u64);
    assert_eq!(MAGLEV_ENTRY_BYTES, size_of::<u16>() as u64);
}

#[test]
fn deep_nesting_and_long_lines_end_in_errors() {
    for text in [
        format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("a = {}1{}", "{ b = ".repeat(50_000), " }".repeat(50_000)),
        format!("[{}]", "a.".repeat(50_000) + "a"),
        format!("{} = 1", "a".repeat(1 << 20)),
        format!("[[service]]\nname = \"{}\"", "x".repeat(1 << 20)),
    ] {
        assert!(check(&text, "t.toml").is_err());
    }
}

/// A shipped file with a few bytes cut out, doubled or replaced by pieces of other lines.
fn mutated() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        "\\PC{0,12}",
        "[\\[\\]{}\"'=,.:#\n0-9a-f-]{0,8}",
        Just("\"udp:[::1]:5060\"".to_owned()),
        Just("99999999999999999999999".to_owned()),
        Just("\n[[pool]]\n".to_owned()),
        Just("\n[pool.health]\n".to_owned()),
    ];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, pieces), 1..6);
    edits.prop_map(|edits| {
        let mut text = render_reference();
        for (at, cut, piece) in edits {
            let chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len() + 1);
            let end = (at + cut).min(chars.len());
            text = chars[..at].iter().chain(piece.chars().collect::<Vec<_>>().iter()).chain(&chars[end..]).collect();
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in "(\\PC|\n){0,300}") {
        prop_assert!(check(&text, "t.toml").is_err(), "there is no service in it");
    }

    #[test]
    fn mutated_file_is_accepted_or_refused_with_reasons(text in mutated()) {
        if let Err(problems) = check(&text, "t.toml") {
            prop_assert!(!problems.is_empty());
            prop_assert!(problems.windows(2).all(|pair| pair[0].line <= pair[1].line));
            for problem in problems {
                prop_assert!(!problem.to_string().contains("fault of this program"), "{}", problem);
            }
        }
    }
}
