//! Durations and sizes with their units written out.
//!
//! A number without a unit is where operators and programs misunderstand each other (is `timeout = 2` two seconds or
//! two milliseconds?), so a duration is always a string, one whole number and one unit: `"500ms"`, `"2s"`. A size is
//! a plain number of bytes or a string with a binary unit: `65507`, `"64KiB"`. There is one spelling for each, and
//! every near miss is answered with the right spelling.
//!
//! What is shown is what may be written: `decode(show(x)) == x`.

use std::time::Duration;

use super::problem::Wrong;

/// Duration units with their length in nanoseconds, longest first.
const DURATION_UNITS: [(&str, u64); 5] =
    [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];

/// Size units with their length in bytes, longest first.
const SIZE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Reads a duration such as `500ms`.
///
/// # Errors
///
/// Anything but one whole number and one of `us`, `ms`, `s`, `m`, `h`, or more than 2^64 nanoseconds.
pub fn decode_duration(text: &str) -> Result<Duration, Wrong> {
    let remedy = || "write one whole number and one unit of us, ms, s, m, h, such as \"500ms\" or \"2s\"";
    let (number, unit) = split_unit(text);
    if unit.is_empty() && !number.is_empty() {
        return Err(Wrong::new(format!("{text:?} has no unit"), format!("write \"{number}s\" if seconds are meant")));
    }
    let Some((_, unit_ns)) = DURATION_UNITS.iter().find(|(name, _)| *name == unit) else {
        let meant = duration_unit_meant(unit);
        return Err(match meant {
            Some(meant) if !number.is_empty() => {
                Wrong::new(format!("{text:?} is not a duration"), format!("write \"{number}{meant}\""))
            }
            _ => Wrong::new(format!("{text:?} is not a duration"), remedy()),
        });
    };
    let Ok(count) = number.parse::<u64>() else {
        return Err(Wrong::new(format!("{text:?} is not a duration"), remedy()));
    };
    match count.checked_mul(*unit_ns) {
        Some(ns) => Ok(Duration::from_nanos(ns)),
        None => Err(Wrong::new(format!("{text:?} is more than 500 years"), "write a shorter duration")),
    }
}

/// The shortest exact spelling of a duration, in the largest unit that divides it: `5m`, `500ms`.
/// Less than a microsecond is rounded down.
pub fn show_duration(duration: Duration) -> String {
    let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if ns == 0 {
        return "0s".to_owned();
    }
    let (unit, unit_ns) = DURATION_UNITS.into_iter().find(|(_, unit_ns)| ns % unit_ns == 0).unwrap_or(("us", 1_000));
    format!("{}{unit}", ns / unit_ns)
}

/// Reads a size with a binary unit, such as `64KiB`.
///
/// # Errors
///
/// Anything but one whole number and one of `KiB`, `MiB`, `GiB`, or more than 2^64 bytes.
pub fn decode_size(text: &str) -> Result<u64, Wrong> {
    let (number, unit) = split_unit(text);
    let wrong = |remedy: String| Wrong::new(format!("{text:?} is not a size"), remedy);
    let Ok(count) = number.parse::<u64>() else {
        return Err(wrong("write bytes as a plain number, or a string such as \"64KiB\" or \"8MiB\"".to_owned()));
    };
    if let Some((_, unit_bytes)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
        let too_much = || Wrong::new(format!("{text:?} is more than a machine can hold"), "write a smaller size");
        return count.checked_mul(*unit_bytes).ok_or_else(too_much);
    }
    Err(match unit.to_ascii_lowercase().as_str() {
        // A bare number in quotes.
        "" | "b" | "byte" | "bytes" => wrong(format!("write {count}, without quotes, for bytes")),
        "k" | "kb" | "kib" => wrong(format!("write \"{count}KiB\" (1 KiB is 1024 bytes)")),
        "m" | "mb" | "mib" => wrong(format!("write \"{count}MiB\" (1 MiB is 1048576 bytes)")),
        "g" | "gb" | "gib" => wrong(format!("write \"{count}GiB\" (1 GiB is 1073741824 bytes)")),
        _ => wrong("write bytes as a plain number, or a string such as \"64KiB\" or \"8MiB\"".to_owned()),
    })
}

/// The shortest exact spelling of a size, in the largest unit that divides it: `8MiB`, `65507`.
pub fn show_size(bytes: u64) -> String {
    match SIZE_UNITS.into_iter().find(|(_, unit_bytes)| bytes > 0 && bytes.is_multiple_of(*unit_bytes)) {
        Some((unit, unit_bytes)) => format!("{}{unit}", bytes / unit_bytes),
        None => bytes.to_string(),
    }
}

/// Digits at the start, and what follows them. A blank stays with the unit, so that "2 s" matches none and is
/// answered with the right spelling.
fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// The unit that a near miss stands for.
fn duration_unit_meant(unit: &str) -> Option<&'static str> {
    match unit.trim().to_ascii_lowercase().as_str() {
        "us" | "µs" | "usec" | "micros" | "microseconds" => Some("us"),
        "ms" | "msec" | "millis" | "milliseconds" => Some("ms"),
        "s" | "sec" | "secs" | "second" | "seconds" => Some("s"),
        "m" | "min" | "mins" | "minute" | "minutes" => Some("m"),
        "h" | "hr" | "hrs" | "hour" | "hours" => Some("h"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_one_number_and_one_unit() {
        assert_eq!(decode_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(decode_duration("0us"), Ok(Duration::ZERO));
        assert_eq!(decode_duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "s", "-1s", "1.5s", "1h30m", "2 fortnights", "99999999999999999999s", "9999999999h", "１s"] {
            assert!(decode_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn near_misses_are_answered_with_the_right_spelling() {
        assert_eq!(decode_duration("2").unwrap_err().remedy, "write \"2s\" if seconds are meant");
        assert_eq!(decode_duration("2 sec").unwrap_err().remedy, "write \"2s\"");
        assert_eq!(decode_duration("30MIN").unwrap_err().remedy, "write \"30m\"");
        assert_eq!(decode_size("64kb").unwrap_err().remedy, "write \"64KiB\" (1 KiB is 1024 bytes)");
        assert_eq!(decode_size("64").unwrap_err().remedy, "write 64, without quotes, for bytes");
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(decode_size("64KiB"), Ok(65_536));
        assert_eq!(show_size(8 << 20), "8MiB");
        assert_eq!(show_size(65_507), "65507");
        assert!(decode_size("99999999999999GiB").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_may_be_written(us in 0u64..1 << 50, bytes in 1u64..) {
            let duration = Duration::from_micros(us);
            prop_assert_eq!(decode_duration(&show_duration(duration)), Ok(duration));
            let shown = show_size(bytes);
            prop_assert_eq!(shown.parse::<u64>().or_else(|_| decode_size(&shown)), Ok(bytes));
        }
    }
}
