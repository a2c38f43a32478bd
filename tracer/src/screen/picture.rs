//! What is shown of a trace at a moment, and what the screen asks for: rows only for the view that is open, and only as
//! many as somebody can look at.

use std::sync::Arc;

use super::{
    history::{ByState, Second},
    rows::{ConnectionRow, DestinationRow, ListenerRow},
};
use crate::{
    core::finding::{Finding, Severity},
    output::{records::LogRecord, report::LossRecord},
    source::clock::WallClock,
};

/// Rows of a table at most.
pub const ROWS: usize = 1_000;

/// Transitions that one picture brings at most.
pub const LOG_ROWS: usize = 2_000;

/// The views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum View {
    /// Counts, rates, loss.
    #[default]
    Overview,
    /// What is wrong.
    Findings,
    /// Open connections.
    Connections,
    /// What takes local ports.
    Destinations,
    /// Who listens.
    Listeners,
    /// Transitions as they come.
    Log,
}

impl View {
    /// All of them, in the order of their keys.
    pub const ALL: [Self; 6] =
        [Self::Overview, Self::Findings, Self::Connections, Self::Destinations, Self::Listeners, Self::Log];

    /// As in its tab.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Findings => "Findings",
            Self::Connections => "Connections",
            Self::Destinations => "Destinations",
            Self::Listeners => "Listeners",
            Self::Log => "Log",
        }
    }
}

/// What a trace is about and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Name of the host.
    pub host: String,
    /// Release of its kernel.
    pub kernel: String,
    /// What is filtered, as options of the command line.
    pub filters: String,
    /// The recording, where it is one.
    pub recording: Option<Recording>,
}

/// What is known of a recording before it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// Its name.
    pub name: String,
    /// When it begins, CLOCK_MONOTONIC ns.
    pub began_ns: u64,
    /// When it ends, where that is known.
    pub ended_ns: Option<u64>,
    /// When findings came up, in order.
    pub marks: Vec<Mark>,
    /// It is read once only: a pipe.
    pub is_pipe: bool,
}

/// A finding came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When, CLOCK_MONOTONIC ns.
    pub mono_ns: u64,
    /// How bad.
    pub severity: Severity,
    /// What it says.
    pub title: String,
}

/// What the screen wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// The view that is open.
    pub view: View,
    /// Words that its rows must have.
    pub filter: String,
    /// The column that they are sorted by.
    pub sort: usize,
    /// Least first.
    pub reverse: bool,
    /// Cookie of the connection whose life is shown.
    pub opened: Option<u64>,
}

/// Some rows of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows<R> {
    /// The first ones.
    pub first: Vec<R>,
    /// How many pass the filter of the view.
    pub matching: usize,
    /// How many there are.
    pub all: usize,
}

/// Where a replay is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// How many times faster than it happened; `None` for as fast as can be.
    pub speed: Option<f64>,
    /// Nothing moves.
    pub paused: bool,
    /// On the way to a moment.
    pub seeking: bool,
    /// There is nothing more.
    pub at_end: bool,
}

/// A trace at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The moment, CLOCK_MONOTONIC ns.
    pub now_ns: u64,
    /// When the trace began, likewise.
    pub began_ns: u64,
    /// Turns these into wall time.
    pub clock: WallClock,
    /// What became of the events.
    pub loss: LossRecord,
    /// Connections that had to be let go (`--max-connections`).
    pub let_go: u64,
    /// Sockets in each state, mini-sockets included.
    pub states: ByState,
    /// Listeners.
    pub listening: usize,
    /// The last minutes.
    pub history: Vec<Second>,
    /// The findings of the last sample; `None` before the first.
    pub findings: Option<Arc<[Finding]>>,
    /// When that was taken, CLOCK_MONOTONIC ns.
    pub sampled_ns: u64,
    /// Connections, where asked for; and so on.
    pub connections: Option<Rows<ConnectionRow>>,
    /// Destinations.
    pub destinations: Option<Rows<DestinationRow>>,
    /// Listeners.
    pub listeners: Option<Rows<ListenerRow>>,
    /// Transitions since the picture before.
    pub log: Vec<LogRecord>,
    /// Transitions of that time that are not among them.
    pub log_left_out: u64,
    /// The connection whose life is shown, if it is still known.
    pub opened: Option<ConnectionRow>,
    /// Where a replay is.
    pub replay: Option<Progress>,
    /// What was to be told, the latest last.
    pub notes: Vec<String>,
}

impl Default for Picture {
    fn default() -> Self {
        Self {
            now_ns: 0,
            began_ns: 0,
            clock: WallClock::from_offset_ns(0),
            loss: LossRecord::default(),
            let_go: 0,
            states: ByState::default(),
            listening: 0,
            history: Vec::new(),
            findings: None,
            sampled_ns: 0,
            connections: None,
            destinations: None,
            listeners: None,
            log: Vec::new(),
            log_left_out: 0,
            opened: None,
            replay: None,
            notes: Vec::new(),
        }
    }
}
