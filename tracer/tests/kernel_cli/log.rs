//! `tracer log`: every field of every format, against what the sockets themselves say.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    process::id,
    time::{Duration, SystemTime},
};

use nix::unistd::{Uid, setfsuid};
use serde_json::{Value, json};
use tracer::source::clock::monotonic_ns;

use crate::{
    harness::{THREAD, Tracer, assert_fields, assert_values, in_new_namespace, own_netns},
    net::{self, close, local, pair},
};

const FIELDS: &[(&str, &str)] = &[
    ("v", "number"),
    ("time", "string"),
    ("mono_ns", "number"),
    ("cookie", "number?"),
    ("netns", "number?"),
    ("local_addr", "string"),
    ("local_port", "number"),
    ("remote_addr", "string"),
    ("remote_port", "number"),
    ("old_state", "string"),
    ("new_state", "string"),
    ("in_state_ns", "number?"),
    ("pid", "number?"),
    ("comm", "string?"),
    ("uid", "number?"),
    ("inode", "number?"),
    ("cgroup", "string?"),
    ("error", "string?"),
    ("origin", "string"),
];

/// The states of both ends of a connection that its client closes first, as they follow each other.
const CLIENT: &[&str] = &["CLOSE", "SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE"];
const SERVER: &[&str] = &["LISTEN", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE"];

/// The records of one socket.
fn of(records: &[Value], cookie: u64) -> Vec<Value> {
    records.iter().filter(|record| record["cookie"] == cookie).cloned().collect()
}

fn states(records: &[Value]) -> Vec<&str> {
    let first = records.first().and_then(|record| record["old_state"].as_str());
    first.into_iter().chain(records.iter().filter_map(|record| record["new_state"].as_str())).collect()
}

/// Waits until so many sockets have come to CLOSE.
fn await_closed(tracer: &mut Tracer, count: usize) {
    tracer.wait_until("closed", |records| {
        records.iter().filter(|record| record["new_state"] == "CLOSE").count() >= count
    });
}

/// The cgroup of this process as the records have it; `None` where no cgroup v2 tree is mounted.
fn own_cgroup() -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned);
    own.filter(|_| mounts.contains(" - cgroup2 "))
}

/// A client whose socket belongs to another user than root.
fn client_of(uid: u32, to: SocketAddr) -> TcpStream {
    let own = setfsuid(Uid::from_raw(uid));
    let client = TcpStream::connect(to).expect("connected");
    setfsuid(own);
    client
}

