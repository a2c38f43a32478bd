//! `tracer connections`: lives of connections, against what really happened to them.

use std::{
    net::{TcpListener, TcpStream},
    process::id,
};

use serde_json::{Value, json};

use crate::{
    harness::{THREAD, Tracer, assert_fields, assert_values, in_new_namespace, own_netns},
    net::{self, close, local, pair},
};

const FIELDS: &[(&str, &str)] = &[
    ("v", "number"),
    ("cookie", "number?"),
    ("netns", "number?"),
    ("local_addr", "string"),
    ("local_port", "number"),
    ("remote_addr", "string"),
    ("remote_port", "number"),
    ("opened", "string?"),
    ("ended", "string?"),
    ("duration_ns", "number"),
    ("open", "string"),
    ("close", "string?"),
    ("after_close", "string"),
    ("states", "array"),
    ("bytes_in", "number?"),
    ("bytes_out", "number?"),
    ("process", "object?"),
    ("cgroup", "string?"),
    ("gap", "bool"),
];

/// Checks the shape of a record and what holds of each.
fn assert_record(record: &Value) {
    assert_fields(record, FIELDS);
    assert_values(record, &json!({"v": 1, "netns": own_netns(), "gap": false}));
    let states = record["states"].as_array().expect("states");
    states.iter().for_each(|state| {
        assert_fields(state, &[("state", "string"), ("ns", "number"), ("certainty", "string")]);
    });
    let sum: u64 = states.iter().map(|state| state["ns"].as_u64().expect("ns")).sum();
    assert_eq!(record["duration_ns"], sum, "{record}");
    if !record["process"].is_null() {
        assert_fields(&record["process"], &[("pid", "number"), ("comm", "string"), ("source", "string")]);
    }
    let time = |name: &str| record[name].as_str().map(|text| humantime::parse_rfc3339(text).expect("RFC 3339"));
    if let (Some(opened), Some(ended)) = (time("opened"), time("ended")) {
        assert_eq!(ended.duration_since(opened).expect("in order").as_nanos(), u128::from(sum), "{record}");
    }
}

/// States and certainties in order.
fn states(record: &Value) -> Vec<(&str, &str)> {
    let text = |value| Value::as_str(value).expect("text");
    let states = record["states"].as_array().expect("states");
    states.iter().map(|state| (text(&state["state"]), text(&state["certainty"]))).collect()
}

/// The one record of a socket.
fn of(records: &[Value], cookie: u64) -> &Value {
    let mut found = records.iter().filter(|record| record["cookie"] == cookie);
    let record = found.next().unwrap_or_else(|| panic!("no {cookie} in {records:#?}"));
    assert!(found.next().is_none(), "two of {cookie}");
    assert_record(record);
    record
}

fn cookies((client, server): &(TcpStream, TcpStream)) -> (u64, u64) {
    (net::cookie(client), net::cookie(server))
}

