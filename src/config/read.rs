//! From one written value to one typed value: the readers that the key table names.
//!
//! Each reader gets what is known about its key and the value as it stands in the file, and answers with the typed
//! value or with everything that is wrong with it. The range comes from [`Accepts`], so a reader holds no number of
//! its own. A secret is never repeated in a message.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeInteger, DeValue};

use super::address::{
    decode_backend, decode_host_name, decode_large, decode_listen, decode_network, decode_origin, decode_pattern,
};
use super::key::{About, Accepts, quoted_size};
use super::problem::Wrong;
use super::units::{decode_duration, decode_size, show_duration};
use super::values::{
    Admin, ClientCertificate, Listen, Policy, Probe, ProxyProtocol, Secret, TlsVersion, Verify, Workers,
};
use crate::base::id::Transport;

/// A value as it stands in the file.
type Written<'a> = Spanned<DeValue<'a>>;

/// What a reader answers.
type Read<T> = Result<T, Vec<Wrong>>;

/// The longest name of a service, pool or backend, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// A value that is one of a few words.
pub(super) trait Word: Sized {
    /// The value that `word` stands for.
    fn from_word(word: &str) -> Option<Self>;
}

impl Word for Policy {
    fn from_word(word: &str) -> Option<Self> {
        (word == "consistent-hash").then_some(Policy::ConsistentHash)
    }
}

impl Word for Probe {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "none" => Some(Probe::None),
            "options" => Some(Probe::Options),
            _ => None,
        }
    }
}

impl Word for Admin {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "enabled" => Some(Admin::Enabled),
            "drained" => Some(Admin::Drained),
            "disabled" => Some(Admin::Disabled),
            _ => None,
        }
    }
}

impl Word for ClientCertificate {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "none" => Some(ClientCertificate::None),
            "optional" => Some(ClientCertificate::Optional),
            "required" => Some(ClientCertificate::Required),
            _ => None,
        }
    }
}

impl Word for TlsVersion {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "1.2" => Some(TlsVersion::V12),
            "1.3" => Some(TlsVersion::V13),
            _ => None,
        }
    }
}

impl Word for Verify {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "full" => Some(Verify::Full),
            "pinned" => Some(Verify::Pinned),
            "none" => Some(Verify::None),
            _ => None,
        }
    }
}

impl Word for ProxyProtocol {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "none" => Some(ProxyProtocol::None),
            "v1" => Some(ProxyProtocol::V1),
            "v2" => Some(ProxyProtocol::V2),
            _ => None,
        }
    }
}

/// One of a few words, with a suggestion for a near miss.
pub(super) fn word<T: Word>(about: &About, value: &Written<'_>) -> Read<T> {
    let text = string(about, value)?;
    if let Some(found) = T::from_word(text) {
        return Ok(found);
    }
    let words = if let Accepts::Words(words) = about.accepts { words } else { &[] };
    let remedy = match nearest(text, words.iter().copied()) {
        Some(near) => format!("did you mean {near:?}? Write {}", about.accepts.describe()),
        None => format!("write {}", about.accepts.describe()),
    };
    one(format!("{text:?} is not a value of {}", about.name), remedy)
}

/// `true` or `false`.
pub(super) fn flag(about: &About, value: &Written<'_>) -> Read<bool> {
    match value.get_ref() {
        DeValue::Boolean(flag) => Ok(*flag),
        DeValue::String(text) => one(format!("{text:?} is a string"), "write true or false, without quotes"),
        other => wrong_type(about, other),
    }
}

/// A whole number in the range of its key, as whatever integer holds that range.
pub(super) fn number<T: TryFrom<u64>>(about: &About, value: &Written<'_>) -> Read<T> {
    let count = match value.get_ref() {
        DeValue::Integer(digits) => in_range(about, digits)?,
        other => return wrong_type(about, other),
    };
    T::try_from(count).or_else(|_| one(format!("{count} does not fit"), format!("write {}", about.accepts.describe())))
}

/// A size in bytes, as a plain number or with a binary unit.
pub(super) fn size(about: &About, value: &Written<'_>) -> Read<usize> {
    let bytes = match value.get_ref() {
        DeValue::Integer(digits) => in_range(about, digits)?,
        DeValue::String(text) => check_range(about, decode_size(text).map_err(|wrong| vec![wrong])?, text)?,
        other => return wrong_type(about, other),
    };
    usize::try_from(bytes).or_else(|_| one(format!("{bytes} does not fit"), "write a smaller size"))
}

