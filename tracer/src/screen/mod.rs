//! The screen of `tracer watch`. Everything here is a function of values: what a trace looks like at a moment (`picture`),
//! what somebody has made of it with keys (`state`), and how that is drawn. No I/O, no clock and no tracker: the pipeline
//! makes pictures, `terminal` reads keys and shows what is drawn.
//!
//! - `picture`: what is shown of a trace, and what the screen asks for
//! - `rows`: the rows of its tables: which are wanted, and the first of them in some order
//! - `history`: the last minutes, second by second
//! - `state`: views, selections, filters
//! - `keys`: what a key does
//! - `draw`: one module for each view
//! - `text`, `look`: what a terminal can show
//! - `export`: what is shown, as JSON lines or CSV

pub mod draw;
pub mod export;
pub mod history;
pub mod keys;
pub mod look;
pub mod picture;
pub mod rows;
pub mod state;
#[cfg(test)]
mod tests;
pub mod text;

pub use self::{
    keys::{Action, Key},
    look::{Abilities, Colours},
    picture::{About, Ask, Picture, View},
    state::State,
};