#[test]
fn json_lines_have_every_field_with_its_value() {
    const UID: u32 = 4242;
    in_new_namespace(|| {
        let listener = net::listen();
        let (began, began_ns) = (SystemTime::now(), monotonic_ns());
        let mut tracer = Tracer::log("");
        let client = client_of(UID, local(&listener));
        let server = net::accept(&listener);
        let (client_end, server_end) = (local(&client), local(&server));
        let (client_inode, server_inode) = (net::inode(&client), net::inode(&server));
        let (client_cookie, server_cookie) = (net::cookie(&client), net::cookie(&server));
        net::close_in_order((client, server));
        await_closed(&mut tracer, 2);
        let (over, over_ns) = (SystemTime::now(), monotonic_ns());
        let ended = tracer.interrupt().in_order();
        let records = ended.records();
        assert_eq!(ended.loss().seen, 10);
        assert_eq!(records.len(), 10, "{records:#?}");

        for record in &records {
            assert_fields(record, FIELDS);
            assert_values(record, &json!({"v": 1, "netns": own_netns(), "error": null, "origin": "kernel"}));
            let mono_ns = record["mono_ns"].as_u64().expect("ns");
            assert!((began_ns..=over_ns).contains(&mono_ns), "{record}");
            let text = record["time"].as_str().expect("text");
            let time = humantime::parse_rfc3339(text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!((text.len(), &text[29..]), ("2024-01-01T00:00:00.000000000Z".len(), "Z"), "{text}");
            let tolerance = Duration::from_secs(1);
            assert!(began - tolerance <= time && time <= over + tolerance, "{text}");
            match own_cgroup() {
                Some(path) => assert_eq!(record["cgroup"], path),
                None => assert!(record["cgroup"].as_str().is_some_and(|name| name.starts_with("cgroup:["))),
            }
        }

        let check = |cookie, ends: (SocketAddr, SocketAddr), uid: u32, path: &[&str], known: &[(bool, Option<u64>)]| {
            let records = of(&records, cookie);
            assert_eq!(states(&records), path);
            for (at, (record, (acts, inode))) in records.iter().zip(known).enumerate() {
                let (local, remote) = ends;
                let port = if at == 0 && path[0] == "CLOSE" { 0 } else { local.port() };
                let (pid, comm) = if *acts { (json!(id()), json!(THREAD)) } else { (Value::Null, Value::Null) };
                let since = at.checked_sub(1).map(|before| records[before]["mono_ns"].as_u64().expect("ns"));
                let in_state_ns = since.map(|since| record["mono_ns"].as_u64().expect("ns") - since);
                assert_values(
                    record,
                    &json!({
                        "local_addr": local.ip(), "local_port": port,
                        "remote_addr": remote.ip(), "remote_port": remote.port(),
                        "old_state": path[at], "new_state": path[at + 1], "in_state_ns": in_state_ns,
                        "uid": uid, "inode": inode,
                    }),
                );
                // The ACK of the last FIN may find the closing process still at work on the socket, and is then its.
                if (path[at], path[at + 1]) != ("LAST_ACK", "CLOSE") || record["pid"] != Value::Null {
                    assert_values(record, &json!({"pid": pid, "comm": comm}));
                }
            }
        };
        let file = Some(client_inode);
        let client_knows = [(true, file), (false, file), (true, file), (false, None), (false, None)];
        check(client_cookie, (client_end, server_end), UID, CLIENT, &client_knows);
        let file = Some(server_inode);
        let server_knows = [(false, None), (false, None), (false, file), (true, file), (true, None)];
        check(server_cookie, (server_end, client_end), 0, SERVER, &server_knows);
    });
}

#[test]
fn csv_and_the_table_tell_what_json_lines_tell() {
    in_new_namespace(|| {
        let mut tracer = Tracer::log("");
        let (csv, table) = (Tracer::start("log --format csv"), Tracer::start("log"));
        let listener = net::listen();
        net::close_in_order(pair(&listener));
        reset(&listener);
        close(listener);
        // Two connections of two ends each, and the listener.
        await_closed(&mut tracer, 5);
        let [json, csv, table] = [tracer, csv, table].map(|tracer| tracer.interrupt().in_order());
        let records = json.records();

        assert_eq!(csv.stdout[0], FIELDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(","));
        let text = csv.stdout.join("\n");
        let mut rows: Vec<csv::StringRecord> =
            csv::Reader::from_reader(text.as_bytes()).into_records().map(|row| row.expect("a row")).collect();
        assert_eq!(rows.len(), records.len());
        // Each run has its own clock, and what happens on two CPUs at once its own order.
        let mut sorted: Vec<&Value> = records.iter().collect();
        sorted.sort_by_key(|record| record["cookie"].as_u64());
        rows.sort_by_key(|row| row[3].parse::<u64>().ok());
        for (row, record) in rows.iter().zip(sorted) {
            for ((name, _), field) in FIELDS.iter().zip(row) {
                match *name {
                    "time" => drop(humantime::parse_rfc3339(field).expect("RFC 3339")),
                    "mono_ns" => drop(field.parse::<u64>().expect("ns")),
                    "in_state_ns" => assert_eq!(field.is_empty(), record[*name].is_null()),
                    _ => assert_eq!(field, as_text(&record[*name]), "{name} of {record}"),
                }
            }
        }

        assert!(table.stdout[0].starts_with("TIME (UTC)"));
        let expected = |record: &Value| {
            let or_dash = |name| if record[name].is_null() { "-".to_owned() } else { as_text(&record[name]) };
            let end = |name| format!("{}:{}", as_text(&record[format!("{name}_addr")]), record[format!("{name}_port")]);
            let (old, new) = (as_text(&record["old_state"]), as_text(&record["new_state"]));
            [
                or_dash("pid"),
                or_dash("comm"),
                end("local"),
                end("remote"),
                old,
                "→".to_owned(),
                new,
                as_text(&record["error"]),
            ]
        };
        let shown = |line: &String| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert!(words[0].len() == "00:00:00.000".len() && (words[8] == "-" || words[8].ends_with('s')), "{line}");
            let [_, pid, comm, local, remote, old, arrow, new, _, error @ ..] = &words[..] else { panic!("{line}") };
            [pid, comm, local, remote, old, arrow, new, error.first().unwrap_or(&String::new())].map(String::clone)
        };
        let [mut expected, mut shown] =
            [records.iter().map(expected).collect::<Vec<_>>(), table.stdout[1..].iter().map(shown).collect()];
        expected.sort();
        shown.sort();
        assert_eq!(shown, expected);
    });
}

