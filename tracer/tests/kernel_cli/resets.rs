//! `tracer diagnose` beside programs whose connections end in a RST: by whom, and why.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::id,
};

use serde_json::{Value, json};

use crate::{
    diagnose::findings,
    harness::{assert_values, eventually, in_new_namespace},
    net::{self, close, local, pair},
    trouble::watch,
};

/// More than everyday life brings.
const MANY: u64 = 12;

/// What is found when a program has done something to so many connections.
fn found_after(misbehave: impl Fn(&TcpListener)) -> Vec<Value> {
    let tracer = watch();
    let listener = net::listen();
    (0..MANY).for_each(|_| misbehave(&listener));
    drop(listener);
    let mut findings = findings(&tracer.interrupt(), 0);
    findings.retain(|finding| finding["kind"] == "resets");
    findings
}

/// One of them says this, of all those connections.
fn told(findings: &[Value], what: &str, severity: &str) {
    let in_title = |finding: &&Value| finding["title"].as_str().is_some_and(|title| title.contains(what));
    let finding = findings.iter().find(in_title).unwrap_or_else(|| panic!("no {what:?}: {findings:#?}"));
    assert_values(finding, &json!({"count": MANY, "severity": severity}));
    assert_eq!(finding["process"]["pid"], id(), "{finding}");
}

#[test]
fn a_program_that_closes_before_it_has_read_all() {
    in_new_namespace(|| {
        let findings = found_after(|listener| {
            let (client, server) = pair(listener);
            net::write(&server, 5);
            eventually("arrived", || client.peek(&mut [0; 5]).is_ok_and(|count| count == 5));
            close(client);
            close(server);
        });
        told(&findings, "reset by us: closed with unread data", "warning");
        told(&findings, "reset by the peer", "warning");
    });
}

#[test]
fn a_program_that_aborts_with_linger_0_and_its_peer() {
    in_new_namespace(|| {
        let findings = found_after(|listener| {
            let (client, server) = pair(listener);
            net::write(&server, 5);
            (&client).read_exact(&mut [0; 5]).expect("read");
            net::linger_zero(&client);
            close(client);
            close(server);
        });
        told(&findings, "reset by us: SO_LINGER is set", "warning");
        told(&findings, "reset by the peer", "warning");
    });
}

#[test]
fn a_program_that_closes_while_its_peer_still_sends() {
    in_new_namespace(|| {
        let findings = found_after(|listener| {
            let (client, server) = pair(listener);
            // What the client sends crosses the server's FIN.
            net::deafen(&client);
            close(server);
            (&client).write_all(b"and then").expect("written");
            close(client);
        });
        told(&findings, "reset by us: data came after close()", "warning");
    });
}

#[test]
fn a_listener_that_is_closed_before_it_has_accepted_all() {
    in_new_namespace(|| {
        let tracer = watch();
        let listener = net::listen();
        let _clients: Vec<_> = (0..MANY)
            .map(|_| TcpStream::connect(local(&listener)).expect("connected"))
            .inspect(|client| net::write(client, 5))
            .collect();
        close(listener);
        let findings = findings(&tracer.interrupt(), 0);
        told(&findings, "reset by us: the listener was closed before they were accepted", "warning");
        told(&findings, "reset by the peer", "warning");
    });
}

#[test]
fn connections_that_somebody_else_kills() {
    in_new_namespace(|| {
        let findings = found_after(|listener| {
            let (client, server) = pair(listener);
            net::write(&client, 5);
            net::kill(&client);
            close(client);
            close(server);
        });
        told(&findings, "killed by another process (SOCK_DESTROY)", "warning");
    });
}

/// Load balancers look whether a port answers, and go away with a RST.
#[test]
fn health_checks_with_a_reset_are_no_warning() {
    in_new_namespace(|| {
        let findings = found_after(|listener| {
            let (client, server) = pair(listener);
            net::linger_zero(&client);
            close(client);
            close(server);
        });
        told(&findings, "reset by the peer", "info");
        told(&findings, "reset by us: SO_LINGER is set", "info");
    });
}
