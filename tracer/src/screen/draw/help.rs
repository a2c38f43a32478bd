//! Which keys there are.

use ratatui::style::{Modifier, Style};

use super::Line;
use crate::{output::wrapped, screen::state::State};

/// In parts: a head, and keys with what they do.
const KEYS: [(&str, &[(&str, &str)]); 4] = [
    (
        "VIEWS",
        &[
            ("1 to 6", "open a view; Tab, Shift-Tab, left, right, h, l: the next one, the one before"),
            ("Enter", "a finding, a connection's life; the connections of a destination or a listener"),
            ("q, Esc", "back; q in a view, F10 and Ctrl-C: end"),
            ("?, F1", "this"),
        ],
    ),
    (
        "LISTS",
        &[
            ("up, down, k, j", "one line; PageUp, PageDown, Ctrl-B, Ctrl-F: a page; the mouse wheel"),
            ("g, G, Home, End", "the first, the last; at its last line the log goes on by itself"),
            ("/, F3, F4", "show rows that have these words, anywhere; Esc takes them away"),
            ("s, S, F6", "sort by the next column, the one before;  r, I: the other way round"),
            ("e", "write what is shown to a new file, as JSON lines or CSV"),
        ],
    ),
    (
        "SCREEN",
        &[
            ("Space", "stand still, go on; tracing goes on meanwhile"),
            ("m", "leave the mouse to the terminal, to select text; take it back"),
            ("Ctrl-L", "draw anew;  Ctrl-Z: to the shell, fg comes back"),
        ],
    ),
    (
        "REPLAY (--from)",
        &[
            ("Space", "pause, go on;  . one transition"),
            ("+, -", "faster, slower (also ] and [)"),
            ("n, N", "to the next finding, to the one before; findings are ! in the time bar"),
            (">, <", "10 s on, 10 s back;  ^ and $: to the beginning, to the end"),
        ],
    ),
];

const TIMES: [&str; 2] = [
    "8.20s is exact, ≥8.20s a lower bound (it began before the tracer), ?8.20s inferred.",
    "What states and findings mean: tracer explain TOPIC.",
];

/// Cells before what a key does.
const BEFORE: usize = 20;

pub(super) fn text(state: &State, cells: u16) -> Vec<Line> {
    let look = state.abilities;
    let room = usize::from(cells).saturating_sub(BEFORE).max(10);
    let mut lines = Vec::new();
    for (head, keys) in KEYS {
        if head.starts_with("REPLAY") && state.about.recording.is_none() {
            continue;
        }
        lines.push(vec![(format!(" {head}"), look.head())]);
        for (key, does) in keys {
            for (number, part) in wrapped(does, room).into_iter().enumerate() {
                let key = if number == 0 { *key } else { "" };
                let bold = Style::new().add_modifier(Modifier::BOLD);
                lines.push(vec![(format!("   {key:<16} "), bold), (part, Style::new())]);
            }
        }
    }
    lines.push(vec![(" TIMES".to_owned(), look.head())]);
    for text in TIMES {
        lines.extend(
            wrapped(text, room + BEFORE - 3).into_iter().map(|part| vec![(format!("   {part}"), Style::new())]),
        );
    }
    lines
}
