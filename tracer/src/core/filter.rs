//! Which connections a run is about.
//!
//! [`SocketFilter`] is the part that the kernel side can decide too, conservatively; here it is decided exactly. What
//! cannot be decided yet, because a port is still 0, is [`Verdict::NotYet`], and the caller keeps the event until it
//! can: a connection's first event is never lost.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

use super::{
    connection::Process,
    endpoint::{Endpoint, Tuple},
    state::State,
};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4, v4-mapped addresses of dual-stack sockets included.
    V4,
    /// IPv6.
    V6,
}

/// Conditions on a socket's ends and namespace. An empty list or `None` is no condition; several conditions must all
/// hold; within a list one match is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketFilter {
    /// Ports at either end.
    pub ports: Vec<u16>,
    /// Ports at this host's end.
    pub local_ports: Vec<u16>,
    /// Ports at the peer's end.
    pub remote_ports: Vec<u16>,
    /// Networks at either end.
    pub addresses: Vec<IpNet>,
    /// Address family.
    pub family: Option<Family>,
    /// Network namespaces, as inode numbers.
    pub netns: Vec<u32>,
}

/// As options of the command line; nothing where there is no condition.
impl fmt::Display for SocketFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options = Vec::new();
        let mut list = |name: &str, values: Vec<String>| {
            if !values.is_empty() {
                options.push(format!("--{name} {}", values.join(",")));
            }
        };
        let texts = |ports: &[u16]| ports.iter().map(u16::to_string).collect();
        list("port", texts(&self.ports));
        list("local-port", texts(&self.local_ports));
        list("remote-port", texts(&self.remote_ports));
        list("address", self.addresses.iter().map(IpNet::to_string).collect());
        list("netns", self.netns.iter().map(u32::to_string).collect());
        match self.family {
            Some(Family::V4) => options.push("--ipv4".to_owned()),
            Some(Family::V6) => options.push("--ipv6".to_owned()),
            None => {}
        }
        f.write_str(&options.join(" "))
    }
}

/// What [`Display`](fmt::Display) has written.
impl FromStr for SocketFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fn list<T: FromStr>(values: Option<&str>) -> Option<Vec<T>> {
            values?.split(',').map(|value| value.parse().ok()).collect()
        }
        let mut filter = Self::default();
        let mut words = text.split_ascii_whitespace();
        while let Some(option) = words.next() {
            let understood = match option {
                "--ipv4" | "--ipv6" => {
                    filter.family = Some(if option == "--ipv4" { Family::V4 } else { Family::V6 });
                    Some(())
                }
                "--port" => list(words.next()).map(|ports| filter.ports = ports),
                "--local-port" => list(words.next()).map(|ports| filter.local_ports = ports),
                "--remote-port" => list(words.next()).map(|ports| filter.remote_ports = ports),
                "--address" => list(words.next()).map(|addresses| filter.addresses = addresses),
                "--netns" => list(words.next()).map(|netns| filter.netns = netns),
                _ => None,
            };
            understood.ok_or_else(|| format!("{option}: no condition on sockets"))?;
        }
        Ok(filter)
    }
}

/// Whether something is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// It depends on something that is not known yet.
    NotYet,
}

impl Verdict {
    fn of(condition: bool) -> Self {
        if condition { Self::Yes } else { Self::No }
    }

    /// Both have to want it.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::NotYet, _) | (_, Self::NotYet) => Self::NotYet,
            _ => Self::Yes,
        }
    }

    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::NotYet, _) | (_, Self::NotYet) => Self::NotYet,
            _ => Self::No,
        }
    }
}

