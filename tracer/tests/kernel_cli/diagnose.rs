//! `tracer diagnose`: leaks that are there, and none that are not.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::id,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use socket2::SockRef;

use crate::{
    diagnosis::{Diagnosis, at_once},
    harness::{
        Ended, assert_fields, assert_values, eventually, in_new_namespace, mount_tmpfs, own_netns, run, run_as_nobody,
        scratch,
    },
    net::{self, CLOSE_WAIT, close, count_in, local, pair},
    record::record,
    trouble::{in_evidence, until_it_has_lasted},
};

const REPORT: &[(&str, &str)] = &[("v", "number"), ("window", "object"), ("loss", "object"), ("findings", "array")];
const LOSS: &[(&str, &str)] =
    &[("seen", "number"), ("dropped", "number"), ("missed", "number"), ("repaired", "number")];
const FINDING: &[(&str, &str)] = &[
    ("kind", "string"),
    ("severity", "string"),
    ("title", "string"),
    ("process", "object?"),
    ("local", "string?"),
    ("remote", "string?"),
    ("netns", "number"),
    ("count", "number"),
    ("oldest_ns", "number"),
    ("oldest_certainty", "string"),
    ("growth_per_min", "number?"),
    ("eta_s", "number?"),
    ("cause", "string?"),
    ("evidence", "array"),
    ("remedy", "string"),
    ("sockets", "array"),
];

/// The findings of a run that ended with this status, after a check of the report's shape.
pub(crate) fn findings(ended: &Ended, status: i32) -> Vec<Value> {
    assert_eq!((ended.status, ended.stderr.len()), (Some(status), 1), "{ended:#?}");
    let report = report(ended);
    let told = ended.loss();
    assert_values(
        &report["loss"],
        &json!({"seen": told.seen, "dropped": told.dropped, "missed": told.missed, "repaired": told.repaired}),
    );
    report["findings"].as_array().expect("findings").clone()
}

/// The one report, in its shape.
fn report(ended: &Ended) -> Value {
    assert_eq!(ended.stdout.len(), 1, "{ended:#?}");
    let report = ended.records().remove(0);
    assert_fields(&report, REPORT);
    assert_eq!(report["v"], 1);
    assert!(report["window"]["duration_ns"].is_number());
    assert_fields(&report["loss"], LOSS);
    for finding in report["findings"].as_array().expect("findings") {
        assert_fields(finding, FINDING);
        assert_eq!(finding["netns"], own_netns());
        if !finding["process"].is_null() {
            assert_fields(&finding["process"], &[("pid", "number"), ("comm", "string"), ("source", "string")]);
        }
        for line in finding["evidence"].as_array().expect("evidence") {
            assert!(line.is_string());
        }
    }
    report
}

/// What is found without watching.
pub(crate) fn in_snapshot(args: &str) -> Vec<Value> {
    let report = report(&run(&format!("diagnose --snapshot --format json --netns self {args}")));
    report["findings"].as_array().expect("findings").clone()
}

/// What a server does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leak {
    NeverAccepted,
    DataUnread,
    FinUnread,
    EofReadNotClosed,
}

/// Sockets in CLOSE_WAIT.
struct Leaked {
    listener: TcpListener,
    servers: Vec<TcpStream>,
}

impl Leaked {
    fn new(leak: Leak, count: usize) -> Self {
        let (listener, before) = (net::listen(), count_in(CLOSE_WAIT));
        let mut servers = Vec::new();
        for _ in 0..count {
            let client = TcpStream::connect(local(&listener)).expect("connected");
            if leak == Leak::DataUnread {
                net::write(&client, 5);
            }
            if leak != Leak::NeverAccepted {
                servers.push(net::accept(&listener));
            }
            close(client);
        }
        eventually("in CLOSE_WAIT", || count_in(CLOSE_WAIT) == before + count);
        if leak == Leak::EofReadNotClosed {
            servers.iter().for_each(|server| assert_eq!(net::await_end(server), 0));
        }
        Self { listener, servers }
    }

    /// The descriptors, as a finding lists them.
    fn fds(&self) -> Vec<Value> {
        let mut fds: Vec<i32> = self.servers.iter().map(AsRawFd::as_raw_fd).collect();
        fds.sort_unstable();
        fds.into_iter().map(|fd| json!([fd])).collect()
    }
}

