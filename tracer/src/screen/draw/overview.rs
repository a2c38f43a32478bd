//! Counts now and over the last minutes.

use ratatui::style::Style;

use super::{Line, Pen};
use crate::{
    core::state::State as TcpState,
    output::{duration, report::severity_word},
    screen::{
        history::{Second, columns, place, rate},
        state::State,
        text::{curve, short, width},
    },
};

/// The time that curves show, s.
const SPAN: usize = 300;

/// The time that rates are taken over, s.
const LATELY: usize = 5;

/// Cells before a curve.
const BEFORE: u16 = 34;

/// Lines from which on all states are shown, whether or not any socket was in them.
const ALL_FROM: u16 = 26;

/// What is counted each second.
type Rate = (&'static str, fn(&Second) -> u32);

const RATES: [Rate; 4] = [
    ("opens", |second| second.opens),
    ("closes", |second| second.closes),
    ("resets", |second| second.resets),
    ("failures", |second| second.failures),
];

/// In the order of a connection's life.
const STATES: [TcpState; 10] = [
    TcpState::SYN_SENT,
    TcpState::SYN_RECV,
    TcpState::ESTABLISHED,
    TcpState::FIN_WAIT1,
    TcpState::FIN_WAIT2,
    TcpState::CLOSING,
    TcpState::TIME_WAIT,
    TcpState::CLOSE_WAIT,
    TcpState::LAST_ACK,
    TcpState::LISTEN,
];

pub(super) fn draw(state: &State, pen: &mut Pen<'_>) {
    let picture = &state.picture;
    let look = pen.look;
    let mut y = about(state, pen);
    let minutes = SPAN / 60;
    let head = format!("{:<13} {:>8}  {:>7}  last {minutes} min, most", "STATE", "NOW", "");
    pen.put(1, y, &head, look.head());
    y += 1;
    let is_short = pen.area.height < ALL_FROM;
    for tcp_state in STATES.into_iter().filter(|tcp_state| !is_short || is_of_interest(state, *tcp_state)) {
        let Some(place) = place(tcp_state) else { continue };
        let now = match tcp_state {
            TcpState::LISTEN => picture.listening as u32,
            _ => picture.states[place],
        };
        let style = if now > 0 { look.state(tcp_state) } else { look.dim() };
        pen.put(1, y, &format!("{tcp_state:<13} {:>8}", short(f64::from(now))), style);
        if tcp_state != TcpState::LISTEN {
            let most = |values: &[u32]| values.iter().copied().max().unwrap_or(0);
            draw_curve(state, y, |second| second.states[place], most, pen);
        }
        y += 1;
    }
    let head = format!("{:<13} {:>8}  {:>7}  last {minutes} min, most", "PER SECOND", "NOW", "1 MIN");
    pen.put(1, y, &head, look.head());
    y += 1;
    for (name, value) in RATES {
        let (now, minute) = (rate(&picture.history, LATELY, value), rate(&picture.history, 60, value));
        let is_bad = matches!(name, "resets" | "failures") && now > 0.0;
        let style = if is_bad { look.notable() } else { Style::new() };
        pen.put(1, y, &format!("{name:<13} {:>8}  {:>7}", short(now), short(minute)), style);
        // On average, but whatever there was shows.
        draw_curve(state, y, value, |values| values.iter().sum::<u32>().div_ceil(values.len().max(1) as u32), pen);
        y += 1;
    }
    findings(state, y, pen);
}

/// Host, filters, and what there is to tell.
fn about(state: &State, pen: &mut Pen<'_>) -> u16 {
    let look = pen.look;
    let picture = &state.picture;
    let filters = if state.about.filters.is_empty() { "everything" } else { &state.about.filters };
    let what = match &state.about.recording {
        Some(recording) => format!("{}: {filters}", recording.name),
        None => filters.to_owned(),
    };
    pen.line(0, &vec![(" traced    ".to_owned(), look.head()), (what, Style::new())]);
    let loss = picture.loss;
    let lost = loss.dropped + loss.missed;
    let mut said = format!(
        "seen {} transitions, dropped {}, missed {}, repaired {}",
        loss.seen, loss.dropped, loss.missed, loss.repaired
    );
    if picture.let_go > 0 {
        said = format!("{said}; {} connections let go", picture.let_go);
    }
    let style = if lost > 0 { look.bad() } else { Style::new() };
    pen.line(1, &vec![(" events    ".to_owned(), look.head()), (said, style)]);
    let Some(note) = picture.notes.last() else {
        return 2;
    };
    pen.line(2, &vec![(" told      ".to_owned(), look.head()), (note.clone(), look.notable())]);
    3
}

/// The states that matter anyway, and those that there were sockets in.
fn is_of_interest(state: &State, tcp_state: TcpState) -> bool {
    let always = [TcpState::ESTABLISHED, TcpState::TIME_WAIT, TcpState::CLOSE_WAIT, TcpState::LISTEN];
    let lately = state.picture.history.iter().rev().take(SPAN);
    always.contains(&tcp_state)
        || place(tcp_state).is_some_and(|place| lately.into_iter().any(|second| second.states[place] > 0))
}

fn draw_curve(state: &State, y: u16, value: impl Fn(&Second) -> u32, join: impl Fn(&[u32]) -> u32, pen: &mut Pen<'_>) {
    let cells = pen.area.width.saturating_sub(BEFORE + 8).min(SPAN as u16);
    let values = columns(&state.picture.history, SPAN, usize::from(cells), value, join);
    let most = values.iter().flatten().copied().max().unwrap_or(0);
    let style = pen.look.curve();
    let x = pen.put(BEFORE, y, &curve(&values, most), style);
    pen.put(x + 1, y, &short(f64::from(most)), pen.look.dim());
}

/// The worst of them, in what room is left.
fn findings(state: &State, y: u16, pen: &mut Pen<'_>) {
    let look = pen.look;
    let room = usize::from(pen.area.height.saturating_sub(y + 1));
    let head = |text: &str| -> Line { vec![(" FINDINGS  ".to_owned(), look.head()), (text.to_owned(), look.dim())] };
    let Some(found) = &state.picture.findings else {
        pen.line(y, &head("the first sample is under way"));
        return;
    };
    let age = duration(state.picture.now_ns.saturating_sub(state.picture.sampled_ns));
    if found.is_empty() {
        pen.line(y, &head(&format!("none; sampled {age} ago")));
        return;
    }
    pen.line(y, &head(&format!("{}; sampled {age} ago; Enter shows them", found.len())));
    for (at, finding) in found.iter().take(room).enumerate() {
        let line = y + 1 + at as u16;
        let x = pen.put(1, line, &format!("{:<9} ", severity_word(finding.severity)), look.severity(finding.severity));
        pen.put(x, line, &finding.title, Style::new());
    }
    let hidden = found.len().saturating_sub(room);
    if hidden > 0 && room > 0 {
        let text = format!("  … {hidden} more");
        let x = usize::from(pen.area.width).saturating_sub(width(&text));
        pen.put(x as u16, y, &text, look.dim());
    }
}
