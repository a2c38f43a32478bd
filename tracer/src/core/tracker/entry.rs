//! One tracked connection, kept small: there may be a million of them.

use super::close::Close;
use crate::core::{
    connection::{AfterClose, Certainty, Connection, Opening, Process, ProcessSource, Span},
    endpoint::Tuple,
    state::State,
    transition::{Comm, Context, Errno, SocketId, SocketKey, Task, Transition},
};

/// States that a connection can pass through without repeating one: SYN_SENT, SYN_RECV, ESTABLISHED, then FIN_WAIT1 and
/// FIN_WAIT2 or CLOSING, or CLOSE_WAIT and LAST_ACK. More happens only when events contradict each other; their time
/// then goes to the last span, marked unknown.
const SPANS: usize = 5;

/// Finished spans, in place.
#[derive(Clone, Copy, Debug)]
struct Spans {
    ns: [u64; SPANS],
    state: [State; SPANS],
    certainty: [Certainty; SPANS],
    count: u8,
}

impl Spans {
    const EMPTY: Self =
        Self { ns: [0; SPANS], state: [State(0); SPANS], certainty: [Certainty::Unknown; SPANS], count: 0 };

    fn push(&mut self, span: Span) {
        let at = usize::from(self.count);
        if at < SPANS {
            self.ns[at] = span.ns;
            self.state[at] = span.state;
            self.certainty[at] = span.certainty;
            self.count += 1;
        } else {
            self.ns[SPANS - 1] = self.ns[SPANS - 1].saturating_add(span.ns);
            self.certainty[SPANS - 1] = Certainty::Unknown;
        }
    }

    fn sum_ns(&self) -> u64 {
        self.ns.iter().fold(0, |sum, ns| sum.saturating_add(*ns))
    }

    fn to_vec(self) -> Vec<Span> {
        (0..usize::from(self.count))
            .map(|at| Span { state: self.state[at], ns: self.ns[at], certainty: self.certainty[at] })
            .collect()
    }
}

/// A connection in the tracker.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// What it is found by: the socket's cookie or its address.
    pub(super) key: SocketKey,
    pub(super) socket: SocketId,
    pub(super) tuple: Tuple,
    pub(super) state: State,
    /// How well the beginning of the current state is known.
    since_certainty: Certainty,
    pub(super) opening: Opening,
    /// The first span begins with the real opening.
    opened_known: bool,
    pub(super) gap: bool,
    counters_known: bool,
    pub(super) process: Option<(u32, Comm, ProcessSource)>,
    /// When the current state began, ns; once it is closed, when it closed.
    pub(super) since_ns: u64,
    /// Last time something was heard of it, ns.
    pub(super) heard_ns: u64,
    spans: Spans,
    bytes_received: u64,
    bytes_acked: u64,
    pub(super) inode: u64,
    pub(super) cgroup: u64,
    /// Number of the last snapshot that had it.
    pub(super) in_snapshot: u32,
    /// Whether the SYN was ours: it counts in `bytes_acked`.
    syn_sent: bool,
    /// What the socket's connection before this one left in it, until this one finds a port of its own.
    pub(super) previous_port: u16,
    pub(super) previous_error: Errno,
    pub(super) reset_sent_ns: u64,
    pub(super) reset_received: bool,
    pub(super) close: Option<Close>,
}

impl Entry {
    /// A connection of which `state` is the first thing known, since `since_ns`.
    pub(super) fn new(socket: SocketId, tuple: Tuple, state: State, since_ns: u64, opening: Opening) -> Self {
        let known = opening != Opening::PreExisting;
        Self {
            key: socket.key(),
            socket,
            tuple,
            state,
            since_certainty: if known { Certainty::Exact } else { Certainty::AtLeast },
            opening,
            opened_known: known,
            gap: false,
            counters_known: false,
            process: None,
            since_ns,
            heard_ns: since_ns,
            spans: Spans::EMPTY,
            bytes_received: 0,
            bytes_acked: 0,
            inode: 0,
            cgroup: 0,
            in_snapshot: 0,
            syn_sent: opening == Opening::Active,
            previous_port: 0,
            previous_error: Errno::NONE,
            reset_sent_ns: 0,
            reset_received: false,
            close: None,
        }
    }

