//! What is told of transitions that were lost, and what is known after all.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    harness::{Tracer, eventually, in_new_namespace, program},
    net::{self, local, pair},
};

/// What holds some 300 transitions.
const SMALL: &str = "--netns self --buffer 64K";

/// Makes more transitions than that, while nobody takes them out.
fn overflow(tracer: &Tracer, burst: impl FnOnce()) {
    tracer.signal(Signal::SIGSTOP);
    tracer.await_stopped();
    burst();
    tracer.signal(Signal::SIGCONT);
}

#[test]
fn dropped_transitions_are_counted_and_told() {
    in_new_namespace(|| {
        let mut tracer = Tracer::start_command(&mut program(&format!("log --format jsonl {SMALL}")));
        let listener = net::listen();
        let mut before: Vec<_> = (0..5).map(|_| pair(&listener)).collect();
        overflow(&tracer, || {
            for _ in 0..100 {
                net::close_in_order(pair(&listener));
            }
            before.drain(..).for_each(net::close_in_order);
        });
        tracer.wait_for_note("--buffer");
        // The picture is mended without anybody asking for it: both ends of each that closed unseen.
        tracer.wait_until("mended", |records| {
            let closes = |record: &&Value| record["origin"] == "repaired" && record["new_state"] == "CLOSE";
            records.iter().filter(closes).count() >= 10
        });
        let ended = tracer.interrupt();
        assert_eq!(ended.status, Some(0));
        let (records, loss) = (ended.records(), ended.loss());
        let seen = records.iter().filter(|record| record["origin"] == "kernel").count() as u64;
        assert!(loss.dropped > 0, "{loss:?}");
        assert_eq!(loss.seen, seen + loss.dropped, "{loss:?}");
        assert_eq!(loss.repaired, records.len() as u64 - seen, "{loss:?}");
        let notes: Vec<&String> = ended.stderr.iter().filter(|line| line.contains("--buffer")).collect();
        let told: u64 = notes.iter().filter_map(|line| line.split(' ').find_map(|word| word.parse::<u64>().ok())).sum();
        assert_eq!(told, loss.dropped, "{notes:?}");
        for record in records.iter().filter(|record| record["origin"] != "kernel") {
            for unknown in ["in_state_ns", "pid", "comm", "uid", "inode", "error"] {
                assert!(record[unknown].is_null(), "{unknown} of {record}");
            }
        }
    });
}

/// Open connections as the kernel lists them: their ports.
pub(crate) fn open_in_kernel() -> BTreeSet<(u16, u16)> {
    let open = net::listed().into_iter().filter(|(_, _, state)| ![net::TIME_WAIT, net::LISTEN].contains(state));
    open.map(|(local, remote, _)| (local, remote)).collect()
}

#[test]
fn after_a_loss_the_open_connections_are_those_of_the_kernel() {
    in_new_namespace(|| {
        let tracer = Tracer::start_command(&mut program(&format!("connections --open --format jsonl {SMALL}")));
        let listener = net::listen();
        let mut open = Vec::new();
        let mut closed_unseen = Vec::new();
        for _ in 0..10 {
            open.push(pair(&listener));
            closed_unseen.push(pair(&listener));
        }
        let ports: Vec<u16> = closed_unseen.iter().map(|(client, _)| local(client).port()).collect();
        overflow(&tracer, || {
            // First what fills the buffer: all that follows is lost.
            for _ in 0..80 {
                net::close_in_order(pair(&listener));
            }
            closed_unseen.drain(..).for_each(net::close_in_order);
            open.extend((0..10).map(|_| pair(&listener)));
            open.drain(..3).for_each(net::close_in_order);
        });
        let closed = || open_in_kernel().len() == 2 * open.len();
        eventually("closed", closed);
        let ended = tracer.interrupt();
        assert_eq!(ended.status, Some(0));
        assert!(ended.loss().dropped > 0 && ended.loss().repaired > 0, "{:?}", ended.loss());
        let port =
            |record: &Value, name: &str| u16::try_from(record[name].as_u64().expect("a number")).expect("a port");
        let ends = |record: &Value| (port(record, "local_port"), port(record, "remote_port"));
        let records = ended.records();
        let (over, still): (Vec<&Value>, Vec<&Value>) = records.iter().partition(|record| record["ended"].is_string());
        let shown: Vec<(u16, u16)> = still.iter().map(|record| ends(record)).collect();
        assert_eq!(shown.iter().copied().collect::<BTreeSet<_>>(), open_in_kernel());
        assert_eq!(shown.len(), open_in_kernel().len(), "one of them twice");
        for port in ports {
            let unseen = over.iter().find(|record| ends(record).0 == port).expect("an end");
            assert_eq!((&unseen["gap"], &unseen["close"]), (&Value::Bool(true), &Value::from("unknown")), "{unseen}");
        }
    });
}

#[test]
fn connections_beyond_the_bound_are_let_go_and_that_is_told() {
    in_new_namespace(|| {
        let mut tracer = Tracer::connections("--open --max-connections 4");
        let listener = net::listen();
        let open: Vec<_> = (0..6).map(|_| pair(&listener)).collect();
        tracer.wait_for_note("--max-connections");
        let ended = tracer.interrupt();
        assert_eq!(ended.status, Some(0));
        let records = ended.records();
        assert!((1..=4).contains(&records.len()), "{records:?}");
        let ports: BTreeSet<u64> = open
            .iter()
            .flat_map(|(client, server)| [local(client).port(), local(server).port()])
            .map(u64::from)
            .collect();
        for record in &records {
            assert!(
                record["ended"].is_null() && ports.contains(&record["local_port"].as_u64().expect("a port")),
                "{record}"
            );
        }
    });
}
