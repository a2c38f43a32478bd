//! What somebody has made of the screen: the view that is open, what is selected, filtered, sorted. It takes pictures in;
//! what a key does to it is `keys`' business.

use std::collections::VecDeque;

use super::{
    draw,
    look::Abilities,
    picture::{About, Ask, Picture, Rows, View},
    rows::{Column, ConnectionRow, DestinationRow, Identity, ListenerRow, Row, words},
};
use crate::{
    core::finding::{Cause, Finding, Kind},
    output::records::LogRecord,
};

/// Transitions that the log keeps.
const LOG_KEPT: usize = 5_000;

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
    pub(super) waiting: Option<Picture>,
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
    pub(super) lists: [List; View::ALL.len()],
    pub(super) choices: [Choice; View::ALL.len()],
    /// The log stays at its end.
    pub(super) follows: bool,
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

    pub(super) fn choice_mut(&mut self) -> &mut Choice {
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

    pub(super) fn show(&mut self, mut picture: Picture) {
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

    pub(super) fn refresh_log(&mut self) {
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
    pub(super) fn settle(&mut self) {
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
