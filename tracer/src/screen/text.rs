//! Text in cells. A name from the traced host may be anything: what would move the cursor, turn the direction of writing
//! or take no room is replaced, and what is wide counts as wide.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Text without control characters and without those that change how others are shown.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if is_harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

fn is_harmless(c: char) -> bool {
    // Marks that turn the direction, joiners, variation selectors and tags have no width of their own; combining marks
    // have none either, and would gather on a neighbour.
    !c.is_control() && c.width().is_some_and(|width| width > 0)
}

/// How many cells it takes.
#[must_use]
pub fn width(text: &str) -> usize {
    text.width()
}

/// At most `cells` wide; what was cut off leaves a mark.
#[must_use]
pub fn clipped(text: &str, cells: usize) -> String {
    let text = plain(text);
    if width(&text) <= cells {
        return text;
    }
    let mut kept = String::new();
    let mut left = cells.saturating_sub(1);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if wide > left {
            break;
        }
        left -= wide;
        kept.push(c);
    }
    if cells > 0 {
        kept.push('…');
    }
    kept
}

/// Exactly `cells` wide.
#[must_use]
pub fn fitted(text: &str, cells: usize, right: bool) -> String {
    let text = clipped(text, cells);
    let room = " ".repeat(cells.saturating_sub(width(&text)));
    if right { room + &text } else { text + &room }
}

/// A number with a unit where it is long, in five cells.
#[must_use]
pub fn short(number: f64) -> String {
    match number {
        number if number > 0.0 && number < 0.05 => "<0.1".to_owned(),
        number if number < 9.95 && number.fract() != 0.0 => format!("{number:.1}"),
        number if number < 99_999.5 => format!("{number:.0}"),
        number if number < 9_999_500.0 => format!("{:.0}k", number / 1e3),
        number => format!("{:.0}M", number / 1e6),
    }
}

/// Levels of a curve, from nothing to all.
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A curve, one cell for each value; a dot where nothing is known.
#[must_use]
pub fn curve(values: &[Option<u32>], most: u32) -> String {
    let level = |value: u32| {
        let steps = u64::from(value) * 8;
        // Whatever there is shows.
        let step = if value == 0 { 0 } else { (steps / u64::from(most.max(1))).clamp(1, 8) };
        LEVELS[step as usize]
    };
    values.iter().map(|value| value.map_or('·', level)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_cursor_or_turns_the_direction() {
        let hostile = "\x1b[2Ja\u{202e}b\u{200b}c\u{301}d\r\n\u{9b}31m";
        let shown = plain(hostile);
        assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}' || c == '\u{200b}' || c == '\u{301}'));
        assert_eq!(width(&shown), shown.chars().count());
    }

    #[test]
    fn what_is_wide_counts_as_wide() {
        assert_eq!(fitted("日本語", 8, false), "日本語  ");
        assert_eq!(fitted("日本語", 5, false), "日本…");
        assert_eq!(fitted("日本語", 4, false), "日… ");
        assert_eq!(fitted("42", 5, true), "   42");
        assert_eq!(fitted("42", 0, true), "");
        for cells in 0..12 {
            assert_eq!(width(&fitted("a日b本c語", cells, true)), cells);
        }
    }

    #[test]
    fn curves_show_whatever_there_is() {
        assert_eq!(curve(&[None, Some(0), Some(1), Some(50), Some(100)], 100), "· ▁▄█");
        assert_eq!(curve(&[Some(5)], 0), "█");
    }

    #[test]
    fn numbers_are_short() {
        let said = [(0.0, "0"), (0.25, "0.2"), (3.0, "3"), (12.6, "13"), (99_999.0, "99999"), (123_456.0, "123k")];
        for (number, text) in said {
            assert_eq!(short(number), text);
        }
        assert_eq!(short(12e6), "12M");
    }
}