/// The first sample comes soon, so that there is something to judge by.
#[test]
fn a_recording_that_is_cut_off_early_has_findings() {
    in_new_namespace(|| {
        let file = scratch(None).join("trace.arrows");
        let leaked = Leaked::new(Leak::EofReadNotClosed, 3);
        let recorder = record("", &file);
        let diagnosed = || run(&format!("diagnose --format json --close-wait-age 0s --from {}", file.display()));
        eventually("sampled", || diagnosed().status == Some(0));
        recorder.kill();
        let ended = diagnosed();
        let findings = ended.records()[0]["findings"].as_array().expect("findings").clone();
        let [finding] = &findings[..] else { panic!("{ended:#?}") };
        assert_eq!(finding["cause"], "eof_read_not_closed");
        let sockets = finding["sockets"].as_array().expect("sockets");
        let mut fds: Vec<Value> = sockets.iter().map(|socket| socket["fds"].clone()).collect();
        fds.sort_unstable_by_key(|fds| fds[0].as_i64());
        assert_eq!(fds, leaked.fds());
    });
}

#[test]
fn each_way_to_leak_is_found_with_its_cause_and_its_descriptors() {
    const LEAKS: [(Leak, &str, &str); 4] = [
        (Leak::NeverAccepted, "never_accepted", "accept() was not called"),
        (Leak::DataUnread, "data_unread", "15 bytes wait"),
        (Leak::FinUnread, "fin_unread", "read() would return 0"),
        (Leak::EofReadNotClosed, "eof_read_not_closed", "the FIN was read"),
    ];
    in_new_namespace(|| {
        let tracer = Diagnosis::watch("--close-wait-age 0s");
        let began = Instant::now();
        let leaked = LEAKS.map(|(leak, ..)| Leaked::new(leak, 3));
        let ended = tracer.interrupt();
        let at_most = began.elapsed();
        let findings = findings(&ended, 0);
        assert_eq!(findings.len(), 4, "{findings:#?}");

        for ((_, cause, evidence), leaked) in LEAKS.iter().zip(&leaked) {
            let finding = findings.iter().find(|finding| finding["cause"] == *cause).expect("a finding of this cause");
            assert_values(
                finding,
                &json!({
                    "kind": "close_wait", "severity": "warning", "count": 3, "oldest_certainty": "exact",
                    "local": local(&leaked.listener).to_string(), "remote": "127.0.0.1",
                }),
            );
            assert_eq!(finding["process"]["pid"], id(), "{finding}");
            let oldest = Duration::from_nanos(finding["oldest_ns"].as_u64().expect("ns"));
            assert!(oldest <= at_most, "{oldest:?} of {at_most:?}");
            let lines = finding["evidence"].as_array().expect("evidence");
            assert!(lines.iter().any(|line| line.as_str().is_some_and(|line| line.contains(evidence))), "{lines:?}");
            let title = finding["title"].as_str().expect("a title");
            assert!(title.contains(&format!("[{}]", id())) && title.contains("3 sockets"), "{title}");

            let sockets = finding["sockets"].as_array().expect("sockets");
            for socket in sockets {
                let shape = [("cookie", "number"), ("local", "string"), ("remote", "string"), ("age_ns", "number")];
                assert_fields(socket, &[&shape[..], &[("age_certainty", "string"), ("fds", "array")]].concat());
            }
            assert_eq!(sockets[0]["age_ns"], finding["oldest_ns"]);
            let mut fds: Vec<Value> = sockets.iter().map(|socket| socket["fds"].clone()).collect();
            fds.sort_by_key(|fds| fds[0].as_i64());
            let expected = if leaked.servers.is_empty() { vec![json!([]); 3] } else { leaked.fds() };
            assert_eq!(fds, expected);
            let cookies = leaked.servers.iter().map(net::cookie);
            for cookie in cookies {
                assert!(sockets.iter().any(|socket| socket["cookie"] == cookie), "{cookie}");
            }
        }
    });
}

