//! Each rule of a standard that the source obeys has a test that checks it, and is found from either.
//!
//! A rule is a tag of two lines, the second one in words:
//!
//! ```text
//! //= rfc3261#section-16.3 max-forwards
//! //# A request whose Max-Forwards is 0 is not forwarded and gets 483.
//! ```
//!
//! The tag stands once in `src/`, beside the code that obeys, outside of its test modules. Its twin, both lines alike,
//! stands in `tests/`, once or more: right above a `#[test]`, or in the head of an expectation file of
//! `tests/data/messages`, which is a test of its own. RFC, section and label together tell rules apart. A rule that is
//! about what never happens is tagged where a reader would look for it.
//!
//! `tests/REQUIREMENTS.md` is all of them in one table; `RENDER=1 cargo test --test tidy` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use super::{Source, check, files, root};

const KEY: &str = "//= ";

const TEXT: &str = "//# ";

/// A rule, and one place where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tag {
    /// `rfc3261#section-16.3 max-forwards`
    key: String,
    /// The rule in words.
    text: String,
    /// `src/route/decide.rs:70`
    place: String,
    /// The file, for code; the test, for a twin.
    name: String,
}

/// A rule's RFC, section by number, and label: the order of the table.
fn order(key: &str) -> Option<(u32, Vec<u32>, &str)> {
    let (reference, label) = key.split_once(' ')?;
    let (rfc, section) = reference.strip_prefix("rfc")?.split_once("#section-")?;
    let section: Option<Vec<u32>> = section.split('.').map(|number| number.parse().ok()).collect();
    let is_label =
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    is_label.then_some((rfc.parse().ok()?, section?, label))
}

/// All tags of a file, or what is wrong with them.
fn tags(source: &Source, findings: &mut Vec<String>) -> Vec<Tag> {
    let is_message = source.path.ends_with(".expect");
    let mut found: Vec<Tag> = Vec::new();
    let mut is_test_module = false;
    let lines: Vec<&str> = source.text.lines().take_while(|line| !is_message || *line != "---").collect();
    for (index, line) in lines.iter().enumerate() {
        is_test_module |= line.trim_start() == "#[cfg(test)]";
        let Some(key) = line.trim_start().strip_prefix(KEY) else { continue };
        let place = format!("{}:{}", source.path, index + 1);
        let text = lines.get(index + 1).and_then(|line| line.trim_start().strip_prefix(TEXT));
        let name = match source.path.starts_with("tests/") {
            false => Some(source.path.clone()),
            true if is_message => source.path.rsplit(['/', '.']).nth(1).map(|name| format!("messages/{name}")),
            true => test_below(&lines[index..]).map(|test| format!("{}::{test}", target(&source.path))),
        };
        match (order(key), text, name) {
            (None, ..) => findings.push(format!("{place}: {key:?}; write rfcNNNN#section-N.N label")),
            (_, None, _) => findings.push(format!("{place}: no rule in words; write it below, after {TEXT:?}")),
            (.., None) => findings.push(format!("{place}: no #[test] right below; a twin stands above its test")),
            _ if is_test_module && !source.path.starts_with("tests/") => {
                findings.push(format!("{place}: in a test module of the source; twins stand in tests/"));
            }
            (_, Some(text), Some(name)) => {
                found.push(Tag { key: key.to_owned(), text: text.to_owned(), place, name });
            }
        }
    }
    found
}

/// The test that begins below, with nothing but tags, attributes and doc comments before it.
fn test_below<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let mut is_test = false;
    for line in lines.iter().map(|line| line.trim_start()) {
        if let Some(rest) = line.strip_prefix("fn ") {
            return rest.split('(').next().filter(|_| is_test);
        }
        is_test |= line == "#[test]";
        if !["//", "#["].iter().any(|start| line.starts_with(start)) {
            return None;
        }
    }
    None
}

/// `relay` for `tests/relay.rs`, `loopback::calls` for `tests/loopback/calls.rs`.
fn target(path: &str) -> String {
    path.trim_start_matches("tests/").trim_end_matches(".rs").replace('/', "::")
}