impl SocketFilter {
    /// Whether a socket with these ends is wanted. `state` is the one it is in: a listener has no remote end and never
    /// will.
    #[must_use]
    pub fn verdict(&self, tuple: &Tuple, state: State) -> Verdict {
        let listener = state == State::LISTEN;
        let netns = Verdict::of(self.netns.is_empty() || tuple.netns == 0 || self.netns.contains(&tuple.netns));
        let local = port_verdict(tuple.local, &self.local_ports, false);
        let remote = port_verdict(tuple.remote, &self.remote_ports, listener);
        let either = if self.ports.is_empty() {
            Verdict::Yes
        } else {
            port_verdict(tuple.local, &self.ports, false).or(port_verdict(tuple.remote, &self.ports, listener))
        };
        netns
            .and(local)
            .and(remote)
            .and(either)
            .and(self.address_verdict(tuple, listener))
            .and(self.family_verdict(tuple))
    }

    fn address_verdict(&self, tuple: &Tuple, listener: bool) -> Verdict {
        let within = |end: Endpoint| {
            let ip: IpAddr = end.address.ip();
            self.addresses.iter().any(|net| net.contains(&ip))
        };
        if self.addresses.is_empty() || within(tuple.local) || within(tuple.remote) {
            Verdict::Yes
        } else if !listener && (tuple.local.address.is_unspecified() || tuple.remote.address.is_unspecified()) {
            // Before 6.15 LISTEN→SYN_RECV has no remote address yet.
            Verdict::NotYet
        } else {
            Verdict::No
        }
    }

    fn family_verdict(&self, tuple: &Tuple) -> Verdict {
        let Some(family) = self.family else {
            return Verdict::Yes;
        };
        let known = [tuple.remote, tuple.local].into_iter().find(|end| !end.address.is_unspecified());
        // A listener on `::` may serve both.
        known.map_or(Verdict::Yes, |end| Verdict::of(end.address.is_v4() == (family == Family::V4)))
    }
}

fn port_verdict(end: Endpoint, wanted: &[u16], never_known: bool) -> Verdict {
    if wanted.is_empty() || wanted.contains(&end.port) {
        Verdict::Yes
    } else if end.port == 0 && !never_known {
        Verdict::NotYet
    } else {
        Verdict::No
    }
}

/// Conditions on who owns a connection and what it went through: these are decided in userspace only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerFilter {
    /// Process ids.
    pub pids: Vec<u32>,
    /// Process names.
    pub comms: Vec<String>,
    /// Cgroup ids.
    pub cgroups: Vec<u64>,
}

