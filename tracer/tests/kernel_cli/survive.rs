//! What is left of a recording whose recorder is killed, and what becomes of one that cannot keep up.

use std::{
    collections::BTreeSet,
    fs,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    harness::{Ended, Tracer, eventually, in_new_namespace, program, scratch},
    load::{CLIENT, Load, SERVER},
    loss::open_in_kernel,
    net::{self, pair},
    record::{record, replay},
};

/// Random numbers, others in each run; a failure tells with which it began.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let seed = now.as_nanos() as u64 | 1;
        eprintln!("random numbers from {seed}");
        Self(seed)
    }

    /// xorshift64
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The states that one socket entered, in the order of the log; every step begins where the one before it ended.
fn path_of(records: &[Value], cookie: u64) -> Vec<&str> {
    let mut path: Vec<&str> = Vec::new();
    for record in records.iter().filter(|record| record["cookie"] == cookie) {
        let state = |name: &str| record[name].as_str().expect("a state");
        if let Some(before) = path.last() {
            assert_eq!(state("old_state"), *before, "{record}");
        }
        path.push(state("new_state"));
    }
    path
}

/// What a recording has of a load is a stretch of what happened, without anything between left out or added.
fn assert_part_of(records: &[Value], made: &[[u64; 2]]) {
    let known: BTreeSet<u64> = made.iter().flatten().copied().collect();
    let mut whole_or_begun = Vec::new();
    for (number, [client, server]) in made.iter().enumerate() {
        let paths = [path_of(records, *client), path_of(records, *server)];
        for (path, expected) in paths.iter().zip([CLIENT, SERVER]) {
            // One that was under way when the recorder came begins somewhere, one that was when it went ends there.
            assert!(expected.windows(path.len().max(1)).any(|part| path.is_empty() || part == path), "{path:?}");
        }
        if paths[0].first() == Some(&"SYN_SENT") {
            whole_or_begun.push((number, paths));
        }
    }
    for pair in whole_or_begun.windows(2) {
        let [(number, paths), (next, _)] = pair else { continue };
        assert_eq!(number + 1, *next, "one is missing in between");
        assert_eq!([&paths[0][..], &paths[1][..]], [CLIENT, SERVER], "one is not complete that others follow");
    }
    for record in records {
        let cookie = record["cookie"].as_u64().expect("a cookie");
        let is_listener = [&record["old_state"], &record["new_state"]].contains(&&Value::from("LISTEN"));
        let is_child = record["old_state"] == "LISTEN" && record["new_state"] == "SYN_RECV";
        assert!(known.contains(&cookie) || (is_listener && !is_child), "invented: {record}");
    }
}

/// Reads what a killed recorder has left; how many transitions it is.
fn read_rest(ended: &Ended, made: &[[u64; 2]]) -> usize {
    assert_eq!((ended.status, ended.stderr.len()), (Some(0), 2), "{:#?}", ended.stderr);
    assert!(ended.stderr[0].contains("it has no end mark"), "{:#?}", ended.stderr);
    let records = ended.records();
    let repaired = records.iter().any(|record| record["origin"] != "kernel");
    // What the kernel skipped is marked, and nobody promises anything of it.
    if !repaired && ended.loss().missed == 0 {
        assert_part_of(&records, made);
    }
    records.len()
}

#[test]
fn a_recorder_that_is_killed_at_any_moment_leaves_what_it_has_written() {
    const ROUNDS: usize = 5;
    const AT_ONCE: usize = 10;
    in_new_namespace(|| {
        let folder = scratch(None);
        let mut random = Random::new();
        let mut lengths = Vec::new();
        for _ in 0..ROUNDS {
            let files: Vec<_> = (0..AT_ONCE).map(|number| folder.join(format!("{number}.arrows"))).collect();
            let made = Load::beside(Duration::from_micros(500), |load| {
                let recorders: Vec<Tracer> = files.iter().map(|file| record("--force", file)).collect();
                let mut deaths: Vec<(u64, Tracer)> =
                    recorders.into_iter().map(|recorder| (random.below(1_200), recorder)).collect();
                deaths.sort_by_key(|(after, _)| *after);
                let began = Instant::now();
                for (after, recorder) in deaths {
                    thread::sleep(Duration::from_millis(after).saturating_sub(began.elapsed()));
                    recorder.kill();
                }
                // Those that were being made are told of when they are complete.
                let count = load.made().len();
                eventually("one more", || load.made().len() > count);
                load.made()
            });
            lengths.extend(files.iter().map(|file| read_rest(&replay("log", file), &made)));
        }
        let with_something = lengths.iter().filter(|length| **length > 0).count();
        assert!(with_something > ROUNDS * AT_ONCE / 4, "{lengths:?}");
    });
}

/// Cut off anywhere, as after a crash of the whole machine: what is complete is read.
#[test]
fn a_file_that_is_cut_anywhere_is_read_up_to_there() {
    in_new_namespace(|| {
        let folder = scratch(None);
        let (file, cut) = (folder.join("whole.arrows"), folder.join("cut.arrows"));
        let recorder = record("", &file);
        let made = Load::beside(Duration::from_millis(5), |load| {
            let length = || fs::metadata(&file).expect("the file").len();
            // In batches.
            for _ in 0..3 {
                let before = length();
                eventually("written", || length() > before);
            }
            load.made()
        });
        recorder.interrupt().in_order();
        let whole = fs::read(&file).expect("the recording");
        let mut random = Random::new();
        let mut most = 0;
        for _ in 0..20 {
            // The schema is what makes it a recording.
            let schema = 8_192.min(whole.len() / 2);
            let length = schema + random.below((whole.len() - schema - 8) as u64) as usize;
            fs::write(&cut, &whole[..length]).expect("written");
            let ended = replay("log", &cut);
            let made: Vec<[u64; 2]> = made.iter().copied().chain(last_of(&ended, &made)).collect();
            most = most.max(read_rest(&ended, &made));
        }
        assert!(most > 0);
    });
}