    /// Its opening was missed, only how it opened is clear.
    pub(super) fn opened_unseen(&mut self) {
        self.opened_known = false;
        self.since_certainty = Certainty::Unknown;
        self.gap = true;
    }

    /// Whether a connection that was there before counts our SYN.
    pub(super) fn assume_syn_sent(&mut self, sent: bool) {
        self.syn_sent = sent;
    }

    /// Time in the current state up to `now_ns`, and how well it is known; `None` when the beginning was missed.
    pub(super) fn in_state(&self, now_ns: u64) -> Option<u64> {
        (self.since_certainty == Certainty::Exact).then(|| now_ns.saturating_sub(self.since_ns))
    }

    /// Leaves the current state for `new` at `now_ns`. `seen` is false when the moment was missed and `now_ns` is only
    /// the latest that it can have been.
    pub(super) fn enter(&mut self, new: State, now_ns: u64, seen: bool) {
        let now_ns = now_ns.max(self.since_ns);
        let certainty = if seen { self.since_certainty } else { Certainty::Unknown };
        self.spans.push(Span { state: self.state, ns: now_ns - self.since_ns, certainty });
        self.state = new;
        self.since_ns = now_ns;
        self.since_certainty = if seen { Certainty::Exact } else { Certainty::Unknown };
        self.gap |= !seen;
    }

    /// Whether a socket that has these ends and is in `state` must have begun another connection since this one was
    /// heard of: no way leads there, or a port that is never changed has changed.
    pub(super) fn is_over(&self, state: State, tuple: &Tuple) -> bool {
        let port_differs = |known: u16, now: u16| known != 0 && now != 0 && known != now;
        let (peer, peer_now) = (self.tuple.remote.address, tuple.remote.address);
        port_differs(self.tuple.local.port, tuple.local.port)
            || port_differs(self.tuple.remote.port, tuple.remote.port)
            || (!peer.is_unspecified() && !peer_now.is_unspecified() && peer != peer_now)
            || !can_follow(state, self.state)
    }

    /// Whether a SYN_SENT→CLOSE is that of a connect() that found no local port. Then the port and the error of the
    /// socket's connection before this one are still in it: both are cleared only once a port is found
    /// (tcp_connect_init(), net/ipv4/tcp_output.c).
    pub(super) fn found_no_port(&self, transition: &Transition) -> bool {
        let port = transition.tuple.local.port;
        let Some(details) = transition.details else {
            return port == 0;
        };
        self.tuple.local.port == 0
            && (port == 0 || port == self.previous_port)
            && details.error == self.previous_error
            && !details.send_shutdown
            && !self.reset_received
            && transition.context == Context::Process
    }

    /// Takes over what an event knows of the socket besides its state.
    pub(super) fn hear(&mut self, transition: &Transition) {
        self.heard_ns = self.heard_ns.max(transition.mono_ns);
        self.socket = SocketId {
            cookie: if transition.socket.cookie == 0 { self.socket.cookie } else { transition.socket.cookie },
            address: if transition.socket.address.0 == 0 { self.socket.address } else { transition.socket.address },
        };
        self.tuple.local.refresh(transition.tuple.local);
        self.tuple.remote.refresh(transition.tuple.remote);
        if transition.tuple.netns != 0 {
            self.tuple.netns = transition.tuple.netns;
        }
        if let Some(details) = transition.details {
            if transition.new == State::SYN_SENT {
                self.previous_port = details.previous_port;
                self.previous_error = details.error;
            }
            self.count_bytes(details.bytes_received, details.bytes_acked);
            if details.inode != 0 {
                self.inode = details.inode;
            }
            if details.cgroup != 0 {
                self.cgroup = details.cgroup;
            }
        }
        if let Some(Task { pid, comm, .. }) = transition.owner() {
            let opens = transition.new == State::SYN_SENT;
            if opens || !matches!(self.process, Some((_, _, ProcessSource::Opener))) {
                let source = if opens { ProcessSource::Opener } else { ProcessSource::Closer };
                self.process = Some((pid, comm, source));
            }
        }
    }

