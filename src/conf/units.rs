//! Reads and writes the two units of the configuration: sizes (`256MB`) and durations (`3s`).
//! A size may go without a unit, then it is bytes. A duration may not: `idle: 60` would be seconds to one reader and milliseconds to the next.
//! All arithmetic is on integers, so `1.1GB` is the same number of bytes everywhere and nothing wraps around.

use std::ops::RangeInclusive;
use std::time::Duration;

/// 1,024 bytes.
pub const KB: u64 = 1024;
/// 1,048,576 bytes.
pub const MB: u64 = 1024 * KB;
/// 1,073,741,824 bytes.
pub const GB: u64 = 1024 * MB;

/// More decimals than a nanosecond or a byte of a gigabyte needs, few enough that u128 cannot overflow.
const DECIMALS_MAX: usize = 9;

const NOT_A_SIZE: &str = "which is not a size; write for example 256MB";
const NOT_A_DURATION: &str = "which is not a duration; write for example 500ms, 3s or 5m";

/// Bytes. Units are B, KB, MB and GB in either case, decimals are cut to a whole byte.
/// The error says what would be right, as the end of a sentence that begins with what was found.
pub fn size(text: &str, allowed: RangeInclusive<u64>) -> Result<u64, String> {
    let (number, unit) = split(text);
    let bytes_per_unit = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => KB,
        "MB" => MB,
        "GB" => GB,
        _ => return Err(NOT_A_SIZE.into()),
    };
    if bytes_per_unit == 1 && number.contains('.') {
        return Err("which has a part of a byte; write a whole number, or a unit such as 1.5GB".into());
    }
    let bytes = scaled(number, bytes_per_unit).ok_or(NOT_A_SIZE)?;
    u64::try_from(bytes).ok().filter(|bytes| allowed.contains(bytes)).ok_or_else(|| {
        format!("which is out of range; write {} to {}", size_text(*allowed.start()), size_text(*allowed.end()))
    })
}

/// A duration with one of the units ms, s, m, h, d (days of 24 hours).
/// The error reads like that of `size`.
pub fn duration(text: &str, allowed: RangeInclusive<Duration>) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let nanos_per_unit = match unit {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        "d" => 86_400 * 1_000_000_000,
        "" if scaled(number, 1).is_some() => {
            return Err(format!("which has no unit; write {number}s or {number}ms"));
        }
        _ => return Err(NOT_A_DURATION.into()),
    };
    let nanos = scaled(number, nanos_per_unit).ok_or(NOT_A_DURATION)?;
    u64::try_from(nanos).ok().map(Duration::from_nanos).filter(|duration| allowed.contains(duration)).ok_or_else(|| {
        format!("which is out of range; write {} to {}", duration_text(*allowed.start()), duration_text(*allowed.end()))
    })
}

/// A size in its largest unit that keeps it a whole number.
pub fn size_text(bytes: u64) -> String {
    let (per_unit, unit) = [(GB, "GB"), (MB, "MB"), (KB, "KB"), (1, "B")]
        .into_iter()
        .find(|(per_unit, _)| bytes >= *per_unit && bytes.is_multiple_of(*per_unit))
        .unwrap_or((1, "B"));
    format!("{}{unit}", bytes / per_unit)
}

/// A duration in its largest unit that keeps it a whole number. What is below a millisecond is cut off.
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (per_unit, unit) = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")]
        .into_iter()
        .find(|(per_unit, _)| millis >= *per_unit && millis.is_multiple_of(*per_unit))
        .unwrap_or((1_000, "s"));
    format!("{}{unit}", millis / per_unit)
}

/// The number and what follows it, which is the unit if the text is any good.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()))
}

/// `number * per_unit`, cut to a whole number. `None` if it is not digits with at most one point between them,
/// or has more digits than any sensible value. A value too large for u64 comes back as it is, to be called out of range.
fn scaled(number: &str, per_unit: u64) -> Option<u128> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !are_digits(whole) || !are_digits(decimals) || decimals.len() > DECIMALS_MAX {
        return None;
    }
    // What u64 cannot hold is out of range by one or by a lot, all the same; 2^64 days in nanoseconds still fit u128.
    let whole = whole.parse::<u64>().map_or(1 << 64, u128::from);
    let divisor = 10_u128.pow(decimals.len() as u32);
    let decimals = decimals.parse::<u64>().ok()?;
    Some(whole * u128::from(per_unit) + u128::from(decimals) * u128::from(per_unit) / divisor)
}

