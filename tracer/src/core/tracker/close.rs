//! What a transition to CLOSE means. Each rule is a row of the table in docs/kernel.md ("How connections end").

use super::entry::Entry;
use crate::core::{
    connection::{AfterClose, Closing, ResetCause},
    state::State,
    transition::{Context, Errno, Transition},
};

/// What is known of a connection's end. It is judged only when the connection leaves the tracker: the RST that tells
/// an abort from a normal close is sent just *after* the transition. When it closed is when the entry's CLOSE began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Close {
    /// The state it closed from.
    from: State,
    pub(super) error: Errno,
    context: Context,
    /// Whether the peer's FIN had arrived; `None` when the kernel's memory could not be read.
    pub(super) fin_received: Option<bool>,
    linger: bool,
    orphaned: bool,
    /// A file still referred to the socket when it closed by itself: the last one known.
    pub(super) file_left: bool,
    /// The transition was seen.
    seen: bool,
    pub(super) reset_sent: bool,
}

impl Close {
    pub(super) fn seen(transition: &Transition) -> Self {
        Self {
            from: transition.old,
            error: transition.error(),
            context: transition.context,
            fin_received: transition.details.map(|details| details.fin_received),
            linger: transition.details.is_some_and(|details| details.linger),
            orphaned: transition.details.is_some_and(|details| details.orphaned),
            // A close() of the program's own leaves no error; everything else leaves it its descriptor.
            file_left: transition.details.is_some_and(|details| {
                details.inode != 0 && (transition.context != Context::Process || details.error != Errno::NONE)
            }),
            seen: true,
            reset_sent: false,
        }
    }

    pub(super) fn missed(from: State) -> Self {
        Self {
            from,
            error: Errno::NONE,
            context: Context::Unknown,
            fin_received: matches!(from, State::CLOSE_WAIT | State::LAST_ACK | State::CLOSING).then_some(true),
            linger: false,
            orphaned: false,
            file_left: false,
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

    pub(super) fn reset_cause(&self, entry: &Entry) -> Option<ResetCause> {
        let closed_by_us = self.context == Context::Process;
        (self.closing(entry) == Closing::ResetSent).then_some(match self.from {
            _ if self.orphaned && self.error != Errno::NONE => ResetCause::DataAfterClose,
            _ if closed_by_us && self.linger => ResetCause::Linger,
            State::ESTABLISHED | State::CLOSE_WAIT if closed_by_us => ResetCause::UnreadData,
            State::ESTABLISHED | State::CLOSE_WAIT if entry.inode == 0 => ResetCause::ListenerClosed,
            _ => ResetCause::Unknown,
        })
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
