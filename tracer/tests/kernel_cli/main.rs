//! The built program from the outside: what it prints, where, and how it ends. Each test that makes traffic does so in a
//! network namespace of its own, which the program is told to look at. Needs root and a kernel with BPF.
//!
//! What is expected here is the contract that scripts rely on. How the kernel's transitions come about, and what the
//! tracker makes of them, is the business of the other kernel tests.

mod alike;
mod diagnosis;
mod harness;
mod net;
#[path = "../support/sock_destroy.rs"]
mod sock_destroy;

mod check;
mod connections;
mod destinations;
mod diagnose;
mod ending;
mod errors;
mod failures;
mod filters;
mod formats;
mod healthy;
mod load;
mod log;
mod loss;
mod privileges;
mod processes;
mod record;
mod resets;
mod rotation;
mod screen;
mod survive;
mod trouble;
mod words;