/// A leak from before the tracer is as old as it has been quiet, at least.
#[test]
fn a_leak_from_before_is_found_with_an_age_that_is_a_lower_bound() {
    in_new_namespace(|| {
        let began = Instant::now();
        let leaked = Leaked::new(Leak::EofReadNotClosed, 1);
        let leaked_by = Instant::now();
        eventually("half a second old", || leaked_by.elapsed() > Duration::from_millis(500));
        let ended = at_once("--close-wait-age 300ms");
        let findings = findings(&ended, 0);
        assert_eq!(findings.len(), 1);
        assert_values(
            &findings[0],
            &json!({
                "cause": "eof_read_not_closed", "severity": "info", "count": 1, "oldest_certainty": "at_least",
                "growth_per_min": null, "eta_s": null, "remote": findings[0]["sockets"][0]["remote"],
            }),
        );
        let oldest = Duration::from_nanos(findings[0]["oldest_ns"].as_u64().expect("ns"));
        assert!(Duration::from_millis(400) < oldest && oldest < began.elapsed(), "{oldest:?}");
        assert_eq!(findings[0]["sockets"][0]["fds"], leaked.fds()[0]);
        // The default asks for a minute of it.
        assert_eq!(self::findings(&at_once(""), 0), [Value::Null; 0]);
    });
}

/// The FIN came after the peer's last data, and no later than its last ACK.
#[test]
fn a_leak_from_before_is_found_with_an_upper_bound_of_its_age_too() {
    const APART: Duration = Duration::from_millis(1_100);
    in_new_namespace(|| {
        let listener = net::listen();
        let (client, server) = pair(&listener);
        net::write(&client, 5);
        let written = Instant::now();
        until_it_has_lasted(APART, written);
        close(client);
        assert_eq!(net::await_end(&server), 5);
        in_evidence(&findings(&at_once("--close-wait-age 0s"), 0)[0], "the oldest has been stuck between ");
        let (mut client, server) = pair(&listener);
        SockRef::from(&client).set_tcp_cork(true).expect("TCP_CORK");
        client.write_all(b"in one segment with the FIN").expect("written");
        close(client);
        assert_eq!(net::await_end(&server), 27);
        until_it_has_lasted(APART, Instant::now());
        let filter = format!("--close-wait-age 0s --remote-port {}", server.peer_addr().expect("an address").port());
        in_evidence(&findings(&at_once(&filter), 0)[0], "the peer closed with its last data");
    });
}

#[test]
fn fail_on_makes_the_status() {
    in_new_namespace(|| {
        let _leaked = Leaked::new(Leak::FinUnread, 3);
        for (fail_on, status) in [("warning", 1), ("critical", 0), ("never", 0)] {
            let ended = at_once(&format!("--close-wait-age 0s --fail-on {fail_on}"));
            assert_eq!(findings(&ended, status)[0]["severity"], "warning", "{fail_on}");
        }
        assert_eq!(findings(&at_once("--fail-on info"), 0), [Value::Null; 0]);
        let text = run("diagnose --netns self --buffer 1M --duration 0s --close-wait-age 0s").in_order().stdout;
        assert!(text[0].starts_with("WARNING ") && text[0].contains("3 sockets in CLOSE_WAIT"), "{text:?}");
        assert!(text.iter().any(|line| line.trim_start().starts_with("fix: ")), "{text:?}");
        let text = run("diagnose --netns self --buffer 1M --duration 0s").in_order().stdout;
        assert!(text[0].starts_with("No finding"), "{text:?}");
    });
}

#[test]
fn a_healthy_server_has_no_finding() {
    in_new_namespace(|| {
        let listener = net::listen();
        let before = pair(&listener);
        let tracer = Diagnosis::watch("--close-wait-age 0s --fail-on info");
        let open = pair(&listener);
        net::write(&before.0, 100);
        net::write(&open.1, 100);
        for _ in 0..10 {
            net::close_in_order(pair(&listener));
        }
        eventually("closed", || count_in(CLOSE_WAIT) == 0);
        assert_eq!(findings(&tracer.interrupt(), 0), [Value::Null; 0]);
    });
}

