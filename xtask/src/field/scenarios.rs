//! The scenarios: what real programs do, and what the tracer has to say about it.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::lab::{Client, Lab, Program, Watching, send};

/// What misbehaves for this long is told. Servers end idle connections after about a second.
const DIAGNOSE: [&str; 5] = ["diagnose", "--format", "json", "--close-wait-age", "1s"];

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) programs: &'static [&'static str],
    run: fn(&mut Lab) -> Result<Outcome>,
}

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "python-forgets-close", programs: &["nginx", "python3"], run: python_forgets_close },
    Scenario { name: "python-reads-nothing", programs: &["nginx", "python3"], run: python_reads_nothing },
    Scenario { name: "python-pool-of-dead-redis", programs: &["redis-server", "python3"], run: dead_redis_pool },
    Scenario { name: "python-keeps-reset", programs: &["nginx", "python3"], run: python_keeps_reset },
    Scenario { name: "python-kept-reset-before", programs: &["nginx", "python3"], run: python_kept_reset },
    Scenario { name: "python-connection-per-request", programs: &["nginx", "python3"], run: connection_per_request },
    Scenario { name: "node-server-never-ends", programs: &["node", "python3"], run: node_server },
    Scenario { name: "node-client-never-ends", programs: &["nginx", "node"], run: node_client },
    Scenario { name: "redis-stopped", programs: &["redis-server", "python3"], run: redis_stopped },
    Scenario { name: "haproxy-backend-down", programs: &["haproxy", "nginx", "python3"], run: backend_down },
    Scenario { name: "healthy-haproxy", programs: &["haproxy", "nginx", "python3"], run: healthy_haproxy },
    Scenario { name: "healthy-node-keep-alive", programs: &["nginx", "node"], run: healthy_node },
    Scenario { name: "healthy-nginx-connection-close", programs: &["nginx", "python3"], run: healthy_nginx },
    Scenario { name: "connections-of-nginx", programs: &["nginx", "python3"], run: connections_of_nginx },
];

struct Outcome {
    expected: String,
    seen: String,
    ok: bool,
}

impl Scenario {
    /// In a namespace that is new; says how it went. The error is in that already.
    pub(super) fn run_here(&self, tracer: &Path) -> Result<()> {
        let outcome = Lab::new(tracer).and_then(|mut lab| (self.run)(&mut lab));
        let Outcome { expected, seen, ok } = outcome.unwrap_or_else(|error| Outcome {
            expected: "to run".to_owned(),
            seen: format!("{error:#}"),
            ok: false,
        });
        println!("{:<4} {:<38} {expected:<66} {seen}", if ok { "ok" } else { "NO" }, self.name);
        ensure!(ok, "{} is not as expected", self.name);
        Ok(())
    }
}

/// A finding that has to be there.
struct Expected<'a> {
    kind: &'a str,
    cause: Option<&'a str>,
    program: &'a Program,
    count: u64,
    fds: &'a [i64],
}

impl<'a> Expected<'a> {
    fn new(kind: &'a str, cause: Option<&'a str>, program: &'a Program, count: u64) -> Self {
        Self { kind, cause, program, count, fds: &[] }
    }

    /// About the descriptors that this client keeps.
    fn kept(kind: &'a str, cause: Option<&'a str>, client: &'a Client) -> Self {
        let Client { program, fds, .. } = client;
        Self { kind, cause, program, count: fds.len() as u64, fds }
    }

    fn matches(&self, finding: &Value) -> bool {
        let sockets = finding["sockets"].as_array().into_iter().flatten();
        let mut fds: Vec<i64> = sockets
            .flat_map(|socket| socket["fds"].as_array().cloned().unwrap_or_default())
            .filter_map(|fd| fd.as_i64())
            .collect();
        fds.sort_unstable();
        let mut kept = self.fds.to_vec();
        kept.sort_unstable();
        finding["kind"] == self.kind
            && finding["cause"].as_str() == self.cause
            && finding["process"]["pid"] == self.program.pid
            && finding["process"]["comm"] == self.program.comm.as_str()
            && finding["count"] == self.count
            && (kept.is_empty() || kept == fds)
    }

    fn in_words(&self) -> String {
        let Self { kind, cause, program: Program { pid, comm }, count, .. } = self;
        format!("{} {comm}[{pid}] ×{count}", label(kind, *cause))
    }
}

fn label(kind: &str, cause: Option<&str>) -> String {
    cause.map_or_else(|| kind.to_owned(), |cause| format!("{kind}/{cause}"))
}

fn in_words(finding: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let process = &finding["process"];
    let process = format!("{}[{}]", text(&process["comm"]), process["pid"]);
    let label = label(&text(&finding["kind"]), finding["cause"].as_str());
    format!("{} {label} {process} ×{}", text(&finding["severity"]), finding["count"])
}