/// A duration with its unit.
pub(super) fn duration(about: &About, value: &Written<'_>) -> Read<Duration> {
    let text = match value.get_ref() {
        DeValue::String(text) => text,
        DeValue::Integer(digits) => {
            return one(format!("{digits} has no unit"), format!("write \"{digits}s\" if seconds are meant"));
        }
        DeValue::Float(digits) => {
            let what = format!("{} has no unit and is not whole", digits.as_str());
            return one(what, format!("write {}", about.accepts.describe()));
        }
        other => return wrong_type(about, other),
    };
    let duration = decode_duration(text).map_err(|wrong| vec![wrong])?;
    let (min, max, is_whole) = match about.accepts {
        Accepts::Duration(min, max) => (min, max, true),
        Accepts::Seconds(min, max) => (min, max, duration.subsec_nanos() == 0),
        _ => (Duration::ZERO, Duration::MAX, true),
    };
    let remedy = || format!("write {}", about.accepts.describe());
    if duration < min {
        return one(format!("{text:?} is less than {:?}", show_duration(min)), remedy());
    }
    if duration > max {
        return one(format!("{text:?} is more than {:?}", show_duration(max)), remedy());
    }
    if !is_whole {
        return one(format!("{text:?} is not a whole number of seconds"), remedy());
    }
    Ok(duration)
}

/// The name of a service, a pool, a backend or the node: what fits a log line, a metric label and a command.
pub(super) fn name(about: &About, value: &Written<'_>) -> Read<String> {
    let text = string(about, value)?;
    if is_name(text) {
        return Ok(text.to_owned());
    }
    let remedy =
        format!("write 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.', beginning with a letter or digit");
    one(format!("{text:?} is not a name"), remedy)
}

/// Whether a text may name a service, a pool, a backend or the node.
pub(super) fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The host names of the node, in lower case.
pub(super) fn host_names(about: &About, value: &Written<'_>) -> Read<Vec<String>> {
    list(about, value, decode_host_name)
}

/// A host name, in lower case.
pub(super) fn host_name(about: &About, value: &Written<'_>) -> Read<String> {
    decode_host_name(string(about, value)?).map_err(|wrong| vec![wrong])
}

/// The host names of a certificate, exact or with `*.` before, in lower case.
pub(super) fn certificate_names(about: &About, value: &Written<'_>) -> Read<Vec<String>> {
    list(about, value, decode_pattern)
}

/// Networks as CIDR.
pub(super) fn networks(about: &About, value: &Written<'_>) -> Read<Vec<IpNet>> {
    list(about, value, decode_network)
}

/// Web origins, in lower case.
pub(super) fn origins(about: &About, value: &Written<'_>) -> Read<Vec<String>> {
    list(about, value, decode_origin)
}

/// SHA-256 digests in hexadecimal.
pub(super) fn pins(about: &About, value: &Written<'_>) -> Read<Vec<[u8; 32]>> {
    list(about, value, |text| {
        let remedy = "write 64 hexadecimal digits, such as `openssl x509 -in FILE -outform DER | sha256sum` prints";
        if text.contains(':') {
            let bare = text.rsplit('=').next().unwrap_or(text).replace(':', "").to_ascii_lowercase();
            let is_digest = bare.len() == 64 && bare.bytes().all(|c| c.is_ascii_hexdigit());
            let remedy = if is_digest { format!("write {bare:?}") } else { remedy.to_owned() };
            return Err(Wrong::new(format!("{text:?} has colons"), remedy));
        }
        decode_hex(text).ok_or_else(|| Wrong::new(format!("{text:?} is not a SHA-256 digest"), remedy))
    })
}

/// The listening addresses of a service, at least one.
pub(super) fn listens(about: &About, value: &Written<'_>) -> Read<Vec<Listen>> {
    let listens = list(about, value, decode_listen)?;
    if listens.is_empty() {
        return one("the list is empty", "write at least one address, such as [\"udp:192.0.2.10:5060\"]");
    }
    Ok(listens)
}

/// The address of a backend.
pub(super) fn backend_address(about: &About, value: &Written<'_>) -> Read<(Transport, SocketAddr)> {
    decode_backend(string(about, value)?).map_err(|wrong| vec![wrong])
}

