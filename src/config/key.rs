//! What is known about one key of the configuration, and the type of the table in [`keys`](super::keys).
//!
//! A [`Key<T>`] joins what a reader must know ([`About`]: section, default, accepted values, meaning, cost) with the
//! function that turns the written value into a `T`. [`Accepts`] is data, not code, so that the check, the error
//! message and `config/reference.toml` say the same.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::problem::Wrong;
use super::units::{show_duration, show_size};

/// A section of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `[node]`
    Node,
    /// `[limits]`
    Limits,
    /// `[timers]`
    Timers,
    /// `[[certificate]]`
    Certificate,
    /// `[[service]]`
    Service,
    /// `[service.tls]`
    ServiceTls,
    /// `[[pool]]`
    Pool,
    /// `[pool.health]`
    Health,
    /// `[pool.tls]`
    PoolTls,
    /// `[[pool.backend]]`
    Backend,
}

impl Section {
    /// Every section, in the order of the reference.
    pub const ALL: [Section; 10] = [
        Section::Node,
        Section::Limits,
        Section::Timers,
        Section::Certificate,
        Section::Service,
        Section::ServiceTls,
        Section::Pool,
        Section::Health,
        Section::PoolTls,
        Section::Backend,
    ];

    /// The header line that opens the section.
    pub const fn header(self) -> &'static str {
        match self {
            Section::Node => "[node]",
            Section::Limits => "[limits]",
            Section::Timers => "[timers]",
            Section::Certificate => "[[certificate]]",
            Section::Service => "[[service]]",
            Section::ServiceTls => "[service.tls]",
            Section::Pool => "[[pool]]",
            Section::Health => "[pool.health]",
            Section::PoolTls => "[pool.tls]",
            Section::Backend => "[[pool.backend]]",
        }
    }

    /// The key under which the section stands in its parent.
    pub const fn name(self) -> &'static str {
        match self {
            Section::Node => "node",
            Section::Limits => "limits",
            Section::Timers => "timers",
            Section::Certificate => "certificate",
            Section::Service => "service",
            Section::ServiceTls | Section::PoolTls => "tls",
            Section::Pool => "pool",
            Section::Health => "health",
            Section::Backend => "backend",
        }
    }

    /// The sections that stand inside this one.
    pub const fn inner(self) -> &'static [Section] {
        match self {
            Section::Service => &[Section::ServiceTls],
            Section::Pool => &[Section::Health, Section::PoolTls, Section::Backend],
            _ => &[],
        }
    }

    /// Whether the section may stand in the file more than once.
    pub const fn is_list(self) -> bool {
        matches!(self, Section::Certificate | Section::Service | Section::Pool | Section::Backend)
    }

    /// Whether the section may be left out although it has keys that must be written.
    pub const fn is_optional(self) -> bool {
        matches!(self, Section::Certificate)
    }

    /// What the section is for.
    pub const fn doc(self) -> &'static str {
        match self {
            Section::Node => "Who this process is and where it runs.",
            Section::Limits => {
                "Every capacity. Nothing grows past these; a full table or ring is a verdict and a counter. \
                 `tandem check --limits` adds up the memory."
            }
            Section::Timers => {
                "How long it is remembered which backend a dialog belongs to, and how long a connection may keep \
                 Tandem waiting."
            }
            Section::Certificate => {
                "What Tandem shows to TLS and WSS clients: the one whose name the client asks for (SNI), else the \
                 first. At least one where a service listens on tls or wss. Read again on each reload."
            }
            Section::Service => "A virtual service: the addresses that clients see. At least one.",
            Section::ServiceTls => "What the tls and wss listeners of the service ask of clients.",
            Section::Pool => "Backends that can stand in for each other. At least one.",
            Section::Health => "How the backends of the pool are watched.",
            Section::PoolTls => "How the tls backends of the pool are spoken to.",
            Section::Backend => "One SIP server. At least one in each pool.",
        }
    }
}

