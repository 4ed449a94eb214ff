//! What the operator wrote, as typed values that are already checked.
//!
//! The file is TOML and strict: an unknown key, a wrong type, a value out of range, two things with one name are
//! errors that say where and what to write instead. What is merely unwise is a warning, apart from errors. After
//! [`load`] nothing downstream needs to check again.
//!
//! ```text
//! text -> toml spans -> walk (key table) -> draft -> check (across keys) -> Config -> warn
//!                         keys, key, read              places: key -> line
//! ```
//!
//! All problems are collected, in the order of the file, not just the first. [`parse_in`] is a pure function of the
//! text and of [`Surroundings`]; [`load`] and [`parse`] hand it this machine's.

use std::io::Read;
use std::path::Path;

use toml::de::DeTable;

mod address;
mod check;
mod draft;
pub mod key;
pub mod keys;
pub mod memory;
mod placement;
mod problem;
mod read;
mod reference;
pub mod units;
mod values;
mod walk;
mod warn;

pub use address::show_address;
pub use placement::Placement;
pub use problem::{Lines, Place, Places, Problem, TEXT_CHARS_MAX, Wrong};
pub use reference::render_reference;
pub use values::*;

/// The largest configuration file, in bytes; 4,096 backends in ten lines each are a tenth of it.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The largest file that may hold a secret, in bytes.
const SECRET_FILE_BYTES_MAX: u64 = 4_096;

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The typed values.
    pub config: Config,
    /// What is unwise in it, in the order of the file.
    pub warnings: Vec<Problem>,
    /// Where each key stands, for what is checked later.
    pub places: Places,
}

/// What a configuration depends on besides its text.
pub struct Surroundings<'a> {
    /// The host name of the machine, the default of `node.name`; where it is no good name, `tandem` stands in.
    pub host_name: String,
    /// Reads the file that `secret_file` names, or says why it cannot.
    pub read_secret: &'a dyn Fn(&Path) -> Result<String, String>,
}

/// Reads and checks a configuration file.
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the file: at least one problem.
pub fn load(path: &Path) -> Result<Loaded, Vec<Problem>> {
    let file = path.display().to_string();
    let problem = |place: Option<Place>, what: String, remedy: &str| {
        let (line, column) = place.map_or((0, 0), |place| (place.line, place.column));
        vec![Problem { file: file.clone(), line, column, key: String::new(), what, remedy: remedy.to_owned() }]
    };
    let bytes = read_bounded(path, FILE_BYTES_MAX)
        .map_err(|reason| problem(None, format!("cannot be read: {reason}"), "give a readable file with -c"))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let good = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        let place = Lines::new(good).place(good.len());
        let what = format!("byte {:#04x} at column {} is not UTF-8 text", bytes[good.len()], place.column);
        problem(Some(place), what, "save the file as UTF-8")
    })?;
    parse(text, &file)
}

/// Checks the text of a configuration; `file` is its name in messages, and where relative paths start.
///
/// Reads the machine's host name, and the files that `secret_file` and `secret_previous_file` name.
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the file: at least one problem.
pub fn parse(text: &str, file: &str) -> Result<Loaded, Vec<Problem>> {
    let directory = Path::new(file).parent().map(Path::to_owned).unwrap_or_default();
    let host_name = read_bounded(Path::new("/proc/sys/kernel/hostname"), SECRET_FILE_BYTES_MAX).unwrap_or_default();
    let surroundings = Surroundings {
        host_name: String::from_utf8_lossy(&host_name).trim().to_owned(),
        read_secret: &|path| read_secret(&directory.join(path)),
    };
    parse_in(text, file, &surroundings)
}

/// Checks the text of a configuration: a pure function of its arguments.
///
/// # Errors
///
/// Everything that is wrong with it, in the order of the file: at least one problem.
pub fn parse_in(text: &str, file: &str, surroundings: &Surroundings<'_>) -> Result<Loaded, Vec<Problem>> {
    let mut walk = walk::Walk::new(file, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    // The parser reports in its own order, and what follows the first fault in the text is mostly its echo.
    if let Some(error) = errors.iter().min_by_key(|error| start(error)) {
        let place = Lines::new(text).place(start(error));
        let what = format!("this is not TOML at column {}: {}", place.column, one_line(error.message()));
        let remedy = "correct the line, or look it up in config/reference.toml";
        return Err(vec![walk.places.problem_at(place, "", what, remedy)]);
    }
    let draft = draft::Draft::read(&mut walk, document.get_ref(), surroundings);
    let walk::Walk { places, mut problems, .. } = walk;
    problems.extend(check::check(&draft, &places));
    if !problems.is_empty() {
        sort(&mut problems);
        return Err(problems);
    }
    let pools = draft.pools.iter().map(|pool| pool.path.clone()).collect();
    let paths = warn::Paths { pools, services: draft.services.iter().map(|service| service.path.clone()).collect() };
    let Some(config) = draft.finish() else {
        let what = "a value is missing and was not reported, which is a fault of this program";
        return Err(vec![places.problem("", what, "report it with this file")]);
    };
    let mut warnings = warn::warnings(&config, &paths, &places);
    sort(&mut warnings);
    Ok(Loaded { config, warnings, places })
}

/// Puts problems in the order of the file.
fn sort(problems: &mut [Problem]) {
    problems.sort_by_key(|problem| (problem.line, problem.column));
}

/// The message of the TOML parser in one line.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text of a secret's file, or why it cannot be had.
fn read_secret(path: &Path) -> Result<String, String> {
    String::from_utf8(read_bounded(path, SECRET_FILE_BYTES_MAX)?).map_err(|_| "it is not text".to_owned())
}

/// Reads a regular file of at most `bytes_max`. Anything else could block for ever (a pipe) or never end (a device).
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let plain = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    if !std::fs::metadata(path).map_err(plain)?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(plain)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(plain)?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("it has more than {bytes_max} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
