//! Recordings: everything that a trace was fed with ([`Input`](crate::core::input::Input)), as an Arrow IPC stream with
//! zstd, so that a replay gives what the live run gave, and pyarrow, polars and DuckDB can read it as it is.
//!
//! - `metadata`: what the stream's schema says of the run
//! - `rows`: inputs as rows and back; one definition of the columns
//! - `write`: batches, off the thread that drains the ring buffer
//! - `read`: the same backwards, from a file that may be cut off, damaged or hostile
//! - `layout`: where the columns are, and how much they may take
//! - `checksum`: how damage is noticed
//! - `files`: the names of rotated files, and which ones belong together
//!
//! What an input means is not decided here.

mod checksum;
pub mod files;
mod layout;
mod metadata;
mod read;
mod rows;
#[cfg(test)]
mod tests;
mod write;

pub use self::{
    metadata::{Metadata, VERSION},
    read::{Ending, Reader, Recorded},
    write::Recorder,
};
