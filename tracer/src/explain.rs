//! `tracer explain`: what the words mean that the tool uses.

use std::io::{self, Write};

use anyhow::{Result, bail};

use crate::output::wrapped;

/// Topic and text. Finding and cause names are those of the records.
const TOPICS: &[(&str, &str)] = &[
    (
        "SYN_SENT",
        "connect() was called, the SYN is out, nothing has come back. Long times here: the peer, or a firewall before it, drops SYNs. Ends in CLOSE when refused, timed out, given up, or when no local port was free.",
    ),
    (
        "SYN_RECV",
        "The kernel makes a server's socket only at the last ACK of the handshake, so this lasts for microseconds and tells nothing about the network. Half-open handshakes are request sockets, which no transition shows. With TCP Fast Open the socket is there from the SYN on.",
    ),
    ("ESTABLISHED", "Both ends may send."),
    (
        "FIN_WAIT1",
        "This side closed first; its FIN is not acknowledged yet. Lasting: the peer is gone or its receive window is closed while data still waits to be sent.",
    ),
    (
        "FIN_WAIT2",
        "This side closed first and the peer has acknowledged, but has not closed itself: it sits in CLOSE_WAIT. Once the program here has closed its descriptor, only a mini-socket is left, for tcp_fin_timeout (60 s) at most. With the descriptor still open (shutdown) it lasts as long as the peer likes.",
    ),
    ("CLOSING", "Both sides closed at the same time."),
    (
        "TIME_WAIT",
        "What is left of a connection on the side that closed first: a mini-socket, for 60 s, whatever tcp_fin_timeout says. No transition shows it; tracer derives it and checks it against the kernel's own list. Many are no trouble by themselves; towards one destination they use up the local ports (time_wait_ports).",
    ),
    (
        "CLOSE_WAIT",
        "The peer has closed, the program here has not. It lasts until the program calls close(): a stuck CLOSE_WAIT is always the local program's doing.",
    ),
    ("LAST_ACK", "The peer closed first, then this side; its FIN is not acknowledged yet. Lasting: the peer is gone."),
    ("LISTEN", "A server waits for connections."),
    (
        "CLOSE",
        "No connection. Not the same as a closed descriptor: after the peer's RST a socket is in CLOSE with its descriptor still open, and neither ss nor netstat lists it.",
    ),
    (
        "close_wait",
        "Finding: a program keeps sockets in CLOSE_WAIT. Each costs a descriptor; in the end accept() and open() fail with EMFILE. The cause (never_accepted, data_unread, fin_unread, eof_read_not_closed) says where to look.",
    ),
    (
        "time_wait_ports",
        "Finding: a destination (local address, remote address, remote port) uses up the local ports. With the default range of 28 232 ports and 60 s of TIME_WAIT, about 470 connections a second are the limit; then connect() fails with EADDRNOTAVAIL. Keep connections alive, or pool them.",
    ),
    (
        "time_wait_table",
        "Finding: the kernel's table of mini-sockets (tcp_max_tw_buckets) is nearly full. When it is full, connections are closed without TIME_WAIT, and late segments of an old connection may reach a new one with the same ends.",
    ),
    (
        "closed_not_released",
        "Finding: a connection ended by itself (the peer's RST, a timeout, a kill) and the program still has its descriptor. The socket is in CLOSE, which ss and netstat cannot list; lsof prints \"can't identify protocol\". The program has not noticed, or does not close after an error.",
    ),
    (
        "accept_stalled",
        "Finding: completed connections wait for accept(): the accept queue is full, or one has waited for more than five seconds. While it is full the kernel drops handshakes (ListenOverflows), which clients see as slow or failing connects.",
    ),
    (
        "peer_not_closing",
        "Finding: FIN_WAIT2 that lasts (the peer has not closed: the leak is on the other side), or FIN_WAIT1 and LAST_ACK that last (our FIN is not acknowledged: the peer is gone, or does not read and its window is closed).",
    ),
    (
        "connect_failures",
        "Finding: connects of a process to a destination fail: refused (nobody listens), timed out (no answer at all), or with an error of the network.",
    ),
    (
        "resets",
        "Finding: more connections of a process end in a RST than everyday life explains (10 or more, and 5 % of its connections), told by who sent it and why.",
    ),
    (
        "churn",
        "Finding: many connections shorter than a second to one destination, closed by this side. One kept alive would carry them all: without handshakes, and without a local port each for 60 s.",
    ),
    (
        "port_blocked",
        "Finding: a listener is gone and sockets remain on its port. Until they are gone, bind() without SO_REUSEADDR fails with EADDRINUSE.",
    ),
    (
        "never_accepted",
        "Cause of a close_wait: the handshake is complete, but the program never called accept(); the peer has given up meanwhile. The accept loop is stuck or too slow.",
    ),
    (
        "data_unread",
        "Cause of a close_wait: data waits in the receive queue. Whoever should read this connection is stuck.",
    ),
    (
        "fin_unread",
        "Cause of a close_wait: all data was read, but the FIN behind it was not. Nobody polls or reads this connection any more: a pool with dead connections, or a stuck worker.",
    ),
    (
        "eof_read_not_closed",
        "Cause of a close_wait: read() has returned 0 and close() was never called. The classic descriptor leak, often in an error path.",
    ),
    ("active", "Opening: connect(). Closing: this side sent its FIN first, and so has the TIME_WAIT."),
    ("passive", "Opening: through a listener. Closing: the peer sent its FIN first."),
    ("simultaneous", "Both sides did it at the same time: the SYNs, or the FINs, crossed."),
    ("fast_open", "Opening through a listener with data in the SYN (TCP Fast Open)."),
    ("pre_existing", "The connection was there before the tracer; its durations are lower bounds."),
    ("reset_received", "Closing: the peer sent a RST."),
    (
        "reset_sent",
        "Closing: this side sent a RST. Reasons: close() with unread data, SO_LINGER 0, disconnect, a listener closed with connections not accepted, or data that arrived after close().",
    ),
    ("refused", "Closing: the peer answered the SYN with a RST; nobody listens there, or a firewall says so."),
    (
        "timed_out",
        "Closing: the peer did not answer: connect timeout, keepalive, retransmissions, or TCP_USER_TIMEOUT.",
    ),
    ("no_local_port", "Closing: connect() found no free local port (EADDRNOTAVAIL)."),
    ("killed", "Closing: another process destroyed the socket (SOCK_DESTROY, as ss -K does)."),
    ("aborted", "Closing: given up for another reason: close() while connecting, an unreachable peer, want of memory."),
    ("exact", "Certainty: beginning and end were seen."),
    ("at_least", "Certainty: it began before the tracer, or is not over: a lower bound."),
    (
        "unknown",
        "Certainty: a transition was missed. The time is only how the known time divides. As a closing: the CLOSE itself was missed.",
    ),
    (
        "dropped",
        "Transitions that found the ring buffer full: tracer could not keep up. A larger --buffer helps. The picture is repaired from the kernel's own list of sockets.",
    ),
    (
        "missed",
        "Transitions that the kernel did not run the BPF program for, because an interrupt came while it was running on the same CPU. No tool gets them; tracer counts and repairs them.",
    ),
    (
        "repaired",
        "Transitions that were inferred, from what came before and after or from the kernel's own list; marked origin: repaired (or snapshot), and gap: true in the connection.",
    ),
];