/// The address of a backend for large requests.
pub(super) fn large_address(about: &About, value: &Written<'_>) -> Read<(Transport, SocketAddr)> {
    decode_large(string(about, value)?).map_err(|wrong| vec![wrong])
}

/// `"auto"`, a number of workers, or a list of cores.
pub(super) fn workers(about: &About, value: &Written<'_>) -> Read<Workers> {
    match value.get_ref() {
        DeValue::String(text) if text == "auto" => Ok(Workers::Auto),
        DeValue::Integer(digits) => {
            let count = number_within(digits, 1..super::keys::WORKERS_MAX + 1)?;
            Ok(Workers::Count(count))
        }
        DeValue::Array(cores) if cores.is_empty() => {
            one("the list of cores is empty", "write at least one core, or \"auto\"")
        }
        DeValue::Array(cores) => {
            let read = cores.iter().enumerate().map(|(index, core)| {
                let wrong_at = |wrong: Wrong| wrong.in_element(index, core.span().start);
                match core.get_ref() {
                    DeValue::Integer(digits) => number_within(digits, 0..super::keys::CORES_MAX)
                        .map_err(|wrongs| wrongs.into_iter().map(wrong_at).collect()),
                    other => Err(vec![wrong_at(Wrong::new(is_a(other), "write the number of a core"))]),
                }
            });
            collect(read).map(Workers::Cores)
        }
        other => one(is_a(other), format!("write {}", about.accepts.describe())),
    }
}

/// `"auto"` (no core in particular) or the number of a core.
pub(super) fn control_core(about: &About, value: &Written<'_>) -> Read<Option<usize>> {
    match value.get_ref() {
        DeValue::String(text) if text == "auto" => Ok(None),
        DeValue::Integer(digits) => number_within(digits, 0..super::keys::CORES_MAX).map(Some),
        other => one(is_a(other), format!("write {}", about.accepts.describe())),
    }
}

/// A secret as 32 hexadecimal digits.
pub(super) fn secret(about: &About, value: &Written<'_>) -> Read<Secret> {
    let DeValue::String(text) = value.get_ref() else {
        return one("the secret is not a string", format!("write {}", about.accepts.describe()));
    };
    decode_secret(text).map_err(|wrong| vec![wrong])
}

/// Reads 32 hexadecimal digits; whitespace around them is ignored, as files end in a newline.
pub(super) fn decode_secret(text: &str) -> Result<Secret, Wrong> {
    let text = text.trim();
    let remedy = "write 32 hexadecimal digits, such as `openssl rand -hex 16` prints";
    if let Some(odd) = text.chars().position(|c| !c.is_ascii_hexdigit()) {
        return Err(Wrong::new(format!("character {} of the secret is not a hexadecimal digit", odd + 1), remedy));
    }
    if text.len() != 32 {
        return Err(Wrong::new(format!("the secret has {} digits", text.len()), remedy));
    }
    let bytes: [u8; 16] = decode_hex(text).unwrap_or_default();
    if bytes.iter().all(|byte| *byte == bytes[0]) {
        return Err(Wrong::new("the secret repeats one byte, which anybody can guess", remedy));
    }
    Ok(Secret(bytes))
}

/// Exactly `N` bytes in hexadecimal digits.
fn decode_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| (c as char).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (text.len() == 2 * N).then_some(bytes)
}

/// The path of a file; resolved and read after the walk.
pub(super) fn path(about: &About, value: &Written<'_>) -> Read<PathBuf> {
    match string(about, value)? {
        "" => one("the path is empty", format!("write {}", about.accepts.describe())),
        text => Ok(PathBuf::from(text)),
    }
}

/// The entry of `known` that `text` most likely means; `None` when nothing is near.
pub(super) fn nearest<'k>(text: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // Distances are quadratic in length, and nobody misspells a word into a kilobyte.
    if text.len() > 128 {
        return None;
    }
    let text = text.to_ascii_lowercase();
    let scored = known.map(|word| (strsim::damerau_levenshtein(&text, &word.to_ascii_lowercase()), word));
    let (distance, word) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= (word.len().max(text.len()) / 3).max(1)).then_some(word)
}

/// One thing wrong, with the value as a whole.
fn one<T>(what: impl Into<String>, remedy: impl Into<String>) -> Read<T> {
    Err(vec![Wrong::new(what, remedy)])
}

