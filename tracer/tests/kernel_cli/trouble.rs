//! `tracer diagnose` beside programs that misbehave in other ways than leaking: one test for each kind of finding.

use std::{
    net::{TcpListener, TcpStream},
    process::id,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::{
    diagnose::findings,
    harness::{Ended, Tracer, assert_values, eventually, in_new_namespace},
    net::{self, close, local, pair, sysctl},
};

fn watch() -> Tracer {
    Tracer::start("diagnose --format json --duration 10m")
}

/// The one finding of a kind.
fn of_kind(ended: &Ended, kind: &str) -> Value {
    let findings = findings(ended, 0);
    let found: Vec<&Value> = findings.iter().filter(|finding| finding["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{findings:#?}");
    found[0].clone()
}

fn in_title(finding: &Value, part: &str) {
    assert!(finding["title"].as_str().is_some_and(|title| title.contains(part)), "{finding}");
}

#[test]
fn connects_to_where_nobody_listens() {
    in_new_namespace(|| {
        let tracer = watch();
        let nobody = local(&net::listen());
        for _ in 0..12 {
            TcpStream::connect(nobody).expect_err("refused");
        }
        let finding = of_kind(&tracer.interrupt(), "connect_failures");
        assert_values(&finding, &json!({"severity": "warning", "count": 12, "remote": nobody.to_string()}));
        assert_eq!(finding["process"]["pid"], id());
        assert_eq!(finding["evidence"], json!(["of 12 connect() calls: 12 refused"]));
    });
}

#[test]
fn a_program_that_closes_before_it_has_read_all() {
    in_new_namespace(|| {
        let tracer = watch();
        let listener = net::listen();
        for _ in 0..12 {
            let (client, server) = pair(&listener);
            net::write(&server, 5);
            eventually("arrived", || client.peek(&mut [0; 5]).is_ok_and(|count| count == 5));
            close(client);
            close(server);
        }
        let ended = tracer.interrupt();
        let ours = findings(&ended, 0).into_iter().find(|finding| {
            finding["kind"] == "resets" && finding["title"].as_str().is_some_and(|title| title.contains("unread data"))
        });
        let ours = ours.unwrap_or_else(|| panic!("{:#?}", findings(&ended, 0)));
        assert_values(&ours, &json!({"count": 12, "remote": local(&listener).to_string()}));
        assert_eq!(ours["process"]["pid"], id());
    });
}

#[test]
fn a_program_that_aborts_with_linger_0_and_its_peer() {
    in_new_namespace(|| {
        let tracer = watch();
        let listener = net::listen();
        for _ in 0..12 {
            let (client, server) = pair(&listener);
            net::linger_zero(&client);
            close(client);
            close(server);
        }
        let findings = findings(&tracer.interrupt(), 0);
        let resets = |part: &str| {
            let told = |finding: &&Value| finding["title"].as_str().is_some_and(|title| title.contains(part));
            findings
                .iter()
                .filter(|finding| finding["kind"] == "resets")
                .find(told)
                .map(|finding| finding["count"].clone())
        };
        assert_eq!(resets("SO_LINGER is set"), Some(json!(12)), "{findings:#?}");
        assert_eq!(resets("reset by the peer"), Some(json!(12)), "{findings:#?}");
    });
}

#[test]
fn a_listener_that_does_not_accept() {
    in_new_namespace(|| {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().expect("an address").into()).expect("bound");
        listener.listen(2).expect("listening");
        let listener = TcpListener::from(listener);
        let tracer = watch();
        // The queue takes one more than the backlog.
        let _waiting: Vec<_> = (0..3).map(|_| TcpStream::connect(local(&listener)).expect("connected")).collect();
        let finding = of_kind(&tracer.interrupt(), "accept_stalled");
        assert_values(&finding, &json!({"severity": "critical", "count": 3, "local": local(&listener).to_string()}));
        assert_eq!(finding["process"]["pid"], id());
        assert_eq!(finding["evidence"][0], "accept queue: 3 of 2, full");
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
        assert_values(&finding, &json!({"severity": "critical", "count": net::count_in(net::TIME_WAIT)}));
        in_title(&finding, "full");
    });
}

#[test]
fn many_short_connections_that_could_be_one() {
    const WINDOW: Duration = Duration::from_millis(5_500);
    in_new_namespace(|| {
        let tracer = watch();
        let began = Instant::now();
        let listener = net::listen();
        for _ in 0..400 {
            net::close_in_order(pair(&listener));
        }
        eventually("long enough to tell a rate", || began.elapsed() > WINDOW);
        let finding = of_kind(&tracer.interrupt(), "churn");
        assert_values(&finding, &json!({"count": 400, "remote": local(&listener).to_string()}));
        assert_eq!(finding["process"]["pid"], id());
    });
}
