//! `tracer diagnose` beside healthy programs that do what looks like trouble. Where it can be, the trouble itself is in
//! the same namespace, and found; elsewhere its test has the same name for what is done.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    diagnose::{findings, in_snapshot},
    diagnosis::{Diagnosis, at_once},
    harness::{Ended, assert_values, eventually, in_new_namespace},
    net::{self, CLOSE_WAIT, TIME_WAIT, close, count_in, local, pair, sysctl},
    trouble::{in_evidence, nothing_is_found, of_kind, until_it_has_lasted, watch},
};

/// Those that would wake somebody.
fn alarms(ended: &Ended) -> Vec<Value> {
    let mut findings = findings(ended, 0);
    findings.retain(|finding| finding["severity"] != "info");
    findings
}

/// Ends a thread's work, also when the test fails.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// At any moment many are in CLOSE_WAIT, and one that was forgotten is found among them.
#[test]
fn a_proxy_with_thousands_of_close_waits_that_close_within_their_time() {
    const AGE: Duration = Duration::from_secs(3);
    const AT_ANY_MOMENT: usize = 200;
    in_new_namespace(|| {
        let tracer = Diagnosis::watch("--close-wait-age 3s");
        let listener = net::listen();
        let (client, _forgotten) = pair(&listener);
        let forgotten = local(&client);
        close(client);
        let began = Instant::now();
        let (done, passed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let ended = thread::scope(|scope| {
            let _until = Until(&done);
            scope.spawn(|| {
                let mut waiting = VecDeque::new();
                while !done.load(Ordering::Relaxed) {
                    let (client, server) = pair(&listener);
                    close(client);
                    waiting.push_back(server);
                    if waiting.len() > AT_ANY_MOMENT {
                        let server = waiting.pop_front().expect("the oldest");
                        net::await_end(&server);
                        close(server);
                        passed.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            });
            until_it_has_lasted(AGE, began);
            eventually("2 000 have passed", || passed.load(Ordering::Relaxed) >= 2_000);
            assert!(count_in(CLOSE_WAIT) >= AT_ANY_MOMENT);
            // The proxy goes on meanwhile.
            tracer.interrupt()
        });
        let finding = of_kind(&ended, "close_wait");
        assert_values(&finding, &json!({"severity": "info", "count": 1, "remote": forgotten.to_string()}));
        assert_eq!(alarms(&ended), [Value::Null; 0]);
    });
}

/// A request and its answer.
fn request((client, server): &(TcpStream, TcpStream)) {
    for (mut from, mut to) in [(client, server), (server, client)] {
        from.write_all(b"a few bytes").expect("written");
        to.read_exact(&mut [0; 11]).expect("read");
    }
}

/// 20 000 sockets in TIME_WAIT are no trouble as long as no destination runs short of ports; nor are thousands of requests
/// over connections that are kept alive. A stricter limit shows that they were there.
#[test]
fn a_load_test_and_a_client_that_uses_its_connections_again() {
    const DESTINATIONS: u8 = 20;
    const EACH: u64 = 1_000;
    const WINDOW: Duration = Duration::from_millis(5_100);
    in_new_namespace(|| {
        sysctl("tcp_max_tw_buckets", "100000");
        // Else loopback would take over the ports.
        sysctl("tcp_tw_reuse", "0");
        let tracer = Diagnosis::watch("--port-usage 10%");
        let began = Instant::now();
        for number in 1..=DESTINATIONS {
            let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 1, number), 0)).expect("a listener");
            (0..EACH).for_each(|_| net::close_in_order(pair(&listener)));
        }
        let listener = net::listen();
        let kept_alive: Vec<_> = (0..4).map(|_| pair(&listener)).collect();
        (0..5_000).for_each(|number| request(&kept_alive[number % 4]));
        assert_eq!(count_in(TIME_WAIT), 20_000);
        until_it_has_lasted(WINDOW, began);
        let ended = tracer.interrupt();
        assert_eq!(alarms(&ended), [Value::Null; 0]);
        // That a load test has connections that could be one is true.
        for finding in findings(&ended, 0) {
            assert_eq!(finding["kind"], "churn");
            assert_ne!(finding["remote"], local(&listener).to_string());
        }
        let strict = findings(&at_once("--port-usage 3%"), 0);
        let counts: Vec<&Value> = strict.iter().map(|finding| &finding["count"]).collect();
        assert_eq!(counts, [&json!(EACH); DESTINATIONS as usize]);
    });
}

/// On loopback, and with tcp_tw_reuse=1, connect() takes over ports in TIME_WAIT: they are not used up.
#[test]
fn a_client_on_loopback_that_connects_more_often_than_there_are_ports() {
    const TAKEN_OVER_AFTER: Duration = Duration::from_millis(1_100);
    in_new_namespace(|| {
        let listener = net::with_ports(100);
        sysctl("tcp_tw_reuse", "2");
        let tracer = watch();
        for _ in 0..2 {
            (0..90).for_each(|_| net::close_in_order(pair(&listener)));
            until_it_has_lasted(TAKEN_OVER_AFTER, Instant::now());
        }
        let in_time_wait = count_in(TIME_WAIT);
        nothing_is_found(&tracer.interrupt());
        sysctl("tcp_tw_reuse", "0");
        assert_values(
            &of_kind(&at_once(""), "time_wait_ports"),
            &json!({"severity": "critical", "count": in_time_wait}),
        );
    });
}

