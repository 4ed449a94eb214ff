//! `tandem check -c FILE [--limits]`: what is wrong with a configuration, before it runs.
//!
//! Prints every error, or every warning, and a last line that sums up. Checks the file by itself, against the cores of
//! this machine, and with the certificates and keys that it names; opens no socket. Exit code 0 when Tandem would start with it (warnings or not), 1 when not.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::memory::Budget;
use crate::config::{Config, Placement, load};
use crate::shell::node::available_cores;
use crate::shell::tls::TlsMaterial;

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
        let machine = loaded.check_machine(cores)?;
        let (_, of_files) = TlsMaterial::load(&loaded.config, None)?;
        let mut warnings: Vec<String> = loaded.warnings.iter().chain(&machine).map(ToString::to_string).collect();
        warnings.extend(of_files);
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
        assert_eq!(out.lines().last(), Some("config/tandem.toml: ok, 1 service, 1 pool, 3 backends, 1 warning"));
    }

    #[test]
    fn certificates_are_looked_at_too() {
        let directory = std::env::temp_dir().join(format!("tandem-check-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let files = bench_harness::certificates::write_files(&directory, &["127.0.0.1"]).unwrap();
        let file = directory.join("t.toml");
        let text = "[node]\nsecret = \"000102030405060708090a0b0c0d0e0f\"\n[[certificate]]\nchain = \"server.pem\"\n\
                    key = \"server.key\"\n[[service]]\nname = \"voice\"\nlisten = [\"tls:127.0.0.1:5061\"]\n\
                    pool = \"pbx\"\n[[pool]]\nname = \"pbx\"\ntls.ca = \"ca.pem\"\n[[pool.backend]]\nname = \"pbx1\"\n\
                    address = \"tls:127.0.0.1:5071\"\n[[pool.backend]]\nname = \"pbx2\"\naddress = \"tls:127.0.0.1:5072\"\n";
        std::fs::write(&file, text).unwrap();
        let good = check(file.to_str().unwrap(), false);
        std::fs::remove_file(&files.key).unwrap();
        let bad = check(file.to_str().unwrap(), false);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(good.1, format!("{}: ok, 1 service, 1 pool, 2 backends\n", file.display()));
        let expected =
            format!("error: {}: certificate[0].key: cannot be read: there is no such file; ", files.key.display());
        assert!(!bad.0 && bad.1.starts_with(&expected), "{}", bad.1);
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
