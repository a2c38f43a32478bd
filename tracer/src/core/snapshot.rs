//! What sock_diag says: the sockets that exist at a moment, as the tracker and the findings need them.

use super::{connection::Process, endpoint::Tuple, state::State};

/// A dump of the kernel's TCP sockets, or a part of one, which is complete for no namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// CLOCK_MONOTONIC before the first socket of the whole dump was read, ns.
    pub started_ns: u64,
    /// CLOCK_MONOTONIC after the last one, ns.
    pub ended_ns: u64,
    /// The namespaces whose dump is complete, so that a socket that is absent here does not exist there.
    pub complete_netns: Vec<u32>,
    /// The sockets.
    pub sockets: Vec<Socket>,
}

/// A socket in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its cookie; the dump itself makes the kernel give it one.
    pub cookie: u64,
    /// Its ends.
    pub tuple: Tuple,
    /// Its state; for a mini-socket TIME_WAIT or FIN_WAIT2.
    pub state: State,
    /// What kind of socket it is.
    pub kind: SocketKind,
    /// Inode of its file; 0 before accept and for orphans.
    pub inode: u64,
    /// Cgroup id, 0 when not told.
    pub cgroup: u64,
    /// User id.
    pub uid: u32,
    /// Bytes that wait to be read, the peer's FIN counting as one; for a listener, connections that wait for accept().
    pub receive_queue: u32,
    /// Bytes not acknowledged; for a listener, its backlog.
    pub send_queue: u32,
    /// From `tcp_info`.
    pub info: Option<TcpInfo>,
    /// One process that holds it, where that was looked for.
    pub holder: Option<Process>,
}

/// The three kinds of socket that the kernel keeps for TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A full socket.
    Full,
    /// What is left of one in TIME_WAIT, or in FIN_WAIT2 after its process has closed; it goes after this time, ms.
    Mini {
        /// Remaining life, ms.
        expires_in_ms: u32,
    },
    /// A handshake that is not complete. Transitions do not show these.
    Request,
}

/// What is used of `struct tcp_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Since we last sent data, ms.
    pub last_data_sent_ms: u32,
    /// Since data last arrived, ms. For a socket in CLOSE_WAIT an upper bound of its age there: the FIN came no earlier.
    pub last_data_recv_ms: u32,
    /// Since an ACK last arrived, ms. For a socket in CLOSE_WAIT a lower bound of its age there: the FIN set it, later
    /// ACKs reset it.
    pub last_ack_recv_ms: u32,
    /// `tcpi_bytes_acked`.
    pub bytes_acked: u64,
    /// `tcpi_bytes_received`.
    pub bytes_received: u64,
}

impl Socket {
    /// How long it has been in its state at least, ns.
    #[must_use]
    pub fn at_least_in_state_ns(&self) -> u64 {
        let ms = match (self.state, self.info) {
            // What began it was the peer's FIN, or its ACK of ours.
            (State::CLOSE_WAIT | State::FIN_WAIT2, Some(info)) => info.last_ack_recv_ms,
            _ => 0,
        };
        u64::from(ms) * 1_000_000
    }

    /// How long a socket has been in CLOSE_WAIT at most, ns: the peer's FIN came no earlier than its last data.
    #[must_use]
    pub fn at_most_in_close_wait_ns(&self) -> Option<u64> {
        self.info.map(|info| u64::from(info.last_data_recv_ms) * 1_000_000)
    }

    /// How old the connection is at least, ns: as old as the last thing that it did.
    #[must_use]
    pub fn at_least_old_ns(&self) -> u64 {
        self.info.map_or(0, |info| u64::from(info.last_ack_recv_ms) * 1_000_000)
    }
}
