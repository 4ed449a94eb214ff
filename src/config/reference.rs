//! `config/reference.toml`, rendered from the key table.
//!
//! Every key with its meaning, what it accepts, what it costs, and its default as the value. Keys without a default
//! are commented out with an example, as are optional sections; keys that must be written have an example. The
//! rendering is itself a valid configuration. A test compares the committed file with it.

use super::key::{About, Default, Section};
use super::keys;

/// Columns of a comment, the `# ` included.
const WIDTH: usize = 100;

/// Renders every key of the table as a configuration file.
pub fn render_reference() -> String {
    let mut text = String::new();
    comment(&mut text, "Every key of Tandem's configuration, with its default.");
    comment(
        &mut text,
        "Durations are one whole number and one unit of us, ms, s, m, h. Sizes are bytes, or a string with KiB, MiB \
         or GiB. What has no default and may be left out is commented out. Check a file of yours with `tandem check -c FILE`.",
    );
    comment(&mut text, "Rendered from src/config/keys.rs: edit there, then `RENDER=1 cargo test --test config`.");
    for section in Section::ALL {
        text.push('\n');
        comment(&mut text, section.doc());
        text.push_str(if section.is_optional() { "#" } else { "" });
        text.push_str(section.header());
        text.push('\n');
        for about in keys::ALL.iter().filter(|about| about.section == section) {
            render_key(&mut text, about);
        }
    }
    text.push('\n');
    comment(&mut text, "A second backend, with only what must be written.");
    text.push_str("[[pool.backend]]\nname = \"pbx2\"\naddress = \"udp:127.0.0.1:5072\"\n");
    text
}

/// Appends one key: its comment and its line.
fn render_key(text: &mut String, about: &About) {
    text.push('\n');
    comment(text, about.doc);
    let mut accepts = format!("Accepts {}", about.accepts.describe());
    if !about.unit.is_empty() {
        accepts.push_str(&format!(" ({})", about.unit));
    }
    comment(text, &format!("{accepts}."));
    if !about.cost.is_empty() {
        comment(text, &format!("Cost: {}.", about.cost));
    }
    let optional = if about.section.is_optional() { "#" } else { "" };
    let (mark, value) = match about.default {
        Default::Required(example) => {
            comment(text, "Must be written.");
            (optional, example)
        }
        Default::Literal(literal) => {
            comment(text, &format!("Default: {literal}."));
            (optional, literal)
        }
        Default::Absent(meaning, example) => {
            comment(text, &format!("Default: {meaning}."));
            ("#", example)
        }
    };
    text.push_str(&format!("{mark}{} = {value}\n", about.name));
}

/// Appends a comment, wrapped between words.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}
