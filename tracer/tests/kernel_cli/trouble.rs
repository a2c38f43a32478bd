//! `tracer diagnose` beside programs that misbehave in other ways than leaking: one test for each kind of finding.

use std::{
    io::Write,
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::id,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    diagnose::{findings, in_snapshot},
    diagnosis::{Diagnosis, at_once},
    harness::{Ended, assert_values, eventually, in_new_namespace},
    net::{self, close, local, pair, sysctl},
};

/// Longer than a FIN waits on any healthy host.
const HANGING: Duration = Duration::from_millis(1_100);

pub(crate) fn watch() -> Diagnosis {
    Diagnosis::watch("")
}

/// Waits until something has lasted, which is what some findings are about.
pub(crate) fn until_it_has_lasted(age: Duration, since: Instant) {
    eventually("old enough", || since.elapsed() > age);
}

/// A line of a finding's evidence has this part.
pub(crate) fn in_evidence(finding: &Value, part: &str) {
    let mut lines = finding["evidence"].as_array().expect("evidence").iter();
    assert!(lines.any(|line| line.as_str().is_some_and(|line| line.contains(part))), "no {part:?} in {finding}");
}

pub(crate) fn nothing_is_found(ended: &Ended) {
    assert_eq!(findings(ended, 0), [Value::Null; 0]);
}

