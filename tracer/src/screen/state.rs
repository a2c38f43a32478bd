//! What somebody has made of the screen: the view that is open, what is selected, filtered, sorted; and what a key does to
//! that.

use std::collections::VecDeque;

use super::{
    draw,
    look::Abilities,
    picture::{About, Ask, Mark, Picture, Rows, View},
    rows::{Column, ConnectionRow, DestinationRow, Identity, ListenerRow, Row, words},
};
use crate::{
    core::finding::{Cause, Finding, Kind},
    output::{Format, records::LogRecord},
};

/// Transitions that the log keeps.
const LOG_KEPT: usize = 5_000;

/// A filter is not longer than this.
const FILTER_LENGTH: usize = 100;

/// A key, or what the mouse does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "keys are what they are called")]
pub enum Key {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Tab,
    BackTab,
    Backspace,
    Char(char),
    Ctrl(char),
    Function(u8),
    WheelUp,
    WheelDown,
}

/// What is to be done that the screen cannot do itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Nothing but to draw.
    Draw,
    /// End.
    Quit,
    /// Give the terminal back until somebody continues the program.
    Suspend,
    /// Draw everything anew, whatever the terminal shows.
    Redraw,
    /// Write what is shown to a file.
    Export(Format),
    /// Let the terminal have the mouse, for its own selections, or take it back.
    Mouse(bool),
    /// Something about the time of a replay.
    Replay(Replay),
}

/// What a replay is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Stop, or go on.
    Pause,
    /// The next higher speed.
    Faster,
    /// The next lower speed.
    Slower,
    /// One transition.
    Step,
    /// To a moment, CLOCK_MONOTONIC ns.
    Seek(u64),
    /// To the end.
    End,
}

/// What lies over the view.
#[derive(Clone, Debug, PartialEq)]
pub enum Popup {
    /// Which keys there are.
    Help,
    /// A finding, as it was when it was last found, and whether it still is.
    Finding(Box<Finding>, bool),
    /// A connection, likewise known.
    Connection(Box<ConnectionRow>, bool),
    /// Which format to export in.
    Export,
}

/// A list that is gone through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Number of the selected row.
    pub selected: usize,
    /// Number of the first row that is shown.
    pub top: usize,
}

/// How the rows of a view are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Words that they must have.
    pub filter: String,
    /// The column that they are sorted by.
    pub sort: usize,
    /// Least first.
    pub reverse: bool,
}

/// The screen.
#[derive(Clone, Debug)]
pub struct State {
    /// What the trace is about.
    pub about: About,
    /// What the terminal can show.
    pub abilities: Abilities,
    /// Columns and lines.
    pub size: (u16, u16),
    /// The view that is open.
    pub view: View,
    /// What is shown.
    pub picture: Picture,
    /// The transitions, the latest last.
    pub log: VecDeque<LogRecord>,
    /// Places in `log` of those that pass the filter.
    pub log_shown: Vec<usize>,
    /// Transitions that came too fast to be shown.
    pub log_left_out: u64,
    /// What is shown stays as it is (live).
    pub frozen: bool,
    /// What has come meanwhile.
    waiting: Option<Picture>,
    /// What lies over the view.
    pub popup: Option<Popup>,
    /// Its first line that is shown.
    pub popup_top: usize,
    /// A filter is being typed.
    pub typing: bool,
    /// What the last key has to say.
    pub message: Option<String>,
    /// The terminal has the mouse.
    pub mouse_free: bool,
    lists: [List; View::ALL.len()],
    choices: [Choice; View::ALL.len()],
    /// The log stays at its end.
    follows: bool,
}

impl State {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(about: About, abilities: Abilities, size: (u16, u16)) -> Self {
        Self {
            about,
            abilities,
            size,
            view: View::default(),
            picture: Picture::default(),
            log: VecDeque::new(),
            log_shown: Vec::new(),
            log_left_out: 0,
            frozen: false,
            waiting: None,
            popup: None,
            popup_top: 0,
            typing: false,
            message: None,
            mouse_free: false,
            lists: Default::default(),
            choices: Default::default(),
            follows: true,
        }
    }

    /// What the next picture is to have.
    #[must_use]
    pub fn ask(&self) -> Ask {
        let Choice { filter, sort, reverse } = self.choice().clone();
        let opened = match &self.popup {
            Some(Popup::Connection(row, _)) => Some(row.connection.socket.cookie),
            _ => None,
        };
        Ask { view: self.view, filter, sort, reverse, opened }
    }

