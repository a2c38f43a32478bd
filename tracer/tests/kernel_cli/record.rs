//! `tracer record` and `--from`: what a recording tells is what a trace beside it saw.

use std::{
    fs, io,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    alike::assert_alike_in_any_order,
    harness::{Ended, Tracer, eventually, in_new_namespace, own_netns, program, run, scratch, spawn},
    net::{self, close, close_in_order, local, pair},
};

/// What a command makes of recordings.
pub(crate) fn replay(command: &str, from: &Path) -> Ended {
    run(&format!("{command} --format jsonl --from {}", from.display()))
}

/// The records of one that was ended in order.
pub(crate) fn replayed(command: &str, from: &Path) -> Vec<Value> {
    replay(command, from).in_order().records()
}

/// Records to a file, attached.
pub(crate) fn record(args: &str, to: &Path) -> Tracer {
    Tracer::start(&format!("record {args} {}", to.display()))
}

/// Both ends of all connections are closed.
pub(crate) fn await_closed() {
    eventually("closed", || net::listed().iter().all(|(_, _, state)| [net::TIME_WAIT, net::LISTEN].contains(state)));
}

/// Connections of all kinds; what of them stays open.
fn traffic(before: [(TcpStream, TcpStream); 2]) -> Vec<TcpStream> {
    let listener = net::listen_dual_stack();
    let port = local(&listener).port();
    let [closing, open] = before;
    close_in_order(closing);
    for to in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        let connect = || (TcpStream::connect((to, port)).expect("connected"), net::accept(&listener));
        close_in_order(connect());
        let (client, server) = connect();
        net::write(&client, 1_000);
        (&server).read_exact(&mut [0; 1_000]).expect("read");
        close_in_order((server, client));
        let (client, server) = connect();
        net::linger_zero(&server);
        close(server);
        (&client).read(&mut [0]).expect_err("a reset");
        close(client);
    }
    TcpStream::connect(("127.0.0.1", 1)).expect_err("refused");
    let (client, server) = pair(&net::listen());
    client.shutdown(Shutdown::Write).expect("SHUT_WR");
    assert_eq!(net::await_end(&server), 0);
    vec![client, server, open.0, open.1]
}

#[test]
fn a_recording_tells_what_a_trace_beside_it_saw() {
    /// Both ends of each, and the one that is refused.
    const CLOSED: usize = 2 + 3 * 6 + 1;
    in_new_namespace(|| {
        let file = scratch(None).join("recording.arrows");
        let before = net::listen();
        let before = [pair(&before), pair(&before)];
        let recorder = record("", &file);
        let (mut log, connections) = (Tracer::log(""), Tracer::connections("--open"));
        let open = traffic(before);
        let closed = |record: &Value| record["new_state"] == "CLOSE" && record["old_state"] != "LISTEN";
        log.wait_until("closed", |records| records.iter().filter(|record| closed(record)).count() == CLOSED);
        // What the outputs say of connections that are open is of the moment when they end.
        let live = [log, connections].map(|tracer| tracer.interrupt().in_order());
        let recorded = recorder.interrupt().in_order();
        drop(open);
        let replays = ["log", "connections --open"].map(|command| replay(command, &file).in_order());
        for (live, replay) in live.iter().zip(&replays) {
            assert_eq!(replay.loss(), recorded.loss());
            assert!(live.stdout.len() > 20, "{live:#?}");
            assert_alike_in_any_order(&live.records(), &replay.records());
        }
        // As a whole, in order, at exactly the same times: reading changes nothing.
        assert_eq!(replayed("log", &file), replays[0].records());
        let time = |record: &Value| record["mono_ns"].as_u64();
        assert!(replays[0].records().is_sorted_by_key(time));
    });
}

#[test]
fn counts_durations_states_and_namespaces_hold_for_recordings() {
    const PAUSE: Duration = Duration::from_millis(1_500);
    in_new_namespace(|| {
        let file = scratch(None).join("recording.arrows");
        // A recording begins a moment later, before it is attached.
        let began = Instant::now();
        let recorder = record("", &file);
        let listener = net::listen();
        (0..3).for_each(|_| close_in_order(pair(&listener)));
        let paused = began.elapsed();
        thread::sleep(PAUSE);
        (0..3).for_each(|_| close_in_order(pair(&listener)));
        await_closed();
        recorder.interrupt().in_order();
        let all = replayed("log", &file);
        // listen() is one too.
        assert_eq!(all.len(), 61);
        for count in [1, 7, 61, 100] {
            assert_eq!(replayed(&format!("log --count {count}"), &file), all[..all.len().min(count)]);
        }
        assert_eq!(replayed("connections --count 5", &file), replayed("connections", &file)[..5]);
        let until = paused + PAUSE / 2;
        let first = replayed(&format!("log --duration {}ms", until.as_millis()), &file);
        assert_eq!(first, all[..31], "until {until:?}");
        let touches = |record: &&Value| [&record["old_state"], &record["new_state"]].contains(&&"CLOSE_WAIT".into());
        let expected: Vec<Value> = all.iter().filter(touches).cloned().collect();
        assert_eq!(expected.len(), 12);
        assert_eq!(replayed("log --state CLOSE_WAIT", &file), expected);
        assert_eq!(replayed("connections --state CLOSE_WAIT", &file).len(), 6);
        assert_eq!(replayed(&format!("log --netns {}", own_netns()), &file), all);
        assert_eq!(replayed("log --netns 1", &file), [Value::Null; 0]);
    });
}