/// A field as CSV has it.
fn as_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A connection that its server resets; the ends' cookies, client first.
fn reset(listener: &TcpListener) -> (u64, u64) {
    let (client, server) = pair(listener);
    let cookies = (net::cookie(&client), net::cookie(&server));
    net::linger_zero(&server);
    close(server);
    let error = std::io::Read::read(&mut &client, &mut [0]).expect_err("a reset");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
    close(client);
    cookies
}

#[test]
fn a_reset_is_told_with_its_error_at_the_end_that_received_it() {
    in_new_namespace(|| {
        let listener = net::listen();
        let mut tracer = Tracer::log("");
        let (client, server) = reset(&listener);
        await_closed(&mut tracer, 2);
        let records = tracer.interrupt().in_order().records();
        let last = |cookie| of(&records, cookie).pop().expect("records");
        let from_to = json!({"old_state": "ESTABLISHED", "new_state": "CLOSE"});
        assert_values(&last(client), &from_to);
        // Its file is still open: this is the leak that no list of sockets shows.
        assert_values(&last(client), &json!({"error": "ECONNRESET", "pid": null, "comm": null}));
        assert!(last(client)["inode"].is_number());
        assert_values(&last(server), &from_to);
        assert_values(&last(server), &json!({"error": null, "pid": id(), "comm": THREAD}));
    });
}

#[test]
fn a_listener_is_told_too() {
    in_new_namespace(|| {
        let mut tracer = Tracer::log("");
        let listener = net::listen();
        let (port, inode) = (local(&listener).port(), net::inode(&listener));
        close(listener);
        await_closed(&mut tracer, 1);
        let records = tracer.interrupt().in_order().records();
        assert_eq!(states(&records), ["CLOSE", "LISTEN", "CLOSE"]);
        for record in &records {
            assert_values(record, &json!({"local_port": port, "remote_port": 0, "pid": id(), "comm": THREAD}));
        }
        assert_eq!(records[0]["inode"], inode);
    });
}

#[test]
fn without_a_command_it_logs() {
    in_new_namespace(|| {
        let mut tracer = Tracer::start("--format jsonl");
        net::close_in_order(pair(&net::listen()));
        await_closed(&mut tracer, 3);
        for record in tracer.interrupt().in_order().records() {
            assert_fields(&record, FIELDS);
        }
    });
}

/// A process may call itself anything, and this goes to terminals and spreadsheets.
#[test]
fn a_hostile_name_does_no_harm() {
    in_new_namespace(|| {
        let formats = ["jsonl", "csv", "table"];
        let tracers = formats.map(|format| Tracer::start(&format!("log --format {format} --count 1")));
        nix::sys::prctl::set_name(c"a\x1b[2J\n,\"\xffz").expect("a name");
        drop(net::listen());
        nix::sys::prctl::set_name(c"cli-test").expect("a name");
        let [json, csv, table] = tracers.map(|tracer| tracer.ended().in_order());
        let shown = "a\u{fffd}[2J\u{fffd},\"\u{fffd}z";
        assert_eq!(json.records()[0]["comm"], shown);
        let text = csv.stdout.join("\n");
        let row = csv::Reader::from_reader(text.as_bytes()).into_records().next().expect("a row").expect("CSV");
        assert_eq!(&row[13], shown);
        assert!(table.stdout[1].contains(shown), "{:?}", table.stdout);
        for line in json.stdout.iter().chain(&csv.stdout).chain(&table.stdout) {
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    });
}