/// The one finding of a kind.
pub(crate) fn of_kind(ended: &Ended, kind: &str) -> Value {
    let findings = findings(ended, 0);
    let found: Vec<&Value> = findings.iter().filter(|finding| finding["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{findings:#?}");
    found[0].clone()
}

pub(crate) fn in_title(finding: &Value, part: &str) {
    assert!(finding["title"].as_str().is_some_and(|title| title.contains(part)), "{finding}");
}

#[test]
fn listeners_that_do_not_accept() {
    const FORGOTTEN: Duration = Duration::from_millis(5_100);
    in_new_namespace(|| {
        let (small, large) = (net::listen_with_backlog(2), net::listen());
        let tracer = watch();
        let began = Instant::now();
        let connect = |to: &TcpListener| TcpStream::connect(local(to)).expect("connected");
        let _waiting = [connect(&large), connect(&small), connect(&small), connect(&small)];
        until_it_has_lasted(FORGOTTEN, began);
        let findings = findings(&tracer.interrupt(), 0);
        assert_eq!(findings.len(), 2, "{findings:#?}");
        let kind = "accept_stalled";
        let full = json!({"kind": kind, "severity": "critical", "count": 3, "local": local(&small).to_string()});
        assert_values(&findings[0], &full);
        assert_eq!(findings[0]["evidence"][0], "accept queue: 3 of 2, full");
        let forgotten = json!({"kind": kind, "severity": "warning", "count": 1, "local": local(&large).to_string()});
        assert_values(&findings[1], &forgotten);
        assert_eq!(findings[1]["evidence"][0], "accept queue: 1 of 128");
        for finding in &findings {
            assert_eq!(finding["process"]["pid"], id());
            assert_eq!(finding["oldest_certainty"], "exact");
        }
    });
}

#[test]
fn a_port_whose_listener_is_gone_is_blocked_until_the_last_socket_is() {
    in_new_namespace(|| {
        let tracer = watch();
        let listener = net::listen();
        let address = local(&listener);
        let (client, server) = pair(&listener);
        // The server closes first, so that TIME_WAIT is on its port.
        net::close_in_order((server, client));
        drop(listener);
        eventually("closed", || net::count_in(net::TIME_WAIT) == 1);
        let finding = of_kind(&tracer.interrupt(), "port_blocked");
        assert_values(&finding, &json!({"severity": "info", "count": 1, "local": address.to_string()}));
        assert!(finding["eta_s"].as_u64().is_some_and(|seconds| (1..=60).contains(&seconds)), "{finding}");
        in_title(&finding, "EADDRINUSE");
    });
}

#[test]
fn a_table_of_mini_sockets_that_is_too_small() {
    in_new_namespace(|| {
        sysctl("tcp_max_tw_buckets", "5");
        let tracer = watch();
        let listener = net::listen();
        for _ in 0..20 {
            net::close_in_order(pair(&listener));
        }
        let finding = of_kind(&tracer.interrupt(), "time_wait_table");
        assert_values(&finding, &json!({"severity": "warning", "count": net::count_in(net::TIME_WAIT)}));
        in_title(&finding, "table is full");
        in_evidence(&finding, "closed without TIME_WAIT");
        // Without what happened before, it is nearly full.
        let finding = of_kind(&at_once(""), "time_wait_table");
        assert_values(&finding, &json!({"severity": "info", "count": 5}));
        in_title(&finding, "nearly full: 5 of 5");
    });
}

#[test]
fn many_short_connections_that_could_be_one() {
    const WINDOW: Duration = Duration::from_millis(5_100);
    const PORTS: u16 = 1_000;
    in_new_namespace(|| {
        let listener = net::with_ports(PORTS);
        let (tracer, second) = (watch(), watch());
        let began = Instant::now();
        for _ in 0..400 {
            net::close_in_order(pair(&listener));
        }
        until_it_has_lasted(WINDOW, began);
        let churn = |tracer: Diagnosis, severity| {
            let finding = of_kind(&tracer.interrupt(), "churn");
            assert_values(
                &finding,
                &json!({"severity": severity, "count": 400, "remote": local(&listener).to_string()}),
            );
            assert_eq!(finding["process"]["pid"], id());
        };
        churn(tracer, "warning");
        // As loopback does by default: there are always enough of them.
        sysctl("tcp_tw_reuse", "2");
        churn(second, "info");
    });
}

/// The peer closes in its own time: after shutdown() we wait in FIN_WAIT2 until then.
#[test]
fn a_peer_that_does_not_close() {
    in_new_namespace(|| {
        let tracer = Diagnosis::watch("--close-wait-age 0s");
        let listener = net::listen();
        let pairs: Vec<_> = (0..3).map(|_| pair(&listener)).collect();
        pairs.iter().for_each(|(client, _)| client.shutdown(Shutdown::Write).expect("SHUT_WR"));
        until_it_has_lasted(HANGING, Instant::now());
        let finding = of_kind(&tracer.interrupt(), "peer_not_closing");
        assert_values(&finding, &json!({"severity": "warning", "count": 3, "remote": local(&listener).to_string()}));
        in_title(&finding, "in FIN_WAIT2: the peer does not close");
        let oldest = finding["sockets"][0]["fds"].clone();
        assert!(pairs.iter().any(|(client, _)| oldest == json!([client.as_raw_fd()])), "{finding}");

        // One who looks only now knows how long by when the peer was last heard.
        let mut findings = in_snapshot("--close-wait-age 1s");
        findings.retain(|finding| finding["kind"] == "peer_not_closing");
        assert_eq!(findings.len(), 1);
        assert_values(&findings[0], &json!({"count": 3, "oldest_certainty": "at_least"}));
    });
}

/// Our FIN is not acknowledged: behind data that the peer does not read, or because it is lost on the way.
#[test]
fn peers_that_do_not_read_and_peers_that_are_gone() {
    in_new_namespace(|| {
        let tracer = Diagnosis::watch("--close-wait-age 0s");
        let listener = net::listen();
        let not_reading: Vec<_> = (0..3).map(|_| pair(&listener)).collect();
        for (client, _) in &not_reading {
            client.set_nonblocking(true).expect("O_NONBLOCK");
            while (&*client).write(&[0; 65_536]).is_ok() {}
            client.shutdown(Shutdown::Write).expect("SHUT_WR");
        }
        let gone: Vec<_> = (0..3).map(|_| pair(&listener)).collect();
        gone.iter().for_each(|(client, _)| client.shutdown(Shutdown::Write).expect("SHUT_WR"));
        eventually("acknowledged", || net::count_in(net::FIN_WAIT2) == gone.len());
        let gone: Vec<TcpStream> = gone
            .into_iter()
            .map(|(client, server)| {
                net::deafen(&client);
                net::await_end(&server);
                close(server);
                client
            })
            .collect();
        until_it_has_lasted(HANGING, Instant::now());
        let findings = findings(&tracer.interrupt(), 0);
        let hanging = |state: &str| {
            let in_state = |finding: &&Value| finding["title"].as_str().is_some_and(|title| title.contains(state));
            findings
                .iter()
                .filter(|finding| finding["kind"] == "peer_not_closing")
                .find(in_state)
                .unwrap_or_else(|| panic!("none in {state}: {findings:#?}"))
        };
        let fin_wait1 = hanging("in FIN_WAIT1: our FIN is not acknowledged");
        assert_values(fin_wait1, &json!({"severity": "warning", "count": 3, "remote": local(&listener).to_string()}));
        in_evidence(fin_wait1, "bytes in the send queues");
        // The kernel ends these by itself.
        let last_ack = hanging("in LAST_ACK: our FIN is not acknowledged");
        assert_values(last_ack, &json!({"severity": "info", "count": 3, "local": local(&listener).to_string()}));
        in_evidence(last_ack, "nothing but the FIN in the send queues");
        in_evidence(last_ack, "3 sockets closed by the program already");
        drop(gone);
    });
}