/// The rules of the code with their tests, in order; and every rule that stands on one side alone.
fn pair(code: &[Source], tests: &[Source]) -> (Vec<(Tag, Vec<Tag>)>, Vec<String>) {
    let mut findings = Vec::new();
    let mut rules: BTreeMap<String, (Tag, Vec<Tag>)> = BTreeMap::new();
    for tag in code.iter().flat_map(|source| tags(source, &mut findings)).collect::<Vec<_>>() {
        if let Some((first, _)) = rules.get(&tag.key) {
            findings.push(format!("{}: {:?} stands at {} already", tag.place, tag.key, first.place));
        } else {
            rules.insert(tag.key.clone(), (tag, Vec::new()));
        }
    }
    for twin in tests.iter().flat_map(|source| tags(source, &mut findings)).collect::<Vec<_>>() {
        match rules.get_mut(&twin.key) {
            None => findings.push(format!("{}: {:?} is nowhere in src/", twin.place, twin.key)),
            Some((tag, _)) if tag.text != twin.text => {
                findings.push(format!("{}: other words than at {}: {:?}", twin.place, tag.place, tag.text));
            }
            Some((_, twins)) => twins.push(twin),
        }
    }
    for (tag, twins) in rules.values() {
        if twins.is_empty() {
            findings.push(format!("{}: no test has {:?}", tag.place, tag.key));
        }
    }
    let mut rules: Vec<_> = rules.into_values().collect();
    rules.sort_by(|(a, _), (b, _)| order(&a.key).cmp(&order(&b.key)));
    (rules, findings)
}

/// The tags of the source, and of what tests it; this folder has examples that are none.
fn sources() -> (Vec<Source>, Vec<Source>) {
    let (code, twins): (Vec<_>, Vec<_>) = files("src", "rs").into_iter().partition(|source| !source.is_test());
    let mut tests = files("tests", "rs");
    tests.retain(|source| !source.path.starts_with("tests/tidy"));
    tests.extend(files("tests/data/messages", "expect"));
    tests.extend(twins);
    (code, tests)
}

/// The table for people.
fn render(rules: &[(Tag, Vec<Tag>)]) -> String {
    let tests: usize = rules.iter().map(|(_, twins)| twins.len()).sum();
    let mut page = format!(
        "# Requirements\n\n\
         What Tandem obeys and where, from the `//=` tags of the source and of the tests ({} rules, {tests} checks): \
         rendered by\n`RENDER=1 cargo test --test tidy`, which fails while this page differs. How tags are written \
         stands in [tidy/tags.rs](tidy/tags.rs).\nA test `messages/NAME` is `tests/data/messages/NAME.expect`.\n",
        rules.len()
    );
    let mut rfc = 0;
    for (tag, twins) in rules {
        let Some((number, section, label)) = order(&tag.key) else { continue };
        if number != rfc {
            rfc = number;
            let _ =
                write!(page, "\n## RFC {rfc}\n\n| section | label | rule | code | tests |\n|---|---|---|---|---|\n");
        }
        let section = section.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
        let tests: Vec<String> = twins.iter().map(|twin| format!("`{}`", twin.name)).collect();
        let _ = writeln!(
            page,
            "| [{section}](https://www.rfc-editor.org/rfc/rfc{rfc}#section-{section}) | {label} | {} | [{}](../{}) | {} |",
            tag.text.replace('|', "\\|"),
            tag.name.trim_start_matches("src/"),
            tag.name,
            tests.join(", ")
        );
    }
    page
}

#[test]
fn every_tagged_rule_has_a_test_and_every_tagged_test_a_rule() {
    let (code, tests) = sources();
    let (rules, findings) = pair(&code, &tests);
    check(&findings);
    println!("requirements: {} rules, each with a test", rules.len());
    assert!(rules.len() >= 60, "only {} rules", rules.len());
}

#[test]
fn every_tagged_expectation_has_its_message() {
    let expectations = files("tests/data/messages", "expect");
    let alone = expectations.iter().filter(|source| !root().join(&source.path).with_extension("sip").exists());
    check(
        &alone.map(|source| format!("{}: no message beside it, so nothing is tested", source.path)).collect::<Vec<_>>(),
    );
}