/// A value of a type that its key does not take.
fn wrong_type<T>(about: &About, value: &DeValue<'_>) -> Read<T> {
    one(is_a(value), format!("write {}", about.accepts.describe()))
}

/// "2.5 is a float", "a table" and the like.
fn is_a(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?} is a string"),
        DeValue::Integer(digits) => format!("{digits} is a whole number"),
        DeValue::Float(digits) => format!("{} is a fraction", digits.as_str()),
        DeValue::Boolean(flag) => format!("{flag} is a boolean"),
        DeValue::Datetime(_) => "this is a date or a time".to_owned(),
        DeValue::Array(_) => "this is a list".to_owned(),
        DeValue::Table(_) => "this is a section".to_owned(),
    }
}

/// The text of a string.
fn string<'v>(about: &About, value: &'v Written<'_>) -> Read<&'v str> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text),
        other => wrong_type(about, other),
    }
}

/// A list of strings, each read alone; all that are wrong are reported.
fn list<T>(about: &About, value: &Written<'_>, decode: impl Fn(&str) -> Result<T, Wrong>) -> Read<Vec<T>> {
    let elements = match value.get_ref() {
        DeValue::Array(elements) => elements,
        DeValue::String(text) => return one(format!("{text:?} is a string, not a list"), format!("write [{text:?}]")),
        other => return wrong_type(about, other),
    };
    collect(elements.iter().enumerate().map(|(index, element)| {
        let decoded = match element.get_ref() {
            DeValue::String(text) => decode(text),
            other => Err(Wrong::new(is_a(other), "write a string")),
        };
        decoded.map_err(|wrong| vec![wrong.in_element(index, element.span().start)])
    }))
}

/// All values, or all that is wrong.
fn collect<T>(read: impl Iterator<Item = Read<T>>) -> Read<Vec<T>> {
    let (mut values, mut wrongs) = (Vec::new(), Vec::new());
    for result in read {
        match result {
            Ok(value) => values.push(value),
            Err(more) => wrongs.extend(more),
        }
    }
    if wrongs.is_empty() { Ok(values) } else { Err(wrongs) }
}

/// A number in a range that is not its key's own, because the key takes other types too.
fn number_within(digits: &DeInteger<'_>, range: Range<usize>) -> Read<usize> {
    match usize::from_str_radix(digits.as_str(), digits.radix()) {
        Ok(count) if range.contains(&count) => Ok(count),
        _ => one(
            format!("{digits} is out of range"),
            format!("write a number from {} to {}", range.start, range.end - 1),
        ),
    }
}

/// The number that an integer stands for, in the range of its key.
fn in_range(about: &About, digits: &DeInteger<'_>) -> Read<u64> {
    let remedy = || format!("write {}", about.accepts.describe());
    match i128::from_str_radix(digits.as_str(), digits.radix()) {
        Ok(count) if count < 0 => one(format!("{digits} is less than 0"), remedy()),
        Ok(count) => match u64::try_from(count) {
            Ok(count) => check_range(about, count, digits),
            Err(_) => one(format!("{digits} is too large"), remedy()),
        },
        Err(_) => one(format!("{digits} is too large"), remedy()),
    }
}

/// Checks a number or a number of bytes against the range of its key; `shown` is how the operator wrote it.
fn check_range(about: &About, count: u64, shown: &dyn std::fmt::Display) -> Read<u64> {
    let (min, max, is_size) = match about.accepts {
        Accepts::Number(min, max) | Accepts::PowerOfTwo(min, max) => (min, max, false),
        Accepts::Size(min, max) | Accepts::PowerOfTwoSize(min, max) => (min, max, true),
        _ => (0, u64::MAX, false),
    };
    let show = |bound: u64| if is_size { quoted_size(bound) } else { bound.to_string() };
    let remedy = || format!("write {}", about.accepts.describe());
    if count < min {
        return one(format!("{shown} is less than {}", show(min)), remedy());
    }
    if count > max {
        return one(format!("{shown} is more than {}", show(max)), remedy());
    }
    if matches!(about.accepts, Accepts::PowerOfTwo(..) | Accepts::PowerOfTwoSize(..)) && !count.is_power_of_two() {
        let below = 1u64 << count.ilog2();
        let near = format!("write {} or {}", show(below), show((below << 1).min(max)));
        return one(format!("{shown} is not a power of two"), near);
    }
    Ok(count)
}
