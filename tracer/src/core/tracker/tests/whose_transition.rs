//! In which transitions the current task acts on its own socket.

use super::*;

/// Whom a transition names in process, softirq and unknown context.
fn owners(old: State, new: State) -> [bool; 3] {
    [Context::Process, Context::Softirq, Context::Unknown].map(|context| {
        let Event::Transition(transition) = step(old, new, APP, context).event else { unreachable!() };
        let owner = transition.owner();
        assert!(owner.is_none() || owner == Some(task(APP)));
        owner.is_some()
    })
}

#[test]
fn connect_listen_shutdown_and_close_are_in_their_caller_wherever_that_cannot_be_denied() {
    let acts = [
        (CLOSE, SYN_SENT),
        (CLOSE, LISTEN),
        (ESTABLISHED, FIN_WAIT1),
        (SYN_RECV, FIN_WAIT1),
        (CLOSE_WAIT, LAST_ACK),
        (FIN_WAIT1, FIN_WAIT1),
        (FIN_WAIT2, FIN_WAIT2),
        (LAST_ACK, LAST_ACK),
    ];
    for (old, new) in acts {
        assert_eq!(owners(old, new), [true, false, true], "{old} → {new}");
    }
}

#[test]
fn a_close_is_in_its_caller_only_where_the_lock_says_so() {
    for old in [SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSING, CLOSE_WAIT, LAST_ACK] {
        assert_eq!(owners(old, CLOSE), [true, false, false], "from {old}");
    }
}

#[test]
fn a_listeners_close_is_its_callers_only_when_it_says_that_nothing_will_be_sent_any_more() {
    assert_eq!(owners(LISTEN, CLOSE), [false; 3], "it may have been killed");
    let Event::Transition(closed) = p(LISTEN, CLOSE).detail(|details| details.send_shutdown = true).event else {
        panic!("a transition")
    };
    assert_eq!(closed.owner(), Some(task(APP)));
}

#[test]
fn what_segments_do_is_nobodys() {
    let segments = [
        (SYN_SENT, ESTABLISHED),
        (SYN_SENT, SYN_RECV),
        (LISTEN, SYN_RECV),
        (SYN_RECV, ESTABLISHED),
        (ESTABLISHED, CLOSE_WAIT),
        (FIN_WAIT1, FIN_WAIT2),
        (FIN_WAIT1, CLOSING),
    ];
    for (old, new) in segments {
        assert_eq!(owners(old, new), [false; 3], "{old} → {new}");
    }
}

#[test]
fn a_killer_a_worker_and_the_idle_task_are_never_owners() {
    let transition = |step: Step| {
        let Event::Transition(transition) = step.event else { unreachable!() };
        transition
    };
    assert_eq!(transition(p(ESTABLISHED, CLOSE).error(Errno::ECONNABORTED)).owner(), None);
    assert_eq!(transition(p(CLOSE, SYN_SENT).by(0)).owner(), None);
    for (old, new) in [(CLOSE, SYN_SENT), (ESTABLISHED, FIN_WAIT1), (ESTABLISHED, CLOSE), (FIN_WAIT2, FIN_WAIT2)] {
        assert_eq!(transition(p(old, new).detail(|details| details.mptcp = true)).owner(), None);
    }
    assert!(transition(p(ESTABLISHED, CLOSE).error(Errno::ECONNRESET)).owner().is_some());
}
