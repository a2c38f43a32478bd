//! What happens to a socket: the transitions and resets that a source reports, decoded and complete in themselves.
//!
//! Nothing here knows where they come from (the kernel, a snapshot, a recording) or what they amount to (the tracker).

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

use super::{endpoint::Tuple, state::State};

/// What the kernel calls a socket by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketId {
    /// Its cookie, unique until reboot; 0 when the kernel has given it none (yet). The only identity that is printed.
    pub cookie: u64,
    /// Address of its `struct sock`, reused as soon as the socket is freed; 0 when not known. Never printed.
    pub address: KernelAddress,
}

impl SocketId {
    /// A socket known by its cookie alone.
    #[must_use]
    pub fn from_cookie(cookie: u64) -> Self {
        Self { cookie, address: KernelAddress(0) }
    }

    /// What to look the socket up by: the cookie where there is one.
    #[must_use]
    pub fn key(self) -> SocketKey {
        if self.cookie == 0 { self.address_key() } else { SocketKey(self.cookie) }
    }

    /// What the socket is looked up by as long as it has no cookie.
    #[must_use]
    pub fn address_key(self) -> SocketKey {
        SocketKey(self.address.0 | ADDRESS_BIT)
    }
}

/// Kernel addresses have this bit set anyway; cookies count up from 1 and never get there.
const ADDRESS_BIT: u64 = 1 << 63;

/// A kernel address, which is kept off every output, `Debug` included.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelAddress(pub u64);

impl fmt::Debug for KernelAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(kernel address)")
    }
}

/// Tells one socket from another while both live.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey(u64);

impl SocketKey {
    /// Whether the socket is known by its address only.
    #[must_use]
    pub fn is_address(self) -> bool {
        self.0 & ADDRESS_BIT != 0
    }
}

impl fmt::Debug for SocketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_address() { f.write_str("(by address)") } else { write!(f, "{}", self.0) }
    }
}

/// The name of a task (`task_struct.comm`): up to 15 bytes of anything but NUL, chosen by the task itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "[u8; 16]", into = "[u8; 16]")]
pub struct Comm([u8; 16]);

impl Comm {
    /// From the kernel's buffer: what comes before the first NUL.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        let mut kept = [0; 16];
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(15).min(15);
        kept[..length].copy_from_slice(&bytes[..length]);
        Self(kept)
    }

    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(16);
        &self.0[..length]
    }

    /// The name as text. Bytes that are no UTF-8 and control characters are replaced by U+FFFD: a task may call itself an
    /// escape sequence, and this goes to terminals.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        let name = String::from_utf8_lossy(self.as_bytes());
        if !name.chars().any(char::is_control) {
            return name;
        }
        let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        Cow::Owned(name.chars().map(printable).collect())
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

impl From<[u8; 16]> for Comm {
    fn from(bytes: [u8; 16]) -> Self {
        Self::new(bytes)
    }
}

impl From<Comm> for [u8; 16] {
    fn from(comm: Comm) -> Self {
        comm.0
    }
}

impl From<&str> for Comm {
    fn from(name: &str) -> Self {
        let mut bytes = [0; 16];
        let length = name.len().min(15);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self::new(bytes)
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The task that was running when an event happened; not necessarily one that has to do with the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Task {
    /// Process (thread group) id, in the initial pid namespace.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Its name.
    pub comm: Comm,
}

/// In which context the kernel changed the state (`sk->sk_lock.owned`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Context {
    /// A task held the socket lock: the current task acts on the socket.
    Process,
    /// Softirq or timer: the current task is whoever was interrupted. On loopback that is often the *peer's* process,
    /// which looks plausible and is wrong.
    Softirq,
    /// The kernel's type information is missing, so this cannot be told.
    Unknown,
}

/// Where a transition comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Seen by the kernel's tracepoint.
    Kernel,
    /// Told by a sock_diag snapshot: the socket was found in a state that no transition had led to.
    Snapshot,
    /// Not seen: inferred from what came before and after, because events were lost.
    Repaired,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Snapshot, Self::Repaired];

    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Snapshot => "snapshot",
            Self::Repaired => "repaired",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the kernel's memory said about the socket at an event. Without type information (BTF) none of this is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Details {
    /// `SOCK_DONE`: the peer's FIN was received.
    pub fin_received: bool,
    /// `SOCK_DEAD`: no file refers to the socket any more.
    pub orphaned: bool,
    /// This side has ended sending, by close() or shutdown() (`sk_shutdown`).
    pub send_shutdown: bool,
    /// `SOCK_LINGER`: SO_LINGER is set; with a time of 0 close() sends a RST.
    pub linger: bool,
    /// At CLOSE→SYN_SENT: the local port of the socket's connection before this one, 0 for none.
    pub previous_port: u16,
    /// The socket is a subflow of an MPTCP connection, on which the kernel acts from a worker.
    pub mptcp: bool,
    /// Inode number of the socket's file; 0 before accept and after the last close.
    pub inode: u64,
    /// Id of the socket's cgroup v2 (its directory's inode number), 0 when not known.
    pub cgroup: u64,
    /// User id that owns the socket.
    pub uid: u32,
    /// `sk_err`.
    pub error: Errno,
    /// `bytes_received`, which counts the peer's FIN.
    pub bytes_received: u64,
    /// `bytes_acked`, which counts our SYN and our FIN.
    pub bytes_acked: u64,
    /// Smoothed round-trip time, µs.
    pub srtt_us: u32,
    /// Segments retransmitted so far.
    pub retransmits: u32,
}

