//! The lines that are always there: what is traced, the views, what the keys do, and the time of a replay.

use ratatui::style::{Modifier, Style};

use super::{Line, Pen};
use crate::{
    output::{
        duration,
        records::{Time, time_of_day},
    },
    screen::{
        picture::{Progress, Recording, View},
        state::{Popup, State},
        text::{short, width},
    },
};

/// Lines above the view.
pub(super) const ABOVE: u16 = 2;

/// Lines below it.
pub(super) fn below(state: &State) -> u16 {
    if state.about.recording.is_some() { 2 } else { 1 }
}

pub(super) fn draw(state: &State, pen: &mut Pen<'_>) {
    title(state, pen);
    tabs(state, pen);
    let last = pen.area.height - 1;
    if let Some(recording) = &state.about.recording {
        time_bar(state, recording, last - 1, pen);
    }
    keys(state, last, pen);
}

/// Whose screen it is, and what was lost: on every view, for nothing else can be believed without it.
fn title(state: &State, pen: &mut Pen<'_>) {
    let picture = &state.picture;
    let look = pen.look;
    let loss = picture.loss;
    let lost = loss.dropped + loss.missed;
    let since = duration(picture.now_ns.saturating_sub(picture.began_ns));
    let seen = format!(
        "seen {}  dropped {}  missed {}  repaired {}",
        short(loss.seen as f64),
        short(loss.dropped as f64),
        short(loss.missed as f64),
        short(loss.repaired as f64)
    );
    let style = if lost > 0 { look.notable() } else { Style::new() };
    let mut pieces: Line = vec![("tracer".to_owned(), look.head())];
    for (text, style) in [(&state.about.host, Style::new()), (&state.about.kernel, look.dim())] {
        pieces.push((format!("  {text}"), style));
    }
    pieces.push((format!("  {since}"), Style::new()));
    if state.frozen {
        pieces.push(("  PAUSED".to_owned(), look.notable().add_modifier(Modifier::BOLD)));
    }
    let used = pen.line(0, &pieces);
    if usize::from(used) + width(&seen) + 2 <= usize::from(pen.area.width) {
        pen.put_right(0, &seen, style);
    } else if lost > 0 {
        pen.put_right(0, "  events lost", style);
    }
}

fn tabs(state: &State, pen: &mut Pen<'_>) {
    let look = pen.look;
    let mut x = 0;
    for (number, view) in View::ALL.into_iter().enumerate() {
        let findings = state.picture.findings.as_ref().map_or(0, |findings| findings.len());
        let count = if view == View::Findings && findings > 0 { format!("({findings})") } else { String::new() };
        let text = format!(" {} {}{count} ", number + 1, view.name());
        let style = if view == state.view { look.selected() } else { Style::new() };
        x = pen.put(x, 1, &text, style);
    }
}

/// What can be done here, what is being typed, or what there is to say.
fn keys(state: &State, y: u16, pen: &mut Pen<'_>) {
    let look = pen.look;
    let choice = state.choice();
    if state.typing {
        let x = pen.put(0, y, &format!("/{}", choice.filter), Style::new());
        let x = pen.put(x, y, " ", look.selected());
        pen.put(x, y, "  Enter keeps it, Esc takes it away", look.dim());
        return;
    }
    if state.popup == Some(Popup::Export) {
        pen.put(0, y, "export what is shown: j JSON lines, c CSV, any other key nothing", look.notable());
        return;
    }
    if let Some(message) = &state.message {
        pen.put(0, y, message, look.notable());
        return;
    }
    let keys = match (&state.popup, state.view) {
        (Some(_), _) => "q back  up/down scroll",
        (None, View::Overview) => "q quit  ? help  Tab view  Space pause  e export",
        (None, View::Findings) => "q quit  ? help  Enter open  / filter  e export",
        (None, View::Log) => "q quit  ? help  / filter  End follow  Space pause",
        (None, _) => "q quit  ? help  Enter open  / filter  s sort",
    };
    pen.put(0, y, keys, look.dim());
    if state.popup.is_none() {
        let filter = if choice.filter.is_empty() { String::new() } else { format!("/{}  ", choice.filter) };
        let left_out = if state.view == View::Log && state.log_left_out > 0 {
            format!(", {} came too fast", state.log_left_out)
        } else {
            String::new()
        };
        let style = if filter.is_empty() { look.dim() } else { look.notable() };
        pen.put_right(y, &format!("  {filter}{}{left_out}", state.count()), style);
    }
}

/// Where a replay is: how fast it goes, when that was, and where findings came up.
fn time_bar(state: &State, recording: &Recording, y: u16, pen: &mut Pen<'_>) {
    let look = pen.look;
    let picture = &state.picture;
    let Progress { speed, paused, seeking, at_end } = picture.replay.unwrap_or_default();
    let speed = speed.map_or_else(|| "max".to_owned(), |speed| format!("×{speed}"));
    let moves = match (at_end, seeking, paused) {
        (true, ..) => "END",
        (_, true, _) => "SEEK",
        (_, _, true) => "PAUSED",
        _ => "PLAY",
    };
    let moment = time_of_day(Time(picture.clock.unix_ns(picture.now_ns)));
    let moment = moment.get(..8).unwrap_or(&moment).to_owned();
    let into = duration(picture.now_ns.saturating_sub(recording.began_ns));
    let left = format!("{moves:<6} {speed:<5} {moment} ");
    let Some(ended_ns) = recording.ended_ns else {
        pen.put(0, y, &format!("{left}{into} into {}", recording.name), look.head());
        return;
    };
    let whole_ns = ended_ns.saturating_sub(recording.began_ns).max(1);
    let right = format!(" {into} of {}", duration(whole_ns));
    let cells = usize::from(pen.area.width).saturating_sub(width(&left) + width(&right)).max(1);
    let place = |mono_ns: u64| {
        let into = mono_ns.saturating_sub(recording.began_ns).min(whole_ns);
        ((u128::from(into) * (cells as u128 - 1)) / u128::from(whole_ns)) as usize
    };
    let here = place(picture.now_ns);
    let mut bar: Vec<char> = (0..cells).map(|at| if at <= here { '━' } else { '─' }).collect();
    for mark in &recording.marks {
        bar[place(mark.mono_ns)] = '!';
    }
    let x = pen.put(0, y, &left, look.head());
    for (at, c) in bar.into_iter().enumerate() {
        let style = match c {
            _ if at == here => look.selected(),
            '!' => look.bad(),
            '━' => look.curve(),
            _ => look.dim(),
        };
        pen.put(x + at as u16, y, &c.to_string(), style);
    }
    pen.put_right(y, &right, Style::new());
}
