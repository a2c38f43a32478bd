//! tracer: follows every TCP connection of a Linux host through the kernel's state transitions, and says which program
//! leaks sockets and why.
//!
//! The way of the data: a [`source`] gives events, the [`core`] makes connections and findings of them, an [`output`]
//! writes records; [`pipeline`] is where they meet. A [`recording`] keeps what a trace was fed with. docs/architecture.md has the map.

pub mod check;
pub mod cli;
pub mod config;
pub mod core;
pub mod explain;
pub mod manpage;
pub mod memory;
pub mod output;
pub mod pipeline;
pub mod problem;
pub mod recording;
pub mod screen;
pub mod source;
pub mod terminal;
