//! TCP states as the kernel numbers and spells them (`include/net/tcp_states.h`), and which of its transitions exist.
//!
//! A number that the kernel has no name for is data like any other: it is carried along and shown as such.

use std::fmt;

/// A TCP state: the kernel's number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State(pub u8);

/// The kernel's names without `TCP_`, indexed by number. `TIME_WAIT` and `NEW_SYN_RECV` belong to mini-sockets and
/// request sockets: no transition of a full socket ever carries them.
const NAMES: [&str; 14] = [
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
    "BOUND_INACTIVE",
];

#[expect(missing_docs, reason = "the states of RFC 9293, section 3.3.2")]
impl State {
    pub const ESTABLISHED: Self = Self(1);
    pub const SYN_SENT: Self = Self(2);
    pub const SYN_RECV: Self = Self(3);
    pub const FIN_WAIT1: Self = Self(4);
    pub const FIN_WAIT2: Self = Self(5);
    pub const TIME_WAIT: Self = Self(6);
    pub const CLOSE: Self = Self(7);
    pub const CLOSE_WAIT: Self = Self(8);
    pub const LAST_ACK: Self = Self(9);
    pub const LISTEN: Self = Self(10);
    pub const CLOSING: Self = Self(11);
    pub const NEW_SYN_RECV: Self = Self(12);
}

impl State {
    /// The kernel's name without `TCP_`; `None` for a number that it has no name for.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.get(usize::from(self.0)).copied().filter(|name| !name.is_empty())
    }

    /// The state that the kernel calls so.
    #[must_use]
    pub fn from_kernel_name(name: &str) -> Option<Self> {
        NAMES.iter().position(|known| *known == name && !known.is_empty()).map(|number| Self(number as u8))
    }

    /// The state of that name, in any case; `-` may stand for `_` as `ss` writes it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_uppercase().replace('-', "_");
        let name = name.strip_prefix("TCP_").unwrap_or(&name);
        let name = match name {
            "ESTAB" => "ESTABLISHED",
            "FIN_WAIT_1" => "FIN_WAIT1",
            "FIN_WAIT_2" => "FIN_WAIT2",
            "CLOSED" => "CLOSE",
            "SYN_RECEIVED" => "SYN_RECV",
            other => other,
        };
        Self::from_kernel_name(name)
    }

    /// The states that a name can be given for, in the kernel's order.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..NAMES.len() as u8).map(Self)
    }

    /// The states that a full socket in this one can change to.
    fn successors(self) -> &'static [Self] {
        match self {
            Self::CLOSE => &[Self::SYN_SENT, Self::LISTEN],
            Self::LISTEN => &[Self::SYN_RECV, Self::CLOSE],
            Self::SYN_SENT => &[Self::ESTABLISHED, Self::SYN_RECV, Self::CLOSE],
            Self::SYN_RECV => &[Self::ESTABLISHED, Self::FIN_WAIT1, Self::CLOSE],
            Self::ESTABLISHED => &[Self::CLOSE_WAIT, Self::FIN_WAIT1, Self::CLOSE],
            Self::CLOSE_WAIT => &[Self::LAST_ACK, Self::CLOSE],
            Self::FIN_WAIT1 => &[Self::FIN_WAIT2, Self::CLOSING, Self::CLOSE],
            Self::FIN_WAIT2 | Self::CLOSING | Self::LAST_ACK => &[Self::CLOSE],
            _ => &[],
        }
    }

    /// The states that a socket must have passed through, last one included, when it was last seen in `self` and is
    /// now in `to`, with no close in between: the way of fewest steps, which within one connection's life is unique.
    /// When there is none, `to` alone.
    #[must_use]
    pub fn steps_to(self, to: Self) -> Vec<Self> {
        let mut ways: Vec<Vec<Self>> = self.successors().iter().map(|next| vec![*next]).collect();
        while !ways.is_empty() {
            if let Some(found) = ways.iter().find(|way| way.last() == Some(&to)) {
                return found.clone();
            }
            ways = ways
                .iter()
                .flat_map(|way| {
                    let last = way.last().copied().unwrap_or(Self::CLOSE);
                    let onward: &[Self] = if last == Self::CLOSE { &[] } else { last.successors() };
                    onward.iter().map(|next| way.iter().copied().chain([*next]).collect())
                })
                .collect();
        }
        vec![to]
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("UNKNOWN_{}", self.0)),
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels_both_ways() {
        for state in State::all() {
            assert_eq!(State::from_name(&state.to_string()), Some(state));
        }
        assert_eq!(State::from_name("close-wait"), Some(State::CLOSE_WAIT));
        assert_eq!(State::from_name("fin-wait-2"), Some(State::FIN_WAIT2));
        assert_eq!(State::from_name("TCP_LAST_ACK"), Some(State::LAST_ACK));
        assert_eq!(State::from_name(""), None);
        assert_eq!(State(77).to_string(), "UNKNOWN_77");
        assert_eq!(State(0).name(), None);
    }

    #[test]
    fn the_missed_steps_are_those_of_the_state_machine() {
        assert_eq!(State::ESTABLISHED.steps_to(State::LAST_ACK), [State::CLOSE_WAIT, State::LAST_ACK]);
        assert_eq!(State::ESTABLISHED.steps_to(State::FIN_WAIT2), [State::FIN_WAIT1, State::FIN_WAIT2]);
        assert_eq!(State::SYN_SENT.steps_to(State::CLOSE_WAIT), [State::ESTABLISHED, State::CLOSE_WAIT]);
        assert_eq!(State::ESTABLISHED.steps_to(State::CLOSE), [State::CLOSE]);
    }

    #[test]
    fn a_step_that_cannot_be_explained_is_taken_as_it_is() {
        assert_eq!(State::LAST_ACK.steps_to(State::ESTABLISHED), [State::ESTABLISHED]);
        assert_eq!(State(99).steps_to(State::CLOSE), [State::CLOSE]);
        assert_eq!(State::ESTABLISHED.steps_to(State(99)), [State(99)]);
    }
}