#[test]
fn a_half_closed_connection_that_still_sends_is_no_leak() {
    const AGE: Duration = Duration::from_secs(2);
    in_new_namespace(|| {
        let tracer = Diagnosis::watch("--close-wait-age 2s");
        let leaked = Leaked::new(Leak::EofReadNotClosed, 1);
        let (client, server) = pair(&leaked.listener);
        client.shutdown(Shutdown::Write).expect("SHUT_WR");
        assert_eq!(net::await_end(&server), 0);
        let began = Instant::now();
        let ended = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                // A write fails when the reader is gone.
                while (&server).write_all(b"still here").is_ok() {
                    thread::sleep(Duration::from_millis(2));
                }
            });
            let reader = scope.spawn(|| while (&client).read(&mut [0; 4096]).is_ok_and(|count| count > 0) {});
            eventually("old enough", || began.elapsed() > AGE + Duration::from_millis(300));
            let ended = tracer.interrupt();
            client.shutdown(Shutdown::Read).expect("SHUT_RD");
            // Data for an end that reads no more is answered with a RST, which may have come first.
            let _ = server.shutdown(Shutdown::Both);
            reader.join().expect("the reader");
            sender.join().expect("the sender");
            ended
        });
        let findings = findings(&ended, 0);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert_values(&findings[0], &json!({"count": 1, "cause": "eof_read_not_closed"}));
        assert_eq!(findings[0]["sockets"][0]["fds"], leaked.fds()[0]);
    });
}

/// How many sockets are found.
fn found(args: &str) -> u64 {
    let findings = findings(&at_once(&format!("--close-wait-age 0s {args}")), 0);
    findings.iter().map(|finding| finding["count"].as_u64().expect("a number")).sum()
}

#[test]
fn filters_by_socket_hold_for_findings_too() {
    in_new_namespace(|| {
        let leaked = Leaked::new(Leak::FinUnread, 3);
        let _other = Leaked::new(Leak::FinUnread, 2);
        let port = local(&leaked.listener).port();
        assert_eq!(found(""), 5);
        assert_eq!(found(&format!("--local-port {port}")), 3);
        assert_eq!(found(&format!("--remote-port {port}")), 0);
        assert_eq!(found("--address 127.0.0.2"), 0);
        assert_eq!(found("-6"), 0);
    });
}

/// Other programs' leaks are not what was asked for.
#[test]
fn filters_by_process_hold_for_findings_too() {
    in_new_namespace(|| {
        let _leaked = Leaked::new(Leak::FinUnread, 3);
        let _pending = Leaked::new(Leak::NeverAccepted, 2);
        assert_eq!(found(&format!("--pid {}", id())), 5);
        assert_eq!(found("--pid 1"), 0);
        assert_eq!(found("--comm no-such-program"), 0);
    });
}

#[test]
fn a_snapshot_needs_neither_bpf_nor_privilege() {
    in_new_namespace(|| {
        let leaked = Leaked::new(Leak::EofReadNotClosed, 3);
        let _pending = Leaked::new(Leak::NeverAccepted, 2);
        mount_tmpfs("/sys/kernel/btf", None);
        let args = "diagnose --snapshot --format json --netns self --close-wait-age 0s --fail-on warning";
        for (ended, said) in [(run(args), 0), (run_as_nobody(args), 1)] {
            assert_eq!((ended.status, ended.stderr.len()), (Some(1), said), "{ended:#?}");
            assert!(ended.stderr.iter().all(|line| line.contains("CAP_SYS_PTRACE")), "{ended:#?}");
            let report = report(&ended);
            assert_eq!(report["window"]["duration_ns"], 0);
            let findings = report["findings"].as_array().expect("findings");
            let of = |cause: &str| findings.iter().find(|finding| finding["cause"] == cause).expect("a finding");
            assert_values(of("eof_read_not_closed"), &json!({"count": 3, "oldest_certainty": "at_least"}));
            assert_eq!(of("never_accepted")["count"], 2);
        }
        let findings = report(&run(args))["findings"].clone();
        let finding = findings.as_array().and_then(|findings| findings.iter().find(|finding| finding["count"] == 3));
        let finding = finding.expect("the three");
        assert_eq!(finding["process"]["pid"], id());
        let mut fds: Vec<Value> =
            finding["sockets"].as_array().expect("sockets").iter().map(|socket| socket["fds"].clone()).collect();
        fds.sort_by_key(|fds| fds[0].as_i64());
        assert_eq!(fds, leaked.fds());
        run(&format!("{args} --duration 1s")).failed_saying(&["--snapshot", "--duration"]);
    });
}

