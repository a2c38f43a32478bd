//! Samples what the findings need besides the tracker: sockets, their holders, settings and counters.

use anyhow::{Context, Result};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{dump::Parts, live::namespaces};
use crate::{
    core::{
        finding::{ClosedSocket, Facts, Holder, NamespaceFacts, Tally},
        input::Counters,
        snapshot::{Snapshot, Socket, SocketKind},
        state::State,
        tracker::Tracker,
    },
    problem::{one_line, tell},
    source::{
        cgroups::Cgroups,
        clock::monotonic_ns,
        closed::{self, Closed},
        netns::Namespace,
        owners::{self, Owners},
        sock_diag::{self, Wanted},
        sysctl,
    },
};

/// Takes samples of some namespaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Sampler {
    /// The namespaces; none for all.
    pub(super) netns: Vec<u32>,
    /// When watching began, CLOCK_MONOTONIC ns; `None` where nothing is watched.
    pub(super) started_ns: Option<u64>,
    /// Inodes of sockets that somebody held at the beginning and that no list had then.
    pub(super) unlisted: FxHashSet<u64>,
}

/// What is to be asked more about than sockets that look suspicious.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// Files of sockets that may have been left behind.
    inodes: FxHashSet<u64>,
    cgroups: Vec<u64>,
    /// Ports of listeners that are gone, by namespace.
    ports: FxHashSet<(u32, u16)>,
}

impl Asked {
    pub(super) fn new(tally: Option<&Tally>, tracker: &Tracker) -> Self {
        let tally = tally.into_iter();
        Self {
            inodes: tally.clone().flat_map(Tally::inodes_left).collect(),
            cgroups: tally.flat_map(Tally::cgroups).collect(),
            ports: tracker.gone_listeners().map(|gone| (gone.netns, gone.local.port)).collect(),
        }
    }
}

impl Sampler {
    /// The counters of each namespace now.
    pub(super) fn counters(&self) -> Result<Counters> {
        let counters = |namespace: Namespace| Some((namespace.inum, namespace.enter(sysctl::counters).ok()?));
        let namespaces = namespaces(&self.netns)?.into_iter().filter_map(counters).collect();
        Ok(Counters { now_ns: monotonic_ns(), namespaces })
    }

    /// Takes a sample.
    pub(super) fn sample(&self, asked: &Asked) -> Result<Facts> {
        Ok(self.sample_and_visit(asked, &mut |_| {})?.0)
    }

    /// Takes a sample; hands over the dump that it is made from, with all sockets in it, and returns the last part.
    pub(super) fn sample_of_all(&self, mut parts: Parts) -> Result<(Facts, Snapshot)> {
        let (facts, dumped) = self.sample_and_visit(&Asked::default(), &mut |socket| parts.add(socket))?;
        Ok((facts, parts.rest(dumped)))
    }

    fn sample_and_visit(&self, asked: &Asked, visit: &mut (dyn FnMut(Socket) + Send)) -> Result<(Facts, Snapshot)> {
        let namespaces = namespaces(&self.netns)?;
        let mut listed = FxHashSet::default();
        let mut sockets = Vec::new();
        let mut take = |socket: Socket| {
            listed.insert(socket.inode);
            if is_of_interest(&socket, asked) {
                sockets.push(socket);
            }
            visit(socket);
        };
        let dumped = sock_diag::visit(&namespaces, Wanted::ALL, &mut take).context("cannot look for stuck sockets")?;
        let owners = Owners::scan();
        let closed = self.closed(&owners, &listed, dumped.ended_ns);
        let suspects: FxHashSet<u64> = sockets
            .iter()
            .filter(|socket| is_suspect(socket))
            .map(|socket| socket.inode)
            .chain(asked.inodes.iter().copied())
            .chain(closed.iter().map(|socket| socket.inode))
            .filter(|inode| *inode != 0)
            .collect();
        let holders: FxHashMap<u64, Vec<Holder>> = suspects
            .into_iter()
            .map(|inode| (inode, owners.of(inode).collect::<Vec<_>>()))
            .filter(|(_, holders)| !holders.is_empty())
            .collect();
        let pids: FxHashSet<u32> = holders.values().flatten().map(|holder| holder.pid).collect();
        let mut cgroups = Cgroups::new();
        let ids: FxHashSet<u64> =
            sockets.iter().map(|socket| socket.cgroup).chain(asked.cgroups.iter().copied()).collect();
        let facts = Facts {
            now_ns: dumped.ended_ns,
            window_ns: 0,
            descriptors: pids
                .into_iter()
                .filter_map(|pid| owners::descriptor_usage(pid).map(|usage| (pid, usage)))
                .collect(),
            namespaces: namespaces.iter().filter_map(namespace_facts).collect(),
            cgroups: ids.into_iter().filter_map(|id| cgroups.name(id).map(|path| (id, path))).collect(),
            unreadable_processes: owners.denied,
            holders,
            closed,
            sockets,
        };
        Ok((facts, dumped))
    }

    /// Connections that were over before anybody watched, and were not closed.
    fn closed(&self, owners: &Owners, listed: &FxHashSet<u64>, now_ns: u64) -> Vec<ClosedSocket> {
        let Closed { mut sockets, denied } = closed::find(owners, listed).unwrap_or_else(|error| {
            tell(format_args!("{}: connections that were over before are not known", one_line(&error)));
            Closed::default()
        });
        if denied > 0 {
            tell(format_args!(
                "{denied} TCP socket(s) that no list has could not be looked at: run as root to see which are left \
                 behind"
            ));
        }
        if let Some(started_ns) = self.started_ns {
            for socket in sockets.iter_mut().filter(|socket| self.unlisted.contains(&socket.inode)) {
                socket.was_unlisted_for(now_ns.saturating_sub(started_ns));
            }
        }
        sockets
    }
}

/// Whether a finding may be about this socket: not one that is at work, of which there may be a million.
fn is_of_interest(socket: &Socket, asked: &Asked) -> bool {
    let at_work = matches!(socket.state, State::ESTABLISHED | State::SYN_SENT | State::SYN_RECV) && socket.inode != 0;
    let is_asked =
        asked.inodes.contains(&socket.inode) || asked.ports.contains(&(socket.tuple.netns, socket.tuple.local.port));
    socket.kind == SocketKind::Full && (!at_work || is_asked)
}

/// Whether a finding may want to know who holds this socket.
fn is_suspect(socket: &Socket) -> bool {
    match socket.state {
        State::CLOSE_WAIT | State::FIN_WAIT1 | State::FIN_WAIT2 | State::LAST_ACK => true,
        State::LISTEN => socket.receive_queue > 0,
        _ => false,
    }
}

fn namespace_facts(namespace: &Namespace) -> Option<(u32, NamespaceFacts)> {
    let facts = || NamespaceFacts {
        ports: sysctl::port_settings(),
        mini_sockets: sysctl::mini_socket_count(),
        time_wait_max: sysctl::time_wait_max(),
        counters: sysctl::counters(),
    };
    Some((namespace.inum, namespace.enter(facts).ok()?))
}
