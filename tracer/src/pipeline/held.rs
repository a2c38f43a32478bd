//! Transitions that a filter cannot decide yet, because a port is still 0: they wait until it can.

use rustc_hash::FxHashMap;

use crate::core::{
    endpoint::Tuple,
    filter::{SocketFilter, Verdict},
    state::State,
    tracker::Annotation,
    transition::{SocketKey, Transition},
};

/// Sockets that can wait at most. Each waits while it is in SYN_SENT.
const CAPACITY: usize = 100_000;

/// A transition and what the tracker knew then.
pub(super) type Annotated = (Transition, Annotation);

/// Decides on transitions, and keeps those that cannot be decided.
pub(super) struct Gate {
    filter: SocketFilter,
    /// What the recording was filtered by, which could not always be decided at once either.
    recorded: SocketFilter,
    held: FxHashMap<SocketKey, Vec<Annotated>>,
}

impl Gate {
    pub(super) fn new(filter: SocketFilter, recorded: SocketFilter) -> Self {
        Self { filter, recorded, held: FxHashMap::default() }
    }

    /// Whether a transition is certainly not wanted, whatever else is known of its connection. What waited goes too.
    pub(super) fn rules_out(&mut self, transition: &Transition) -> bool {
        let out = self.verdict(transition, &transition.tuple) == Verdict::No;
        if out {
            self.held.remove(&transition.socket.key());
        }
        out
    }

    fn verdict(&self, transition: &Transition, tuple: &Tuple) -> Verdict {
        let listens = transition.old == State::LISTEN && transition.new == State::CLOSE;
        let state = if listens { State::LISTEN } else { transition.new };
        self.filter.verdict(tuple, state).and(self.recorded.verdict(tuple, state))
    }

    /// Passes on what is wanted, in order: first what waited for this decision.
    pub(super) fn pass(&mut self, transition: &Transition, annotation: &Annotation, pass: &mut dyn FnMut(&Annotated)) {
        let key = transition.socket.key();
        match self.verdict(transition, &annotation.tuple.unwrap_or(transition.tuple)) {
            Verdict::Yes => {
                for waited in self.held.remove(&key).unwrap_or_default() {
                    pass(&waited);
                }
                pass(&(*transition, *annotation));
            }
            Verdict::No => {
                self.held.remove(&key);
            }
            // A connection that ends without its port ever being known has none.
            Verdict::NotYet if transition.new == State::CLOSE => {
                self.held.remove(&key);
            }
            Verdict::NotYet => {
                if self.held.len() < CAPACITY || self.held.contains_key(&key) {
                    self.held.entry(key).or_default().push((*transition, *annotation));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        endpoint::{Address, Endpoint},
        transition::{Context, Origin, SocketId, Task},
    };

    fn step(old: State, new: State, local_port: u16) -> Transition {
        let at = |port| Endpoint::new(Address::v4([127, 0, 0, 1]), port);
        Transition {
            mono_ns: 1,
            socket: SocketId::from_cookie(5),
            tuple: Tuple { netns: 1, local: at(local_port), remote: at(443) },
            old,
            new,
            task: Task::default(),
            context: Context::Process,
            details: None,
            origin: Origin::Kernel,
        }
    }

    fn passed(steps: &[Transition]) -> Vec<(State, State)> {
        let filter = SocketFilter { local_ports: vec![4000], ..SocketFilter::default() };
        let mut gate = Gate::new(filter, SocketFilter::default());
        let mut passed = Vec::new();
        for step in steps {
            if gate.rules_out(step) {
                continue;
            }
            gate.pass(step, &Annotation::default(), &mut |(step, _)| passed.push((step.old, step.new)));
        }
        assert!(gate.held.len() <= 1);
        passed
    }

    const OPEN: (State, State) = (State::CLOSE, State::SYN_SENT);
    const ESTABLISH: (State, State) = (State::SYN_SENT, State::ESTABLISHED);
    const GIVE_UP: (State, State) = (State::SYN_SENT, State::CLOSE);

    #[test]
    fn the_first_event_waits_for_the_port_and_comes_first() {
        assert_eq!(passed(&[step(OPEN.0, OPEN.1, 0), step(ESTABLISH.0, ESTABLISH.1, 4000)]), [OPEN, ESTABLISH]);
    }

    #[test]
    fn what_turns_out_to_be_another_port_is_not_shown() {
        assert_eq!(passed(&[step(OPEN.0, OPEN.1, 0), step(ESTABLISH.0, ESTABLISH.1, 4001)]), []);
        assert_eq!(passed(&[step(OPEN.0, OPEN.1, 0), step(GIVE_UP.0, GIVE_UP.1, 0)]), []);
    }
}