/// What no list of sockets has: the peer's RST has closed it, its descriptor is still open.
#[test]
fn a_descriptor_that_outlives_its_connection_is_found() {
    in_new_namespace(|| {
        let listener = net::listen();
        let tracer = Diagnosis::watch("--close-wait-age 0s");
        let kept: Vec<TcpStream> = (0..3)
            .map(|_| {
                let (client, server) = pair(&listener);
                net::linger_zero(&server);
                close(server);
                (&client).read(&mut [0]).expect_err("a reset");
                client
            })
            .collect();
        let findings = findings(&tracer.interrupt(), 0);
        let finding = findings.iter().find(|finding| finding["kind"] == "closed_not_released");
        let finding = finding.unwrap_or_else(|| panic!("{findings:#?}"));
        assert_values(finding, &json!({"count": 3, "remote": local(&listener).to_string()}));
        assert_eq!(finding["process"]["pid"], id());
        let fds = finding["sockets"].as_array().expect("sockets").iter().map(|socket| socket["fds"].clone());
        assert_eq!(fds.collect::<Vec<_>>(), kept.iter().map(|socket| json!([socket.as_raw_fd()])).collect::<Vec<_>>());
    });
}

/// What is left of a connection that the other end has reset.
fn reset(listener: &TcpListener) -> TcpStream {
    let (client, server) = pair(listener);
    net::linger_zero(&client);
    close(client);
    (&server).read(&mut [0]).expect_err("a reset");
    server
}

/// It is in no list, and no event will tell of it.
#[test]
fn a_descriptor_that_outlived_its_connection_before_the_tracer_is_found() {
    in_new_namespace(|| {
        let listener = net::listen();
        let kept: Vec<TcpStream> = (0..3).map(|_| reset(&listener)).collect();
        let kept_by = Instant::now();
        let _healthy = pair(&listener);
        let _others = never_connected(&listener);
        eventually("three seconds old", || kept_by.elapsed() > Duration::from_millis(3_200));

        let live = Diagnosis::watch("--close-wait-age 3s");
        let (late, late_by) = (reset(&listener), Instant::now());
        let live = findings(&live.interrupt(), 0);
        let args = "diagnose --snapshot --format json --netns self --fail-on warning";
        let at_once = run(&format!("{args} --close-wait-age 3s"));
        assert_eq!((at_once.status, &at_once.stderr), (Some(1), &vec![]));
        let at_once = report(&at_once)["findings"].as_array().expect("findings").clone();
        for found in [&live, &at_once] {
            let found: Vec<_> = found.iter().filter(|finding| finding["kind"] == "closed_not_released").collect();
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_values(
                found[0],
                &json!({
                    "severity": "warning", "oldest_certainty": "at_least",
                    "local": local(&listener).to_string(), "remote": null,
                }),
            );
            // On a busy machine the last one may have become old by now.
            let with_late = u64::from(late_by.elapsed() >= Duration::from_secs(3));
            assert!((3..=3 + with_late).contains(&found[0]["count"].as_u64().expect("a count")), "{found:#?}");
            assert_eq!(found[0]["process"]["pid"], id());
            let sockets = found[0]["sockets"].as_array().expect("sockets");
            for socket in &kept {
                let fds = json!([socket.as_raw_fd()]);
                let told = sockets.iter().find(|told| told["fds"] == fds).expect("its descriptor");
                assert_values(told, &json!({"cookie": net::cookie(socket), "remote": null}));
                let age = Duration::from_nanos(told["age_ns"].as_u64().expect("ns"));
                assert!(age <= kept_by.elapsed(), "{age:?}");
            }
        }
        // The default asks for a minute of silence.
        assert_eq!(report(&run(args))["findings"], json!([]));
        drop(late);
    });
}

