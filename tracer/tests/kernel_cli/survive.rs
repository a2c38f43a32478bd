//! What is left of a recording whose recorder is killed, and what becomes of one that cannot keep up.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
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

/// The states that each socket entered, as the kernel told.
fn paths(records: &[Value]) -> BTreeMap<u64, Vec<&str>> {
    let mut paths: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for record in records.iter().filter(|record| record["origin"] == "kernel") {
        let path = paths.entry(record["cookie"].as_u64().expect("a cookie")).or_default();
        path.push(record["new_state"].as_str().expect("a state"));
    }
    paths
}

/// Whether a path is a part of the way, with no step twice and none that is not of it.
fn is_part_of(path: &[&str], way: &[&str]) -> bool {
    let mut rest = way.iter();
    path.iter().all(|step| rest.any(|state| state == step))
}

/// What a recording has of a load is a stretch of what happened. Returns the most connections in a row, in between, of
/// which it has nothing: the kernel skips a transition now and then, a batch that is lost takes hundreds of connections.
fn longest_hole(records: &[Value], made: &[[u64; 2]]) -> usize {
    let known: BTreeSet<u64> = made.iter().flatten().copied().collect();
    let mut found = paths(records);
    let listener = |path: &[&str]| path.iter().all(|state| ["LISTEN", "CLOSE"].contains(state));
    for (cookie, path) in &found {
        assert!(known.contains(cookie) || listener(path), "{cookie} was never made, and went {path:?}");
    }
    let mut is_there = |[client, server]: &[u64; 2]| {
        let [client, server] = [client, server].map(|cookie| found.remove(cookie).unwrap_or_default());
        assert!(is_part_of(&client, &CLIENT) && is_part_of(&server, &SERVER), "{client:?} and {server:?}");
        !client.is_empty() || !server.is_empty()
    };
    let there: Vec<bool> = made.iter().map(&mut is_there).collect();
    let (Some(first), Some(last)) = (there.iter().position(|is| *is), there.iter().rposition(|is| *is)) else {
        return 0;
    };
    there[first..=last].split(|is| *is).map(<[bool]>::len).max().unwrap_or(0)
}

/// Reads what a killed recorder has left, which has no holes; how many transitions that is.
fn read_rest(ended: &Ended, made: &[[u64; 2]]) -> usize {
    assert_eq!((ended.status, ended.stderr.len()), (Some(0), 2), "{:#?}", ended.stderr);
    assert!(ended.stderr[0].contains("it has no end mark"), "{:#?}", ended.stderr);
    let records = ended.records();
    let hole = longest_hole(&records, made);
    assert!(hole <= 1, "nothing of {hole} connections in a row, of {} made, {} transitions", made.len(), records.len());
    records.len()
}

#[test]
fn a_recorder_that_is_killed_at_any_moment_leaves_what_it_has_written() {
    const ROUNDS: usize = 2;
    const AT_ONCE: usize = 25;
    in_new_namespace(|| {
        let folder = scratch(None);
        let mut random = Random::new();
        let mut rests = Vec::new();
        for round in 0..ROUNDS {
            let files: Vec<_> = (0..AT_ONCE).map(|number| folder.join(format!("{round}.{number}.arrows"))).collect();
            let made = Load::beside(Duration::from_millis(4), |load| {
                let spawn = |file: &PathBuf| {
                    Tracer::spawn(&mut program(&format!("record --netns self --buffer 4M {}", file.display())))
                };
                let mut recorders: Vec<Tracer> = files.iter().map(spawn).collect();
                recorders.iter_mut().for_each(Tracer::await_attached);
                let length = |file: &PathBuf| fs::metadata(file).map_or(0, |metadata| metadata.len());
                // The schema is what makes it a recording.
                eventually("begun", || files.iter().all(|file| length(file) > 0));
                // Some have written by then, the others are about to.
                let before: Vec<u64> = files.iter().map(length).collect();
                let has_grown = |(file, before): &(&PathBuf, &u64)| length(file) > **before;
                eventually("written", || files.iter().zip(&before).filter(has_grown).count() > AT_ONCE / 2);
                let mut deaths: Vec<u64> = (0..AT_ONCE).map(|_| random.below(900)).collect();
                deaths.sort_unstable();
                let began = Instant::now();
                for (after, recorder) in deaths.into_iter().zip(recorders) {
                    thread::sleep(Duration::from_millis(after).saturating_sub(began.elapsed()));
                    recorder.kill();
                }
                load.await_next();
                load.made()
            });
            rests.extend(files.iter().map(|file| read_rest(&replay("log", file), &made)));
        }
        let with_something = rests.iter().filter(|length| **length > 0).count();
        assert!(with_something > ROUNDS * AT_ONCE / 4, "{rests:?}");
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
            load.end();
            load.await_next();
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
            most = most.max(read_rest(&replay("log", &cut), &made));
        }
        assert!(most > 0);
    });
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
    /// What a busy machine may add to it.
    const BUSY: Duration = Duration::from_secs(3);
    const WRITTEN: Duration = Duration::from_secs(1);
    const SMALL: &str = "--netns self --buffer 64K";
    in_new_namespace(|| {
        let file = scratch(None).join("recording.arrows");
        let listener = net::listen();
        let mut open: Vec<_> = (0..10).map(|_| pair(&listener)).collect();
        // The recording begins after this: on a busy machine seconds after.
        let began = Instant::now();
        let recorder = Tracer::start_command(&mut program(&format!("record {SMALL} {}", file.display())));
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
        let expected = open_in_kernel();
        assert_eq!(expected.len(), 2 * open.len());
        // The recording says what was known then; at its end everything is looked at once more.
        let known_after = |time: Duration| {
            eventually("written", || began.elapsed() > continued + time + WRITTEN);
            let until = (continued + time).as_millis();
            still_open(&replay(&format!("connections --open --duration {until}ms"), &file))
        };
        if known_after(CONVERGED) != expected {
            assert_eq!(known_after(CONVERGED + BUSY), expected);
        }
        assert!(tracers.iter_mut().all(Tracer::is_running));
        let [recorded, log] = tracers.map(Tracer::interrupt);
        assert_eq!(still_open(&replay("connections --open", &file)), expected, "at the end");

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
