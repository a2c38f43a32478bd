//! Draws a state of the screen. A function of that state alone; whatever the size, nothing outside of it is touched.

mod connection;
mod findings;
mod frame;
mod help;
mod overview;
mod table;

use ratatui::{buffer::Buffer, layout::Rect, style::Style};

use super::{
    look::{Abilities, to_ascii},
    picture::View,
    state::{Popup, State},
    text::{clipped, width},
};

/// Screens smaller than this say so.
const LEAST: (u16, u16) = (20, 6);

/// Draws the whole screen.
pub fn draw(state: &State, buffer: &mut Buffer) {
    let area = buffer.area;
    let mut pen = Pen { buffer, area, look: state.abilities };
    if area.width < LEAST.0 || area.height < LEAST.1 {
        pen.put(0, 0, "too small", Style::new());
    } else {
        frame::draw(state, &mut pen.part(area));
        let body = body(state, area);
        let mut pen = pen.part(body);
        match &state.popup {
            Some(Popup::Export) | None => draw_view(state, &mut pen),
            Some(popup) => draw_popup(state, popup, &mut pen),
        }
    }
    if state.abilities.ascii {
        to_ascii(buffer);
    }
}

fn draw_view(state: &State, pen: &mut Pen<'_>) {
    match state.view {
        View::Overview => overview::draw(state, pen),
        View::Findings => findings::draw_list(state, pen),
        View::Connections => table::draw(state, state.picture.connections.as_ref(), pen),
        View::Destinations => table::draw(state, state.picture.destinations.as_ref(), pen),
        View::Listeners => table::draw(state, state.picture.listeners.as_ref(), pen),
        View::Log => table::draw_log(state, pen),
    }
}

fn draw_popup(state: &State, popup: &Popup, pen: &mut Pen<'_>) {
    let lines = popup_text(state, popup, pen.area.width);
    let shown = lines.iter().skip(state.popup_top).take(usize::from(pen.area.height));
    for (y, line) in shown.enumerate() {
        pen.line(y as u16, line);
    }
}

/// The lines of what lies over a view.
fn popup_text(state: &State, popup: &Popup, cells: u16) -> Vec<Line> {
    match popup {
        Popup::Help => help::text(state, cells),
        Popup::Finding(finding, is_there) => findings::text(state, finding, *is_there, cells),
        Popup::Connection(row, is_there) => connection::text(state, row, *is_there, cells),
        Popup::Export => Vec::new(),
    }
}

/// What is between the lines that are always there.
fn body(state: &State, area: Rect) -> Rect {
    let above = frame::ABOVE.min(area.height);
    let below = frame::below(state).min(area.height - above);
    Rect { y: area.y + above, height: area.height - above - below, ..area }
}

fn screen(state: &State) -> Rect {
    let (width, height) = state.size;
    Rect { x: 0, y: 0, width, height }
}

/// Rows that the list of the open view shows at a time.
#[must_use]
pub fn list_lines(state: &State) -> usize {
    let lines = usize::from(body(state, screen(state)).height);
    match state.view {
        View::Overview => 0,
        View::Findings => lines / findings::LINES,
        _ => lines.saturating_sub(1),
    }
}

/// Lines of what lies over the view, and for how many there is room.
#[must_use]
pub fn popup_lines(state: &State) -> Option<(usize, usize)> {
    let popup = state.popup.as_ref()?;
    let body = body(state, screen(state));
    Some((popup_text(state, popup, body.width).len(), usize::from(body.height)))
}

/// Pieces of a line, each in its style.
pub(super) type Line = Vec<(String, Style)>;

/// Draws within an area, and nowhere else.
pub(super) struct Pen<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    look: Abilities,
}

impl Pen<'_> {
    fn part(&mut self, area: Rect) -> Pen<'_> {
        let area = area.intersection(self.area);
        Pen { buffer: self.buffer, area, look: self.look }
    }

    /// Puts text at a place of the area; returns where it ends.
    fn put(&mut self, x: u16, y: u16, text: &str, style: Style) -> u16 {
        self.put_within(x, y, text, u16::MAX, style)
    }

    /// Likewise, in so many cells.
    fn put_within(&mut self, x: u16, y: u16, text: &str, cells: u16, style: Style) -> u16 {
        let room = self.area.width.saturating_sub(x).min(cells);
        if y >= self.area.height || room == 0 {
            return x;
        }
        let text = clipped(text, usize::from(room));
        let (at_x, at_y) = (self.area.x + x, self.area.y + y);
        let (end, _) = self.buffer.set_stringn(at_x, at_y, text, usize::from(room), style);
        end - self.area.x
    }

    /// Puts text so that it ends at the right.
    fn put_right(&mut self, y: u16, text: &str, style: Style) {
        let x = (self.area.width as usize).saturating_sub(width(text));
        self.put(x as u16, y, text, style);
    }

    fn line(&mut self, y: u16, pieces: &Line) -> u16 {
        pieces.iter().fold(0, |x, (text, style)| self.put(x, y, text, *style))
    }

    /// A style for a whole line.
    fn whole_line(&mut self, y: u16, style: Style) {
        if y < self.area.height {
            self.buffer.set_style(Rect { y: self.area.y + y, height: 1, ..self.area }, style);
        }
    }
}