#[test]
fn requirements_page_is_the_tags_rendered() {
    let (code, tests) = sources();
    let (rules, _) = pair(&code, &tests);
    let (path, page) = (root().join("tests/REQUIREMENTS.md"), render(&rules));
    if std::env::var_os("RENDER").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == page, "tests/REQUIREMENTS.md differs; RENDER=1 cargo test --test tidy");
}

/// What [`pair`] finds in one file of the source and one of the tests.
fn findings(code: &str, test: &str) -> Vec<String> {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let (_, findings) = pair(&[source("src/sip/via.rs", code)], &[source("tests/rules.rs", test)]);
    findings
}

const RULE: &str = "//= rfc3261#section-16.3 max-forwards\n//# Zero is the end.\n";

const TEST: &str = "#[test]\nfn zero_is_the_end() {\n";

#[test]
fn tag_check_sees_a_missing_twin_on_either_side() {
    let twin = format!("{RULE}{TEST}");
    assert_eq!(findings(RULE, &twin), [""; 0]);
    assert_eq!(findings(&format!("    {RULE}    fn f() {{\n"), &format!("{RULE}/// Why.\n{TEST}")), [""; 0]);
    let missing = findings(RULE, TEST);
    assert!(missing.len() == 1 && missing[0].contains("src/sip/via.rs:1: no test has"), "{missing:?}");
    let stray = findings("", &twin);
    assert!(stray.len() == 1 && stray[0].contains("tests/rules.rs:1: ") && stray[0].contains("nowhere"), "{stray:?}");
    // Another section or another label is another rule.
    for other in [twin.replace("16.3", "16.4"), twin.replace("max-forwards", "hops")] {
        assert_eq!(findings(RULE, &other).len(), 2, "{other}");
    }
}

#[test]
fn tag_check_sees_tags_that_bind_nothing() {
    let twin = format!("{RULE}{TEST}");
    for (code, test, wanted) in [
        (RULE.to_owned(), twin.replace("Zero", "Null"), "other words"),
        (format!("{RULE}{RULE}"), twin.clone(), "already"),
        (format!("#[cfg(test)]\nmod tests {{\n{RULE}"), twin.clone(), "twins stand in tests/"),
        (RULE.replace("//# ", "// "), twin.clone(), "in words"),
        (RULE.replace("rfc3261#section-16.3", "RFC 3261 16.3"), twin.clone(), "write rfc"),
        (RULE.replace(" max-forwards", ""), twin.clone(), "write rfc"),
        (RULE.to_owned(), format!("{RULE}fn helper() {{\n"), "no #[test]"),
        (RULE.to_owned(), format!("{RULE}\n{TEST}"), "no #[test]"),
        (RULE.to_owned(), format!("{RULE}let x = 1;\n{TEST}"), "no #[test]"),
    ] {
        let found = findings(&code, &test);
        assert!(found.iter().any(|finding| finding.contains(wanted)), "{wanted}: {found:?} in\n{code}\nand\n{test}");
    }
}

#[test]
fn requirements_page_is_in_the_order_of_the_sections() {
    let source = |path: &str, text: String| Source { path: path.to_owned(), text };
    let rule = |section: &str, label: &str| format!("//= rfc{section} {label}\n//# Rule.\n");
    let keys =
        [("3581#section-4", "a"), ("3261#section-16.11", "b"), ("3261#section-16.3", "z"), ("3261#section-7", "c")];
    let code: String = keys.iter().map(|(section, label)| rule(section, label)).collect();
    let tests = keys.iter().map(|(section, label)| rule(section, label) + TEST + "}\n").collect();
    let (rules, findings) = pair(&[source("src/sip/via.rs", code)], &[source("tests/rules.rs", tests)]);
    assert_eq!(findings, [""; 0]);
    let page = render(&rules);
    let labels: Vec<&str> = page.lines().filter_map(|line| line.split(" | ").nth(1)).collect();
    assert_eq!(labels, ["label", "c", "z", "b", "label", "a"]);
    assert!(page.contains("[sip/via.rs](../src/sip/via.rs) | `rules::zero_is_the_end` |"), "{page}");
}
