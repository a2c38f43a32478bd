//! The pure core: from transitions to connections to findings. No I/O, no clock, no aya, no tokio: time comes in as
//! the events' own timestamps, so that a recording and the live kernel go through the same code with the same result.

pub mod connection;
pub mod endpoint;
pub mod filter;
pub mod finding;
pub mod input;
pub mod manual;
pub mod mini_sockets;
pub mod snapshot;
pub mod state;
pub mod tracker;
pub mod transition;
pub mod workload;
