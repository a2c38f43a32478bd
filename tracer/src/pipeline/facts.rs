//! Samples what the findings need besides the tracker: sockets, their holders, settings and counters.

use anyhow::{Context, Result};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    config::Filters,
    core::{
        filter::Verdict,
        finding::{ClosedSocket, Facts, Holder, NamespaceCounters, NamespaceFacts, Tally},
        snapshot::{Snapshot, Socket, SocketKind},
        state::State,
    },
    problem::{one_line, tell},
    source::{
        cgroups::Cgroups,
        closed::{self, Closed},
        netns::Namespace,
        owners::{self, Owners},
        sock_diag::{self, Wanted},
        sysctl,
    },
};

/// The counters of each namespace at the beginning.
pub(super) struct Baseline(FxHashMap<u32, NamespaceCounters>);

impl Baseline {
    pub(super) fn read(namespaces: &[Namespace]) -> Self {
        let counters = |namespace: &Namespace| Some((namespace.inum, namespace.enter(sysctl::counters).ok()?));
        Self(namespaces.iter().filter_map(counters).collect())
    }

    /// Of a namespace that came later everything counts; with no window nothing has moved.
    fn moved(&self, netns: u32, now: NamespaceCounters, window_ns: u64) -> NamespaceCounters {
        if window_ns == 0 {
            NamespaceCounters::default()
        } else {
            now.since(self.0.get(&netns).copied().unwrap_or_default())
        }
    }
}

/// What was watched before the sample is taken.
pub(super) struct Watched<'a> {
    pub(super) filters: &'a Filters,
    pub(super) namespaces: &'a [Namespace],
    pub(super) tally: &'a Tally,
    pub(super) baseline: &'a Baseline,
    /// Inodes of sockets that somebody held at the window's beginning and that no list had.
    pub(super) unlisted: &'a FxHashSet<u64>,
    pub(super) window_ns: u64,
}

/// A dump for the findings.
pub(super) struct Dump {
    /// The sockets that the filters let pass.
    pub(super) snapshot: Snapshot,
    /// Inodes of all, whatever the filters say.
    listed: FxHashSet<u64>,
}

/// Dumps all sockets that the filters let pass.
pub(super) fn dump(filters: &Filters, namespaces: &[Namespace]) -> Result<Dump> {
    let mut snapshot = sock_diag::dump(namespaces, Wanted::ALL).context("cannot look for stuck sockets")?;
    let listed = snapshot.inodes();
    snapshot.sockets.retain(|socket| {
        let is_full = socket.kind == SocketKind::Full;
        filters.socket.verdict(&socket.tuple, socket.state) != Verdict::No
            && (!is_full || filters.owner.matches_cgroup(socket.cgroup))
    });
    Ok(Dump { snapshot, listed })
}

/// Takes the sample; the dump is of just now.
pub(super) fn sample(watched: &Watched<'_>, Dump { snapshot, listed }: Dump) -> Facts {
    let owners = Owners::scan();
    let closed = closed(watched, &owners, &listed);
    let mut sockets = snapshot.sockets;
    sockets.retain(|socket| socket.kind == SocketKind::Full);
    let suspects: FxHashSet<u64> = sockets
        .iter()
        .filter(|socket| is_suspect(socket))
        .map(|socket| socket.inode)
        .chain(watched.tally.inodes_left())
        .chain(closed.iter().map(|socket| socket.inode))
        .filter(|inode| *inode != 0)
        .collect();
    let holders: FxHashMap<u64, Vec<Holder>> = suspects
        .into_iter()
        .map(|inode| (inode, owners.of(inode).to_vec()))
        .filter(|(_, holders)| !holders.is_empty())
        .collect();
    let pids: FxHashSet<u32> = holders.values().flatten().map(|holder| holder.pid).collect();
    let mut cgroups = Cgroups::new();
    let ids: FxHashSet<u64> = sockets.iter().map(|socket| socket.cgroup).chain(watched.tally.cgroups()).collect();
    Facts {
        now_ns: snapshot.ended_ns,
        window_ns: watched.window_ns,
        descriptors: pids
            .into_iter()
            .filter_map(|pid| owners::descriptor_usage(pid).map(|usage| (pid, usage)))
            .collect(),
        namespaces: watched.namespaces.iter().filter_map(|namespace| namespace_facts(watched, namespace)).collect(),
        cgroups: ids.into_iter().filter_map(|id| cgroups.name(id).map(|path| (id, path))).collect(),
        unreadable_processes: owners.denied,
        holders,
        closed,
        sockets,
    }
}

/// Connections that were over before anybody watched, and were not closed.
fn closed(watched: &Watched<'_>, owners: &Owners, listed: &FxHashSet<u64>) -> Vec<ClosedSocket> {
    let Closed { mut sockets, denied } = closed::find(owners, listed).unwrap_or_else(|error| {
        tell(format_args!("{}: connections that were over before are not known", one_line(&error)));
        Closed::default()
    });
    if denied > 0 {
        tell(format_args!(
            "{denied} TCP socket(s) that no list has could not be looked at: run as root to see which are left behind"
        ));
    }
    sockets.retain(|socket| watched.filters.socket.verdict(&socket.tuple, State::CLOSE) == Verdict::Yes);
    for socket in sockets.iter_mut().filter(|socket| watched.unlisted.contains(&socket.inode)) {
        socket.was_unlisted_for(watched.window_ns);
    }
    sockets
}

/// Whether a finding may want to know who holds this socket.
fn is_suspect(socket: &Socket) -> bool {
    match socket.state {
        State::CLOSE_WAIT | State::FIN_WAIT1 | State::FIN_WAIT2 | State::LAST_ACK => true,
        State::LISTEN => socket.receive_queue > 0,
        _ => false,
    }
}

fn namespace_facts(watched: &Watched<'_>, namespace: &Namespace) -> Option<(u32, NamespaceFacts)> {
    let (facts, counters) = namespace
        .enter(|| {
            let facts = NamespaceFacts {
                ports: sysctl::port_settings(),
                mini_sockets: sysctl::mini_socket_count(),
                time_wait_max: sysctl::time_wait_max(),
                counters: NamespaceCounters::default(),
            };
            (facts, sysctl::counters())
        })
        .ok()?;
    let counters = watched.baseline.moved(namespace.inum, counters, watched.window_ns);
    Some((namespace.inum, NamespaceFacts { counters, ..facts }))
}
