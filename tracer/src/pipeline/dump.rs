//! A dump of all sockets, taken on another thread and handed over in parts. A million sockets at once would take as much
//! room as half of what becomes of them, and the ring buffer has to be drained meanwhile.

use anyhow::{Context, Result};
use rustc_hash::FxHashSet;
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task::JoinHandle,
};

use super::live::namespaces;
use crate::{
    core::{
        snapshot::{Snapshot, Socket},
        tracker::MergeKind,
    },
    source::{
        clock::monotonic_ns,
        owners::Owners,
        sock_diag::{self, Wanted},
    },
};

/// Sockets of one part.
const PART: usize = 32_768;

/// Parts that wait before the dump does.
const WAITING: usize = 1;

/// Gathers sockets and hands them over, part by part.
pub(super) struct Parts {
    started_ns: u64,
    sockets: Vec<Socket>,
    to: Sender<Snapshot>,
}

impl Parts {
    /// A dump begins now.
    pub(super) fn new() -> (Self, Receiver<Snapshot>) {
        let (to, parts) = channel(WAITING);
        (Self { started_ns: monotonic_ns(), sockets: Vec::new(), to }, parts)
    }

    /// Takes a socket; waits where parts are not taken as fast as they come.
    pub(super) fn add(&mut self, socket: Socket) {
        self.sockets.push(socket);
        if self.sockets.len() >= PART {
            let part = Snapshot {
                started_ns: self.started_ns,
                ended_ns: monotonic_ns(),
                complete_netns: Vec::new(),
                sockets: std::mem::take(&mut self.sockets),
            };
            // Where nobody takes it any more the dump is of no use.
            let _ = self.to.blocking_send(part);
        }
    }

    /// The last part, of what sock_diag says of the whole.
    pub(super) fn rest(self, dumped: Snapshot) -> Snapshot {
        Snapshot { started_ns: self.started_ns, sockets: self.sockets, ..dumped }
    }
}

/// The end of a dump.
pub(super) struct End {
    pub(super) rest: Snapshot,
    /// Inodes of sockets that somebody holds and that are not in it; looked for at start-up only.
    pub(super) unlisted: FxHashSet<u64>,
}

/// What a dump hands over.
pub(super) enum Handed {
    Part(Snapshot),
    End(Result<End>),
}

/// A dump under way.
pub(super) struct DumpTask {
    pub(super) kind: MergeKind,
    parts: Receiver<Snapshot>,
    end: JoinHandle<Result<End>>,
}

impl DumpTask {
    /// Begins a dump of these namespaces; of all if there are none.
    pub(super) fn begin(kind: MergeKind, netns: Vec<u32>) -> Self {
        let (parts, handed) = Parts::new();
        Self { kind, parts: handed, end: tokio::task::spawn_blocking(move || dump(kind, &netns, parts)) }
    }

    /// The next thing that it hands over; nothing comes after its end.
    pub(super) async fn next(&mut self) -> Handed {
        match self.parts.recv().await {
            Some(part) => Handed::Part(part),
            None => Handed::End((&mut self.end).await.context("the snapshot's thread failed").flatten()),
        }
    }
}

fn dump(kind: MergeKind, netns: &[u32], mut parts: Parts) -> Result<End> {
    // After a loss events tell who holds what is new.
    let owners = if kind == MergeKind::Resync { Owners::default() } else { Owners::scan() };
    parts.started_ns = monotonic_ns();
    let mut listed = FxHashSet::default();
    let mut take = |socket: Socket| {
        if kind == MergeKind::StartUp {
            listed.insert(socket.inode);
        }
        parts.add(Socket { holder: owners.process_of(socket.inode), ..socket });
    };
    let dumped = sock_diag::visit(&namespaces(netns)?, Wanted::ALL, &mut take)?;
    let unlisted = if kind == MergeKind::StartUp { owners.unlisted(&listed) } else { FxHashSet::default() };
    Ok(End { rest: parts.rest(dumped), unlisted })
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;
    use crate::{core::state::State, source::netns::Namespace};

    /// Some socket of this process.
    fn listening() -> Socket {
        let _listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let own = Namespace::own().expect("a namespace");
        let snapshot = sock_diag::dump(&[own], Wanted::ALL).expect("a dump");
        snapshot.sockets.into_iter().find(|socket| socket.state == State::LISTEN).expect("the listener")
    }

    #[test]
    fn all_of_a_large_dump_is_handed_over_and_nothing_twice() {
        let some = listening();
        let count = 5 * PART as u64 / 2;
        let (mut parts, mut handed) = Parts::new();
        let dumping = thread::spawn(move || {
            (0..count).for_each(|cookie| parts.add(Socket { cookie, ..some }));
            parts.rest(Snapshot { complete_netns: vec![1], ..Snapshot::default() })
        });
        let mut cookies = Vec::new();
        while let Some(part) = handed.blocking_recv() {
            assert!(part.complete_netns.is_empty() && part.sockets.len() == PART);
            cookies.extend(part.sockets.iter().map(|socket| socket.cookie));
        }
        let rest = dumping.join().expect("dumped");
        assert_eq!(rest.complete_netns, [1]);
        cookies.extend(rest.sockets.iter().map(|socket| socket.cookie));
        assert!(cookies.into_iter().eq(0..count));
    }

    #[test]
    fn a_dump_that_nobody_takes_comes_to_its_end() {
        let (mut parts, handed) = Parts::new();
        drop(handed);
        let some = listening();
        (0..3 * PART).for_each(|_| parts.add(some));
        assert!(parts.rest(Snapshot::default()).sockets.is_empty());
    }
}
