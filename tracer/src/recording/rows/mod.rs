//! Inputs as rows, and rows as inputs. The first columns are those of `tracer log`, filled for transitions as `tracer
//! log` shows them; `kind` says what a row is, and the columns after them are what a replay needs besides.
//!
//! A dump is its sockets, a row each, and then a row that says what they were; small things are JSON in `detail`.
//! Kernel addresses are not in it: a socket without a cookie is known by a keyed hash of its address.

mod decode;
mod encode;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

pub(super) use self::{
    decode::{CgroupName, Decoded, Rows, fields_read},
    encode::RecordingColumns,
};
use crate::core::connection::Process;

/// Sockets in one dump, or in one part of it, at most: more than any host has, and less than a hostile file would like.
/// Tests have no time for so many.
pub(super) const MAX_SOCKETS: usize = if cfg!(test) { 100_000 } else { 8 << 20 };

/// Text in the samples for the findings at most: a million sockets in trouble take less.
const MAX_FACTS: usize = 128 << 20;

/// Namespaces of one dump.
const MAX_NETNS: usize = 1 << 16;

/// Ranges of reserved ports: with more of them two would meet.
pub(super) const MAX_RESERVED: usize = 1 << 15;

/// What a row is.
mod kind {
    pub(super) const TRANSITION: &str = "transition";
    pub(super) const RESET_SENT: &str = "reset_sent";
    pub(super) const RESET_RECEIVED: &str = "reset_received";
    pub(super) const SOCKET: &str = "socket";
    pub(super) const DUMP_BEGINS: &str = "dump_begins";
    pub(super) const DUMP_FAILED: &str = "dump_failed";
    pub(super) const DUMP_PART: &str = "dump_part";
    pub(super) const DUMP: &str = "dump";
    pub(super) const MINI_SOCKETS: &str = "mini_sockets";
    pub(super) const NOW: &str = "now";
    pub(super) const FORGET: &str = "forget";
    pub(super) const LOSS: &str = "loss";
    pub(super) const COUNTERS: &str = "counters";
    pub(super) const FACTS: &str = "facts";
    pub(super) const CGROUP: &str = "cgroup";
}

const FIN_RECEIVED: u8 = 1;
const ORPHANED: u8 = 2;
const SEND_SHUTDOWN: u8 = 4;
const LINGER: u8 = 8;
const MPTCP: u8 = 16;

/// What is said of a dump besides its sockets.
#[derive(Serialize, Deserialize)]
struct DumpDetail {
    started_ns: u64,
    ended_ns: u64,
    complete_netns: Vec<u32>,
    /// Who held its sockets, by inode, in recordings whose sockets do not say so in their own rows.
    #[serde(default, skip_serializing)]
    holders: FxHashMap<u64, Process>,
}