#[test]
fn a_duration_is_of_all_the_runs_that_are_read() {
    in_new_namespace(|| {
        let folder = scratch(None);
        let [first, second] = ["first.arrows", "second.arrows"].map(|name| folder.join(name));
        let one_run = |file: &Path| {
            let recorder = record("", file);
            close_in_order(pair(&net::listen()));
            await_closed();
            recorder.interrupt().in_order();
            replayed("log", file)
        };
        let began = Instant::now();
        let of_first = one_run(&first);
        let until = began.elapsed();
        let of_second = one_run(&second);
        let both = |duration: &str| {
            let files = format!("{} {}", first.display(), second.display());
            run(&format!("log --format jsonl --duration {duration} --from {files}")).in_order().records()
        };
        assert_eq!(both("1h"), [of_first.clone(), of_second].concat());
        assert_eq!(both(&format!("{}ms", until.as_millis())), of_first);
    });
}

/// A cgroup that goes with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None` where no cgroup v2 tree is mounted, or none can be made in it.
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let tree = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
        let path = Path::new(tree).join(name);
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It is busy until the last process in it has gone for good.
        eventually("removed", || fs::remove_dir(&self.0).is_ok());
    }
}

/// The names are in the recording: it is read elsewhere, and when the cgroup is gone.
#[test]
fn a_cgroup_of_a_recording_is_found_by_its_path() {
    in_new_namespace(|| {
        let name = format!("tracer-test-{}", std::process::id());
        let Some(cgroup) = Cgroup::new(&name) else {
            return eprintln!("no cgroup v2 tree to make one in");
        };
        let file = scratch(None).join("recording.arrows");
        let recorder = record("", &file);
        let listener = net::listen();
        close_in_order(pair(&listener));
        let script = r#"echo $$ > "$0/cgroup.procs"; exec 3<>"/dev/tcp/127.0.0.1/$1""#;
        let port = local(&listener).port().to_string();
        let mut visitor = spawn(Command::new("bash").args(["-c", script]).arg(&cgroup.0).arg(port));
        let server = net::accept(&listener);
        net::await_end(&server);
        close(server);
        visitor.wait().expect("a child");
        await_closed();
        recorder.interrupt().in_order();
        drop(cgroup);
        let all = replayed("connections", &file);
        assert_eq!(all.len(), 4);
        let own = format!("/{name}");
        let expected: Vec<Value> = all.iter().filter(|record| record["cgroup"] == *own).cloned().collect();
        assert_eq!(expected.len(), 1, "{all:#?}");
        assert_eq!(replayed(&format!("connections --cgroup {own}"), &file), expected);
        assert_eq!(replayed(&format!("connections --cgroup {own}/"), &file), expected);
        assert_eq!(replayed("connections --cgroup /", &file), all);
        let of_it = replayed(&format!("log --cgroup {own}"), &file);
        assert!(of_it.iter().all(|record| record["cookie"] == expected[0]["cookie"]), "{of_it:#?}");
        assert_eq!(of_it.len(), 5);
        for other in ["/no/such/cgroup", &format!("{own}/below"), &own[..own.len() - 1]] {
            assert_eq!(replayed(&format!("connections --cgroup {other}"), &file), [Value::Null; 0], "{other}");
        }
    });
}

#[test]
fn a_recording_of_one_port_has_whole_connections_of_that_port_alone() {
    in_new_namespace(|| {
        let folder = scratch(None);
        let (listener, other) = (net::listen(), net::listen());
        let port = local(&listener).port();
        let files = [folder.join("all.arrows"), folder.join("one.arrows")];
        let recorders = [record("", &files[0]), record(&format!("--port {port}"), &files[1])];
        (0..3).for_each(|_| [&listener, &other].map(pair).map(close_in_order).into_iter().for_each(drop));
        let _open = [pair(&other), pair(&listener)];
        for recorder in recorders {
            recorder.interrupt().in_order();
        }
        for (command, count) in [("log", 34), ("connections --open", 8)] {
            let wanted = replayed(&format!("{command} --port {port}"), &files[0]);
            assert_eq!(wanted.len(), count);
            assert_alike_in_any_order(&wanted, &replayed(command, &files[1]));
        }
    });
}

