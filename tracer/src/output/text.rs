//! Text under way to a line: numbers and times without the general formatter, which would be most of what a line costs.

use std::{
    fmt::Display,
    io::Write,
    time::{Duration, UNIX_EPOCH},
};

use super::records::Time;

/// Text that is being written.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
    /// The last second that was written, since 1970, and how: times come in order, thousands of them in one second.
    second: Option<u64>,
    second_text: String,
}

impl Text {
    /// What is there.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where more is written to.
    pub(super) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Gives out what is there, and begins anew.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let capacity = self.bytes.capacity();
        std::mem::replace(&mut self.bytes, Vec::with_capacity(capacity))
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds text as it is.
    pub fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Puts a byte in the place of another.
    pub(super) fn replace(&mut self, at: usize, byte: u8) {
        self.bytes[at] = byte;
    }

    /// Adds a number.
    pub fn number(&mut self, number: impl itoa::Integer) {
        self.push(itoa::Buffer::new().format(number));
    }

    /// Adds something as it is displayed.
    pub fn display(&mut self, value: impl Display) {
        // Memory takes everything.
        let _ = write!(self.bytes, "{value}");
    }

    /// Adds a JSON string, with its quotes and whatever has to be escaped.
    pub fn json_string(&mut self, text: &str) {
        // Likewise, and every string has a form in JSON.
        let _ = serde_json::to_writer(&mut self.bytes, text);
    }

    /// Adds a time: RFC 3339, UTC, with nine decimals.
    pub fn time(&mut self, Time(unix_ns): Time) {
        let (second, mut ns) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
        if self.second != Some(second) {
            let at = UNIX_EPOCH + Duration::from_secs(second);
            self.second_text = humantime::format_rfc3339_seconds(at).to_string();
            self.second_text.truncate("2026-01-01T00:00:00".len());
            self.second = Some(second);
        }
        let mut decimals = *b".000000000Z";
        for digit in decimals[1..10].iter_mut().rev() {
            *digit += (ns % 10) as u8;
            ns /= 10;
        }
        self.bytes.extend_from_slice(self.second_text.as_bytes());
        self.bytes.extend_from_slice(&decimals);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_library_writes_them() {
        let mut text = Text::default();
        for unix_ns in
            [0, 1, 999_999_999, 1_000_000_000, 1_790_000_000_123_456_789, 1_790_000_000_000_000_001, u64::MAX]
        {
            text.clear();
            text.time(Time(unix_ns));
            let expected = humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(unix_ns)).to_string();
            assert_eq!(String::from_utf8_lossy(text.bytes()), expected);
        }
    }
}