/// The connection that was being made when the load was asked what it had made.
fn last_of(ended: &Ended, made: &[[u64; 2]]) -> Option<[u64; 2]> {
    let records = ended.records();
    let known: BTreeSet<u64> = made.iter().flatten().copied().collect();
    let unknown = |state: &str| {
        let mut entered = records.iter().filter(|record| record["new_state"] == state);
        entered.find_map(|record| record["cookie"].as_u64().filter(|cookie| !known.contains(cookie)))
    };
    Some([unknown("SYN_SENT")?, unknown("SYN_RECV").unwrap_or(0)])
}

/// How many of the drops were told while the run went on.
fn told_at_once(ended: &Ended) -> u64 {
    let notes = ended.stderr.iter().filter(|line| line.contains("--buffer"));
    notes.filter_map(|line| line.split(' ').find_map(|word| word.parse::<u64>().ok())).sum()
}

fn of_kernel(records: &[Value]) -> u64 {
    records.iter().filter(|record| record["origin"] == "kernel").count() as u64
}

#[test]
fn a_tracer_that_is_stopped_for_five_seconds_tells_what_it_lost_and_finds_its_way_back() {
    const STOPPED: Duration = Duration::from_secs(5);
    const CONVERGED: Duration = Duration::from_secs(2);
    const SMALL: &str = "--netns self --buffer 64K";
    in_new_namespace(|| {
        let file = scratch(None).join("recording.arrows");
        let listener = net::listen();
        let mut open: Vec<_> = (0..10).map(|_| pair(&listener)).collect();
        let recorder = Tracer::start_command(&mut program(&format!("record {SMALL} {}", file.display())));
        // The recording began before this.
        let began = Instant::now();
        let log = Tracer::start_command(&mut program(&format!("log --format jsonl {SMALL}")));
        let mut tracers = [recorder, log];
        let continued = Load::beside(Duration::ZERO, |load| {
            eventually("under way", || load.made().len() > 100);
            tracers.iter().for_each(|tracer| tracer.signal(Signal::SIGSTOP));
            tracers.iter().for_each(Tracer::await_stopped);
            let (stopped, before) = (Instant::now(), load.made().len());
            // Connections that close and others that open while nobody listens.
            open.drain(..5).for_each(net::close_in_order);
            open.extend((0..5).map(|_| pair(&listener)));
            eventually("stopped for long enough", || stopped.elapsed() >= STOPPED);
            let meanwhile = load.made().len() - before;
            // A tracer that blocked them would have let some hundred through.
            assert!(meanwhile > 2_000, "the load was blocked: {meanwhile} connections in {STOPPED:?}");
            load.end();
            tracers.iter().for_each(|tracer| tracer.signal(Signal::SIGCONT));
            began.elapsed()
        });
        tracers.iter_mut().for_each(|tracer| tracer.wait_for_note("--buffer"));
        eventually("converged, and written", || began.elapsed() > continued + CONVERGED + Duration::from_secs(1));
        assert!(tracers.iter_mut().all(Tracer::is_running));
        // The recording says what was known then; at its end everything is looked at once more.
        let until = (continued + CONVERGED).as_millis();
        let known = replay(&format!("connections --open --duration {until}ms"), &file);
        assert_eq!(known.status, Some(0), "{known:#?}");
        let expected = open_in_kernel();
        assert_eq!(expected.len(), 2 * open.len());
        let [recorded, log] = tracers.map(Tracer::interrupt);
        for ended in [&known, &replay("connections --open", &file)] {
            assert_eq!(still_open(ended), expected);
        }

        let replayed = replay("log", &file);
        for (ended, records) in [(&log, log.records()), (&recorded, replayed.records())] {
            assert_eq!(ended.status, Some(0), "{ended:#?}");
            let loss = ended.loss();
            assert!(loss.dropped > 1_000, "{loss:?}");
            assert_eq!(loss.seen - loss.dropped, of_kernel(&records), "{loss:?}");
            assert_eq!(loss.repaired, records.len() as u64 - of_kernel(&records), "{loss:?}");
            assert_eq!(told_at_once(ended), loss.dropped, "{:?}", ended.stderr);
        }
        assert_eq!(replayed.loss(), recorded.loss());
    });
}

/// Ports of the connections that a run shows as open.
fn still_open(ended: &Ended) -> BTreeSet<(u16, u16)> {
    let port = |record: &Value, name: &str| u16::try_from(record[name].as_u64().expect("a number")).expect("a port");
    let records = ended.records();
    let open = records.iter().filter(|record| record["ended"].is_null());
    let ports: Vec<_> = open.map(|record| (port(record, "local_port"), port(record, "remote_port"))).collect();
    let unique: BTreeSet<_> = ports.iter().copied().collect();
    assert_eq!(unique.len(), ports.len(), "one of them twice");
    unique
}
