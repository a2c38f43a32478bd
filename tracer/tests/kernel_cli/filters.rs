//! Filters: what they let through is what an unfiltered run shows of the connections that match, in full and in order;
//! nothing else ever shows.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Child, Command, Stdio, id},
    thread,
};

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::{
    harness::{
        Tracer, enter_new_namespace, eventually, in_new_namespace, mount_tmpfs, own_netns, program, run, scratch, spawn,
    },
    net::{self, close_in_order, connect_from, local, pair, sysctl},
};

/// A socket, as the unfiltered log has it: its ends as far as they were ever told, and what was told of it.
#[derive(Debug)]
struct Life {
    local: (IpAddr, u64),
    remote: (IpAddr, u64),
    records: Vec<Value>,
}

impl Life {
    fn ports(&self) -> [u64; 2] {
        [self.local.1, self.remote.1]
    }

    fn is_v4(&self) -> bool {
        self.remote.0.is_ipv4()
    }

    fn is_at(&self, address: &str) -> bool {
        let address: IpAddr = address.parse().expect("an address");
        self.local.0 == address || self.remote.0 == address
    }

    fn was_in(&self, state: &str) -> bool {
        self.records.iter().any(|record| record["old_state"] == state || record["new_state"] == state)
    }
}

fn cookie(record: &Value) -> u64 {
    record["cookie"].as_u64().expect("a cookie")
}

fn lives(records: &[Value]) -> BTreeMap<u64, Life> {
    let mut lives = BTreeMap::new();
    for record in records {
        let end = |name: &str| {
            let address = record[format!("{name}_addr")].as_str().expect("an address");
            (address.parse().expect("an address"), record[format!("{name}_port")].as_u64().expect("a port"))
        };
        let life = lives.entry(cookie(record)).or_insert_with(|| Life {
            local: end("local"),
            remote: end("remote"),
            records: Vec::new(),
        });
        if life.local.1 == 0 {
            life.local = end("local");
        }
        life.records.push(record.clone());
    }
    lives
}

/// What a record says, whenever it was.
fn told(record: &Value) -> Value {
    let mut record = record.clone();
    for clock in ["time", "mono_ns", "in_state_ns"] {
        record[clock] = Value::Null;
    }
    record
}

type Filter<'a> = (String, &'a dyn Fn(&Life) -> bool);

