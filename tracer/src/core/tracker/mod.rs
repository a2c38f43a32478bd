//! Turns transitions into connections. Pure: it knows no time but the events' own and does no I/O.
//!
//! A connection is found by its socket's cookie (or, where the kernel gives none, by its address) and ends with its
//! CLOSE; the same socket may then begin another (connect, disconnect, connect again). When the state that a transition
//! leaves is not the one that is known, transitions were missed: they are inferred, marked and counted.
//!
//! - `entry`: one connection, kept small; `entries`: all of them
//! - `close`: what a CLOSE means
//! - `listeners`: whose listener a passive connection came through
//! - `merge`: what a sock_diag snapshot adds and corrects
//! - `repair`: what must have happened unseen
//! - `eviction`: who has to go when there is no room

mod close;
mod entries;
mod entry;
mod eviction;
mod listeners;
mod merge;
#[cfg(test)]
mod properties;
mod repair;
#[cfg(test)]
mod tests;

pub use listeners::GoneListener;
pub use merge::MergeKind;

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

use self::{
    close::Close,
    entries::{Entries, Place},
    entry::Entry,
    listeners::Listeners,
    merge::Merging,
    repair::{missed, repair},
};
use super::{
    connection::{AfterClose, Connection, Opening, Process, ProcessSource},
    endpoint::{Endpoint, Tuple},
    mini_sockets::{MiniSockets, TIME_WAIT_NS},
    state::State,
    transition::{Details, Event, Reset, ResetDirection, SocketId, SocketKey, Task, Transition},
};

/// How long a closed connection waits for the RST that may follow its CLOSE, event time. The kernel sends it within
/// microseconds, but a process may be preempted in between.
const RESET_GRACE_NS: u64 = 50_000_000;

/// How long before a CLOSE a sent RST still explains it.
const RESET_BEFORE_CLOSE_NS: u64 = 10_000_000;

/// Bounds and settings of a [`Tracker`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that are kept at most; beyond it one is let go for each new one.
    pub max_connections: usize,
    /// How long the kernel keeps an orphan in FIN_WAIT2 (`net.ipv4.tcp_fin_timeout`), ns.
    pub fin_timeout_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: 1_000_000, fin_timeout_ns: 60_000_000_000 }
    }
}

/// What became known besides the event itself. Reused from event to event.
#[derive(Debug, Default)]
pub struct Effects {
    /// Transitions that were missed, in order; they belong before the event that revealed them.
    pub repaired: Vec<Transition>,
    /// Connections that are over.
    pub ended: Vec<Connection>,
}

/// What the tracker adds to a transition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Annotation {
    /// Time in the state that was left, ns; `None` when its beginning was not seen.
    pub in_state_ns: Option<u64>,
    /// Whose connection it is, as far as is known by now.
    pub process: Option<Process>,
    /// The connection's cgroup id, 0 when not known.
    pub cgroup: u64,
    /// The connection's ends, as far as they are known by now.
    pub tuple: Option<Tuple>,
    /// It is the end of a connect() that found no local port: what the socket says of a port and an error is that of
    /// its connection before.
    pub no_port: bool,
}

/// What the tracker counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transitions that were inferred.
    pub repaired: u64,
    /// Connections that were let go for want of room.
    pub evicted: u64,
}

/// All connections that are known.
#[derive(Debug)]
pub struct Tracker {
    limits: Limits,
    entries: Entries,
    listeners: Listeners,
    minis: MiniSockets,
    /// Closed connections and when their grace ends.
    closing: VecDeque<(u64, SocketKey)>,
    /// The snapshot that is being taken.
    merging: Option<Merging>,
    /// What dumps found, by its ends, for events that carry no cookie; made when the first such event needs it.
    found_by_ends: Option<FxHashMap<(Endpoint, Endpoint), SocketKey>>,
    snapshots: u32,
    /// Namespaces of which every socket is known, since a dump that was complete for them.
    whole_netns: FxHashSet<u32>,
    /// Where to look first for one to let go.
    eviction_hand: Place,
    counts: Counts,
    now_ns: u64,
}