    /// How the rows of the open view are chosen.
    #[must_use]
    pub fn choice(&self) -> &Choice {
        &self.choices[self.view as usize]
    }

    fn choice_mut(&mut self) -> &mut Choice {
        &mut self.choices[self.view as usize]
    }

    /// Where one is in the open view.
    #[must_use]
    pub fn list(&self) -> List {
        self.lists[self.view as usize]
    }

    /// Rows of the open view.
    #[must_use]
    pub fn length(&self) -> usize {
        fn of<R>(rows: Option<&Rows<R>>) -> usize {
            rows.map_or(0, |rows| rows.first.len())
        }
        match self.view {
            View::Overview => 0,
            View::Findings => self.findings().len(),
            View::Connections => of(self.picture.connections.as_ref()),
            View::Destinations => of(self.picture.destinations.as_ref()),
            View::Listeners => of(self.picture.listeners.as_ref()),
            View::Log => self.log_shown.len(),
        }
    }

    /// How many rows of the open view there are, and of how many.
    #[must_use]
    pub fn count(&self) -> String {
        fn of<R>(rows: Option<&Rows<R>>) -> (usize, usize, usize) {
            rows.map_or((0, 0, 0), |rows| (rows.first.len(), rows.matching, rows.all))
        }
        let shown = self.length();
        let (first, matching, all) = match self.view {
            View::Overview => return String::new(),
            View::Findings => (shown, shown, self.picture.findings.as_ref().map_or(0, |findings| findings.len())),
            View::Connections => of(self.picture.connections.as_ref()),
            View::Destinations => of(self.picture.destinations.as_ref()),
            View::Listeners => of(self.picture.listeners.as_ref()),
            View::Log => (shown, shown, self.log.len()),
        };
        let first = if first < matching { format!("first {first} of ") } else { String::new() };
        if matching < all { format!("{first}{matching} of {all}") } else { format!("{first}{all}") }
    }

    /// The findings that pass the filter.
    #[must_use]
    pub fn findings(&self) -> Vec<&Finding> {
        let words = words(&self.choices[View::Findings as usize].filter);
        let has = |finding: &&Finding| {
            let text = format!("{} {} {}", finding.severity.name(), finding.kind.name(), finding.title).to_lowercase();
            words.iter().all(|word| text.contains(word))
        };
        self.picture.findings.iter().flat_map(|findings| findings.iter()).filter(has).collect()
    }

