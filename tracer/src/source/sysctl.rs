//! Settings and counters of the current network namespace, from /proc. Call these inside [`Namespace::enter`]: /proc
//! shows the reading thread's namespace.
//!
//! [`Namespace::enter`]: super::netns::Namespace::enter

use std::fs;

use crate::core::finding::{NamespaceCounters, PortRange, PortSettings};

/// Life of an orphan in FIN_WAIT2 (`net.ipv4.tcp_fin_timeout`), ns; the kernel's default where it cannot be read.
#[must_use]
pub fn fin_timeout_ns() -> u64 {
    read_number("/proc/sys/net/ipv4/tcp_fin_timeout").unwrap_or(60) * 1_000_000_000
}

/// Mini-sockets of the current namespace, TIME_WAIT and FIN_WAIT2 together (`tw` of sockstat).
#[must_use]
pub fn mini_socket_count() -> Option<u64> {
    mini_sockets_in(&fs::read_to_string("/proc/thread-self/net/sockstat").ok()?)
}

fn mini_sockets_in(sockstat: &str) -> Option<u64> {
    let mut words = sockstat.lines().find(|line| line.starts_with("TCP:"))?.split_ascii_whitespace();
    words.find(|word| *word == "tw")?;
    words.next()?.parse().ok()
}

/// How many mini-sockets the current namespace may have (`net.ipv4.tcp_max_tw_buckets`).
#[must_use]
pub fn time_wait_max() -> Option<u64> {
    read_number("/proc/sys/net/ipv4/tcp_max_tw_buckets")
}

/// The counters of the current namespace that findings go by.
#[must_use]
pub fn counters() -> NamespaceCounters {
    let netstat = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    NamespaceCounters {
        time_wait_overflows: counter(&netstat, "TCPTimeWaitOverflow").unwrap_or(0),
        listen_overflows: counter(&netstat, "ListenOverflows").unwrap_or(0),
    }
}

/// A value of the `TcpExt:` lines: one has the names, the next one the numbers.
fn counter(netstat: &str, name: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let at = lines.next()?.split_ascii_whitespace().position(|known| known == name)?;
    lines.next()?.split_ascii_whitespace().nth(at)?.parse().ok()
}

/// What decides how many local ports there are.
#[must_use]
pub fn port_settings() -> PortSettings {
    let text = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    PortSettings {
        range: parse_range(&text("ip_local_port_range")).unwrap_or_default(),
        reserved: parse_reserved(&text("ip_local_reserved_ports")),
        time_wait_reuse: text("tcp_tw_reuse").trim().parse().unwrap_or(0),
    }
}

fn parse_range(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then_some(PortRange { first, last })
}

/// `8080,9000-9100`.
fn parse_reserved(text: &str) -> Vec<PortRange> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(PortRange { first, last })
    };
    text.trim().split(',').filter_map(range).collect()
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockstat_tells_the_mini_sockets() {
        let text = "sockets: used 200\nTCP: inuse 5 orphan 0 tw 12 alloc 7 mem 1\nUDP: inuse 2 mem 0\n";
        assert_eq!(mini_sockets_in(text), Some(12));
        assert_eq!(mini_sockets_in("TCP: inuse 5"), None);
        assert_eq!(mini_sockets_in(""), None);
        assert!(mini_socket_count().is_some());
    }

    #[test]
    fn counters_are_found_by_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows TW\nTcpExt: 0 17 4\nIpExt: ListenOverflows\nIpExt: 3\n";
        assert_eq!(counter(text, "ListenOverflows"), Some(17));
        assert_eq!(counter(text, "Nonsense"), None);
        assert_eq!(counter("TcpExt: a", "a"), None);
        assert!(time_wait_max().is_some_and(|max| max > 0));
    }

    #[test]
    fn port_ranges_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_range("32768\t60999\n"), Some(PortRange { first: 32_768, last: 60_999 }));
        assert_eq!(parse_range("9 8"), None);
        let reserved = [PortRange { first: 8080, last: 8080 }, PortRange { first: 9000, last: 9100 }];
        assert_eq!(parse_reserved("8080,9000-9100\n"), reserved);
        assert_eq!(parse_reserved("\n"), []);
    }
}
