//! The walk over a parsed document: sections, keys, and every problem on the way.
//!
//! [`Walk`] knows no key by itself; it asks the table in [`keys`](super::keys) what a section may hold. It goes on
//! after a problem, so that an operator sees all of them at once. What it hands out is `None` exactly when it has
//! reported why.
//!
//! A path uses the name of a service, pool or backend when that is a good name and the first of its kind, and its
//! index otherwise, so paths are unique.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::key::{Default, Key, Section};
use super::keys;
use super::problem::{Lines, Places, Problem};
use super::read::{is_name, nearest};

/// A document on the way to typed values.
pub(super) struct Walk<'t> {
    lines: Lines<'t>,
    /// Where relative paths start.
    directory: PathBuf,
    /// Where everything stands that was seen so far.
    pub(super) places: Places,
    /// Everything that was wrong so far.
    pub(super) problems: Vec<Problem>,
}

/// One section that is being read.
pub(super) struct Open<'d, 't> {
    section: Section,
    /// The dotted path of the section.
    pub(super) path: String,
    /// Its keys; `None` when the section is not written and all its keys have defaults.
    table: Option<&'d DeTable<'t>>,
}

impl<'t> Walk<'t> {
    /// Starts at the root of a document.
    pub(super) fn new(file: &str, text: &'t str) -> Self {
        let directory = Path::new(file).parent().map(Path::to_owned).unwrap_or_default();
        Walk { lines: Lines::new(text), directory, places: Places::new(file), problems: Vec::new() }
    }

    /// Reports top-level keys that are no sections.
    pub(super) fn check_root(&mut self, root: &DeTable<'_>) {
        let known =
            [Section::Node, Section::Limits, Section::Timers, Section::Certificate, Section::Service, Section::Pool];
        for (name, _) in root.iter().filter(|(name, _)| !known.iter().any(|section| section.name() == name.get_ref())) {
            let remedy = match nearest(name.get_ref(), known.iter().map(|section| section.name())) {
                Some(near) => {
                    let header =
                        known.iter().find(|section| section.name() == near).map_or("", |section| section.header());
                    format!("did you mean {header}?")
                }
                None => elsewhere(name.get_ref(), None)
                    .unwrap_or_else(|| format!("the sections are {}", known.map(Section::header).join(", "))),
            };
            self.report(name.span().start, &shown_key(name.get_ref()), "unknown section or key", &remedy);
        }
    }

