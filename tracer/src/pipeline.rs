//! Where source, core and output meet: the one loop that runs a trace, and what each command makes of it.
//!
//! The loop attaches first, takes a snapshot of the sockets that are there, and then drains the ring buffer several
//! times a second (or when the programs say that it fills up). When events were lost it takes another snapshot and the
//! tracker repairs its picture.

mod commands;
mod dump;
mod facts;
mod follow;
mod held;
mod live;
mod record;
mod replay;
mod visits;
mod watch;

pub use commands::{connections, diagnose, log, record};
pub use watch::watch;
