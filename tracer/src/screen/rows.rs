//! The rows of the tables: what each column says, how it sorts, and the first rows in an order out of however many there
//! are, in bounded memory.

use std::{cmp::Ordering, fmt::Display, sync::Arc};

use super::picture::{ROWS, Rows};
use crate::{
    core::{
        connection::{Certainty, Connection, Process, Span},
        endpoint::{Address, Endpoint},
        finding::ports::{Destination, Use},
        state::State,
    },
    output::{
        bytes, duration,
        records::{LogRecord, time_of_day},
        report::at_least,
    },
};

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its head.
    pub head: &'static str,
    /// Cells; 0 for what is left, of which there is one in a table.
    pub cells: u16,
    /// Numbers stand to the right.
    pub right: bool,
    /// Screens from this width on show it …
    pub from: u16,
    /// … and narrower than this.
    pub below: u16,
}

impl Column {
    const fn new(head: &'static str, cells: u16) -> Self {
        Self { head, cells, right: false, from: 0, below: u16::MAX }
    }

    const fn number(head: &'static str, cells: u16) -> Self {
        Self { right: true, ..Self::new(head, cells) }
    }

    const fn from(self, from: u16) -> Self {
        Self { from, ..self }
    }
}

/// A row of a table.
pub trait Row {
    /// Its columns; the first one is sorted by first.
    const COLUMNS: &'static [Column];

    /// What it says in one of them.
    fn cell(&self, column: usize) -> String;

    /// Whether it comes before another in the natural order of a column, the greatest first.
    fn order(&self, other: &Self, column: usize) -> Ordering;

    /// What tells it from the others.
    fn identity(&self) -> Identity;

    /// Whether it has all these words, in lower case, anywhere in its cells.
    fn has(&self, words: &[String]) -> bool {
        if words.is_empty() {
            return true;
        }
        let text = (0..Self::COLUMNS.len()).map(|column| self.cell(column)).collect::<Vec<_>>().join(" ");
        let text = text.to_lowercase();
        words.iter().all(|word| text.contains(word))
    }
}

/// What tells a row from the others of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A connection, by its cookie and local port: without a cookie the port must do.
    Connection(u64, u16),
    /// A destination.
    Destination(Destination),
    /// A listener: namespace and end.
    Listener(u32, Endpoint),
    /// A transition.
    Transition(u64, Option<u64>),
}

/// The words of a filter, in lower case.
#[must_use]
pub fn words(filter: &str) -> Vec<String> {
    filter.split_whitespace().map(str::to_lowercase).collect()
}

/// The first rows in some order.
pub struct First<R> {
    rows: Vec<R>,
    words: Vec<String>,
    sort: usize,
    reverse: bool,
    matching: usize,
    all: usize,
}

impl<R: Row> First<R> {
    /// Of rows that pass a filter, sorted by a column.
    #[must_use]
    pub fn new(filter: &str, sort: usize, reverse: bool) -> Self {
        Self { rows: Vec::new(), words: words(filter), sort, reverse, matching: 0, all: 0 }
    }

    /// Takes a row in.
    pub fn push(&mut self, row: R) {
        self.all += 1;
        if !row.has(&self.words) {
            return;
        }
        self.matching += 1;
        self.rows.push(row);
        if self.rows.len() >= 2 * ROWS {
            let (sort, reverse) = (self.sort, self.reverse);
            self.rows.select_nth_unstable_by(ROWS, |one, other| ordered(one, other, sort, reverse));
            self.rows.truncate(ROWS);
        }
    }

    /// The rows.
    #[must_use]
    pub fn finish(mut self) -> Rows<R> {
        self.rows.sort_by(|one, other| ordered(one, other, self.sort, self.reverse));
        self.rows.truncate(ROWS);
        Rows { first: self.rows, matching: self.matching, all: self.all }
    }
}

fn ordered<R: Row>(one: &R, other: &R, sort: usize, reverse: bool) -> Ordering {
    let order = one.order(other, sort);
    if reverse { order.reverse() } else { order }
}

/// The greatest first.
fn falling<T: Ord>(one: T, other: T) -> Ordering {
    other.cmp(&one)
}

/// The least first, and what is not known last.
fn known_first<T: Ord>(one: Option<T>, other: Option<T>) -> Ordering {
    one.is_none().cmp(&other.is_none()).then_with(|| one.cmp(&other))
}

/// An open connection, or one that has ended while somebody looked at it.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRow {
    /// The connection.
    pub connection: Connection,
    /// Path of its cgroup.
    pub cgroup: Option<Arc<str>>,
    /// The container, pod or unit that this is.
    pub workload: Option<Arc<str>>,
}

impl ConnectionRow {
    /// What it was in last.
    #[must_use]
    pub fn last(&self) -> Span {
        let unknown = Span { state: State::CLOSE, ns: 0, certainty: Certainty::Unknown };
        self.connection.spans.last().copied().unwrap_or(unknown)
    }