    /// Opens a section that stands at most once, such as `[limits]`.
    pub(super) fn open<'d>(&mut self, parent: &'d DeTable<'t>, around: &str, section: Section) -> Open<'d, 't> {
        let path = join(around, section.name());
        let table = match parent.get(section.name()) {
            None => None,
            Some(value) => {
                let offset = value.span().start;
                self.places.insert(&path, self.lines.place(offset));
                match value.get_ref() {
                    DeValue::Table(table) => {
                        self.check_keys(section, &path, table);
                        Some(table)
                    }
                    DeValue::Array(_) => {
                        let remedy = format!("write {} once, with single brackets", section.header());
                        self.report(offset, &path, "this section stands once", &remedy);
                        None
                    }
                    _ => {
                        self.report(
                            offset,
                            &path,
                            "this is a section, not a value",
                            &format!("write {}", section.header()),
                        );
                        None
                    }
                }
            }
        };
        Open { section, path, table }
    }

    /// Opens each of a list of sections, such as `[[pool]]`; at most `max` are expected, and at least one where the
    /// section is not optional.
    pub(super) fn open_each<'d>(
        &mut self,
        parent: Option<&'d DeTable<'t>>,
        around: &str,
        section: Section,
        max: usize,
    ) -> Vec<Open<'d, 't>> {
        let path = join(around, section.name());
        let Some(value) = parent.and_then(|parent| parent.get(section.name())) else {
            if section.is_optional() {
                return Vec::new();
            }
            self.push(
                around,
                format!("there is no {}", section.header()),
                format!("write at least one {}", section.header()),
            );
            return Vec::new();
        };
        let DeValue::Array(tables) = value.get_ref() else {
            let remedy = format!("write {} with double brackets: there may be several", section.header());
            self.report(value.span().start, &path, "this is not a list of sections", &remedy);
            return Vec::new();
        };
        if tables.is_empty() && !section.is_optional() {
            let remedy = format!("write at least one {}", section.header());
            self.report(value.span().start, &path, "the list is empty", &remedy);
        }
        if tables.len() > max {
            let what = format!("there are {} of {}", tables.len(), section.header());
            self.report(value.span().start, &path, &what, &format!("write at most {max}"));
            return Vec::new();
        }
        self.open_tables(tables, &path, section)
    }

    /// The value of a key, or its default; `None` when it was reported as missing or wrong.
    pub(super) fn take<T>(&mut self, open: &Open<'_, 't>, key: &Key<T>) -> Option<T> {
        if open.table.is_some_and(|table| table.contains_key(key.about.name)) {
            return self.take_optional(open, key);
        }
        let path = join(&open.path, key.about.name);
        match key.about.default {
            Default::Literal(literal) => {
                let value = DeValue::parse(literal).ok()?;
                (key.read)(&key.about, &value).ok()
            }
            Default::Required(example) | Default::Absent(_, example) => {
                let remedy = format!("write {} = {example}, with a value of your own", key.about.name);
                self.push(&path, format!("the key is missing in {}", open.section.header()), remedy);
                None
            }
        }
    }

    /// The value of a key; `None` when it is not written, or was reported as wrong.
    pub(super) fn take_optional<T>(&mut self, open: &Open<'_, 't>, key: &Key<T>) -> Option<T> {
        let value = open.table?.get(key.about.name)?;
        let path = join(&open.path, key.about.name);
        self.remember(&path, value);
        match (key.read)(&key.about, value) {
            Ok(read) => Some(read),
            Err(wrongs) => {
                for wrong in wrongs {
                    let (path, offset) = match wrong.element {
                        Some((index, offset)) => (format!("{path}[{index}]"), offset),
                        None => (path.clone(), value.span().start),
                    };
                    self.report(offset, &path, &wrong.what, &wrong.remedy);
                }
                None
            }
        }
    }

    /// The path of a file; `Some(None)` when the key is not written.
    pub(super) fn take_path(&mut self, open: &Open<'_, 't>, key: &Key<PathBuf>) -> Option<Option<PathBuf>> {
        if !self.has(open, key) {
            return Some(None);
        }
        self.take_optional(open, key).map(|path| Some(self.resolve(&path)))
    }

    /// A path as the file means it.
    pub(super) fn resolve(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    /// Whether a key is written in a section.
    pub(super) fn has<T>(&self, open: &Open<'_, 't>, key: &Key<T>) -> bool {
        open.table.is_some_and(|table| table.contains_key(key.about.name))
    }

    /// Reports a problem at the place of `path`.
    pub(super) fn push(&mut self, path: &str, what: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(self.places.problem(path, what, remedy));
    }

    /// Opens the tables of a list and gives each its path.
    fn open_tables<'d>(&mut self, tables: &'d DeArray<'t>, list: &str, section: Section) -> Vec<Open<'d, 't>> {
        let mut names = BTreeSet::new();
        let mut opened = Vec::with_capacity(tables.len());
        for (index, value) in tables.iter().enumerate() {
            let offset = value.span().start;
            let DeValue::Table(table) = value.get_ref() else {
                let remedy = format!("write {}", section.header());
                self.report(offset, &format!("{list}[{index}]"), "this is not a section", &remedy);
                continue;
            };
            let name = table.get("name").and_then(|name| name.get_ref().as_str()).filter(|name| is_name(name));
            let path = match name {
                Some(name) if names.insert(name.to_owned()) => format!("{list}.{name}"),
                _ => format!("{list}[{index}]"),
            };
            self.places.insert(&path, self.lines.place(offset));
            self.check_keys(section, &path, table);
            opened.push(Open { section, path, table: Some(table) });
        }
        opened
    }

    /// Reports the keys that a section does not have.
    fn check_keys(&mut self, section: Section, path: &str, table: &DeTable<'_>) {
        let own = keys::ALL.iter().filter(|about| about.section == section).map(|about| about.name);
        let known: Vec<&str> = own.chain(section.inner().iter().map(|inner| inner.name())).collect();
        for (name, _) in table.iter().filter(|(name, _)| !known.contains(&name.get_ref().as_ref())) {
            let remedy = match nearest(name.get_ref(), known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => elsewhere(name.get_ref(), Some(section))
                    .unwrap_or_else(|| format!("{} has {}", section.header(), known.join(", "))),
            };
            self.report(name.span().start, &join(path, &shown_key(name.get_ref())), "unknown key", &remedy);
        }
    }

    /// Remembers where a value stands, and each element of a list.
    fn remember(&mut self, path: &str, value: &Spanned<DeValue<'_>>) {
        self.places.insert(path, self.lines.place(value.span().start));
        if let DeValue::Array(elements) = value.get_ref() {
            for (index, element) in elements.iter().enumerate() {
                self.places.insert(&format!("{path}[{index}]"), self.lines.place(element.span().start));
            }
        }
    }

    /// Reports a problem at byte `offset`.
    fn report(&mut self, offset: usize, path: &str, what: &str, remedy: &str) {
        self.problems.push(self.places.problem_at(self.lines.place(offset), path, what, remedy));
    }
}

impl<'d, 't> Open<'d, 't> {
    /// The keys of the section, when it is written.
    pub(super) fn table(&self) -> Option<&'d DeTable<'t>> {
        self.table
    }
}

/// A key in its section.
pub(super) fn join(around: &str, name: &str) -> String {
    if around.is_empty() { name.to_owned() } else { format!("{around}.{name}") }
}

/// A key as it may stand in a message: bare, or quoted when it holds anything odd, and never long.
fn shown_key(name: &str) -> String {
    let short: String = name.chars().take(64).collect();
    let is_bare = !short.is_empty() && short.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_bare { short } else { format!("{short:?}") }
}

/// The remedy for a key or section that exists, but in another section.
fn elsewhere(name: &str, section: Option<Section>) -> Option<String> {
    let found = Section::ALL.into_iter().filter(|found| found.name() == name && Some(*found) != section);
    let headers: Vec<&str> = found.map(Section::header).collect();
    if !headers.is_empty() {
        return Some(format!("write it as {}", headers.join(" or ")));
    }
    let found = keys::ALL.iter().find(|about| about.name == name)?;
    Some(format!("it belongs in {}", found.section.header()))
}