    /// The columns of the open view's table.
    #[must_use]
    pub fn columns(&self) -> &'static [Column] {
        match self.view {
            View::Overview | View::Findings => &[],
            View::Connections => ConnectionRow::COLUMNS,
            View::Destinations => DestinationRow::COLUMNS,
            View::Listeners => ListenerRow::COLUMNS,
            View::Log => LogRecord::COLUMNS,
        }
    }

    /// Takes a new picture.
    pub fn take(&mut self, picture: Picture) {
        if self.frozen {
            self.set_aside(picture);
        } else {
            self.show(picture);
        }
    }

    /// The transitions of all pictures that wait are kept, of everything else the latest.
    fn set_aside(&mut self, mut picture: Picture) {
        if let Some(before) = self.waiting.take() {
            let newer = std::mem::replace(&mut picture.log, before.log);
            picture.log.extend(newer);
            let excess = picture.log.len().saturating_sub(LOG_KEPT);
            picture.log.drain(..excess);
            picture.log_left_out += before.log_left_out + excess as u64;
        }
        self.waiting = Some(picture);
    }

    fn show(&mut self, mut picture: Picture) {
        if picture.now_ns < self.picture.now_ns {
            // A replay went back, and begins anew.
            self.log.clear();
            self.log_left_out = 0;
        }
        let selected = self.selected();
        let gone = (self.log.len() + picture.log.len()).saturating_sub(LOG_KEPT);
        self.log.extend(picture.log.drain(..));
        self.log.drain(..gone);
        self.log_left_out += picture.log_left_out;
        // Tables that were not asked for stay: they are there when their view opens again.
        picture.connections = picture.connections.or(self.picture.connections.take());
        picture.destinations = picture.destinations.or(self.picture.destinations.take());
        picture.listeners = picture.listeners.or(self.picture.listeners.take());
        self.picture = picture;
        self.refresh_popup();
        self.refresh_log();
        self.select(selected);
        self.settle();
    }

    fn refresh_popup(&mut self) {
        match &mut self.popup {
            Some(Popup::Finding(shown, is_there)) => {
                let now = self.picture.findings.iter().flat_map(|findings| findings.iter());
                let same = now.clone().find(|finding| identity(finding) == identity(shown));
                *is_there = same.is_some();
                if let Some(same) = same {
                    **shown = same.clone();
                }
            }
            Some(Popup::Connection(shown, is_there)) => {
                let cookie = shown.connection.socket.cookie;
                let known = self.picture.opened.as_ref().filter(|row| row.connection.socket.cookie == cookie);
                *is_there = known.is_some_and(|row| row.connection.ended_ns.is_none());
                if let Some(row) = known {
                    **shown = row.clone();
                }
            }
            _ => {}
        }
    }

    fn refresh_log(&mut self) {
        let words = words(&self.choices[View::Log as usize].filter);
        self.log_shown.clear();
        self.log_shown.extend(self.log.iter().enumerate().filter(|(_, record)| record.has(&words)).map(|(at, _)| at));
        if self.follows {
            self.lists[View::Log as usize].selected = self.log_shown.len().saturating_sub(1);
        }
    }

    /// What tells the selected row from the others.
    #[must_use]
    pub fn selected(&self) -> Option<Identity> {
        self.identity_of(self.list().selected)
    }

    fn identity_of(&self, at: usize) -> Option<Identity> {
        fn of<R: Row>(rows: Option<&Rows<R>>, at: usize) -> Option<Identity> {
            rows?.first.get(at).map(Row::identity)
        }
        match self.view {
            View::Overview | View::Findings => None,
            View::Connections => of(self.picture.connections.as_ref(), at),
            View::Destinations => of(self.picture.destinations.as_ref(), at),
            View::Listeners => of(self.picture.listeners.as_ref(), at),
            View::Log => self.log.get(*self.log_shown.get(at)?).map(Row::identity),
        }
    }

    /// Goes with a row that has moved; the first one stays the first one, whichever it is.
    fn select(&mut self, wanted: Option<Identity>) {
        let List { selected, top } = self.list();
        if wanted.is_none() || (selected == 0 && self.view != View::Log) || (self.view == View::Log && self.follows) {
            return;
        }
        if let Some(at) = (0..self.length()).find(|at| self.identity_of(*at) == wanted) {
            let list = &mut self.lists[self.view as usize];
            *list = List { selected: at, top: (top + at).saturating_sub(selected) };
        }
    }

    /// Keeps selections and scrolling within what there is.
    fn settle(&mut self) {
        let (length, lines) = (self.length(), draw::list_lines(self));
        let list = &mut self.lists[self.view as usize];
        list.selected = list.selected.min(length.saturating_sub(1));
        list.top = list.top.min(list.selected).max((list.selected + 1).saturating_sub(lines));
        list.top = list.top.min(length.saturating_sub(lines));
        let most = draw::popup_lines(self).map_or(0, |(lines, room)| lines.saturating_sub(room));
        self.popup_top = self.popup_top.min(most);
    }

    /// The terminal has another size.
    pub fn resize(&mut self, size: (u16, u16)) {
        self.size = size;
        self.settle();
    }

    /// What a key does.
    pub fn key(&mut self, key: Key) -> Action {
        self.message = None;
        let action = if self.typing {
            self.type_filter(key)
        } else if self.popup.is_some() {
            self.popup_key(key)
        } else {
            self.view_key(key)
        };
        self.settle();
        action
    }

    fn type_filter(&mut self, key: Key) -> Action {
        match key {
            Key::Enter => self.typing = false,
            Key::Escape => {
                self.typing = false;
                self.set_filter(String::new());
            }
            Key::Ctrl('c') => return Action::Quit,
            Key::Ctrl('u') => self.set_filter(String::new()),
            Key::Backspace => {
                let mut filter = self.choice().filter.clone();
                // As less has it: there is no filter left to type.
                self.typing = filter.pop().is_some();
                self.set_filter(filter);
            }
            Key::Char(c) if self.choice().filter.len() < FILTER_LENGTH => {
                self.set_filter(format!("{}{c}", self.choice().filter));
            }
            _ => {}
        }
        Action::Draw
    }

    fn set_filter(&mut self, filter: String) {
        self.choice_mut().filter = filter;
        self.lists[self.view as usize] = List::default();
        if self.view == View::Log {
            self.refresh_log();
        }
    }

    fn popup_key(&mut self, key: Key) -> Action {
        if self.popup == Some(Popup::Export) {
            self.popup = None;
            return match key {
                Key::Char('j') | Key::Enter => Action::Export(Format::Jsonl),
                Key::Char('c') => Action::Export(Format::Csv),
                _ => Action::Draw,
            };
        }
        let page = draw::popup_lines(self).map_or(1, |(_, room)| room.max(1));
        match key {
            Key::Escape | Key::Enter | Key::Backspace | Key::Left | Key::Char('q' | 'h') | Key::Function(10) => {
                self.popup = None;
            }
            Key::Up | Key::Char('k') | Key::WheelUp => self.popup_top = self.popup_top.saturating_sub(1),
            Key::Down | Key::Char('j') | Key::WheelDown => self.popup_top += 1,
            Key::PageUp | Key::Char('b') => self.popup_top = self.popup_top.saturating_sub(page),
            Key::PageDown | Key::Char('f') => self.popup_top += page,
            Key::Home | Key::Char('g') => self.popup_top = 0,
            Key::End | Key::Char('G') => self.popup_top = usize::MAX,
            Key::Tab | Key::BackTab | Key::Char('1'..='6' | '?') | Key::Function(1) => {
                self.popup = None;
                return self.view_key(key);
            }
            other => return self.common_key(other),
        }
        Action::Draw
    }

    fn view_key(&mut self, key: Key) -> Action {
        let (selected, length, lines) = (self.list().selected, self.length(), draw::list_lines(self).max(1));
        match key {
            Key::Char('q') | Key::Function(10) => return Action::Quit,
            Key::Escape => self.escape(),
            Key::Char('?') | Key::Function(1) => self.open(Popup::Help),
            Key::Tab | Key::Right | Key::Char('l') => self.go(1),
            Key::BackTab | Key::Left | Key::Char('h') => self.go(View::ALL.len() - 1),
            Key::Char(digit @ '1'..='6') => self.go_to(View::ALL[digit as usize - '1' as usize]),
            Key::Up | Key::Char('k') => self.move_to(selected.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.move_to(selected + 1),
            Key::WheelUp => self.move_to(selected.saturating_sub(3)),
            Key::WheelDown => self.move_to(selected + 3),
            Key::PageUp | Key::Ctrl('b') => self.move_to(selected.saturating_sub(lines)),
            Key::PageDown | Key::Ctrl('f') => self.move_to(selected + lines),
            Key::Home | Key::Char('g') => self.move_to(0),
            Key::End | Key::Char('G') => self.move_to(length.saturating_sub(1)),
            Key::Char('/') | Key::Function(3 | 4) if self.view != View::Overview => self.typing = true,
            Key::Char('s') | Key::Function(6) => self.sort(1),
            Key::Char('S') => self.sort(self.columns().len().saturating_sub(1)),
            Key::Char('r' | 'I') => self.choice_mut().reverse = !self.choice().reverse,
            Key::Char('e') => self.open(Popup::Export),
            Key::Enter => self.enter(),
            other => return self.common_key(other),
        }
        Action::Draw
    }

    /// Keys that do the same whatever lies over the view.
    fn common_key(&mut self, key: Key) -> Action {
        match key {
            Key::Ctrl('c') => return Action::Quit,
            Key::Ctrl('z') => return Action::Suspend,
            Key::Ctrl('l') => return Action::Redraw,
            Key::Char('m') => {
                self.mouse_free = !self.mouse_free;
                return Action::Mouse(!self.mouse_free);
            }
            Key::Char(' ') if self.about.recording.is_none() => self.freeze(),
            _ => {}
        }
        self.replay_key(key).map_or(Action::Draw, Action::Replay)
    }

    fn replay_key(&mut self, key: Key) -> Option<Replay> {
        const JUMP_NS: u64 = 10_000_000_000;
        let recording = self.about.recording.as_ref()?;
        let now_ns = self.picture.now_ns;
        if recording.is_pipe && matches!(key, Key::Char('<' | '^' | 'N' | 'p')) {
            return self.say("what comes out of a pipe is read once: there is no way back");
        }
        let is_later = |mark: &&Mark| mark.mono_ns > now_ns;
        // Whoever is at a finding wants the one before it.
        let is_earlier = |mark: &&Mark| mark.mono_ns.saturating_add(1_000_000_000) < now_ns;
        Some(match key {
            Key::Char(' ') => Replay::Pause,
            Key::Char('+' | '=' | ']') => Replay::Faster,
            Key::Char('-' | '[') => Replay::Slower,
            Key::Char('.') => Replay::Step,
            Key::Char('>') => Replay::Seek(now_ns.saturating_add(JUMP_NS)),
            Key::Char('<') => Replay::Seek(now_ns.saturating_sub(JUMP_NS).max(recording.began_ns)),
            Key::Char('^') => Replay::Seek(recording.began_ns),
            Key::Char('$') => Replay::End,
            Key::Char('n') => match recording.marks.iter().find(is_later) {
                Some(mark) => Replay::Seek(mark.mono_ns),
                None => return self.say("no finding comes up after this"),
            },
            Key::Char('N' | 'p') => match recording.marks.iter().rev().find(is_earlier) {
                Some(mark) => Replay::Seek(mark.mono_ns),
                None => return self.say("no finding comes up before this"),
            },
            _ => return None,
        })
    }

    fn say<T>(&mut self, message: &str) -> Option<T> {
        self.message = Some(message.to_owned());
        None
    }

    fn freeze(&mut self) {
        self.frozen = !self.frozen;
        if !self.frozen
            && let Some(picture) = self.waiting.take()
        {
            self.show(picture);
        }
    }

    /// Takes back one thing at a time: the filter, then standing still in the log.
    fn escape(&mut self) {
        if !self.choice().filter.is_empty() {
            self.set_filter(String::new());
        } else if self.view == View::Log && !self.follows {
            self.move_to(usize::MAX);
        }
    }

    fn open(&mut self, popup: Popup) {
        self.popup = Some(popup);
        self.popup_top = 0;
    }

    fn go(&mut self, by: usize) {
        self.go_to(View::ALL[(self.view as usize + by) % View::ALL.len()]);
    }

    fn go_to(&mut self, view: View) {
        self.view = view;
    }

    fn move_to(&mut self, at: usize) {
        let last = self.length().saturating_sub(1);
        self.lists[self.view as usize].selected = at.min(last);
        if self.view == View::Log {
            self.follows = at >= last;
        }
    }

    fn sort(&mut self, by: usize) {
        if matches!(self.view, View::Connections | View::Destinations | View::Listeners) {
            let columns = self.columns().len();
            let choice = self.choice_mut();
            (choice.sort, choice.reverse) = ((choice.sort + by) % columns, false);
        }
    }

    fn enter(&mut self) {
        let at = self.list().selected;
        match self.view {
            View::Findings => {
                if let Some(finding) = self.findings().get(at).copied().cloned() {
                    self.open(Popup::Finding(Box::new(finding), true));
                }
            }
            View::Connections => {
                let rows = self.picture.connections.as_ref();
                if let Some(row) = rows.and_then(|rows| rows.first.get(at)).cloned() {
                    self.open(Popup::Connection(Box::new(row), true));
                }
            }
            View::Overview => self.go_to(View::Findings),
            // From where to whom, or who listens: its connections.
            View::Destinations | View::Listeners | View::Log => {
                if let Some(filter) = self.words_of_selected() {
                    self.go_to(View::Connections);
                    self.set_filter(filter);
                }
            }
        }
    }

    fn words_of_selected(&self) -> Option<String> {
        let at = self.list().selected;
        match self.view {
            View::Destinations => {
                let row = self.picture.destinations.as_ref()?.first.get(at)?;
                Some(format!("{} {}", row.destination.local, row.destination.remote))
            }
            View::Listeners => {
                let local = self.picture.listeners.as_ref()?.first.get(at)?.local;
                let port = format!(":{}", local.port);
                Some(if local.address.is_unspecified() { port } else { local.to_string() })
            }
            View::Log => {
                let record = self.log.get(*self.log_shown.get(at)?)?;
                Some(format!("{} {}", record.local_addr, record.remote_addr))
            }
            _ => None,
        }
    }
}

/// What stays of a finding from one sample to the next.
fn identity(finding: &Finding) -> (Kind, Option<Cause>, Option<u32>, u32, String) {
    let ends = format!("{:?} {:?}", finding.local, finding.remote);
    (finding.kind, finding.cause, finding.process.map(|process| process.pid), finding.netns, ends)
}

/// What stays of a finding from one sample to the next.
#[must_use]
pub fn finding_key(finding: &Finding) -> String {
    let (kind, cause, pid, netns, ends) = identity(finding);
    format!("{} {} {pid:?} {netns} {ends}", kind.name(), cause.map_or("", Cause::name))
}
