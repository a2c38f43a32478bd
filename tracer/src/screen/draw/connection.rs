//! A connection's life: its states in order, each with how long it lasted and how well that is known.

use ratatui::style::{Modifier, Style};

use super::Line;
use crate::{
    core::connection::{Certainty, Closing, Connection},
    output::{
        bytes, duration,
        records::{Time, time_of_day},
    },
    screen::{
        rows::{ConnectionRow, process_text, time_text},
        state::State,
        text::plain,
    },
};

/// Cells before the bars.
const BEFORE: usize = 48;

pub(super) fn text(state: &State, row: &ConnectionRow, is_there: bool, cells: u16) -> Vec<Line> {
    let look = state.abilities;
    let mut lines = about(state, row, is_there);
    lines.push(Vec::new());
    let head = format!(" {:<12} {:>10} {:>10}  {:<9}", "STATE", "FROM", "FOR", "KNOWN");
    lines.push(vec![(head, look.head())]);
    let connection = &row.connection;
    let whole_ns = connection.duration_ns().max(1);
    let room = usize::from(cells).saturating_sub(BEFORE + 1);
    let mut from_ns = 0_u64;
    for (number, span) in connection.spans.iter().enumerate() {
        let is_now = connection.ended_ns.is_none() && number + 1 == connection.spans.len();
        let known = match span.certainty {
            Certainty::Exact => "exact",
            Certainty::AtLeast => "at least",
            Certainty::Unknown => "unknown",
        };
        let time = match span.certainty {
            Certainty::Unknown => format!("?{}", duration(span.ns)),
            certainty => time_text(span.ns, certainty),
        };
        let text = format!(" {:<12} {:>10} {time:>10}  {known:<9}", span.state, duration(from_ns));
        let (start, length) = bar(from_ns, span.ns, whole_ns, room);
        let glyph = if span.certainty == Certainty::Exact { "█" } else { "▄" };
        let mut line = vec![
            (text, look.state(span.state)),
            (" ".repeat(start + 2), Style::new()),
            (glyph.repeat(length), look.state(span.state)),
        ];
        if is_now {
            line.push((" now".to_owned(), Style::new().add_modifier(Modifier::BOLD)));
        }
        lines.push(line);
        from_ns = from_ns.saturating_add(span.ns);
    }
    if let Some(closing) = connection.closing {
        lines.push(vec![(format!(" {:<12} {:>10}", "CLOSE", duration(from_ns)), look.state(row.state()))]);
        lines.push(Vec::new());
        lines.extend(ending(state, connection, closing));
    }
    if connection.gap {
        lines.push(Vec::new());
        lines.push(vec![(" Something of it was missed and inferred.".to_owned(), look.notable())]);
    }
    lines
}

/// Where a span begins in a bar of the whole life, and how long it is; what there is shows.
fn bar(from_ns: u64, ns: u64, whole_ns: u64, room: usize) -> (usize, usize) {
    // " now" stands behind the last one.
    let room = room.saturating_sub(6).max(1);
    let cell = |ns: u64| (u128::from(ns) * room as u128 / u128::from(whole_ns)) as usize;
    let start = cell(from_ns).min(room - 1);
    (start, cell(ns).clamp(1, room - start))
}

fn about(state: &State, row: &ConnectionRow, is_there: bool) -> Vec<Line> {
    let look = state.abilities;
    let connection = &row.connection;
    let Connection { tuple, socket, process, bytes_in, bytes_out, .. } = connection;
    let clock = state.picture.clock;
    let at = |mono_ns: u64| time_of_day(Time(clock.unix_ns(mono_ns)));
    let field = |name: &str, text: String| -> Line {
        vec![(format!(" {name:<10}"), look.head()), (plain(&text), Style::new())]
    };
    let count = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), bytes);
    let whose = match process {
        Some(process) => format!("{} ({})", process_text(Some(process)), process.source.name()),
        None => "not known".to_owned(),
    };
    let opened = match connection.opened_ns {
        Some(opened_ns) => format!("{}, {}", at(opened_ns), connection.opening.name()),
        None => format!("not seen ({})", connection.opening.name()),
    };
    let age = time_text(connection.duration_ns(), row.age_certainty());
    let mut lines = vec![
        field("ends", format!("{} → {}", tuple.local, tuple.remote)),
        field("socket", format!("cookie {}, inode {}, namespace {}", socket.cookie, connection.inode, tuple.netns)),
        field("process", whose),
        field("opened", opened),
        field("age", age),
        field("payload", format!("{} in, {} out", count(*bytes_in), count(*bytes_out))),
    ];
    if let Some(cgroup) = &row.cgroup {
        let workload = row.workload.as_ref().map_or_else(String::new, |workload| format!("{workload}: "));
        lines.insert(3, field("cgroup", format!("{workload}{cgroup}")));
    }
    if !is_there && connection.ended_ns.is_none() {
        lines.push(vec![(
            " This is how it was last seen: it is not among the open ones any more.".to_owned(),
            look.notable(),
        )]);
    }
    lines
}

fn ending(state: &State, connection: &Connection, closing: Closing) -> Vec<Line> {
    let look = state.abilities;
    let clock = state.picture.clock;
    let when = connection.ended_ns.map_or_else(String::new, |ended_ns| time_of_day(Time(clock.unix_ns(ended_ns))));
    let mut said = format!("{when}, {}", closing.name());
    if let Some(cause) = connection.reset_cause {
        said = format!("{said} ({})", cause.name());
    }
    if let Some(error) = connection.error.name() {
        said = format!("{said}, {error}");
    }
    let after = format!("{}    more: tracer explain {}", connection.after_close.name(), closing.name());
    let field =
        |name: &str, text: String| -> Line { vec![(format!(" {name:<10}"), look.head()), (text, Style::new())] };
    vec![field("ended", said), field("left", after)]
}
