//! What a key does: a function of the state and the key, which changes the one and says what else is to be done.

use super::{
    draw,
    picture::{Mark, View},
    state::{List, Popup, State},
};
use crate::output::Format;

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

impl State {
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
