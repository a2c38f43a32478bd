//! What the tracer says of a connection against what really happened to it: real sockets on the running kernel, each
//! scenario in a network namespace of its own. Needs root; without BPF every test fails and says why.
//!
//! A scenario is written down as two lines for each socket, the transitions and the life that the tracker makes of them
//! (see [`lab::Lab::expect`]). Where the order of segments or the context of a transition matters, the peer is not a
//! socket but a few lines of hand-made TCP behind a tun device ([`peer`]): what it sends is processed in softirq before
//! its `write` returns, so that even the races of the state machine are deterministic.
//!
//! docs/kernel.md tells what is provoked here and what cannot be.

mod child;
mod lab;
mod net;
mod peer;
#[path = "../support/sock_destroy.rs"]
mod sock_destroy;
mod trace;

mod aborts;
mod closing;
mod filters;
mod mini_sockets;
mod mptcp;
mod no_types;
mod opening;
mod processes;
mod timeouts;
mod witness;