    /// Its state now.
    #[must_use]
    pub fn state(&self) -> State {
        if self.connection.ended_ns.is_some() { State::CLOSE } else { self.last().state }
    }

    /// How well its age is known.
    #[must_use]
    pub fn age_certainty(&self) -> Certainty {
        if self.connection.opened_ns.is_some() { Certainty::Exact } else { Certainty::AtLeast }
    }

    fn bytes(&self) -> Option<u64> {
        let Connection { bytes_in, bytes_out, .. } = self.connection;
        Some(bytes_in?.saturating_add(bytes_out?))
    }

    fn since_is_known(&self) -> bool {
        // Of the state that it is in the end is open: at least means that its beginning is known.
        let span = self.last();
        span.certainty != Certainty::Unknown && (self.connection.spans.len() > 1 || self.connection.opened_ns.is_some())
    }
}

/// `comm[pid]`.
#[must_use]
pub fn process_text(process: Option<&Process>) -> String {
    process.map_or_else(dash, |process| format!("{}[{}]", process.comm, process.pid))
}

fn dash() -> String {
    "-".to_owned()
}

fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(dash, |value| value.to_string())
}

/// A time and the mark of how well it is known.
#[must_use]
pub fn time_text(ns: u64, certainty: Certainty) -> String {
    format!("{}{}", at_least(certainty), duration(ns))
}

impl Row for ConnectionRow {
    const COLUMNS: &'static [Column] = &[
        Column::number("IN STATE", 9),
        Column::new("STATE", 11),
        Column::number("AGE", 9),
        Column::new("PROCESS", 22),
        Column::new("CONTAINER", 26).from(130),
        Column::new("LOCAL", 22).from(105),
        Column::new("PEER", 0),
        Column::number("BYTES", 6),
    ];

    fn cell(&self, column: usize) -> String {
        let connection = &self.connection;
        match column {
            0 => {
                // While it lasts every state has lasted at least so long; what matters is whether its beginning is known.
                let known = if self.since_is_known() { Certainty::Exact } else { Certainty::AtLeast };
                time_text(self.last().ns, known)
            }
            1 => self.state().to_string(),
            2 => time_text(connection.duration_ns(), self.age_certainty()),
            3 => process_text(connection.process.as_ref()),
            4 => or_dash(self.workload.as_deref()),
            5 => connection.tuple.local.to_string(),
            6 => connection.tuple.remote.to_string(),
            _ => or_dash(self.bytes().map(bytes)),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        let (one, two) = (&self.connection, &other.connection);
        let order = match column {
            0 => falling(self.last().ns, other.last().ns),
            1 => self.state().cmp(&other.state()).then_with(|| falling(self.last().ns, other.last().ns)),
            2 => falling(one.duration_ns(), two.duration_ns()),
            3 => {
                fn name(process: &Option<Process>) -> Option<(&[u8], u32)> {
                    process.as_ref().map(|process| (process.comm.as_bytes(), process.pid))
                }
                known_first(name(&one.process), name(&two.process))
            }
            4 => known_first(self.workload.as_deref(), other.workload.as_deref()),
            5 => one.tuple.local.cmp(&two.tuple.local),
            6 => one.tuple.remote.cmp(&two.tuple.remote),
            _ => falling(self.bytes(), other.bytes()),
        };
        order.then_with(|| one.socket.cookie.cmp(&two.socket.cookie))
    }

    fn identity(&self) -> Identity {
        Identity::Connection(self.connection.socket.cookie, self.connection.tuple.local.port)
    }
}

/// A destination, and what it takes of the local ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationRow {
    /// From where to where.
    pub destination: Destination,
    /// What takes ports.
    pub usage: Use,
    /// How many there are; `None` before the first sample.
    pub available: Option<u64>,
}

impl DestinationRow {
    fn share(&self) -> Option<f64> {
        Some(self.usage.ports() as f64 / self.available?.max(1) as f64)
    }

    fn left(&self) -> Option<u64> {
        Some(self.available?.saturating_sub(self.usage.ports()))
    }