/// Runs `tracer log` and `tracer connections --open` with each filter beside an unfiltered log, and again from an
/// unfiltered recording. `traffic` makes connections through listeners that are there already; `closed` tells how many
/// sockets it brings to CLOSE, and what it returns stays open to the end.
fn check<T>(filters: &[Filter<'_>], closed: usize, traffic: impl FnOnce() -> T) {
    let mut all = Tracer::log("");
    let recording = scratch(None).join("recording.arrows");
    let recorder = Tracer::start(&format!("record {}", recording.display()));
    let start = |(args, _): &Filter<'_>| (Tracer::log(args), Tracer::connections(&format!("--open {args}")));
    let filtered: Vec<_> = filters.iter().map(start).collect();
    let _open = traffic();
    all.wait_until("closed", |records| {
        records.iter().filter(|record| record["new_state"] == "CLOSE").count() >= closed
    });
    let ended = filtered.into_iter().map(|(log, connections)| (log.interrupt(), connections.interrupt()));
    let live: Vec<_> = ended.map(|(log, connections)| (log.in_order(), connections.in_order())).collect();
    recorder.interrupt().in_order();
    let replay = |command: &str, args: &str| {
        run(&format!("{command} --format jsonl {args} --from {}", recording.display())).in_order()
    };
    let replayed = filters.iter().map(|(args, _)| (replay("log", args), replay("connections --open", args)));
    let lives = lives(&all.interrupt().in_order().records());

    for ((args, wanted), (log, connections)) in filters.iter().zip(live).chain(filters.iter().zip(replayed)) {
        let expected: BTreeMap<u64, Vec<Value>> = lives
            .iter()
            .filter(|(_, life)| wanted(life))
            .map(|(cookie, life)| (*cookie, life.records.iter().map(told).collect()))
            .collect();
        assert!(!expected.is_empty() && expected.len() < lives.len(), "{args} decides nothing");
        let mut shown: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for record in log.records() {
            shown.entry(cookie(&record)).or_default().push(told(&record));
        }
        let [of_shown, of_expected] = [&shown, &expected].map(|lives| lives.keys().copied().collect::<Vec<u64>>());
        assert_eq!(of_shown, of_expected, "sockets in log {args}, of {lives:#?}");
        for (cookie, records) in &expected {
            assert_eq!(&shown[cookie], records, "log {args}");
        }
        let mut shown: Vec<u64> = connections.records().iter().map(cookie).collect();
        shown.sort_unstable();
        assert_eq!(shown, of_expected, "sockets in connections --open {args}, of {lives:#?}");
    }
}

/// connect() chooses the port itself: at CLOSE→SYN_SENT it is still 0.
fn connect_with_port(port: u16, to: &std::net::TcpListener) -> (TcpStream, TcpStream) {
    sysctl("ip_local_port_range", &format!("{port} {port}"));
    let ends = pair(to);
    assert_eq!(local(&ends.0).port(), port);
    ends
}

#[test]
fn ports() {
    const FIRST: u16 = 31_001;
    const SECOND: u16 = 31_002;
    const THIRD: u16 = 31_003;
    in_new_namespace(|| {
        let (listener, other) = (net::listen(), net::listen());
        let (port, other_port) = (local(&listener).port(), local(&other).port());
        let has = |port: u16| move |life: &Life| life.ports().contains(&u64::from(port));
        let at_local = |port: u16| move |life: &Life| life.local.1 == u64::from(port);
        let at_remote = |port: u16| move |life: &Life| life.remote.1 == u64::from(port);
        let either = |life: &Life| has(FIRST)(life) || has(other_port)(life);
        let both = |life: &Life| at_local(THIRD)(life) && at_remote(other_port)(life);
        let filters: [Filter<'_>; 7] = [
            (format!("--port {port}"), &has(port)),
            (format!("--port {FIRST}"), &has(FIRST)),
            (format!("--port {FIRST},{other_port}"), &either),
            (format!("--local-port {port}"), &at_local(port)),
            (format!("--local-port {FIRST}"), &at_local(FIRST)),
            (format!("--remote-port {SECOND}"), &at_remote(SECOND)),
            (format!("--local-port {THIRD} --remote-port {other_port}"), &both),
        ];
        check(&filters, 4, || {
            close_in_order(connect_with_port(FIRST, &listener));
            close_in_order(connect_with_port(SECOND, &other));
            [connect_with_port(THIRD, &other), connect_with_port(SECOND, &listener)]
        });
    });
}

#[test]
fn addresses_and_families() {
    in_new_namespace(|| {
        let end = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let listener = net::listen_dual_stack();
        let port = local(&listener).port();
        let filters: [Filter<'_>; 6] = [
            ("-4".to_owned(), &Life::is_v4),
            ("-6".to_owned(), &|life| !life.is_v4()),
            ("--address 127.0.0.2".to_owned(), &|life| life.is_at("127.0.0.2")),
            ("--address 127.0.0.3,::1".to_owned(), &|life| life.is_at("127.0.0.3") || life.is_at("::1")),
            ("--address ::/0".to_owned(), &|life| !life.is_v4()),
            ("--address 127.0.0.0/30 -4".to_owned(), &Life::is_v4),
        ];
        check(&filters, 8, || {
            let connect =
                |from: &str, to: &str| connect_from(end(from), &listener, SocketAddr::new(end(to).ip(), port));
            close_in_order(connect("127.0.0.2:0", "127.0.0.1:0"));
            close_in_order(connect("0.0.0.0:0", "127.0.0.3:0"));
            close_in_order(connect("[::]:0", "[::1]:0"));
            // An IPv6 socket that speaks IPv4.
            close_in_order(connect("[::]:0", "[::ffff:127.0.0.2]:0"));
            [connect("[::1]:0", "[::1]:0"), connect("0.0.0.0:0", "127.0.0.1:0")]
        });
    });
}

#[test]
fn states() {
    in_new_namespace(|| {
        let listener = net::listen();
        let mut all = Tracer::log("");
        let one = Tracer::log("--state CLOSE_WAIT");
        let two = Tracer::log("--state close_wait,SYN_SENT");
        let connections = Tracer::connections("--open --state CLOSE_WAIT");
        close_in_order(pair(&listener));
        let (client, server) = pair(&listener);
        client.shutdown(std::net::Shutdown::Write).expect("SHUT_WR");
        assert_eq!(net::await_end(&server), 0);
        let _open = pair(&listener);
        all.wait_until("all", |records| {
            let count = |state| records.iter().filter(|record| record["new_state"] == state).count();
            (count("CLOSE"), count("CLOSE_WAIT"), count("ESTABLISHED")) == (2, 2, 6)
        });
        let [one, two, connections] = [one, two, connections].map(|tracer| tracer.interrupt().in_order().records());
        let all = all.interrupt().in_order().records();
        let expected = |states: &[&str]| -> Vec<Value> {
            let touches = |record: &&Value| {
                states.iter().any(|state| record["old_state"] == *state || record["new_state"] == *state)
            };
            all.iter().filter(touches).map(told).collect()
        };
        assert_eq!(one.iter().map(told).collect::<Vec<_>>(), expected(&["CLOSE_WAIT"]));
        assert_eq!(two.iter().map(told).collect::<Vec<_>>(), expected(&["CLOSE_WAIT", "SYN_SENT"]));
        assert_eq!(one.len(), 3);
        let mut shown: Vec<u64> = connections.iter().map(cookie).collect();
        shown.sort_unstable();
        let lives = lives(&all);
        let passed: Vec<u64> =
            lives.iter().filter(|(_, life)| life.was_in("CLOSE_WAIT")).map(|(cookie, _)| *cookie).collect();
        assert_eq!(shown, passed);
        assert_eq!(shown.len(), 2);
    });
}

/// A process of another name that connects when it is told to, and ends when its connection does.
struct Visitor(Child);

impl Visitor {
    fn new(port: u16) -> Self {
        let script = format!("read -r _; exec 3<>/dev/tcp/127.0.0.1/{port}; read -r _ <&3; read -r _");
        let mut command = Command::new("bash");
        Self(spawn(command.args(["-c", &script]).stdin(Stdio::piped())))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn go(&mut self) {
        self.0.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("told");
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes() {
    in_new_namespace(|| {
        let listener = net::listen();
        let mut visitors = [Visitor::new(local(&listener).port()), Visitor::new(local(&listener).port())];
        let pids = visitors.each_ref().map(Visitor::pid);
        let opened_by = |pid: u32| move |life: &Life| life.records[0]["pid"] == pid;
        let own = |life: &Life| !opened_by(pids[0])(life) && !opened_by(pids[1])(life);
        let visits = |life: &Life| !own(life);
        let first = |life: &Life| opened_by(pids[0])(life);
        let filters: [Filter<'_>; 4] = [
            (format!("--pid {}", pids[0]), &first),
            // Passive connections are whose listener they came through.
            (format!("--pid {}", id()), &own),
            ("--comm nobody,bash".to_owned(), &visits),
            (format!("--comm bash --pid {},{}", pids[0], id()), &first),
        ];
        check(&filters, 4, || {
            close_in_order(pair(&listener));
            visitors.iter_mut().for_each(Visitor::go);
            let mut servers = vec![net::accept(&listener), net::accept(&listener)];
            // The one that is told to goes, the other stays.
            let pid = pids[1];
            let visitor = &mut visitors[1];
            servers.iter_mut().for_each(|server| server.write_all(b"well\n").expect("written"));
            visitor.go();
            eventually("gone", || visitor.0.try_wait().expect("a child").is_some());
            assert_eq!(visitor.pid(), pid);
            servers.retain(|server| {
                server.set_nonblocking(true).expect("O_NONBLOCK");
                server.peek(&mut [0]).is_err()
            });
            assert_eq!(servers.len(), 1);
            (pair(&listener), servers)
        });
    });
}

#[test]
fn namespaces() {
    in_new_namespace(|| {
        let here = net::listen();
        // A name, as ip-netns(8) keeps them, in this test's mount namespace.
        mount_tmpfs("/run", None);
        std::fs::create_dir("/run/netns").expect("a folder");
        std::fs::write("/run/netns/here", "").expect("a file");
        let none = None::<&str>;
        mount(Some("/proc/thread-self/ns/net"), "/run/netns/here", none, MsFlags::MS_BIND, none).expect("a name");
        let visitor = Visitor::new(1);
        let own = own_netns();
        let ways = [
            own.to_string(),
            format!("pid:{}", visitor.pid()),
            "here".to_owned(),
            "/run/netns/here".to_owned(),
            // No namespace has the inode number 1.
            format!("1,{own}"),
        ];
        thread::scope(|scope| {
            // From elsewhere, so that it is not the tracer's own namespace that is meant.
            let elsewhere = scope.spawn(|| {
                enter_new_namespace();
                let start = |command: &str, way: &String| {
                    Tracer::start_command(&mut program(&format!("{command} --format jsonl --buffer 1M --netns {way}")))
                };
                let logs: Vec<Tracer> = ways.iter().map(|way| start("log", way)).collect();
                let connections = start("connections --open", &ways[0]);
                let _ignored = pair(&net::listen());
                (logs, connections)
            });
            let (logs, connections) = elsewhere.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let mut all = Tracer::log("");
            close_in_order(pair(&here));
            let _open = pair(&here);
            all.wait_until("all", |records| records.len() >= 14);
            let expected: Vec<Value> = all.interrupt().in_order().records().iter().map(told).collect();
            assert!(expected.len() == 14 && expected.iter().all(|record| record["netns"] == own));
            for (way, log) in ways.iter().zip(logs) {
                let records = log.interrupt().in_order().records();
                assert_eq!(records.iter().map(told).collect::<Vec<_>>(), expected, "{way}");
            }
            let records = connections.interrupt().in_order().records();
            assert!(records.iter().all(|record| record["netns"] == own), "{records:#?}");
            let still = records.iter().filter(|record| record["close"].is_null()).count();
            assert_eq!((records.len(), still), (4, 2), "{records:#?}");
        });
    });
}