/// All that is expected, and else nothing that would wake anybody.
fn judge(findings: &[Value], expected: &[Expected<'_>]) -> Outcome {
    let is_expected = |finding: &Value| expected.iter().any(|expected| expected.matches(finding));
    let all = expected.iter().all(|expected| findings.iter().any(|finding| expected.matches(finding)));
    let others = findings.iter().filter(|finding| finding["severity"] != "info" && !is_expected(finding)).count();
    let listed = |words: Vec<String>| if words.is_empty() { "nothing".to_owned() } else { words.join(", ") };
    Outcome {
        expected: listed(expected.iter().map(Expected::in_words).collect()),
        seen: listed(findings.iter().map(in_words).collect()),
        ok: all && others == 0,
    }
}

fn watched(tracer: Watching, expected: &[Expected<'_>]) -> Result<Outcome> {
    Ok(judge(&tracer.findings()?, expected))
}

fn wait(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

fn python_forgets_close(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    let client = lab.python("forget_to_close", 8080, 5)?;
    wait(1_500);
    watched(tracer, &[Expected::kept("close_wait", Some("eof_read_not_closed"), &client)])
}

fn python_reads_nothing(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    let client = lab.python("never_read", 8080, 4)?;
    wait(1_500);
    watched(tracer, &[Expected::kept("close_wait", Some("data_unread"), &client)])
}

fn dead_redis_pool(lab: &mut Lab) -> Result<Outcome> {
    lab.redis()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    let client = lab.python("pool_of_redis", 6379, 6)?;
    wait(4_500);
    watched(tracer, &[Expected::kept("close_wait", Some("fin_unread"), &client)])
}

fn python_keeps_reset(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    let client = lab.python("half_a_request", 8082, 4)?;
    wait(3_000);
    watched(tracer, &[Expected::kept("closed_not_released", None, &client)])
}

/// The same, over before anybody looked.
fn python_kept_reset(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    let client = lab.python("half_a_request", 8082, 4)?;
    wait(3_000);
    let findings = lab.at_once(&["--close-wait-age", "1s"])?;
    Ok(judge(&findings, &[Expected::kept("closed_not_released", None, &client)]))
}

fn connection_per_request(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40999")?;
    // By default loopback takes over ports in TIME_WAIT.
    fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "0")?;
    let tracer = lab.watch(&DIAGNOSE)?;
    let client = lab.python("client_closes", 8081, 600)?;
    // Rates are told of five seconds or more.
    wait(4_500);
    let of = |kind| Expected::new(kind, None, &client.program, 600);
    watched(tracer, &[of("time_wait_ports"), of("churn")])
}

fn node_server(lab: &mut Lab) -> Result<Outcome> {
    let tracer = lab.watch(&DIAGNOSE)?;
    let server = lab.node("half_open_server", 7000, 0)?;
    lab.python("give_up", 7000, 5)?;
    wait(1_500);
    watched(tracer, &[Expected::new("close_wait", Some("eof_read_not_closed"), &server.program, 5)])
}

fn node_client(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    let client = lab.node("half_open_client", 8080, 5)?;
    wait(1_500);
    watched(tracer, &[Expected::kept("close_wait", Some("eof_read_not_closed"), &client)])
}

fn redis_stopped(lab: &mut Lab) -> Result<Outcome> {
    let redis = lab.redis()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    send("-STOP", redis.pid)?;
    lab.python("idle", 6379, 2)?;
    lab.python("give_up", 6379, 3)?;
    wait(5_500);
    let expected = [
        Expected::new("accept_stalled", None, &redis, 5),
        Expected::new("close_wait", Some("never_accepted"), &redis, 3),
    ];
    watched(tracer, &expected)
}

fn backend_down(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    let haproxy = lab.haproxy()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    lab.python("one_request", 9081, 5)?;
    // Once and two more tries for each request.
    watched(tracer, &[Expected::new("connect_failures", None, &haproxy, 15)])
}

fn healthy_haproxy(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    lab.haproxy()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    lab.python("keep_alive", 9080, 20)?;
    lab.python("server_closes", 9080, 500)?;
    wait(1_500);
    watched(tracer, &[])
}

fn healthy_node(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    lab.node("keep_alive", 8081, 1000)?;
    wait(1_500);
    watched(tracer, &[])
}

fn healthy_nginx(lab: &mut Lab) -> Result<Outcome> {
    lab.nginx()?;
    let tracer = lab.watch(&DIAGNOSE)?;
    lab.python("server_closes", 8081, 1000)?;
    wait(1_500);
    watched(tracer, &[])
}

/// Each connection's process, end and bytes, at both ends.
fn connections_of_nginx(lab: &mut Lab) -> Result<Outcome> {
    let workers = lab.nginx()?;
    let tracer = lab.watch(&["connections", "--format", "jsonl"])?;
    let client = lab.python("server_closes", 8081, 300)?;
    wait(500);
    let records = tracer.records()?;
    let workers: Vec<u32> = workers.iter().map(|worker| worker.pid).collect();
    let python = [client.program.pid];
    let (mut right, mut wrong) = (0, None);
    for (port, sent, received) in &client.connections {
        let ends = [
            ("local_port", python.as_slice(), "passive", received, sent),
            ("remote_port", workers.as_slice(), "active", sent, received),
        ];
        for (end, pids, close, bytes_in, bytes_out) in ends {
            let record = records.iter().find(|record| record[end] == *port);
            let is_right = |record: &&Value| {
                pids.iter().any(|pid| record["process"]["pid"] == *pid)
                    && record["close"] == close
                    && record["bytes_in"] == *bytes_in
                    && record["bytes_out"] == *bytes_out
            };
            match record.filter(is_right) {
                Some(_) => right += 1,
                None => wrong = Some(record.cloned().unwrap_or(Value::Null)),
            }
        }
    }
    Ok(Outcome {
        expected: "600 ends: process (a worker), close, bytes".to_owned(),
        seen: wrong.map_or_else(|| format!("{right} right"), |wrong| format!("{right} right; wrong: {wrong}")),
        ok: right == 600,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_one_scenario() {
        for Scenario { name, .. } in ALL {
            assert_eq!(ALL.iter().filter(|other| other.name.contains(name)).count(), 1, "{name}");
        }
    }
}
