//! Destinations that use up the local ports.
//!
//! A connection needs a local port that no other one to the same destination (address and port) has, and after an
//! active close TIME_WAIT keeps it for 60 s more. The total number of TIME_WAIT sockets is no trouble by itself; what
//! counts is each (local address, remote address, remote port) against the port range.

use rustc_hash::FxHashMap;

use super::{
    Facts, Finding, FoundSocket, Kind, PortSettings, SAMPLE, SHORTEST_GROWTH_WINDOW_NS, Severity, Tally, Thresholds,
    counted,
};
use crate::core::{
    connection::{Certainty, Process},
    endpoint::{Address, Endpoint, Tuple},
    mini_sockets::TIME_WAIT_NS,
    state::State,
    tracker::Tracker,
};

/// The share of the ports from which on connect() has to search for long, and fails soon.
const CRITICAL_USAGE: f64 = 0.9;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Destination {
    netns: u32,
    local: Address,
    remote: Endpoint,
}

impl Destination {
    fn of(tuple: &Tuple) -> Self {
        Self { netns: tuple.netns, local: tuple.local.address, remote: tuple.remote }
    }
}

#[derive(Default)]
struct Use {
    time_wait: u64,
    fin_wait2: u64,
    open: u64,
    closed_in_window: u64,
    oldest_ns: u64,
    /// By process id: who closed how many of those in TIME_WAIT.
    closers: FxHashMap<u32, (Process, u64)>,
    sample: Vec<FoundSocket>,
}

impl Use {
    fn ports(&self) -> u64 {
        self.time_wait + self.fin_wait2 + self.open
    }
}

pub(super) fn detect(tracker: &Tracker, tally: &Tally, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut uses = count_uses(tracker, facts);
    // A destination that no socket is left for, but that connect() failed for.
    for (netns, remote) in tally.no_local_port.keys() {
        if !uses.keys().any(|destination| destination.netns == *netns && destination.remote == *remote) {
            let destination = Destination { netns: *netns, local: Address::UNSPECIFIED, remote: *remote };
            uses.insert(destination, Use::default());
        }
    }
    let mut uses: Vec<_> = uses.into_iter().collect();
    uses.sort_unstable_by_key(|(destination, _)| *destination);
    let available: FxHashMap<u32, u64> =
        facts.namespaces.iter().map(|(netns, facts)| (*netns, facts.ports.available())).collect();
    uses.into_iter()
        .filter_map(|(destination, usage)| {
            let settings = &facts.namespaces.get(&destination.netns)?.ports;
            let available = available.get(&destination.netns).copied()?.max(1);
            let failed = tally.no_local_port.get(&(destination.netns, destination.remote)).copied().unwrap_or(0);
            let share = usage.ports() as f64 / available as f64;
            (share >= thresholds.port_usage || failed > 0)
                .then(|| finding(destination, &usage, &Ports { settings, available, share, failed }, facts))
        })
        .collect()
}

fn count_uses(tracker: &Tracker, facts: &Facts) -> FxHashMap<Destination, Use> {
    let mut uses: FxHashMap<Destination, Use> = FxHashMap::default();
    let window_began_ns = facts.now_ns.saturating_sub(facts.window_ns);
    for (tuple, mini) in tracker.mini_sockets().iter().filter(|(_, mini)| mini.ends_ns > facts.now_ns) {
        let usage = uses.entry(Destination::of(tuple)).or_default();
        let age_ns = facts.now_ns.saturating_sub(mini.since_ns);
        if mini.state == State::TIME_WAIT {
            usage.time_wait += 1;
            usage.oldest_ns = usage.oldest_ns.max(age_ns);
            if let Some(process) = mini.process {
                usage.closers.entry(process.pid).or_insert((process, 0)).1 += 1;
            }
        } else {
            usage.fin_wait2 += 1;
        }
        if mini.since_ns >= window_began_ns {
            usage.closed_in_window += 1;
        }
        if usage.sample.len() < SAMPLE {
            usage.sample.push(FoundSocket {
                cookie: 0,
                local: tuple.local,
                remote: tuple.remote,
                age_ns,
                age_certainty: Certainty::Exact,
                fds: Vec::new(),
            });
        }
    }
    for tuple in tracker.open_tuples() {
        if let Some(usage) = uses.get_mut(&Destination::of(&tuple)) {
            usage.open += 1;
        } else if tuple.is_complete() {
            uses.entry(Destination::of(&tuple)).or_default().open += 1;
        }
    }
    uses
}