/// It goes by what it looks at several times a second: a recording has at least so much, and is whole.
#[test]
fn a_count_ends_a_recording() {
    in_new_namespace(|| {
        let file = scratch(None).join("recording.arrows");
        let recorder = record("--count 15", &file);
        let listener = net::listen();
        (0..2).for_each(|_| close_in_order(pair(&listener)));
        let ended = recorder.ended().in_order();
        let count = replayed("log", &file).len() as u64;
        assert!((15..=21).contains(&count) && ended.loss().seen == count, "{count} {ended:?}");
    });
}

/// Whose a connection is may turn out when half of it is recorded.
#[test]
fn a_recording_is_not_filtered_by_owner_or_state() {
    for filter in ["--pid 1", "--comm nginx", "--cgroup /", "--state CLOSE_WAIT"] {
        let (option, _) = filter.split_once(' ').expect("a value");
        run(&format!("record /dev/null --duration 0s {filter}")).failed_saying(&[option, "--from"]);
    }
}

#[test]
fn a_recording_through_a_pipe() {
    in_new_namespace(|| {
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut command = program("record - --netns self --buffer 1M");
        let recorder = Tracer::start_command(command.stdout(writer));
        drop(command);
        let mut command = program("log --format jsonl --from -");
        let mut log = Tracer::spawn(command.stdin(reader));
        drop(command);
        let listener = net::listen();
        (0..3).for_each(|_| close_in_order(pair(&listener)));
        // While the recorder still runs.
        log.wait_until("all", |records| records.len() == 31);
        let recorded = recorder.interrupt().in_order();
        let ended = log.ended().in_order();
        assert_eq!((ended.loss(), ended.stdout.len()), (recorded.loss(), 31));
    });
}

/// While the recorder goes on, what is in the file can be read.
#[test]
fn an_event_is_in_the_file_after_a_second() {
    const AT_MOST: Duration = Duration::from_secs(1);
    /// What a busy machine may add to it.
    const BUSY: Duration = Duration::from_secs(1);
    in_new_namespace(|| {
        let file = scratch(None).join("recording.arrows");
        let mut recorder = record("", &file);
        let length = || fs::metadata(&file).expect("the file").len();
        let listener = net::listen();
        for count in 1..=3 {
            let (before, began) = (length(), Instant::now());
            close_in_order(pair(&listener));
            eventually("written", || length() > before);
            let took = began.elapsed();
            assert!(took < AT_MOST + BUSY, "{took:?}");
            // All of it, which was there in less time than it waited.
            let so_far = || {
                let ended = replay("log", &file);
                assert_eq!((ended.status, ended.stderr.len()), (Some(0), 2), "{ended:#?}");
                assert!(ended.stderr[0].contains("no end mark"), "{ended:#?}");
                ended.records().len()
            };
            eventually("all of it", || so_far() == 1 + 10 * count);
        }
        assert!(recorder.is_running());
        recorder.interrupt().in_order();
        assert_eq!(replayed("log", &file).len(), 31);
    });
}

/// What is no recording, and what is one no more.
#[test]
fn files_that_are_no_recordings_are_refused_in_a_line() {
    in_new_namespace(|| {
        let folder = scratch(None);
        let file = folder.join("recording.arrows");
        let recorder = record("", &file);
        close_in_order(pair(&net::listen()));
        await_closed();
        recorder.interrupt().in_order();
        let whole = fs::read(&file).expect("the recording");
        let cases: [(&str, &[u8], &str); 3] =
            [("empty", b"", "empty"), ("text", b"what is this\n", "not a recording"), ("half", &whole[..40], "")];
        for (name, bytes, why) in cases {
            let path = folder.join(name);
            fs::File::create(&path).and_then(|mut file| file.write_all(bytes)).expect("written");
            for command in ["log", "connections", "diagnose"] {
                run(&format!("{command} --from {}", path.display())).failed_saying(&[name, why]);
            }
        }
        run(&format!("log --from {}", folder.join("nosuch").display())).failed_saying(&["nosuch", "No such file"]);
        fs::create_dir(folder.join("none")).expect("a folder");
        run(&format!("log --from {}", folder.join("none").display())).failed_saying(&["none", "no recording"]);
        // A bit that fell over in the middle: what is before it is told, and that it is damaged.
        let mut bytes = whole.clone();
        let middle = bytes.len() - 1_000;
        bytes[middle..middle + 16].fill(0xff);
        let damaged = folder.join("damaged");
        fs::write(&damaged, bytes).expect("written");
        let ended = replay("log", &damaged);
        assert_eq!(ended.status, Some(2), "{ended:#?}");
        assert!(ended.stderr.last().is_some_and(|line| line.contains("damaged")), "{ended:#?}");
    });
}