#[test]
fn both_ends_of_a_connection_are_told_in_full() {
    in_new_namespace(|| {
        let listener = net::listen();
        let mut tracer = Tracer::connections("");
        let ends = pair(&listener);
        let (client, server) = cookies(&ends);
        let (client_end, server_end) = (local(&ends.0), local(&ends.1));
        net::write(&ends.0, 1234);
        net::write(&ends.1, 40_000);
        let mut answer = vec![0; 40_000];
        std::io::Read::read_exact(&mut &ends.0, &mut answer).expect("the answer");
        net::close_in_order(ends);
        tracer.wait_for_lines(2);
        let records = tracer.interrupt().in_order().records();
        assert_eq!(records.len(), 2);

        let record = of(&records, client);
        assert_values(
            record,
            &json!({
                "local_addr": client_end.ip(), "local_port": client_end.port(),
                "remote_addr": server_end.ip(), "remote_port": server_end.port(),
                "open": "active", "close": "active", "after_close": "time_wait",
                "bytes_in": 40_000, "bytes_out": 1234,
                "process": {"pid": id(), "comm": THREAD, "source": "opener"},
            }),
        );
        let exact = |names: [&'static str; 4]| names.map(|name| (name, "exact"));
        assert_eq!(states(record), exact(["SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2"]));

        let record = of(&records, server);
        assert_values(
            record,
            &json!({
                "local_addr": server_end.ip(), "local_port": server_end.port(),
                "remote_addr": client_end.ip(), "remote_port": client_end.port(),
                "open": "passive", "close": "passive", "after_close": "none",
                "bytes_in": 1234, "bytes_out": 40_000,
                "process": {"pid": id(), "comm": THREAD, "source": "closer"},
            }),
        );
        assert_eq!(states(record), exact(["SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK"]));
        for record in &records {
            assert!(record["opened"].is_string() && record["ended"].is_string());
        }
    });
}

#[test]
fn resets_and_refusals_are_told_apart() {
    in_new_namespace(|| {
        let listener = net::listen();
        let mut tracer = Tracer::connections("");
        let (client, server) = pair(&listener);
        let (reset, resetting) = (net::cookie(&client), net::cookie(&server));
        net::linger_zero(&server);
        close(server);
        std::io::Read::read(&mut &client, &mut [0]).expect_err("a reset");
        close(client);
        let nobody = local(&listener);
        close(listener);
        TcpStream::connect(nobody).expect_err("refused");
        tracer.wait_for_lines(3);
        let records = tracer.interrupt().in_order().records();

        assert_values(
            of(&records, reset),
            &json!({"open": "active", "close": "reset_received", "after_close": "none"}),
        );
        assert_values(
            of(&records, resetting),
            &json!({"open": "passive", "close": "reset_sent", "after_close": "none"}),
        );
        let refused = records.iter().find(|record| record["close"] == "refused").expect("the refused one");
        assert_record(refused);
        assert_values(refused, &json!({"open": "active", "after_close": "none", "bytes_in": 0, "bytes_out": 0}));
        assert_values(
            refused,
            &json!({"remote_port": nobody.port(), "process": {"pid": id(), "comm": THREAD, "source": "opener"}}),
        );
        assert_eq!(states(refused), [("SYN_SENT", "exact")]);
    });
}

#[test]
fn what_is_open_at_the_end_is_listed_only_with_open() {
    in_new_namespace(|| {
        let listener = net::listen();
        let (tracer, without) = (Tracer::connections("--open"), Tracer::connections(""));
        let ends = pair(&listener);
        let (client, server) = cookies(&ends);
        net::write(&ends.0, 5);
        net::write(&ends.1, 700);
        let half_closed = pair(&listener);
        half_closed.0.shutdown(std::net::Shutdown::Write).expect("SHUT_WR");
        assert_eq!(net::await_end(&half_closed.1), 0);

        assert_eq!(without.interrupt().in_order().stdout, [""; 0]);
        let records = tracer.interrupt().in_order().records();
        assert_eq!(records.len(), 4, "{records:#?}");
        let open = json!({"ended": null, "close": null, "after_close": "none"});
        for record in &records {
            assert_record(record);
            assert_values(record, &open);
            assert!(record["opened"].is_string());
        }
        assert_values(of(&records, client), &json!({"open": "active", "bytes_in": 700, "bytes_out": 5}));
        assert_eq!(states(of(&records, client)), [("SYN_SENT", "exact"), ("ESTABLISHED", "at_least")]);
        assert_values(of(&records, server), &json!({"open": "passive", "bytes_in": 5, "bytes_out": 700}));
        assert_eq!(states(of(&records, server)), [("SYN_RECV", "exact"), ("ESTABLISHED", "at_least")]);
        let (client, server) = cookies(&half_closed);
        assert_eq!(states(of(&records, client)).last(), Some(&("FIN_WAIT2", "at_least")));
        assert_eq!(states(of(&records, server)).last(), Some(&("CLOSE_WAIT", "at_least")));
        assert_values(of(&records, client), &json!({"bytes_in": 0, "bytes_out": 0}));
        assert_values(of(&records, server), &json!({"bytes_in": 0, "bytes_out": 0}));
    });
}

/// The name that /proc shows of this process: that of its first thread.
fn own_name() -> String {
    std::fs::read_to_string("/proc/self/comm").expect("comm").trim_end().to_owned()
}

#[test]
fn connections_from_before_the_tracer_are_known_and_said_to_be() {
    in_new_namespace(|| {
        let listener = net::listen();
        let (closed, open) = (pair(&listener), pair(&listener));
        net::write(&closed.0, 100);
        net::write(&open.0, 33);
        net::write(&open.1, 4444);
        let [closed_cookies, open_cookies] = [&closed, &open].map(cookies);
        let mut tracer = Tracer::connections("--open");
        net::write(&closed.0, 11);
        net::close_in_order(closed);
        tracer.wait_for_lines(2);
        let records = tracer.interrupt().in_order().records();
        assert_eq!(records.len(), 4, "{records:#?}");
        for record in &records {
            assert_values(record, &json!({"open": "pre_existing", "opened": null}));
        }

        for (cookie, close, after, bytes_in, bytes_out) in
            [(closed_cookies.0, "active", "time_wait", 0, 111), (closed_cookies.1, "passive", "none", 111, 0)]
        {
            let record = of(&records, cookie);
            assert_values(
                record,
                &json!({"close": close, "after_close": after, "bytes_in": bytes_in, "bytes_out": bytes_out}),
            );
            assert_eq!(states(record)[0], ("ESTABLISHED", "at_least"));
            assert!(states(record)[1..].iter().all(|(_, certainty)| *certainty == "exact"), "{record}");
            assert_values(&record["process"], &json!({"pid": id(), "comm": THREAD, "source": "closer"}));
        }
        for (cookie, bytes_in, bytes_out) in [(open_cookies.0, 4444, 33), (open_cookies.1, 33, 4444)] {
            let record = of(&records, cookie);
            assert_values(record, &json!({"close": null, "ended": null, "bytes_in": bytes_in, "bytes_out": bytes_out}));
            assert_eq!(states(record), [("ESTABLISHED", "at_least")]);
            assert_values(&record["process"], &json!({"pid": id(), "comm": own_name(), "source": "holder"}));
        }
    });
}

#[test]
fn csv_and_the_table_tell_what_json_lines_tell() {
    in_new_namespace(|| {
        let mut tracer = Tracer::connections("");
        let (csv, table) = (Tracer::start("connections --format csv"), Tracer::start("connections"));
        let listener: TcpListener = net::listen();
        let ends = pair(&listener);
        net::write(&ends.0, 321);
        net::close_in_order(ends);
        tracer.wait_for_lines(2);
        let [json, csv, table] = [tracer, csv, table].map(|tracer| tracer.interrupt().in_order());
        let records = json.records();

        assert_eq!(csv.stdout[0], FIELDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(","));
        let text = csv.stdout.join("\n");
        let rows: Vec<_> =
            csv::Reader::from_reader(text.as_bytes()).into_records().map(|row| row.expect("a row")).collect();
        assert_eq!((rows.len(), table.stdout.len()), (2, 3));
        assert!(table.stdout[0].starts_with("ENDED (UTC)"));
        for row in &rows {
            let record = of(&records, row[1].parse().expect("a cookie"));
            for ((name, kind), field) in FIELDS.iter().zip(row) {
                let value = &record[*name];
                match *name {
                    // Each run has its own clock.
                    "opened" | "ended" => drop(humantime::parse_rfc3339(field).expect("RFC 3339")),
                    "duration_ns" => drop(field.parse::<u64>().expect("ns")),
                    "states" => {
                        let told = serde_json::from_str(field).expect("JSON");
                        assert_eq!(states(&json!({"states": Value::Array(told)})), states(record));
                    }
                    _ if *kind == "object?" => {
                        assert_eq!(serde_json::from_str::<Value>(field).expect("JSON"), *value);
                    }
                    _ => assert_eq!(field, value.as_str().map_or_else(|| value.to_string(), str::to_owned), "{name}"),
                }
            }
            let end = format!("127.0.0.1:{}", record["local_port"]);
            let words = |line: &String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let line = table.stdout[1..].iter().map(words).find(|words| words[3] == end).expect("its line");
            let told = [record["open"].as_str(), record["close"].as_str(), record["after_close"].as_str()];
            assert_eq!(line[5..8].iter().map(|word| Some(word.as_str())).collect::<Vec<_>>(), told);
            assert_eq!(line[9..11], [format!("{}B", record["bytes_in"]), format!("{}B", record["bytes_out"])]);
        }
    });
}
