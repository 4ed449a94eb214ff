//! What is wrong with a configuration, said so that a stranger can act on it.
//!
//! A [`Problem`] names the file, the line, the key, what is wrong and what to write instead. Errors and warnings have
//! the same shape and travel in different lists. A reader of one value reports a [`Wrong`], which knows neither file
//! nor key; the walk over the document adds those.
//!
//! [`Places`] remembers where each key stands, so that a check across keys, or against the machine long after the
//! parse, can still point at a line. A key that was not written is found at its section, and that at its parent.
//!
//! Invariants: no text here ever holds a secret; none is more than a line, or longer than [`TEXT_CHARS_MAX`] characters,
//! whatever the file holds.

use std::collections::BTreeMap;
use std::fmt;

/// The longest text of a problem, in characters; of a longer one the middle is left out.
pub const TEXT_CHARS_MAX: usize = 600;

/// One error or warning about a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as the operator named it.
    pub file: String,
    /// Line, counted from 1; 0 when the problem is with the file as a whole.
    pub line: usize,
    /// Column in characters, counted from 1; 0 when `line` is 0.
    pub column: usize,
    /// The key as a dotted path with names where there are any: `pool.pbx.backend.pbx1.weight`; may be empty.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for Problem {}

/// What is wrong with one value, before the walk adds file, line and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
    /// The element of a list and its byte offset, when only that element is wrong.
    pub element: Option<(usize, usize)>,
}

impl Wrong {
    /// A value that is wrong as a whole.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Wrong { what: what.into(), remedy: remedy.into(), element: None }
    }

    /// The same, said of element `index` of a list, which stands at byte `offset`.
    pub fn in_element(self, index: usize, offset: usize) -> Self {
        Wrong { element: Some((index, offset)), ..self }
    }
}

/// A line and a column, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// The lines of a text, so that a byte offset becomes a place in logarithmic time.
pub struct Lines<'t> {
    text: &'t str,
    /// The offset at which each line begins; never empty, ascending.
    starts: Vec<usize>,
}

/// Lines longer than this count their columns in bytes.
const COLUMN_CHARS_MAX: usize = 4_096;

impl<'t> Lines<'t> {
    /// Finds the lines of `text`.
    pub fn new(text: &'t str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Lines { text, starts: std::iter::once(0).chain(newlines.map(|(offset, _)| offset + 1)).collect() }
    }

    /// The place of byte `offset`; an offset past the end is the end.
    pub fn place(&self, offset: usize) -> Place {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= offset);
        let before = &self.text.as_bytes()[self.starts[line - 1]..offset];
        let is_char_start = |byte: &&u8| (**byte & 0xc0) != 0x80;
        let chars =
            if before.len() > COLUMN_CHARS_MAX { before.len() } else { before.iter().filter(is_char_start).count() };
        Place { line, column: chars + 1 }
    }
}

/// Where each key of a file stands, by dotted path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    file: String,
    by_key: BTreeMap<String, Place>,
}

impl Places {
    /// No key known yet.
    pub fn new(file: &str) -> Self {
        Places { file: file.to_owned(), by_key: BTreeMap::new() }
    }

    /// Remembers where `key` stands.
    pub fn insert(&mut self, key: &str, place: Place) {
        self.by_key.insert(key.to_owned(), place);
    }

    /// The place of `key`, else of the nearest section around it, else the start of the file.
    pub fn find(&self, key: &str) -> Place {
        let mut path = key;
        loop {
            if let Some(place) = self.by_key.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = &path[..cut],
                None => return Place { line: 1, column: 1 },
            }
        }
    }

    /// A problem with `key`, at the place where it stands.
    pub fn problem(&self, key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Problem {
        self.problem_at(self.find(key), key, what, remedy)
    }

    /// A problem with `key` at a place of its own.
    pub fn problem_at(&self, place: Place, key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem {
            file: self.file.clone(),
            line: place.line,
            column: place.column,
            key: key.to_owned(),
            what: shown(what.into()),
            remedy: shown(remedy.into()),
        }
    }
}

/// What a problem says, fit for one line of a log: paths and values are the file's, and may be anything.
fn shown(text: String) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    let count = line.chars().count();
    if count <= TEXT_CHARS_MAX {
        return line;
    }
    let half = TEXT_CHARS_MAX / 2 - 2;
    let (head, tail) = (line.chars().take(half), line.chars().skip(count - half));
    head.chain(" ...".chars()).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_counts_lines_and_characters_from_one() {
        let text = "a = 1\né = \"ü\" # x\n";
        let lines = Lines::new(text);
        assert_eq!(lines.place(0), Place { line: 1, column: 1 });
        assert_eq!(lines.place(text.find('#').unwrap()), Place { line: 2, column: 9 });
        assert_eq!(lines.place(10_000), Place { line: 3, column: 1 });
    }

    #[test]
    fn key_that_was_not_written_is_found_at_its_section() {
        let mut places = Places::new("t.toml");
        places.insert("pool.pbx", Place { line: 7, column: 1 });
        assert_eq!(places.find("pool.pbx.health.timeout").line, 7);
        assert_eq!(places.find("pool.pbx.backend[2].weight").line, 7);
        assert_eq!(places.find("node.name").line, 1);
    }

    #[test]
    fn text_of_a_problem_is_one_line_that_can_be_read() {
        let places = Places::new("t.toml");
        let what = format!("cannot read {}\n\u{1b}[2J: there is no such file", "a".repeat(10_000));
        let problem = places.problem("node.secret_file", what, "write a path");
        assert!(problem.what.starts_with("cannot read aaa") && problem.what.contains("aaa ...aaa"));
        assert!(problem.what.ends_with("a\\n\\u{1b}[2J: there is no such file"), "{}", problem.what);
        assert_eq!(problem.what.chars().count(), TEXT_CHARS_MAX);
    }

    #[test]
    fn problem_reads_as_file_line_key_what_remedy() {
        let mut places = Places::new("config/tandem.toml");
        places.insert("limits.headers_max", Place { line: 14, column: 3 });
        let problem = places.problem("limits.headers_max", "7 is less than 16", "write a number from 16 to 1024");
        let expected = "config/tandem.toml:14: limits.headers_max: 7 is less than 16; write a number from 16 to 1024";
        assert_eq!(problem.to_string(), expected);
    }
}