#[test]
fn a_client_that_connects_again_after_one_failed_attempt() {
    in_new_namespace(|| {
        let tracer = watch();
        let address = local(&net::listen());
        TcpStream::connect(address).expect_err("refused: the server restarts");
        let listener = TcpListener::bind(address).expect("a listener");
        let pairs: Vec<_> = (0..12).map(|_| pair(&listener)).collect();
        pairs.iter().for_each(request);
        nothing_is_found(&tracer.interrupt());
    });
}

/// `localhost` is `::1` first.
#[test]
fn a_client_that_connects_to_the_second_address_of_a_name() {
    in_new_namespace(|| {
        let tracer = watch();
        let listener = net::listen();
        let port = local(&listener).port();
        let pairs: Vec<_> = (0..12)
            .map(|_| {
                TcpStream::connect(("::1", port)).expect_err("nobody listens at ::1");
                pair(&listener)
            })
            .collect();
        let ended = tracer.interrupt();
        assert_eq!(alarms(&ended), [Value::Null; 0]);
        in_evidence(&of_kind(&ended, "connect_failures"), "by the other address family");
        drop(pairs);
    });
}

/// The standard library sets SO_REUSEADDR, as every server should.
#[test]
fn a_server_that_is_restarted_with_so_reuseaddr() {
    in_new_namespace(|| {
        let tracer = watch();
        let listener = net::listen();
        let address = local(&listener);
        let (client, server) = pair(&listener);
        net::close_in_order((server, client));
        let _open = pair(&listener);
        close(listener);
        let _listener = TcpListener::bind(address).expect("a listener again");
        assert!(net::listed().iter().any(|(port, _, state)| (*port, *state) == (address.port(), TIME_WAIT)));
        nothing_is_found(&tracer.interrupt());
    });
}

/// A few RSTs among hundreds of connections.
#[test]
fn clients_that_abort_now_and_then() {
    in_new_namespace(|| {
        let tracer = watch();
        let listener = net::listen();
        for number in 0..300 {
            let ends = pair(&listener);
            request(&ends);
            if number % 25 == 0 {
                net::linger_zero(&ends.0);
                close(ends.0);
                close(ends.1);
            } else {
                net::close_in_order(ends);
            }
        }
        nothing_is_found(&tracer.interrupt());
    });
}

#[test]
fn a_backlog_that_is_full_for_a_moment_and_then_drained() {
    in_new_namespace(|| {
        let listener = net::listen_with_backlog(2);
        let tracer = watch();
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(local(&listener)).expect("connected")).collect();
        // One more is turned away, and the kernel counts it.
        let turned_away = net::begin_connect(local(&listener));
        let servers: Vec<_> = clients.iter().map(|_| net::accept(&listener)).collect();
        close(turned_away);
        nothing_is_found(&tracer.interrupt());
        drop(servers);
    });
}

/// FIN_WAIT2 after close() is a mini-socket, which goes by itself; after shutdown() it lasts until the peer closes, which
/// it does in a moment. The strictest threshold finds none.
#[test]
fn clients_that_close_first_and_servers_that_take_a_moment() {
    const HANGING: Duration = Duration::from_millis(1_100);
    in_new_namespace(|| {
        let tracer = watch_strictly();
        let listener = net::listen();
        let (closed, mut open): (Vec<_>, Vec<_>) = (0..10)
            .map(|_| {
                let (client, server) = pair(&listener);
                close(client);
                (server, pair(&listener))
            })
            .unzip();
        for (client, _) in &open {
            client.shutdown(Shutdown::Write).expect("SHUT_WR");
        }
        open.drain(..).for_each(|(client, server)| {
            net::await_end(&server);
            close(server);
            net::await_end(&client);
            close(client);
        });
        until_it_has_lasted(HANGING, Instant::now());
        assert_eq!(count_in(net::FIN_WAIT2), 10);
        let findings = findings(&tracer.interrupt(), 0);
        // The servers that have not closed are in this namespace too.
        let kinds: Vec<&Value> = findings.iter().map(|finding| &finding["kind"]).collect();
        assert_eq!(kinds, ["close_wait"], "{findings:#?}");
        drop(closed);
    });
}

#[test]
fn a_client_that_closes_after_a_reset() {
    in_new_namespace(|| {
        let tracer = watch_strictly();
        let listener = net::listen();
        for _ in 0..5 {
            let (client, server) = pair(&listener);
            net::linger_zero(&server);
            close(server);
            (&client).read(&mut [0]).expect_err("a reset");
            close(client);
        }
        nothing_is_found(&tracer.interrupt());
    });
}

fn watch_strictly() -> Diagnosis {
    Diagnosis::watch("--close-wait-age 0s")
}

/// Without watching, too.
#[test]
fn a_busy_server_in_a_snapshot() {
    in_new_namespace(|| {
        let listener = net::listen();
        let open: Vec<_> = (0..100).map(|_| pair(&listener)).collect();
        open.iter().for_each(request);
        (0..100).for_each(|_| net::close_in_order(pair(&listener)));
        let _waiting = TcpStream::connect(local(&listener)).expect("connected");
        assert_eq!(in_snapshot(""), [Value::Null; 0]);
    });
}
