//! Tables: connections, destinations, listeners, the log.

use ratatui::style::{Modifier, Style};

use super::{Pen, list_lines};
use crate::{
    core::state::State as TcpState,
    output::records::LogRecord,
    screen::{
        picture::{Rows, View},
        rows::{Column, Row},
        state::{List, State},
        text::fitted,
    },
};

/// Between columns, and before the first one.
const GAP: u16 = 1;

/// Columns that there is room for, by their number, with where each begins and how wide it is.
fn layout(columns: &[Column], cells: u16) -> Vec<(usize, u16, u16)> {
    let shown: Vec<(usize, &Column)> =
        columns.iter().enumerate().filter(|(_, column)| (column.from..column.below).contains(&cells)).collect();
    let fixed: u16 = shown.iter().map(|(_, column)| column.cells + GAP).sum();
    let rest = cells.saturating_sub(fixed).max(6);
    let mut x = GAP;
    let place = |(number, column): (usize, &Column)| {
        let cells = if column.cells == 0 { rest } else { column.cells };
        let place = (number, x, cells);
        x += cells + GAP;
        place
    };
    shown.into_iter().map(place).collect()
}

pub(super) fn draw<R: Row>(state: &State, rows: Option<&Rows<R>>, pen: &mut Pen<'_>) {
    let Some(rows) = rows else {
        pen.put(0, 0, " …", Style::new());
        return;
    };
    let places = layout(R::COLUMNS, pen.area.width);
    head(state, R::COLUMNS, &places, pen);
    let List { selected, top } = state.list();
    let room = list_lines(state);
    for (at, row) in rows.first.iter().enumerate().skip(top).take(room) {
        draw_row(row, &places, (at - top) as u16 + 1, at == selected, pen);
    }
    if rows.first.is_empty() {
        let text = if rows.all == 0 { " none" } else { " none with these words" };
        pen.put(0, 1, text, pen.look.dim());
    }
}

fn head(state: &State, columns: &[Column], places: &[(usize, u16, u16)], pen: &mut Pen<'_>) {
    let style = pen.look.head();
    let choice = state.choice();
    let sorts = state.view != View::Log;
    for (number, x, cells) in places {
        let column = &columns[*number];
        let is_sorted = sorts && *number == choice.sort;
        let mark = match (is_sorted, choice.reverse) {
            (true, false) => "↓",
            (true, true) => "↑",
            _ => "",
        };
        // The mark of the order may take the gap before the head.
        let (x, cells) = if is_sorted && column.right { (x - GAP, cells + GAP) } else { (*x, *cells) };
        let text = if column.right { format!("{mark}{}", column.head) } else { format!("{}{mark}", column.head) };
        let style = if is_sorted { style.add_modifier(Modifier::UNDERLINED) } else { style };
        pen.put_within(x, 0, &fitted(&text, usize::from(cells), column.right), cells, style);
    }
}

fn draw_row<R: Row>(row: &R, places: &[(usize, u16, u16)], y: u16, selected: bool, pen: &mut Pen<'_>) {
    for (number, x, cells) in places {
        let column = R::COLUMNS[*number];
        let text = row.cell(*number);
        let state = TcpState::from_name(text.trim_start_matches("→ ")).filter(|_| column.head.ends_with("STATE"));
        let style = state.map_or_else(Style::new, |state| pen.look.state(state));
        pen.put_within(*x, y, &fitted(&text, usize::from(*cells), column.right), *cells, style);
    }
    if selected {
        pen.put(0, y, "▶", Style::new());
        pen.whole_line(y, pen.look.selected());
    }
}

pub(super) fn draw_log(state: &State, pen: &mut Pen<'_>) {
    let columns = LogRecord::COLUMNS;
    let places = layout(columns, pen.area.width);
    head(state, columns, &places, pen);
    let List { selected, top } = state.list();
    let room = list_lines(state);
    let shown = state.log_shown.iter().enumerate().skip(top).take(room);
    for (at, place) in shown {
        if let Some(record) = state.log.get(*place) {
            draw_row(record, &places, (at - top) as u16 + 1, at == selected, pen);
        }
    }
    if state.log_shown.is_empty() {
        let text = if state.log.is_empty() { " nothing yet" } else { " none with these words" };
        pen.put(0, 1, text, pen.look.dim());
    }
}
