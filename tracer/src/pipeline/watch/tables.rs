//! The rows of a picture: what the tracker knows, as tables, where they are asked for.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::view::WatchView;
use crate::{
    core::{
        connection::Connection,
        endpoint::{Endpoint, Tuple},
        filter::Verdict,
        finding::ports,
        state::State as TcpState,
        workload,
    },
    pipeline::follow::{Known, Naming, wanted_connection},
    screen::{
        Ask, View as Shown,
        history::{ByState, place},
        picture::Rows,
        rows::{ConnectionRow, DestinationRow, First, ListenerRow},
    },
};

/// Names of cgroups that are kept.
const WORKLOADS: usize = 10_000;

/// The path of a cgroup, and the workload that it is.
pub(super) type Names = (Option<Arc<str>>, Option<Arc<str>>);

impl WatchView<'_> {
    /// Counts the sockets in each state, and picks the rows of connections where they are shown. On the way, how many
    /// connections there are on each local port, and how many of these are in CLOSE_WAIT.
    pub(super) fn connections(
        &mut self,
        ask: &Ask,
        now_ns: u64,
        known: &mut Known<'_>,
    ) -> (ByState, Option<Rows<ConnectionRow>>, PerPort) {
        let mut states = ByState::default();
        let mut count = |state: TcpState| {
            if let Some(place) = place(state) {
                states[place] += 1;
            }
        };
        let mut first = (ask.view == Shown::Connections).then(|| First::new(&ask.filter, ask.sort, ask.reverse));
        let mut per_port = PerPort::default();
        let wants_ports = ask.view == Shown::Listeners;
        let (tracker, filters) = (known.tracker, known.filters);
        for connection in tracker.open_connections(now_ns).filter(|connection| wanted_connection(filters, connection)) {
            let state = connection.spans.last().map_or(TcpState::CLOSE, |span| span.state);
            count(state);
            if wants_ports {
                let Tuple { netns, local, .. } = connection.tuple;
                let (open, close_wait) = per_port.entry((netns, local.port)).or_default();
                *open += 1;
                *close_wait += u64::from(state == TcpState::CLOSE_WAIT);
            }
            if let Some(first) = &mut first {
                first.push(self.row(connection, known.naming));
            }
        }
        for (tuple, mini) in ports::minis(tracker, now_ns) {
            let owner = &filters.owner;
            if filters.socket.verdict(tuple, mini.state) == Verdict::Yes && owner.matches_process(mini.process.as_ref())
            {
                count(mini.state);
            }
        }
        (states, first.map(First::finish), per_port)
    }

    fn row(&mut self, connection: Connection, naming: &mut Naming) -> ConnectionRow {
        let id = connection.cgroup;
        let (cgroup, workload) = match self.workloads.get(&id) {
            Some(names) => names.clone(),
            None => {
                let cgroup = naming.cgroup(id);
                let names = (cgroup.clone(), cgroup.as_deref().and_then(workload::name_of).map(Arc::from));
                if cgroup.is_some() {
                    if self.workloads.len() >= WORKLOADS {
                        self.workloads.clear();
                    }
                    self.workloads.insert(id, names.clone());
                }
                names
            }
        };
        ConnectionRow { connection, cgroup, workload }
    }

    /// The connection that somebody looks at, also when it has just ended.
    pub(super) fn opened(&mut self, cookie: u64, now_ns: u64, known: &mut Known<'_>) -> Option<ConnectionRow> {
        let connection = known.tracker.find(cookie, now_ns).or_else(|| self.ended.clone())?;
        Some(self.row(connection, known.naming))
    }

    pub(super) fn listeners(&self, ask: &Ask, per_port: &PerPort, now_ns: u64, known: &Known<'_>) -> Rows<ListenerRow> {
        let filters = known.filters;
        let mut queues: FxHashMap<(u32, Endpoint), (u32, u32)> = FxHashMap::default();
        let sampled = known.facts.into_iter().flat_map(|facts| &facts.sockets);
        for socket in sampled.filter(|socket| socket.state == TcpState::LISTEN) {
            // Of several at one end the longest queue is what matters.
            let queue = queues.entry((socket.tuple.netns, socket.tuple.local)).or_default();
            *queue = (socket.receive_queue, socket.send_queue).max(*queue);
        }
        let mut there: Vec<_> = known.tracker.listeners().collect();
        there.sort_by_key(|(netns, local, process)| (*netns, *local, process.map(|process| process.pid)));
        there.dedup_by_key(|(netns, local, _)| (*netns, *local));
        let mut first = First::new(&ask.filter, ask.sort, ask.reverse);
        for (netns, local, process) in there {
            let tuple = Tuple { netns, local, remote: Endpoint::UNKNOWN };
            let wanted = filters.socket.verdict(&tuple, TcpState::LISTEN) != Verdict::No
                && filters.owner.matches_process(process.as_ref());
            if wanted {
                let (open, close_wait) = per_port.get(&(netns, local.port)).copied().unwrap_or_default();
                first.push(ListenerRow {
                    netns,
                    local,
                    process,
                    per_second: self.arrivals.rate(netns, local.port, now_ns),
                    queue: queues.get(&(netns, local)).copied(),
                    open,
                    close_wait,
                });
            }
        }
        first.finish()
    }
}

/// Open connections, and those of them in CLOSE_WAIT, by namespace and local port.
pub(super) type PerPort = FxHashMap<(u32, u16), (u64, u64)>;

/// What takes local ports.
pub(super) fn destinations(ask: &Ask, now_ns: u64, known: &Known<'_>) -> Rows<DestinationRow> {
    let none = FxHashMap::default();
    let namespaces = known.facts.map_or(&none, |facts| &facts.namespaces);
    let mut first = First::new(&ask.filter, ask.sort, ask.reverse);
    for (destination, usage) in ports::uses(known.tracker, namespaces, now_ns) {
        // The client of a connection that came in takes no port of this host.
        if usage.served < usage.time_wait + usage.fin_wait2 + usage.open {
            let available = namespaces.get(&destination.netns).map(|namespace| namespace.ports.available());
            first.push(DestinationRow { destination, usage, available });
        }
    }
    first.finish()
}
