//! Destinations that use up the local ports.
//!
//! The total number of TIME_WAIT sockets is no trouble by itself; what counts is each destination against the port range
//! (`ports`).

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::{
    Facts, Finding, FoundSocket, Kind, PortSettings, SAMPLE, SHORTEST_GROWTH_WINDOW_NS, Severity, Tally, Thresholds,
    counted,
    ports::{self, Destination, Use, reuses_time_wait},
};
use crate::core::{
    connection::{Certainty, Process},
    endpoint::{Address, Endpoint},
    mini_sockets::TIME_WAIT_NS,
    state::State,
    tracker::Tracker,
};

/// The share of the ports from which on connect() has to search for long, and fails soon.
const CRITICAL_USAGE: f64 = 0.9;

/// What is told of a destination besides.
#[derive(Default)]
struct About {
    closed_lately: u64,
    oldest_ns: u64,
    /// By process id: who closed how many of those in TIME_WAIT.
    closers: FxHashMap<u32, (Process, u64)>,
    sample: Vec<FoundSocket>,
}

pub(super) fn detect(tracker: &Tracker, tally: &Tally, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut uses = ports::uses(tracker, &facts.namespaces, facts.now_ns);
    let failed = connects_failed(&mut uses, tally);
    let available: FxHashMap<u32, u64> =
        facts.namespaces.iter().map(|(netns, facts)| (*netns, facts.ports.available().max(1))).collect();
    let mut scarce: BTreeMap<Destination, (Use, Ports<'_>)> = BTreeMap::new();
    for (destination, usage) in uses {
        let Some(namespace) = facts.namespaces.get(&destination.netns) else {
            continue;
        };
        let available = available[&destination.netns];
        let failed = failed.get(&destination).copied().unwrap_or(0);
        let share = usage.ports() as f64 / available as f64;
        if share >= thresholds.port_usage || failed > 0 {
            scarce.insert(destination, (usage, Ports { settings: &namespace.ports, available, share, failed }));
        }
    }
    let mut about = look_closer(scarce.keys(), tracker, facts);
    scarce
        .into_iter()
        .map(|(destination, (usage, ports))| {
            finding(destination, usage, about.remove(&destination).unwrap_or_default(), &ports, facts)
        })
        .collect()
}

/// How many connect() calls found no port, by destination. They do not tell their local address: it is the one that
/// uses the most ports, or none that is known.
fn connects_failed(uses: &mut FxHashMap<Destination, Use>, tally: &Tally) -> FxHashMap<Destination, u64> {
    if tally.no_local_port.is_empty() {
        return FxHashMap::default();
    }
    let mut busiest: FxHashMap<(u32, Endpoint), (u64, Destination)> = FxHashMap::default();
    for (destination, usage) in &*uses {
        let busy = (usage.ports(), *destination);
        let known = busiest.entry((destination.netns, destination.remote)).or_insert(busy);
        *known = busy.max(*known);
    }
    let mut failed = FxHashMap::default();
    for ((netns, remote), count) in &tally.no_local_port {
        let unknown = Destination { netns: *netns, local: Address::UNSPECIFIED, remote: *remote };
        let destination = busiest.get(&(*netns, *remote)).map_or(unknown, |(_, destination)| *destination);
        uses.entry(destination).or_default();
        failed.insert(destination, *count);
    }
    failed
}

fn look_closer<'a>(
    destinations: impl Iterator<Item = &'a Destination>,
    tracker: &Tracker,
    facts: &Facts,
) -> FxHashMap<Destination, About> {
    let mut about: FxHashMap<Destination, About> =
        destinations.map(|destination| (*destination, About::default())).collect();
    let lately_ns = facts.now_ns.saturating_sub(rated_ns(facts));
    for (tuple, mini) in ports::minis(tracker, facts.now_ns) {
        let Some(about) = about.get_mut(&Destination::of(tuple)) else {
            continue;
        };
        let age_ns = facts.now_ns.saturating_sub(mini.since_ns);
        if mini.state == State::TIME_WAIT {
            about.oldest_ns = about.oldest_ns.max(age_ns);
            if let Some(process) = mini.process {
                about.closers.entry(process.pid).or_insert((process, 0)).1 += 1;
            }
        }
        about.closed_lately += u64::from(mini.since_ns >= lately_ns);
        if about.sample.len() < SAMPLE {
            about.sample.push(FoundSocket {
                cookie: 0,
                local: tuple.local,
                remote: tuple.remote,
                age_ns,
                age_certainty: Certainty::Exact,
                fds: Vec::new(),
            });
        }
    }
    about
}

/// The time that a rate is taken over: what closed earlier than TIME_WAIT lasts has left nothing to count.
fn rated_ns(facts: &Facts) -> u64 {
    facts.window_ns.min(TIME_WAIT_NS)
}

struct Ports<'a> {
    settings: &'a PortSettings,
    available: u64,
    share: f64,
    failed: u64,
}

fn finding(destination: Destination, usage: Use, about: About, ports: &Ports<'_>, facts: &Facts) -> Finding {
    let rate = (facts.window_ns >= SHORTEST_GROWTH_WINDOW_NS)
        .then(|| about.closed_lately as f64 / (rated_ns(facts) as f64 / 1e9));
    let left = ports.available.saturating_sub(usage.ports());
    // At a steady rate TIME_WAIT levels off at rate × 60 s; only above the range will the ports run out.
    let runs_out = |rate: &f64| rate * (TIME_WAIT_NS as f64 / 1e9) + usage.open as f64 > ports.available as f64;
    let is_taken_over = reuses_time_wait(ports.settings, destination.local, destination.remote.address);
    let eta_s = rate.filter(|rate| runs_out(rate) && !is_taken_over).map(|rate| (left as f64 / rate) as u64);
    let severity = if ports.failed > 0 || ports.share >= CRITICAL_USAGE || eta_s.is_some_and(|eta| eta < 3600) {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let process =
        about.closers.values().max_by_key(|(process, count)| (*count, process.pid)).map(|(process, _)| *process);
    let percent = (ports.share * 100.0).round();
    Finding {
        process,
        local: (!destination.local.is_unspecified()).then_some(Endpoint { address: destination.local, port: 0 }),
        remote: Some(destination.remote),
        netns: destination.netns,
        count: usage.time_wait,
        oldest_ns: about.oldest_ns,
        oldest_certainty: Certainty::Exact,
        growth_per_min: rate.map(|rate| rate * 60.0),
        eta_s,
        evidence: evidence(usage, ports, rate),
        sockets: about.sample,
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
        .explained_in(topic(is_taken_over))
    }
}

fn evidence(usage: Use, ports: &Ports<'_>, rate: Option<f64>) -> Vec<String> {
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
    let taken_over = match usage.time_wait - usage.time_wait_kept {
        0 => String::new(),
        count => format!(": {count} of those in TIME_WAIT can be taken over"),
    };
    lines.push(format!("tcp_tw_reuse is {} ({reuse}){taken_over}", ports.settings.time_wait_reuse));
    lines
}

pub(super) fn topic(reuses_time_wait: bool) -> &'static str {
    if reuses_time_wait { "tw_reuse_on" } else { "tw_reuse_off" }
}
