//! What a transition to CLOSE means. Each rule is a row of the table in docs/kernel.md ("How connections end").

use super::entry::Entry;
use crate::core::{
    connection::{AfterClose, Closing},
    state::State,
    transition::{Context, Errno, Transition},
};

/// What is known of a connection's end. It is judged only when the connection leaves the tracker: the RST that tells
/// an abort from a normal close is sent just *after* the transition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Close {
    pub(super) mono_ns: u64,
    /// The state it closed from.
    from: State,
    pub(super) error: Errno,
    context: Context,
    /// Whether the peer's FIN had arrived; `None` when the kernel's memory could not be read.
    pub(super) fin_received: Option<bool>,
    /// The transition was seen.
    seen: bool,
    pub(super) reset_sent: bool,
}

impl Close {
    pub(super) fn seen(transition: &Transition) -> Self {
        Self {
            mono_ns: transition.mono_ns,
            from: transition.old,
            error: transition.error(),
            context: transition.context,
            fin_received: transition.details.map(|details| details.fin_received),
            seen: true,
            reset_sent: false,
        }
    }

    pub(super) fn missed(from: State, mono_ns: u64) -> Self {
        Self {
            mono_ns,
            from,
            error: Errno::NONE,
            context: Context::Unknown,
            fin_received: matches!(from, State::CLOSE_WAIT | State::LAST_ACK | State::CLOSING).then_some(true),
            seen: false,
            reset_sent: false,
        }
    }

    pub(super) fn closing(&self, entry: &Entry) -> Closing {
        if !self.seen {
            return Closing::Unknown;
        }
        match self.error {
            Errno::ECONNABORTED => return Closing::Killed,
            Errno::ETIMEDOUT => return Closing::TimedOut,
            Errno::ECONNREFUSED => return Closing::Refused,
            _ => {}
        }
        // Data after close(): the kernel handles it like a RST from the peer (sk_err says so), then sends one itself.
        if self.reset_sent {
            return Closing::ResetSent;
        }
        if self.error == Errno::ECONNRESET || self.error == Errno::EPIPE || entry.reset_received {
            return if self.from == State::SYN_SENT { Closing::Refused } else { Closing::ResetReceived };
        }
        if self.error != Errno::NONE {
            return Closing::Aborted;
        }
        match self.from {
            State::SYN_SENT if entry.tuple.local.port == 0 => Closing::NoLocalPort,
            State::FIN_WAIT2 => Closing::Active,
            State::CLOSING => Closing::Simultaneous,
            State::LAST_ACK => Closing::Passive,
            // tcp_disconnect() and tcp_close() send a RST in these states (tcp_need_reset(), net/ipv4/tcp.c).
            State::SYN_RECV | State::ESTABLISHED | State::CLOSE_WAIT | State::FIN_WAIT1
                if self.context == Context::Process =>
            {
                Closing::ResetSent
            }
            _ => Closing::Aborted,
        }
    }

    pub(super) fn after(&self, entry: &Entry) -> AfterClose {
        match (self.closing(entry), self.from, self.fin_received) {
            (Closing::Unknown, _, _) => AfterClose::Unknown,
            (Closing::Active, State::FIN_WAIT2, Some(true)) | (Closing::Simultaneous, State::CLOSING, _) => {
                AfterClose::TimeWait
            }
            (Closing::Active, State::FIN_WAIT2, Some(false)) => AfterClose::FinWait2,
            (Closing::Active, State::FIN_WAIT2, None) => AfterClose::Unknown,
            _ => AfterClose::None,
        }
    }

    /// Whether our FIN was acknowledged, and so counts in `bytes_acked`.
    pub(super) fn fin_acked(&self, entry: &Entry) -> bool {
        match self.from {
            State::FIN_WAIT2 => true,
            State::CLOSING | State::LAST_ACK => {
                matches!(self.closing(entry), Closing::Simultaneous | Closing::Passive)
            }
            _ => false,
        }
    }
}