struct Ports<'a> {
    settings: &'a PortSettings,
    available: u64,
    share: f64,
    failed: u64,
}

fn finding(destination: Destination, usage: &Use, ports: &Ports<'_>, facts: &Facts) -> Finding {
    let rate = (facts.window_ns >= SHORTEST_GROWTH_WINDOW_NS)
        .then(|| usage.closed_in_window as f64 / (facts.window_ns as f64 / 1e9));
    let left = ports.available.saturating_sub(usage.ports());
    // At a steady rate TIME_WAIT levels off at rate × 60 s; only above the range will the ports run out.
    let runs_out = |rate: &f64| rate * (TIME_WAIT_NS as f64 / 1e9) + usage.open as f64 > ports.available as f64;
    let eta_s = rate.filter(runs_out).map(|rate| (left as f64 / rate) as u64);
    let severity = if ports.failed > 0 || ports.share >= CRITICAL_USAGE || eta_s.is_some_and(|eta| eta < 3600) {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let process =
        usage.closers.values().max_by_key(|(process, count)| (*count, process.pid)).map(|(process, _)| *process);
    let percent = (ports.share * 100.0).round();
    Finding {
        process,
        local: (!destination.local.is_unspecified()).then_some(Endpoint { address: destination.local, port: 0 }),
        remote: Some(destination.remote),
        netns: destination.netns,
        count: usage.time_wait,
        oldest_ns: usage.oldest_ns,
        oldest_certainty: Certainty::Exact,
        growth_per_min: rate.map(|rate| rate * 60.0),
        eta_s,
        evidence: evidence(usage, ports, rate),
        sockets: usage.sample.clone(),
        ..Finding::new(
            Kind::TimeWaitPorts,
            severity,
            format!(
                "{} → {}: {} of {} local ports in use ({percent} %)",
                destination.local,
                destination.remote,
                usage.ports(),
                ports.available
            ),
        )
        .explained_in(topic(reuses_time_wait(ports.settings, destination.local, destination.remote.address)))
    }
}

fn evidence(usage: &Use, ports: &Ports<'_>, rate: Option<f64>) -> Vec<String> {
    let mut lines = Vec::new();
    let range = ports.settings.range;
    lines.push(format!(
        "{} TIME_WAIT, {} FIN_WAIT2, {} open; ip_local_port_range {}–{}",
        usage.time_wait, usage.fin_wait2, usage.open, range.first, range.last
    ));
    if let Some(rate) = rate {
        lines.push(format!("{rate:.1} connections/s are closed by this side first"));
    }
    if ports.failed > 0 {
        lines.push(format!("{} found no free port (EADDRNOTAVAIL)", counted(ports.failed, "connect() call")));
    }
    let reuse = match ports.settings.time_wait_reuse {
        0 => "off",
        1 => "on",
        _ => "loopback only",
    };
    lines.push(format!("tcp_tw_reuse is {} ({reuse})", ports.settings.time_wait_reuse));
    lines
}

pub(super) fn topic(reuses_time_wait: bool) -> &'static str {
    if reuses_time_wait { "tw_reuse_on" } else { "tw_reuse_off" }
}

/// Whether connect() from one address to another may take over a port in TIME_WAIT (`tcp_twsk_unique()`).
fn reuses_time_wait(settings: &PortSettings, local: Address, remote: Address) -> bool {
    match settings.time_wait_reuse {
        0 => false,
        1 => true,
        _ => local.ip().is_loopback() || remote.ip().is_loopback(),
    }
}