impl OwnerFilter {
    /// Whether there is no condition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pids.is_empty() && self.comms.is_empty() && self.cgroups.is_empty()
    }

    /// Whether a connection of this process and cgroup is wanted. As long as an owner is not known it is not.
    #[must_use]
    pub fn matches(&self, process: Option<&Process>, cgroup: u64) -> bool {
        self.matches_process(process) && self.matches_cgroup(cgroup)
    }

    /// The condition on the process alone.
    #[must_use]
    pub fn matches_process(&self, process: Option<&Process>) -> bool {
        (self.pids.is_empty() || process.is_some_and(|process| self.pids.contains(&process.pid)))
            && (self.comms.is_empty()
                || process.is_some_and(|process| self.comms.iter().any(|comm| *comm == process.comm.name())))
    }

    /// The condition on the cgroup alone.
    #[must_use]
    pub fn matches_cgroup(&self, cgroup: u64) -> bool {
        self.cgroups.is_empty() || self.cgroups.contains(&cgroup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::endpoint::Address;

    fn tuple(local_port: u16, remote_port: u16) -> Tuple {
        let at = |port| Endpoint::new(Address::v4([127, 0, 0, 1]), port);
        Tuple { netns: 1, local: at(local_port), remote: at(remote_port) }
    }

    #[test]
    fn a_filter_is_understood_as_it_is_written() {
        let all = SocketFilter {
            ports: vec![80, 443],
            local_ports: vec![1],
            remote_ports: vec![65_535],
            addresses: vec!["10.0.0.0/8".parse().expect("a network"), "fe80::/10".parse().expect("a network")],
            family: Some(Family::V6),
            netns: vec![4_026_531_840],
        };
        for filter in [SocketFilter::default(), all, SocketFilter { family: Some(Family::V4), ..Default::default() }] {
            assert_eq!(filter.to_string().parse(), Ok(filter));
        }
        for wrong in ["--port", "--port x", "--port 70000", "--pid 1", "80"] {
            assert!(wrong.parse::<SocketFilter>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_port_that_is_still_0_is_not_decided() {
        let filter = SocketFilter { local_ports: vec![4000], ..SocketFilter::default() };
        assert_eq!(filter.verdict(&tuple(0, 443), State::SYN_SENT), Verdict::NotYet);
        assert_eq!(filter.verdict(&tuple(4000, 443), State::ESTABLISHED), Verdict::Yes);
        assert_eq!(filter.verdict(&tuple(4001, 443), State::ESTABLISHED), Verdict::No);
    }

    #[test]
    fn either_end_is_enough_as_soon_as_it_matches() {
        let filter = SocketFilter { ports: vec![443], ..SocketFilter::default() };
        assert_eq!(filter.verdict(&tuple(0, 443), State::SYN_SENT), Verdict::Yes);
        assert_eq!(filter.verdict(&tuple(0, 80), State::SYN_SENT), Verdict::NotYet);
        assert_eq!(filter.verdict(&tuple(5, 80), State::SYN_SENT), Verdict::No);
    }

    #[test]
    fn conditions_read_as_they_were_typed() {
        let filter = SocketFilter {
            ports: vec![80, 443],
            addresses: vec!["10.0.0.0/8".parse().expect("net")],
            family: Some(Family::V6),
            ..SocketFilter::default()
        };
        assert_eq!(filter.to_string(), "--port 80,443 --address 10.0.0.0/8 --ipv6");
        assert_eq!(SocketFilter::default().to_string(), "");
    }

    #[test]
    fn a_listener_never_gets_a_remote_port() {
        let filter = SocketFilter { remote_ports: vec![443], ..SocketFilter::default() };
        assert_eq!(filter.verdict(&tuple(80, 0), State::LISTEN), Verdict::No);
    }

    #[test]
    fn a_family_takes_v4_mapped_for_ipv4_and_leaves_wildcards_alone() {
        let filter = SocketFilter { family: Some(Family::V4), ..SocketFilter::default() };
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().expect("an address");
        let at = |ip: IpAddr| Endpoint::new(ip, 1);
        let wildcard = Endpoint { address: Address::UNSPECIFIED, port: 80 };
        let to = |remote| Tuple { netns: 1, local: wildcard, remote };
        assert_eq!(filter.verdict(&to(at(mapped)), State::ESTABLISHED), Verdict::Yes);
        assert_eq!(filter.verdict(&to(at("fe80::1".parse().expect("ip"))), State::ESTABLISHED), Verdict::No);
        assert_eq!(filter.verdict(&to(Endpoint::UNKNOWN), State::LISTEN), Verdict::Yes);
    }

    #[test]
    fn addresses_match_by_network_at_either_end() {
        let filter = SocketFilter { addresses: vec!["127.0.0.0/8".parse().expect("net")], ..SocketFilter::default() };
        assert_eq!(filter.verdict(&tuple(1, 2), State::ESTABLISHED), Verdict::Yes);
        let filter = SocketFilter { addresses: vec!["10.0.0.0/8".parse().expect("net")], ..SocketFilter::default() };
        assert_eq!(filter.verdict(&tuple(1, 2), State::ESTABLISHED), Verdict::No);
        let unknown = Tuple { remote: Endpoint::UNKNOWN, ..tuple(1, 2) };
        assert_eq!(filter.verdict(&unknown, State::SYN_RECV), Verdict::NotYet);
        assert_eq!(filter.verdict(&unknown, State::LISTEN), Verdict::No);
    }
}
