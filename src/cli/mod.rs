//! The command line: one subcommand a file.

pub mod check;
pub mod ctl;
pub mod demo;
pub mod explain;
pub mod run;

use std::path::Path;

use crate::config::{Config, load};
use crate::shell::node::available_cores;

/// Loads a file that is to be used, and logs its warnings; every error is printed, one a line.
///
/// # Errors
///
/// When the file is not one to start with; the text names it.
fn load_or_explain(path: &Path) -> anyhow::Result<Config> {
    let checked = load(path).and_then(|loaded| {
        let more = loaded.check_machine(&available_cores())?;
        for warning in loaded.warnings.iter().chain(&more) {
            tracing::warn!("{warning}");
        }
        Ok(loaded.config)
    });
    checked.map_err(|problems| {
        for problem in &problems {
            eprintln!("error: {problem}");
        }
        anyhow::anyhow!("{}: not started; correct the lines above and see `tandem check`", path.display())
    })
}