pub fn readable(bytes: u64) -> String {
    let kilobytes = bytes as f64 / 1024.0;
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{kilobytes:.1} KB"),
        _ => format!("{:.1} MB", kilobytes / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY_SIZE: RangeInclusive<u64> = 0..=u64::MAX;
    const ANY_DURATION: RangeInclusive<Duration> = Duration::ZERO..=Duration::MAX;

    #[test]
    fn size_refuses_what_is_not_one() {
        for text in ["", " ", "MB", "10 gigs", "10 GB", "-1MB", "+1MB", "1e3", "0x10", "1_000", "1,5GB", ".5GB", "5.GB"]
            .into_iter()
            .chain(["1.2.3GB", "1MiB", "1TB", "1M", "1MB ", "١MB", "1.0000000001GB"])
        {
            assert_eq!(size(text, ANY_SIZE), Err(NOT_A_SIZE.into()), "{text:?}");
        }
        assert!(size("1.5", ANY_SIZE).unwrap_err().contains("part of a byte"));
        assert!(size("1.5B", ANY_SIZE).unwrap_err().contains("part of a byte"));
    }

    #[test]
    fn size_refuses_what_is_out_of_range() {
        let expected = Err("which is out of range; write 1MB to 1GB".to_string());
        for text in
            ["0", "0MB", "1048575", "1023.9KB", "1073741825", "1.1GB", "18446744073709551616", "18446744073709551615GB"]
        {
            assert_eq!(size(text, MB..=GB), expected, "{text:?}");
        }
        for text in ["18446744073709551616", "17179869184GB", "99999999999999999999999999999999999999999999999999"] {
            assert!(size(text, ANY_SIZE).is_err(), "{text} is 2^64 bytes or more");
        }
    }

    #[test]
    fn size_is_bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("123", 123),
            ("123B", 123),
            ("1kb", 1024),
            ("512KB", 524_288),
            ("256MB", 268_435_456),
            ("256mB", 268_435_456),
            ("10GB", 10_737_418_240),
            ("1.5GB", 1_610_612_736),
            ("0.3KB", 307),
            ("007MB", 7_340_032),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text, ANY_SIZE), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn duration_refuses_what_is_not_one() {
        for text in
            ["", "s", "-1s", "5 s", "5S", "5M", "5min", "1h30m", "1w", "1,5s", ".5s", "5.s", "1..5s", "soon", "5µs"]
        {
            assert_eq!(duration(text, ANY_DURATION), Err(NOT_A_DURATION.into()), "{text:?}");
        }
        assert_eq!(duration("60", ANY_DURATION), Err("which has no unit; write 60s or 60ms".into()));
        assert_eq!(duration("0", ANY_DURATION), Err("which has no unit; write 0s or 0ms".into()));
    }

    #[test]
    fn duration_refuses_what_is_out_of_range() {
        let expected = Err("which is out of range; write 1ms to 1m".to_string());
        for text in ["0s", "0.5ms", "61s", "2m", "1d", "99999999999999999999999d"] {
            assert_eq!(duration(text, Duration::from_millis(1)..=Duration::from_secs(60)), expected, "{text:?}");
        }
    }

    #[test]
    fn duration_is_time() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("3s", 3_000),
            ("1.5s", 1_500),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(duration(text, ANY_DURATION), Ok(Duration::from_millis(millis)), "{text:?}");
        }
    }

    #[test]
    fn written_values_read_back() {
        for text in ["0B", "1B", "1023B", "1KB", "1025B", "3008MB", "1GB", "1536MB"] {
            assert_eq!(size_text(size(text, ANY_SIZE).unwrap()), text);
        }
        for text in ["0s", "1ms", "1500ms", "3s", "1m", "90s", "1h", "1d", "36h"] {
            assert_eq!(duration_text(duration(text, ANY_DURATION).unwrap()), text);
        }
    }

    #[test]
    fn sizes_are_readable() {
        let check = |bytes: u64, expected: &str| assert_eq!(readable(bytes), expected);
        check(0, "0 bytes");
        check(1023, "1023 bytes");
        check(1536, "1.5 KB");
        check(5 * 1_048_576, "5.0 MB");
    }
}