/// One change of a TCP socket's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition {
    /// CLOCK_MONOTONIC, ns.
    pub mono_ns: u64,
    /// Which socket.
    pub socket: SocketId,
    /// Its ends, as far as they are known at this moment.
    pub tuple: Tuple,
    /// State before.
    pub old: State,
    /// State after. Equal to `old` when close() came after shutdown(): the file is gone, the state stays.
    pub new: State,
    /// Who was running.
    pub task: Task,
    /// Whether that says anything.
    pub context: Context,
    /// What else is known; `None` without BTF.
    pub details: Option<Details>,
    /// Where this comes from.
    pub origin: Origin,
}

impl Transition {
    /// The process that acts on its own socket in this transition; `None` when the current task is a bystander.
    ///
    /// A connect, listen, shutdown or close() that leaves ESTABLISHED or CLOSE_WAIT for FIN_WAIT1 or LAST_ACK happens
    /// in its caller, always. A CLOSE does only when a task holds the lock, and even then not when another process
    /// killed the socket (SOCK_DESTROY leaves ECONNABORTED).
    #[must_use]
    pub fn owner(&self) -> Option<Task> {
        if self.task.pid == 0 || self.details.is_some_and(|details| details.mptcp) {
            return None;
        }
        let acts = match (self.old, self.new) {
            (State::CLOSE, State::SYN_SENT | State::LISTEN)
            | (_, State::FIN_WAIT1)
            | (State::CLOSE_WAIT, State::LAST_ACK) => self.context != Context::Softirq,
            // Killing a listener leaves no error yet; close() says first that nothing will be sent any more.
            (State::LISTEN, State::CLOSE) => {
                self.context == Context::Process && self.details.is_some_and(|details| details.send_shutdown)
            }
            (State::CLOSE, State::CLOSE) => false,
            (_, State::CLOSE) => self.context == Context::Process && self.error() != Errno::ECONNABORTED,
            (old, new) if old == new => self.context != Context::Softirq,
            _ => false,
        };
        acts.then_some(self.task)
    }

    /// Takes out what is of the socket's connection before this one.
    pub(super) fn forget_previous(&mut self) {
        self.tuple.local.port = 0;
        if let Some(details) = &mut self.details {
            details.error = Errno::NONE;
        }
    }

    /// `sk_err` at this moment, or none. When a socket connects again it is still the one that ended the connection
    /// before, which says nothing of this one.
    #[must_use]
    pub fn error(&self) -> Errno {
        self.details.filter(|_| self.old != State::CLOSE).map_or(Errno::NONE, |details| details.error)
    }
}

/// A RST that this host sent or accepted for a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset {
    /// CLOCK_MONOTONIC, ns.
    pub mono_ns: u64,
    /// Which socket.
    pub socket: SocketId,
    /// Its ends.
    pub tuple: Tuple,
    /// The socket's state at that moment; TIME_WAIT for a mini-socket of either kind.
    pub state: State,
    /// Who sent it.
    pub direction: ResetDirection,
}

/// Who sent a RST.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetDirection {
    /// This host.
    Sent,
    /// The peer.
    Received,
}

/// What a source reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A change of state.
    Transition(Transition),
    /// A RST.
    Reset(Reset),
}

impl Event {
    /// CLOCK_MONOTONIC, ns.
    #[must_use]
    pub fn mono_ns(&self) -> u64 {
        match self {
            Self::Transition(transition) => transition.mono_ns,
            Self::Reset(reset) => reset.mono_ns,
        }
    }
}

/// An errno value as sockets carry it; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Errno(pub u32);

#[expect(missing_docs, reason = "the names of errno(3), with Linux's numbers for x86, arm and risc-v")]
impl Errno {
    pub const NONE: Self = Self(0);
    pub const EPIPE: Self = Self(32);
    pub const ECONNABORTED: Self = Self(103);
    pub const ECONNRESET: Self = Self(104);
    pub const ETIMEDOUT: Self = Self(110);
    pub const ECONNREFUSED: Self = Self(111);
}

impl Errno {
    /// The name of errno(3); `None` for no error.
    #[must_use]
    pub fn name(self) -> Option<String> {
        (self != Self::NONE).then(|| self.to_string())
    }
}

/// The name of errno(3).
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use nix::errno::Errno as Known;
        match Known::from_raw(i32::try_from(self.0).unwrap_or(i32::MAX)) {
            Known::UnknownErrno => write!(f, "E{}", self.0),
            known => write!(f, "{known:?}"),
        }
    }
}