    pub(super) fn count_bytes(&mut self, received: u64, acked: u64) {
        self.counters_known = true;
        self.bytes_received = self.bytes_received.max(received);
        self.bytes_acked = self.bytes_acked.max(acked);
    }

    /// A process found otherwise; what an event told is better.
    pub(super) fn set_process(&mut self, process: Option<Process>) {
        let told = matches!(self.process, Some((_, _, ProcessSource::Opener | ProcessSource::Closer)));
        if let (Some(process), false) = (process, told) {
            self.process = Some((process.pid, process.comm, process.source));
        }
    }

    pub(super) fn process(&self) -> Option<Process> {
        self.process.map(|(pid, comm, source)| Process { pid, comm, source })
    }

    /// When it opened, if that was seen.
    pub(super) fn opened_ns(&self) -> Option<u64> {
        self.opened_known.then(|| self.since_ns.saturating_sub(self.spans.sum_ns()))
    }

    /// The record of an ended connection, or of an open one as of `now_ns`.
    pub(super) fn to_connection(&self, now_ns: u64) -> Connection {
        let mut spans = self.spans.to_vec();
        if self.close.is_none() {
            let certainty = match self.since_certainty {
                Certainty::Exact => Certainty::AtLeast,
                other => other,
            };
            spans.push(Span { state: self.state, ns: now_ns.saturating_sub(self.since_ns), certainty });
        }
        let close = self.close.as_ref();
        let fin_acked = close.map_or(self.state == State::FIN_WAIT2, |close| close.fin_acked(self));
        // While it is open, the states in which the peer's FIN has arrived tell.
        let fin_received = close
            .map_or(matches!(self.state, State::CLOSE_WAIT | State::LAST_ACK | State::CLOSING), |close| {
                close.fin_received == Some(true)
            });
        Connection {
            socket: self.socket,
            tuple: self.tuple,
            opened_ns: self.opened_ns(),
            ended_ns: close.map(|_| self.since_ns),
            opening: self.opening,
            closing: close.map(|close| close.closing(self)),
            error: close.map_or(Errno::NONE, |close| close.error),
            reset_cause: close.and_then(|close| close.reset_cause(self)),
            file_left: close.and_then(|close| close.file_left.then_some(self.inode)),
            after_close: close.map_or(AfterClose::None, |close| close.after(self)),
            spans,
            bytes_in: self.counters_known.then(|| self.bytes_received.saturating_sub(u64::from(fin_received))),
            bytes_out: self
                .counters_known
                .then(|| self.bytes_acked.saturating_sub(u64::from(self.syn_sent) + u64::from(fin_acked))),
            process: self.process(),
            cgroup: self.cgroup,
            inode: self.inode,
            gap: self.gap,
        }
    }
}

/// Whether one connection can be in `state` now or later when it was last seen in `known`. Of states that no
/// connection has, nothing is claimed.
fn can_follow(state: State, known: State) -> bool {
    const SYNS: [State; 2] = [State::SYN_SENT, State::SYN_RECV];
    let established = SYNS.contains(&known) || known == State::ESTABLISHED;
    let can = match state {
        State::SYN_SENT => false,
        State::SYN_RECV => known == State::SYN_SENT,
        State::ESTABLISHED => SYNS.contains(&known),
        State::FIN_WAIT1 | State::CLOSE_WAIT => established,
        State::FIN_WAIT2 | State::CLOSING => established || known == State::FIN_WAIT1,
        State::LAST_ACK => established || known == State::CLOSE_WAIT,
        _ => true,
    };
    let claimed = established
        || matches!(known, State::FIN_WAIT1 | State::FIN_WAIT2 | State::CLOSING | State::CLOSE_WAIT | State::LAST_ACK);
    can || known == state || !claimed
}