/// Writes the text of a topic, or the list of topics.
pub fn print(topic: Option<&str>, to: &mut impl Write) -> Result<()> {
    let Some(topic) = topic else {
        let names: Vec<&str> = TOPICS.iter().map(|(name, _)| *name).collect();
        return Ok(writeln!(to, "tracer explain TOPIC, with one of: {}", names.join(", "))?);
    };
    let wanted = topic.replace('-', "_");
    // States are written in capitals, so that close_wait (the finding) and CLOSE_WAIT (the state) are both there.
    let text = TOPICS
        .iter()
        .find(|(name, _)| *name == wanted)
        .or_else(|| TOPICS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&wanted)));
    match text {
        Some((name, text)) => Ok(write_text(name, text, to)?),
        None => bail!("nothing to explain about {topic:?}: tracer explain lists the topics"),
    }
}

fn write_text(name: &str, text: &str, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{name}")?;
    wrapped(text, 78).iter().try_for_each(|line| writeln!(to, "  {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::State;

    fn explained(topic: &str) -> String {
        let mut text = Vec::new();
        print(Some(topic), &mut text).expect("explained");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn a_state_and_a_finding_of_the_same_name_are_told_apart() {
        assert!(explained("CLOSE_WAIT").contains("The peer has closed"));
        assert!(explained("close_wait").starts_with("close_wait\n  Finding"));
        assert!(explained("Fin-Wait2").starts_with("FIN_WAIT2"));
    }

    #[test]
    fn every_state_that_is_ever_shown_is_explained() {
        for state in State::all().filter(|state| state.0 <= State::CLOSING.0) {
            assert!(explained(&state.to_string()).len() > 20);
        }
    }

    #[test]
    fn every_finding_and_every_cause_is_explained() {
        use crate::core::finding::{Cause, Kind};
        let names = Kind::ALL.iter().map(|kind| kind.name()).chain(Cause::ALL.iter().map(|cause| cause.name()));
        for name in names {
            assert!(explained(name).starts_with(&format!("{name}\n")), "{name}");
        }
    }

    #[test]
    fn lines_fit_a_terminal_and_the_unknown_is_refused() {
        assert!(TOPICS.iter().all(|(name, _)| explained(name).lines().all(|line| line.chars().count() <= 80)));
        assert!(print(Some("nonsense"), &mut Vec::new()).is_err());
    }
}