    /// Share of TIME_WAIT in what is there.
    fn time_wait_share(&self) -> f64 {
        let Use { time_wait, fin_wait2, open, .. } = self.usage;
        time_wait as f64 / (time_wait + fin_wait2 + open).max(1) as f64
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

impl Row for DestinationRow {
    const COLUMNS: &'static [Column] = &[
        Column::number("USED", 6),
        Column::new("DESTINATION", 0),
        Column::new("FROM", 16).from(90),
        Column::number("OPEN", 6),
        Column::number("TIME_WAIT", 9),
        Column::number("TW%", 5),
        Column::number("FIN_WAIT2", 9),
        Column::number("LEFT", 7),
        Column::number("PORTS", 7).from(100),
        Column::number("NETNS", 10).from(120),
    ];

    fn cell(&self, column: usize) -> String {
        let Self { destination, usage, available } = self;
        match column {
            0 => or_dash(self.share().map(percent)),
            1 => destination.remote.to_string(),
            2 => destination.local.to_string(),
            3 => usage.open.to_string(),
            4 => usage.time_wait.to_string(),
            5 => percent(self.time_wait_share()),
            6 => usage.fin_wait2.to_string(),
            7 => or_dash(self.left()),
            8 => or_dash(*available),
            _ => destination.netns.to_string(),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        let (one, two) = (&self.destination, &other.destination);
        let order = match column {
            0 => falling(self.usage.ports(), other.usage.ports()),
            1 => one.remote.cmp(&two.remote),
            2 => one.local.cmp(&two.local),
            3 => falling(self.usage.open, other.usage.open),
            4 => falling(self.usage.time_wait, other.usage.time_wait),
            5 => other.time_wait_share().total_cmp(&self.time_wait_share()),
            6 => falling(self.usage.fin_wait2, other.usage.fin_wait2),
            7 => self.left().cmp(&other.left()),
            8 => falling(self.available, other.available),
            _ => one.netns.cmp(&two.netns),
        };
        order.then_with(|| one.cmp(two))
    }

    fn identity(&self) -> Identity {
        Identity::Destination(self.destination)
    }
}

/// A listener, and how it keeps up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ListenerRow {
    /// Network namespace.
    pub netns: u32,
    /// Where it listens.
    pub local: Endpoint,
    /// Whose it is.
    pub process: Option<Process>,
    /// Connections that come in, a second.
    pub per_second: f64,
    /// Those that wait for accept(), and how many may; `None` before the first sample.
    pub queue: Option<(u32, u32)>,
    /// Open connections on its port.
    pub open: u64,
    /// Those of them that the peer has closed and the program has not.
    pub close_wait: u64,
}

impl Row for ListenerRow {
    const COLUMNS: &'static [Column] = &[
        Column::number("CLOSE_WAIT", 10),
        Column::new("LISTENER", 0),
        Column::new("PROCESS", 22),
        Column::number("OPEN", 6),
        Column::number("ACCEPT/s", 8),
        Column::number("QUEUE", 9),
        Column::number("NETNS", 10).from(100),
    ];

    fn cell(&self, column: usize) -> String {
        match column {
            0 => self.close_wait.to_string(),
            1 => {
                let any = if self.local.address.is_v4() { "*" } else { "[::]" };
                let unspecified = self.local.address.is_unspecified();
                if unspecified { format!("{any}:{}", self.local.port) } else { self.local.to_string() }
            }
            2 => process_text(self.process.as_ref()),
            3 => self.open.to_string(),
            4 => super::text::short(self.per_second),
            5 => or_dash(self.queue.map(|(queued, backlog)| format!("{queued}/{backlog}"))),
            _ => self.netns.to_string(),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        let place = |row: &Self| (row.local.port, row.local.address, row.netns);
        let order = match column {
            0 => falling(self.close_wait, other.close_wait),
            1 => Ordering::Equal,
            2 => process_text(self.process.as_ref()).cmp(&process_text(other.process.as_ref())),
            3 => falling(self.open, other.open),
            4 => other.per_second.total_cmp(&self.per_second),
            5 => falling(self.queue, other.queue),
            _ => self.netns.cmp(&other.netns),
        };
        order.then_with(|| place(self).cmp(&place(other)))
    }

    fn identity(&self) -> Identity {
        Identity::Listener(self.netns, self.local)
    }
}

impl Row for LogRecord {
    const COLUMNS: &'static [Column] = &[
        Column::new("TIME (UTC)", 12),
        Column::new("PROCESS", 0),
        Column::new("LOCAL", 22).from(105),
        Column::new("REMOTE", 21),
        Column::new("OLD STATE", 11),
        Column::new("→ NEW STATE", 13),
        Column::number("IN STATE", 8),
        Column::new("NOTE", 24).from(120),
    ];

    fn cell(&self, column: usize) -> String {
        let end = |address: Address, port| Endpoint { address, port }.to_string();
        match column {
            0 => time_of_day(self.time),
            1 => self.pid.zip(self.comm).map_or_else(dash, |(pid, comm)| format!("{comm}[{pid}]")),
            2 => end(self.local_addr, self.local_port),
            3 => end(self.remote_addr, self.remote_port),
            4 => self.old_state.to_string(),
            5 => format!("→ {}", self.new_state),
            6 => or_dash(self.in_state_ns.map(duration)),
            _ => self.note(),
        }
    }

    fn order(&self, other: &Self, _column: usize) -> Ordering {
        self.mono_ns.cmp(&other.mono_ns)
    }

    fn identity(&self) -> Identity {
        Identity::Transition(self.mono_ns, self.cookie)
    }
}
