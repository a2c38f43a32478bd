//! What must have happened unseen, between what is known and what an event says: inferred, marked, counted.

use super::{Effects, Entry, Tracker};
use crate::core::{
    connection::Opening,
    state::State,
    transition::{Context, Origin, Task, Transition},
};

impl Tracker {
    /// A connection whose beginning was not seen. Where all sockets are known, it was missed; else it may have been there
    /// before the tracer.
    pub(super) fn first_heard_of(&mut self, transition: &Transition, effects: &mut Effects) -> Entry {
        let served = self.listeners.serves(&transition.tuple);
        // A CLOSE whose ends are wiped may be that of a socket which a filter has left out all along.
        let all_known = self.counts.evicted == 0
            && self.whole_netns.contains(&transition.tuple.netns)
            && transition.tuple.is_complete();
        let opening = match transition.old {
            State::SYN_SENT => Opening::Active,
            State::SYN_RECV => Opening::Passive,
            _ if !all_known => Opening::PreExisting,
            _ if served => Opening::Passive,
            _ => Opening::Active,
        };
        let (before, first) = match opening {
            Opening::Passive => (State::LISTEN, State::SYN_RECV),
            _ => (State::CLOSE, State::SYN_SENT),
        };
        let state = if all_known { first } else { transition.old };
        let mut entry = Entry::new(transition.socket, transition.tuple, state, transition.mono_ns, opening);
        if opening == Opening::PreExisting {
            entry.assume_syn_sent(!served);
        } else {
            entry.opened_unseen();
        }
        if opening == Opening::Passive {
            entry.set_process(self.listeners.owner_for(&transition.tuple));
        }
        if all_known {
            effects.repaired.push(missed(&entry, before, first, transition.mono_ns));
            self.counts.repaired += 1;
        }
        entry
    }
}

/// Infers the transitions between the last known state and `to`; returns how many.
pub(super) fn repair(entry: &mut Entry, to: State, revealing: &Transition, effects: &mut Effects) -> u64 {
    if entry.state == to {
        return 0;
    }
    let mut count = 0;
    for next in entry.state.steps_to(to) {
        effects.repaired.push(missed(entry, entry.state, next, revealing.mono_ns));
        entry.enter(next, revealing.mono_ns, false);
        count += 1;
    }
    count
}

/// A transition that must have happened, at some moment up to `mono_ns`.
pub(super) fn missed(entry: &Entry, old: State, new: State, mono_ns: u64) -> Transition {
    Transition {
        mono_ns,
        socket: entry.socket,
        tuple: entry.tuple,
        old,
        new,
        task: Task::default(),
        context: Context::Unknown,
        details: None,
        origin: Origin::Repaired,
    }
}
