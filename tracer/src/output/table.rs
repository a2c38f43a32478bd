//! Tables for people. What a record shows there is its own decision ([`Row::table_line`]).

use super::{Row, text::Text};

pub(super) fn header<R: Row>(to: &mut Text) {
    to.push(R::TABLE_HEADER);
    to.push("\n");
}

pub(super) fn write(record: &impl Row, to: &mut Text) {
    to.push(record.table_line().trim_end());
    to.push("\n");
}

/// A duration as people read it: three digits and a unit.
pub(crate) fn duration(ns: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns")];
    let seconds = ns / 1_000_000_000;
    if seconds >= 60 {
        return match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
            (0, 0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
            (0, hours, minutes, _) => format!("{hours}h{minutes:02}m"),
            (days, hours, _, _) => format!("{days}d{hours:02}h"),
        };
    }
    // What would be rounded to a thousand belongs to the next unit.
    let reaches = |unit_ns: u64| ns as f64 >= unit_ns as f64 * 0.9995 || unit_ns == 1;
    let (unit_ns, unit) = UNITS.into_iter().find(|(unit_ns, _)| reaches(*unit_ns)).unwrap_or((1, "ns"));
    let value = ns as f64 / unit_ns as f64;
    let decimals = match value {
        _ if unit_ns == 1 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{unit}")
}

/// A number of bytes as people read it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value < 9.95);
    format!("{value:.decimals$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        let said = [
            (0, "0ns"),
            (7, "7ns"),
            (1_500, "1.50µs"),
            (12_345, "12.3µs"),
            (999_999, "1.00ms"),
            (45_000_000, "45.0ms"),
            (1_230_000_000, "1.23s"),
            (59_400_000_000, "59.4s"),
            (61_000_000_000, "1m01s"),
            (3_720_000_000_000, "1h02m"),
            (200_000_000_000_000, "2d07h"),
        ];
        for (ns, text) in said {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn bytes_have_a_unit() {
        let said =
            [(0, "0B"), (999, "999B"), (1000, "1.0kB"), (1234, "1.2kB"), (99_500, "100kB"), (1_000_000, "1.0MB")];
        for (count, text) in said {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "18447PB");
    }
}