/// What stands for a key that is not written.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// Nothing does; the key must be written. The TOML literal is an example.
    Required(&'static str),
    /// This TOML literal.
    Literal(&'static str),
    /// No value; what that means, and a TOML literal as an example of one.
    Absent(&'static str, &'static str),
}

/// The values that a key accepts.
#[derive(Clone, Copy, Debug)]
pub enum Accepts {
    /// A whole number, both ends included.
    Number(u64, u64),
    /// A power of two, both ends included.
    PowerOfTwo(u64, u64),
    /// A size in bytes, both ends included.
    Size(u64, u64),
    /// A size in bytes that is a power of two, both ends included.
    PowerOfTwoSize(u64, u64),
    /// A duration, both ends included.
    Duration(Duration, Duration),
    /// A duration of whole seconds, both ends included.
    Seconds(Duration, Duration),
    /// One of these words.
    Words(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A string or list of a form that its reader checks, described.
    Form(&'static str),
}

impl Accepts {
    /// The accepted values in words that follow "write": `a number from 0 to 65535`.
    pub fn describe(self) -> String {
        match self {
            Accepts::Number(min, max) => format!("a number from {min} to {max}"),
            Accepts::PowerOfTwo(min, max) => format!("a power of two from {min} to {max}"),
            Accepts::Size(min, max) => format!("a size from {} to {}", quoted_size(min), quoted_size(max)),
            Accepts::PowerOfTwoSize(min, max) => {
                format!("a size that is a power of two from {} to {}", quoted_size(min), quoted_size(max))
            }
            Accepts::Duration(min, max) => {
                format!("a duration from {:?} to {:?}", show_duration(min), show_duration(max))
            }
            Accepts::Seconds(min, max) => {
                format!("a duration in whole seconds from {:?} to {:?}", show_duration(min), show_duration(max))
            }
            Accepts::Words([]) => String::new(),
            Accepts::Words([word]) => format!("{word:?}"),
            Accepts::Words([first @ .., last]) => {
                let first: Vec<String> = first.iter().map(|word| format!("{word:?}")).collect();
                format!("{} or {last:?}", first.join(", "))
            }
            Accepts::Flag => "true or false".to_owned(),
            Accepts::Form(form) => form.to_owned(),
        }
    }
}

/// A size as it is written in the file: a string with a unit, or a plain number.
pub(super) fn quoted_size(bytes: u64) -> String {
    let shown = show_size(bytes);
    if shown.ends_with('B') { format!("{shown:?}") } else { shown }
}

/// What an operator must know about one key.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Where it stands.
    pub section: Section,
    /// How it is written.
    pub name: &'static str,
    /// What stands for it when it is not written.
    pub default: Default,
    /// The values it accepts.
    pub accepts: Accepts,
    /// What its number counts, such as `bindings`; empty when the value carries its unit.
    pub unit: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// What a larger value costs, or what a wrong one does; may be empty.
    pub cost: &'static str,
}

/// Turns a written value into a `T`, or says all that is wrong with it.
pub type Reader<T> = fn(&About, &Spanned<DeValue<'_>>) -> Result<T, Vec<Wrong>>;

/// One key of the table: what it is, and how its value is read.
pub struct Key<T: 'static> {
    /// What an operator must know.
    pub about: About,
    /// How the value is read and checked.
    pub read: Reader<T>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_values_read_as_a_remedy() {
        let second = Duration::from_secs(1);
        assert_eq!(Accepts::Number(0, 65_535).describe(), "a number from 0 to 65535");
        assert_eq!(Accepts::Size(1_500, 65_536).describe(), "a size from 1500 to \"64KiB\"");
        assert_eq!(Accepts::Duration(second, 90 * second).describe(), "a duration from \"1s\" to \"90s\"");
        assert_eq!(Accepts::Words(&["none", "options"]).describe(), "\"none\" or \"options\"");
    }
}
