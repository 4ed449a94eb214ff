//! `tandem check -c FILE [--limits]`: what is wrong with a configuration, before it runs.
//!
//! Prints every error, or every warning, and a last line that sums up. Checks the file by itself and against the
//! cores of this machine; opens no socket. Exit code 0 when Tandem would start with it (warnings or not), 1 when not.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::memory::Budget;
use crate::config::{Config, Placement, load};
use crate::shell::node::available_cores;

/// Checks a file, prints to standard output, and returns the exit code. With `limits`, the memory table too.
pub fn run(path: &Path, limits: bool) -> ExitCode {
    match report(path, limits, &available_cores(), &mut io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        // Nobody reads what could not be written; the verdict is lost with it.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Writes what there is to say about a file; `true` when it has no error.
///
/// # Errors
///
/// Those of `out`.
pub fn report(path: &Path, limits: bool, cores: &[usize], out: &mut dyn Write) -> io::Result<bool> {
    let checked = load(path).and_then(|loaded| {
        let mut warnings = loaded.warnings.clone();
        warnings.extend(loaded.check_machine(cores)?);
        Ok((loaded.config, warnings))
    });
    let file = path.display();
    match checked {
        Ok((config, warnings)) => {
            for warning in &warnings {
                writeln!(out, "warning: {warning}")?;
            }
            if limits {
                let workers = Placement::of(&config.node, cores).workers.len();
                write!(out, "{}", Budget::of(&config, workers).render())?;
            }
            let unwise =
                if warnings.is_empty() { String::new() } else { format!(", {}", count(warnings.len(), "warning")) };
            writeln!(out, "{file}: ok, {}{unwise}", summary(&config))?;
            Ok(true)
        }
        Err(problems) => {
            for problem in &problems {
                writeln!(out, "error: {problem}")?;
            }
            writeln!(out, "{file}: {}", count(problems.len(), "error"))?;
            Ok(false)
        }
    }
}

/// `1 service, 1 pool, 3 backends`.
fn summary(config: &Config) -> String {
    let backends = config.pools.iter().map(|pool| pool.backends.len()).sum();
    let parts =
        [count(config.services.len(), "service"), count(config.pools.len(), "pool"), count(backends, "backend")];
    parts.join(", ")
}

/// A number of things, in the plural where English has one.
fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, limits: bool) -> (bool, String) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let mut out = Vec::new();
        let is_ok = report(&path, limits, &[0, 1], &mut out).unwrap();
        (is_ok, String::from_utf8(out).unwrap().replace(concat!(env!("CARGO_MANIFEST_DIR"), "/"), ""))
    }

    #[test]
    fn good_file_ends_with_what_it_holds() {
        let (is_ok, out) = check("config/tandem.toml", false);
        assert!(is_ok);
        assert_eq!(out.lines().last(), Some("config/tandem.toml: ok, 1 service, 1 pool, 3 backends, 2 warnings"));
    }

    #[test]
    fn limits_add_a_table_with_a_sum() {
        let (_, out) = check("config/tandem.toml", true);
        assert!(out.contains("memory with 2 workers\n"), "{out}");
        assert!(out.lines().any(|line| line.trim_start().starts_with("sum ")), "{out}");
    }

    #[test]
    fn broken_file_ends_with_the_number_of_errors() {
        let (is_ok, out) = check("no/such.toml", true);
        assert!(!is_ok);
        let error = "error: no/such.toml: cannot be read: there is no such file; give a readable file with -c";
        assert_eq!(out, format!("{error}\nno/such.toml: 1 error\n"));
    }
}
