//! Findings: the list, and one of them with all that is known.

use ratatui::style::{Modifier, Style};

use super::{Line, Pen, list_lines};
use crate::{
    core::{endpoint::Endpoint, finding::Finding},
    output::{
        report::{measures, severity_word},
        wrapped,
    },
    screen::{
        rows::{process_text, time_text},
        state::{List, State},
        text::{fitted, plain},
    },
};

/// Lines of a finding in the list.
pub(super) const LINES: usize = 2;

pub(super) fn draw_list(state: &State, pen: &mut Pen<'_>) {
    let look = pen.look;
    let found = state.findings();
    if found.is_empty() {
        let text = match &state.picture.findings {
            None => " the first sample of sockets is under way",
            Some(all) if all.is_empty() => " none: no stuck sockets, no destination short of ports, nothing failing",
            Some(_) => " none with these words",
        };
        pen.put(0, 0, text, look.dim());
        return;
    }
    let List { selected, top } = state.list();
    for (at, finding) in found.into_iter().enumerate().skip(top).take(list_lines(state)) {
        let y = ((at - top) * LINES) as u16;
        let x = pen.put(1, y, &format!("{:<9} ", severity_word(finding.severity)), look.severity(finding.severity));
        pen.put(x, y, &finding.title, Style::new());
        let mut said = vec![finding.kind.name().to_owned()];
        said.extend(measures(finding));
        pen.put(x, y + 1, &said.join("   "), look.dim());
        if at == selected {
            pen.put(0, y, "▶", Style::new());
            pen.whole_line(y, look.selected());
        }
    }
}

/// One of them.
pub(super) fn text(state: &State, finding: &Finding, is_there: bool, cells: u16) -> Vec<Line> {
    let look = state.abilities;
    let room = usize::from(cells).saturating_sub(12).max(10);
    let mut lines: Vec<Line> = Vec::new();
    let severity = (format!(" {:<9} ", severity_word(finding.severity)), look.severity(finding.severity));
    for (number, part) in wrapped(&plain(&finding.title), room).into_iter().enumerate() {
        let before = if number == 0 { severity.clone() } else { (" ".repeat(11), Style::new()) };
        lines.push(vec![before, (part, Style::new().add_modifier(Modifier::BOLD))]);
    }
    if !is_there {
        lines.push(vec![(" ".repeat(11), Style::new()), ("no longer found".to_owned(), look.notable())]);
    }
    let mut part = |head: &str, text: &[String]| {
        let parts = text.iter().flat_map(|text| wrapped(&plain(text), room));
        for (number, part) in parts.enumerate() {
            let head = if number == 0 { head } else { "" };
            lines.push(vec![(format!(" {head:<9} "), look.head()), (part, Style::new())]);
        }
    };
    let kind = match finding.cause {
        Some(cause) => format!("{}: {}", finding.kind.name(), cause.name()),
        None => finding.kind.name().to_owned(),
    };
    part("kind", &[kind]);
    part("process", &[process_text(finding.process.as_ref())]);
    let said = measures(finding);
    if !said.is_empty() {
        part("measured", &[said.join("   ")]);
    }
    part("evidence", &finding.evidence);
    part("fix", std::slice::from_ref(&finding.remedy));
    part("more", &[format!("tracer explain {}", finding.topic)]);
    lines.push(Vec::new());
    lines.extend(sockets(state, finding));
    lines
}

fn sockets(state: &State, finding: &Finding) -> Vec<Line> {
    let look = state.abilities;
    if finding.sockets.is_empty() {
        return Vec::new();
    }
    let head = format!(" {:>9}  {:<22} {:<22} {}", "AGE", "LOCAL", "PEER", "FD");
    let mut lines = vec![vec![(head, look.head())]];
    for socket in &finding.sockets {
        let fds = socket.fds.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
        let remote = if socket.remote == Endpoint::UNKNOWN { "?".to_owned() } else { socket.remote.to_string() };
        let age = time_text(socket.age_ns, socket.age_certainty);
        let local = fitted(&socket.local.to_string(), 22, false);
        let text = format!(" {} {local} {} {fds}", fitted(&format!("{age} "), 10, true), fitted(&remote, 22, false));
        lines.push(vec![(text, Style::new())]);
    }
    let hidden = (finding.count as usize).saturating_sub(finding.sockets.len());
    if hidden > 0 {
        lines.push(vec![(format!("            … and {hidden} more"), look.dim())]);
    }
    lines
}