/// To its listener's name it is MPTCP.
#[test]
fn what_an_mptcp_listener_accepted_is_tcp_and_is_found() {
    in_new_namespace(|| {
        let (stream, mptcp) = (socket2::Type::STREAM, Some(socket2::Protocol::MPTCP));
        let Ok(listener) = socket2::Socket::new(socket2::Domain::IPV4, stream, mptcp) else {
            return eprintln!("not in this kernel");
        };
        let here: socket2::SockAddr = std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into();
        listener.bind(&here).expect("bound");
        listener.listen(8).expect("listening");
        let connected = socket2::Socket::new(socket2::Domain::IPV4, stream, mptcp).expect("a socket");
        connected.connect(&local(&listener).into()).expect("connected");
        let (_accepted, _) = listener.accept().expect("accepted");
        let listener: TcpListener = listener.into();
        let over = reset(&listener);
        let ended = run("diagnose --snapshot --format json --netns self --close-wait-age 0s");
        let report = report(&ended);
        assert_values(&report["findings"][0], &json!({"kind": "closed_not_released", "count": 1}));
        assert_eq!(report["findings"][0]["sockets"][0]["fds"], json!([over.as_raw_fd()]));
    });
}

/// Sockets that no list shows, and that nobody has forgotten.
fn never_connected(listener: &TcpListener) -> Vec<socket2::Socket> {
    const MPTCP: socket2::Protocol = socket2::Protocol::MPTCP;
    let new = |kind, protocol| socket2::Socket::new(socket2::Domain::IPV4, kind, protocol).expect("a socket");
    let tcp = || new(socket2::Type::STREAM, None);
    let here: socket2::SockAddr = std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into();
    let nobody: socket2::SockAddr = std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into();
    let (fresh, bound, refused, disconnected) = (tcp(), tcp(), tcp(), tcp());
    bound.bind(&here).expect("bound");
    refused.connect(&nobody).expect_err("refused");
    disconnected.connect(&local(listener).into()).expect("connected");
    close(net::accept(listener));
    net::disconnect(&disconnected);
    let mut others = vec![fresh, bound, refused, disconnected, new(socket2::Type::DGRAM, None)];
    others.push(socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a unix socket"));
    // Not in every kernel.
    others.extend(socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, Some(MPTCP)));
    others
}

#[test]
fn a_destination_that_uses_up_the_local_ports_is_found() {
    in_new_namespace(|| {
        let listener = net::with_ports(100);
        let remote = local(&listener);
        let tracer = Diagnosis::watch("--port-usage 50% --fail-on warning");
        for _ in 0..60 {
            net::close_in_order(pair(&listener));
        }
        eventually("closed", || count_in(net::TIME_WAIT) == 60);
        let ended = tracer.interrupt();
        let found = findings(&ended, 1);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_values(
            &found[0],
            &json!({
                "kind": "time_wait_ports", "severity": "warning", "count": 60, "cause": null,
                "local": "127.0.0.1", "remote": remote.to_string(),
            }),
        );
        assert_eq!(found[0]["process"]["pid"], id());
        let title = found[0]["title"].as_str().expect("a title");
        assert!(title.contains("60 of 100 local ports"), "{title}");

        // Those from before the tracer count as well.
        let found = findings(&at_once("--port-usage 60"), 0);
        assert_eq!((found.len(), &found[0]["count"]), (1, &json!(60)), "{found:#?}");
        assert_eq!(findings(&at_once("--port-usage 61"), 0), [Value::Null; 0]);
    });
}

#[test]
fn connects_that_find_no_local_port_are_counted() {
    in_new_namespace(|| {
        let listener = net::with_ports(100);
        let remote = local(&listener);
        let tracer = Diagnosis::watch("--fail-on critical");
        let _all: Vec<_> = (0..100).map(|_| pair(&listener)).collect();
        for _ in 0..3 {
            let error = TcpStream::connect(remote).expect_err("no port is left");
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        }
        let findings = findings(&tracer.interrupt(), 1);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert_values(
            &findings[0],
            &json!({
                "kind": "time_wait_ports", "severity": "critical", "remote": remote.to_string(), "count": 0,
            }),
        );
        let lines: Vec<&str> =
            findings[0]["evidence"].as_array().expect("evidence").iter().filter_map(Value::as_str).collect();
        assert!(lines.iter().any(|line| line.contains("3 connect() calls found no free port")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("100 open")), "{lines:?}");
    });
}