impl Tracker {
    /// An empty tracker.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limits = Limits { max_connections: limits.max_connections.min(Entries::MOST), ..limits };
        Self {
            limits,
            entries: Entries::default(),
            listeners: Listeners::default(),
            minis: MiniSockets::new(limits.max_connections),
            closing: VecDeque::new(),
            merging: None,
            found_by_ends: None,
            snapshots: 0,
            whole_netns: FxHashSet::default(),
            eviction_hand: Place::default(),
            counts: Counts::default(),
            now_ns: 0,
        }
    }

    /// Takes an event in.
    pub fn event(&mut self, event: &Event, effects: &mut Effects) -> Annotation {
        match event {
            Event::Transition(transition) => self.transition(transition, effects),
            Event::Reset(reset) => {
                self.reset(reset);
                Annotation::default()
            }
        }
    }

    /// Takes a transition in.
    pub fn transition(&mut self, transition: &Transition, effects: &mut Effects) -> Annotation {
        self.advance(transition.mono_ns, effects);
        let key = self.key_of(transition);
        match (transition.old, transition.new) {
            (State::CLOSE, State::LISTEN) => {
                self.end_connection(key, transition.mono_ns, effects);
                self.listen(key, transition)
            }
            (State::LISTEN, State::CLOSE) => {
                self.end_connection(key, transition.mono_ns, effects);
                self.unlisten(key, transition)
            }
            (State::CLOSE, State::SYN_SENT) => self.open(key, transition, Opening::Active, effects),
            (State::LISTEN, State::SYN_RECV) => self.open(key, transition, Opening::Passive, effects),
            // SOCK_DESTROY of something that is closed already.
            (State::CLOSE, State::CLOSE) => {
                if let Some(place) = self.entries.find(key) {
                    self.close_unseen(place, key, transition.mono_ns, effects);
                }
                Annotation { tuple: Some(transition.tuple), ..Annotation::default() }
            }
            _ => self.step(key, transition, effects),
        }
    }

    /// Takes a RST in.
    pub fn reset(&mut self, reset: &Reset) {
        if reset.state == State::TIME_WAIT {
            // Only one that we send takes a mini-socket away for certain (tcp_timewait_state_process(): TCP_TW_RST).
            if reset.direction == ResetDirection::Sent {
                self.minis.remove(&reset.tuple);
            }
            return;
        }
        let Some(entry) = self.lookup(reset.socket.key(), reset.socket.address_key()) else {
            return;
        };
        match reset.direction {
            ResetDirection::Received => entry.reset_received |= entry.close.is_none(),
            ResetDirection::Sent => {
                entry.reset_sent_ns = reset.mono_ns;
                // The grace is a matter of the events' time, not of when the record happens to be handed out.
                if let Some(close) = &mut entry.close
                    && reset.mono_ns.saturating_sub(entry.since_ns) <= RESET_GRACE_NS
                {
                    close.reset_sent = true;
                    let (tuple, after) = (entry.tuple, entry.close.map(|close| close.after(entry)));
                    if after == Some(AfterClose::None) {
                        self.minis.remove(&tuple);
                    }
                }
            }
        }
    }

    /// Lets a connection go that turned out not to be wanted; returns whether it was known.
    pub fn forget_socket(&mut self, socket: SocketId) -> bool {
        self.entries.remove(socket.key()).or_else(|| self.entries.remove(socket.address_key())).is_some()
    }

    /// Tells that it is `now_ns`: closed connections whose grace is over are handed out, ended mini-sockets cleared.
    pub fn advance(&mut self, now_ns: u64, effects: &mut Effects) {
        self.now_ns = self.now_ns.max(now_ns);
        while let Some((until, key)) = self.closing.front().copied() {
            if until > self.now_ns {
                break;
            }
            self.closing.pop_front();
            self.release_closed(key, until, effects);
        }
        self.minis.advance(self.now_ns);
    }

    /// Hands out every closed connection, without waiting for its grace.
    pub fn flush(&mut self, effects: &mut Effects) {
        while let Some((until, key)) = self.closing.pop_front() {
            self.release_closed(key, until, effects);
        }
    }

    /// The connections that are open, as of `now_ns`, in no particular order.
    pub fn open_connections(&self, now_ns: u64) -> impl Iterator<Item = Connection> + '_ {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.close.is_none())
            .map(move |(_, entry)| entry.to_connection(now_ns))
    }

    /// The open connections that are in one state.
    pub fn open_in(&self, state: State, now_ns: u64) -> impl Iterator<Item = Connection> + '_ {
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.close.is_none() && entry.state == state)
            .map(move |(_, entry)| entry.to_connection(now_ns))
    }

    /// The ends of the connections that are open.
    pub fn open_tuples(&self) -> impl Iterator<Item = Tuple> + '_ {
        self.entries.iter().filter(|(_, entry)| entry.close.is_none()).map(|(_, entry)| entry.tuple)
    }

    /// Its bounds and settings.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How many connections are in the tracker: open, or closed a moment ago.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many listeners are known.
    #[must_use]
    pub fn listener_count(&self) -> usize {
        self.listeners.len()
    }

    /// The listeners that are known: namespace, where they listen, and whose they are.
    pub fn listeners(&self) -> impl Iterator<Item = (u32, Endpoint, Option<Process>)> + '_ {
        self.listeners.iter()
    }

    /// The listeners that have closed, the latest last.
    pub fn gone_listeners(&self) -> impl Iterator<Item = &GoneListener> {
        self.listeners.gone()
    }

    /// Whether anyone listens on a port, at whatever address.
    #[must_use]
    pub fn listens_on(&self, netns: u32, port: u16) -> bool {
        self.listeners.is_on(netns, port)
    }

    /// The open connection of a socket, as of `now_ns`.
    #[must_use]
    pub fn find(&self, cookie: u64, now_ns: u64) -> Option<Connection> {
        let entry = self.entry_of(cookie)?;
        entry.close.is_none().then(|| entry.to_connection(now_ns))
    }

    /// When the connection of a socket opened, CLOCK_MONOTONIC ns; `None` when that was not seen.
    #[must_use]
    pub fn opened_ns(&self, cookie: u64) -> Option<u64> {
        self.entry_of(cookie)?.opened_ns()
    }

    fn entry_of(&self, cookie: u64) -> Option<&Entry> {
        self.entries.of(SocketId::from_cookie(cookie).key())
    }

    /// The mini-sockets that should exist.
    #[must_use]
    pub fn mini_sockets(&self) -> &MiniSockets {
        &self.minis
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The key that this socket is kept under. One that was known by its address and has a cookie by now (someone asked
    /// for it) is moved over.
    fn key_of(&mut self, transition: &Transition) -> SocketKey {
        let key = transition.socket.key();
        if !key.is_address() && self.entries.has_addresses() {
            let address_key = transition.socket.address_key();
            if let Some(entry) = self.entries.rekey(address_key, key) {
                entry.socket.cookie = transition.socket.cookie;
            }
        }
        key
    }

    fn lookup(&mut self, key: SocketKey, address: SocketKey) -> Option<&mut Entry> {
        let place = self.entries.find(key).or_else(|| self.entries.find(address))?;
        self.entries.get_mut(place)
    }

    fn listen(&mut self, key: SocketKey, transition: &Transition) -> Annotation {
        let process = transition.owner().map(|task| process_of(task, ProcessSource::Opener));
        self.listeners.add(key, &transition.tuple, process, transition.mono_ns);
        annotate_listener(transition, process)
    }

    fn unlisten(&mut self, key: SocketKey, transition: &Transition) -> Annotation {
        let closer = transition.owner().map(|task| process_of(task, ProcessSource::Closer));
        // It may have begun to listen before it had a cookie.
        let known = if self.listeners.contains(key) { key } else { transition.socket.address_key() };
        self.listeners.close(known, &transition.tuple, closer, transition.mono_ns);
        if let Some(merging) = &mut self.merging {
            merging.closed.keys.insert(key);
        }
        annotate_listener(transition, closer)
    }

    /// A connection's first transition.
    fn open(&mut self, key: SocketKey, transition: &Transition, opening: Opening, effects: &mut Effects) -> Annotation {
        self.end_if_open(key, transition, effects);
        let mut entry = Entry::new(transition.socket, transition.tuple, transition.new, transition.mono_ns, opening);
        entry.hear(transition);
        if opening == Opening::Passive {
            entry.set_process(self.listeners.owner_for(&entry.tuple));
        }
        let annotation = annotate(&entry, None);
        self.begin_use_of_tuple(&entry.tuple);
        self.insert(key, entry, effects);
        annotation
    }

    /// Any transition of a connection that is under way.
    fn step(&mut self, key: SocketKey, transition: &Transition, effects: &mut Effects) -> Annotation {
        if self.listeners.contains(key) {
            // LISTEN → CLOSE was missed.
            self.listeners.remove(key);
        }
        let place = match self.open_entry(key, transition, effects).or_else(|| self.adopt(key, &transition.tuple)) {
            Some(place) => place,
            None => {
                let entry = self.first_heard_of(transition, effects);
                self.insert(key, entry, effects)
            }
        };
        let Some(entry) = self.entries.get_mut(place) else {
            return Annotation::default();
        };
        self.counts.repaired += repair(entry, transition.old, transition, effects);
        let in_state_ns = entry.in_state(transition.mono_ns);
        let mut transition = *transition;
        let no_port =
            (transition.old, transition.new) == (State::SYN_SENT, State::CLOSE) && entry.found_no_port(&transition);
        if no_port {
            transition.forget_previous();
        }
        let transition = &transition;
        entry.hear(transition);
        if transition.new == transition.old {
            return annotate(entry, in_state_ns);
        }
        if transition.old == State::SYN_SENT && transition.new == State::SYN_RECV {
            entry.opening = Opening::Simultaneous;
        }
        if entry.opening == Opening::Passive && transition.old == State::SYN_RECV && opened_fast(transition) {
            entry.opening = Opening::FastOpen;
        }
        entry.enter(transition.new, transition.mono_ns, true);
        let tuple = entry.tuple;
        if transition.new == State::CLOSE {
            self.close(place, key, Close::seen(transition));
        } else if matches!(transition.old, State::SYN_SENT | State::SYN_RECV) {
            // The local port may only now be known, or (before Linux 6.15) the peer of a passive connection.
            self.begin_use_of_tuple(&tuple);
        }
        let annotation = self.entries.get(place).map_or_else(Annotation::default, |entry| annotate(entry, in_state_ns));
        Annotation { no_port, ..annotation }
    }

    /// The open connection that a transition goes on with. What else is under its key leaves.
    fn open_entry(&mut self, key: SocketKey, transition: &Transition, effects: &mut Effects) -> Option<Place> {
        let place = self.entries.find(key)?;
        let entry = self.entries.get(place)?;
        if entry.close.is_none() && !entry.is_over(transition.old, &transition.tuple) {
            return Some(place);
        }
        self.end_if_open(key, transition, effects);
        None
    }

    fn begin_use_of_tuple(&mut self, tuple: &Tuple) {
        if tuple.is_complete() {
            self.minis.remove(tuple);
        }
    }

    fn insert(&mut self, key: SocketKey, entry: Entry, effects: &mut Effects) -> Place {
        if self.entries.len() >= self.limits.max_connections {
            self.evict(effects);
        }
        self.entries.insert(key, entry)
    }

    /// A socket begins anew: what is still open under its key was closed without our seeing it.
    fn end_if_open(&mut self, key: SocketKey, transition: &Transition, effects: &mut Effects) {
        if self.listeners.contains(key) {
            self.listeners.remove(key);
        }
        self.end_connection(key, transition.mono_ns, effects);
    }

    fn end_connection(&mut self, key: SocketKey, mono_ns: u64, effects: &mut Effects) {
        if let Some(place) = self.entries.find(key) {
            self.close_unseen(place, key, mono_ns, effects);
            self.release_now(key, effects);
        }
    }

    /// Marks an open connection as closed at some moment up to `mono_ns`.
    fn close_unseen(&mut self, place: Place, key: SocketKey, mono_ns: u64, effects: &mut Effects) {
        let Some(entry) = self.entries.get_mut(place).filter(|entry| entry.close.is_none()) else {
            return;
        };
        let from = entry.state;
        effects.repaired.push(missed(entry, from, State::CLOSE, mono_ns));
        self.counts.repaired += 1;
        entry.enter(State::CLOSE, mono_ns, false);
        self.close(place, key, Close::missed(from));
    }

    /// The CLOSE itself: what the kernel keeps begins now, the record waits for a RST that may follow.
    fn close(&mut self, place: Place, key: SocketKey, mut close: Close) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        let closed_ns = entry.since_ns;
        close.reset_sent =
            entry.reset_sent_ns != 0 && closed_ns.saturating_sub(entry.reset_sent_ns) <= RESET_BEFORE_CLOSE_NS;
        entry.close = Some(close);
        let after = close.after(entry);
        let (process, socket, tuple) = (entry.process(), entry.socket, entry.tuple);
        // Of more than a minute, what exceeds it is spent twice: as a full socket, then as a mini-socket
        // (tcp_keepalive_timer(), net/ipv4/tcp_timer.c).
        let fin_timeout_ns = self.limits.fin_timeout_ns;
        let fin_wait2_ns = if fin_timeout_ns > TIME_WAIT_NS { fin_timeout_ns - TIME_WAIT_NS } else { fin_timeout_ns };
        self.minis.add(tuple, after, closed_ns, fin_wait2_ns, process);
        self.closing.push_back((self.now_ns.saturating_add(RESET_GRACE_NS), key));
        if let Some(merging) = &mut self.merging {
            merging.closed.insert(key, socket, tuple);
        }
    }

    /// Hands out a closed connection whose turn in `closing` has come; its key may belong to a later one by now.
    fn release_closed(&mut self, key: SocketKey, until: u64, effects: &mut Effects) {
        let due = self
            .entries
            .of(key)
            .is_some_and(|entry| entry.close.is_some() && entry.since_ns.saturating_add(RESET_GRACE_NS) <= until);
        if due {
            self.release_now(key, effects);
        }
    }

    /// Hands out the closed connection under this key, if there is one.
    fn release_now(&mut self, key: SocketKey, effects: &mut Effects) {
        let closed = self.entries.of(key).is_some_and(|entry| entry.close.is_some());
        if closed && let Some(entry) = self.entries.remove(key) {
            effects.ended.push(entry.to_connection(self.now_ns));
        }
    }
}

/// In a normal handshake SYN_RECV lasts for the processing of one segment, and nothing is received or accepted before
/// ESTABLISHED (tcp_rcv_state_process()). With Fast Open both can be.
fn opened_fast(transition: &Transition) -> bool {
    matches!(transition.details, Some(Details { bytes_received, inode, .. }) if bytes_received > 0 || inode != 0)
}

fn process_of(task: Task, source: ProcessSource) -> Process {
    Process { pid: task.pid, comm: task.comm, source }
}

fn annotate(entry: &Entry, in_state_ns: Option<u64>) -> Annotation {
    Annotation { in_state_ns, process: entry.process(), cgroup: entry.cgroup, tuple: Some(entry.tuple), no_port: false }
}

fn annotate_listener(transition: &Transition, process: Option<Process>) -> Annotation {
    Annotation {
        in_state_ns: None,
        process,
        cgroup: transition.details.map_or(0, |details| details.cgroup),
        tuple: Some(transition.tuple),
        no_port: false,
    }
}
