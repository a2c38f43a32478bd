//! A connection's life as the outputs tell it: how it opened, how long it was in each state, how and why it ended, what
//! the kernel keeps of it afterwards, and whose it was.

use serde::{Deserialize, Serialize};

use super::{
    endpoint::Tuple,
    state::State,
    transition::{Comm, Errno, SocketId},
};

/// How well a duration is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Certainty {
    /// Both ends of the interval were seen.
    Exact,
    /// It began before the tracer looked, or is not over: this is a lower bound.
    AtLeast,
    /// An end of it was missed; the duration is only how the known time divides.
    Unknown,
}

impl Certainty {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Exact, Self::AtLeast, Self::Unknown];

    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::AtLeast => "at_least",
            Self::Unknown => "unknown",
        }
    }
}

/// Time in one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The state.
    pub state: State,
    /// How long, ns.
    pub ns: u64,
    /// How well that is known.
    pub certainty: Certainty,
}

/// How a connection came to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// connect().
    Active,
    /// Through a listener. The kernel makes the socket at the handshake's last ACK.
    Passive,
    /// Through a listener at the SYN already, which carried data (TCP Fast Open, RFC 7413).
    FastOpen,
    /// Both ends called connect() (RFC 9293, section 3.5).
    Simultaneous,
    /// It was there before the tracer.
    PreExisting,
}

impl Opening {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Active, Self::Passive, Self::FastOpen, Self::Simultaneous, Self::PreExisting];

    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
            Self::FastOpen => "fast_open",
            Self::Simultaneous => "simultaneous",
            Self::PreExisting => "pre_existing",
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closing {
    /// This host sent its FIN first.
    Active,
    /// The peer sent its FIN first.
    Passive,
    /// Both FINs crossed.
    Simultaneous,
    /// The peer sent a RST.
    ResetReceived,
    /// This host sent a RST: unread data at close(), SO_LINGER 0, disconnect, data after close.
    ResetSent,
    /// The peer refused the connection.
    Refused,
    /// The peer did not answer: connect, keepalive or retransmission timeout.
    TimedOut,
    /// connect() found no free local port (EADDRNOTAVAIL).
    NoLocalPort,
    /// Another process destroyed it (SOCK_DESTROY: `ss -K`).
    Killed,
    /// Given up for another reason: close() while connecting, an unreachable peer, want of memory.
    Aborted,
    /// Its CLOSE was not seen.
    Unknown,
}

impl Closing {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Active,
        Self::Passive,
        Self::Simultaneous,
        Self::ResetReceived,
        Self::ResetSent,
        Self::Refused,
        Self::TimedOut,
        Self::NoLocalPort,
        Self::Killed,
        Self::Aborted,
        Self::Unknown,
    ];

    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
            Self::Simultaneous => "simultaneous",
            Self::ResetReceived => "reset_received",
            Self::ResetSent => "reset_sent",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::NoLocalPort => "no_local_port",
            Self::Killed => "killed",
            Self::Aborted => "aborted",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a RST ended it, or what amounts to one.
    #[must_use]
    pub fn is_reset(self) -> bool {
        matches!(self, Self::ResetReceived | Self::ResetSent | Self::Killed)
    }
}

/// Why this host sent a RST, as far as it can be told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ResetCause {
    /// SO_LINGER was set when the program closed: with a time of 0, or with data that could not be sent.
    Linger,
    /// close() while received data was not read; or connect(AF_UNSPEC), which looks the same.
    UnreadData,
    /// Data arrived after close(): nobody is left to read it.
    DataAfterClose,
    /// The listener was closed before accept() was called.
    ListenerClosed,
    /// None of these.
    Unknown,
}

impl ResetCause {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Linger, Self::UnreadData, Self::DataAfterClose, Self::ListenerClosed, Self::Unknown];

    /// As the documents call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linger => "reset_linger",
            Self::UnreadData => "reset_unread_data",
            Self::DataAfterClose => "reset_data_after_close",
            Self::ListenerClosed => "reset_listener_closed",
            Self::Unknown => "reset_unexplained",
        }
    }
}

/// What the kernel keeps of a connection after its socket is closed. No transition shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterClose {
    /// A TIME_WAIT mini-socket, for 60 s.
    TimeWait,
    /// A FIN_WAIT2 mini-socket: the peer has not sent its FIN; the process here has closed.
    FinWait2,
    /// Nothing.
    None,
    /// Cannot be told.
    Unknown,
}

impl AfterClose {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::TimeWait, Self::FinWait2, Self::None, Self::Unknown];

    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TimeWait => "time_wait",
            Self::FinWait2 => "fin_wait_2",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// How the process of a connection is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ProcessSource {
    /// It called connect(), or listen() for a listener.
    Opener,
    /// It was found to hold a descriptor of the socket.
    Holder,
    /// It called close() or shutdown().
    Closer,
    /// It owns the listener that the connection came through; who accepted it is not known (yet).
    Listener,
}

impl ProcessSource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Opener, Self::Holder, Self::Closer, Self::Listener];

    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Opener => "opener",
            Self::Holder => "holder",
            Self::Closer => "closer",
            Self::Listener => "listener",
        }
    }
}

/// The process of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Its name at that moment.
    pub comm: Comm,
    /// How this is known.
    pub source: ProcessSource,
}

/// A connection, ended or still open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// Its socket.
    pub socket: SocketId,
    /// Its ends, as far as they ever became known.
    pub tuple: Tuple,
    /// When it opened, CLOCK_MONOTONIC ns; `None` when that was before the tracer or was missed.
    pub opened_ns: Option<u64>,
    /// When it ended; `None` while open.
    pub ended_ns: Option<u64>,
    /// How it opened.
    pub opening: Opening,
    /// How it ended; `None` while open.
    pub closing: Option<Closing>,
    /// What sk_err said at the end.
    pub error: Errno,
    /// Why this host sent a RST, when it did.
    pub reset_cause: Option<ResetCause>,
    /// It went to CLOSE without the program's doing while a file referred to it: the inode of that file. The descriptor
    /// stays until close(), on a socket that no list of sockets shows any more.
    pub file_left: Option<u64>,
    /// What the kernel keeps of it.
    pub after_close: AfterClose,
    /// Its states in order; while it is open the last one is the current one, up to now.
    pub spans: Vec<Span>,
    /// Payload received; `None` when the kernel does not tell.
    pub bytes_in: Option<u64>,
    /// Payload sent and acknowledged.
    pub bytes_out: Option<u64>,
    /// Whose it was.
    pub process: Option<Process>,
    /// Cgroup id, 0 when not known.
    pub cgroup: u64,
    /// Inode of the socket's file, the last one known; 0 when it never had one.
    pub inode: u64,
    /// Something in its history was missed and inferred.
    pub gap: bool,
}

impl Connection {
    /// The time that is accounted for: the sum of its states.
    #[must_use]
    pub fn duration_ns(&self) -> u64 {
        self.spans.iter().fold(0, |sum, span| sum.saturating_add(span.ns))
    }

    /// Whether it was ever in a state.
    #[must_use]
    pub fn was_in(&self, state: State) -> bool {
        self.spans.iter().any(|span| span.state == state) || (state == State::CLOSE && self.ended_ns.is_some())
    }
}
