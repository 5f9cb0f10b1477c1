//! Sizes and durations as people write them: `512 MiB`, `5m`.

use std::time::Duration;

const SIZES: [(&str, u64); 9] = [
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Number and unit of a text such as `512 MiB`; the unit is in lower case and may be empty.
fn split(text: &str) -> Option<(u64, String)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let number = text.get(..end)?.replace('_', "").parse().ok()?;
    Some((number, text.get(end..)?.trim().to_ascii_lowercase()))
}

/// Bytes: a plain number, or one with B, KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let scale = if unit.is_empty() { 1 } else { SIZES.iter().find(|(name, _)| *name == unit)?.1 };
    number.checked_mul(scale).filter(|&bytes| i64::try_from(bytes).is_ok())
}

/// A duration: a plain number of seconds, or one with ms, s, m, h or d.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let scale = if unit.is_empty() { 1_000 } else { DURATIONS.iter().find(|(name, _)| *name == unit)?.1 };
    number.checked_mul(scale).filter(|&ms| i64::try_from(ms).is_ok()).map(Duration::from_millis)
}

/// A size in the largest unit that divides it, so that reading it again gives the same number.
pub fn exact_size(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale)) {
        Some((unit, scale)) => format!("{} {unit}", bytes / scale),
        None => format!("{bytes} B"),
    }
}

/// A size for a table's column: three digits or so, `33.8 MiB`.
pub fn short_size(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, scale)| bytes >= *scale) {
        Some((unit, scale)) => format!("{:.1} {unit}", bytes as f64 / *scale as f64),
        None => format!("{bytes} B"),
    }
}

/// A duration in the largest unit that divides it.
pub fn exact_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [("d", 86_400_000u128), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    match units.iter().find(|(_, scale)| ms >= *scale && ms.is_multiple_of(*scale)) {
        Some((unit, scale)) => format!("{}{unit}", ms / scale),
        None => format!("{ms}ms"),
    }
}

/// A duration for a table's column, in whole units of the largest one that fits: `90s` is `1m`.
pub fn short_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match [("d", 86_400), ("h", 3_600), ("m", 60)].iter().find(|(_, scale)| seconds >= *scale) {
        Some((unit, scale)) => format!("{}{unit}", seconds / scale),
        None => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_scales_and_come_back_exactly() {
        for (text, bytes) in
            [("512 MiB", 512 << 20), ("1GB", 1_000_000_000), ("7", 7), ("0", 0), ("1_000 kb", 1_000_000), ("3 GiB", 3 << 30)]
        {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(parse_size(&exact_size(bytes)), Some(bytes), "{text}");
        }
        for wrong in ["", "MiB", "-1", "1.5 GiB", "5 m", "99999999 TiB", "18446744073709551615"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_are_read_and_come_back_exactly() {
        for (text, ms) in [("5m", 300_000), ("90", 90_000), ("250ms", 250), ("1 d", 86_400_000), ("3600s", 3_600_000)] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(text), Some(duration), "{text}");
            assert_eq!(parse_duration(&exact_duration(duration)), Some(duration), "{text}");
        }
        assert_eq!(parse_duration("5 weeks"), None);
        assert_eq!(parse_duration("1m30s"), None);
    }

    #[test]
    fn columns_get_short_texts() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (90, "1m"), (7_200, "2h"), (200_000, "2d")] {
            assert_eq!(short_duration(Duration::from_secs(seconds)), text);
        }
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")] {
            assert_eq!(short_size(bytes), text);
        }
    }
}
