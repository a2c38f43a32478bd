//! Everything that a trace is fed with, whether it comes from the kernel or out of a recording. The same inputs in the
//! same order give the same connections and the same findings.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::{
    finding::{Facts, NamespaceCounters},
    snapshot::Snapshot,
    tracker::MergeKind,
    transition::{Event, SocketId},
};

/// One thing that a trace learns.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A transition or a RST.
    Event(Event),
    /// It is this time now, CLOCK_MONOTONIC ns, and nothing older is still to come.
    Now(u64),
    /// A socket turned out not to be wanted.
    Forget(SocketId),
    /// A dump of all sockets is about to be taken, for this.
    DumpBegins(MergeKind),
    /// It could not be taken, or not to its end.
    DumpFailed,
    /// A part of it; listeners come no later than the connections that they serve.
    DumpPart(Snapshot),
    /// The rest of it.
    Dump(Snapshot),
    /// A dump of mini-sockets alone.
    MiniSockets(Snapshot),
    /// What has happened to the events so far.
    Loss(Loss),
    /// The counters at the window's beginning.
    Counters(Counters),
    /// A sample for the findings.
    Facts(Box<Facts>),
}

impl Input {
    /// When it was, CLOCK_MONOTONIC ns; `None` for what has no time of its own.
    #[must_use]
    pub fn mono_ns(&self) -> Option<u64> {
        match self {
            Self::Event(event) => Some(event.mono_ns()),
            Self::Now(now_ns) => Some(*now_ns),
            Self::Counters(counters) => Some(counters.now_ns),
            Self::Facts(facts) => Some(facts.now_ns),
            Self::Forget(_)
            | Self::DumpBegins(_)
            | Self::DumpFailed
            | Self::DumpPart(_)
            | Self::Dump(_)
            | Self::MiniSockets(_)
            | Self::Loss(_) => None,
        }
    }
}

/// What became of the events, since the programs were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Transitions that passed the filters: delivered plus dropped.
    pub seen: u64,
    /// Transitions that found the ring buffer full.
    pub dropped: u64,
    /// Runs of the transition program that the kernel skipped, because the interrupt that wanted it had hit the same
    /// program on the same CPU. Nothing is known of these, not even whether the filters would have kept them.
    pub missed: u64,
    /// Resets that were dropped or missed: the reason of a close may then be inferred instead of seen.
    pub resets_lost: u64,
}

/// Counters of all namespaces at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// When, CLOCK_MONOTONIC ns.
    pub now_ns: u64,
    /// By namespace.
    pub namespaces: FxHashMap<u32, NamespaceCounters>,
}
