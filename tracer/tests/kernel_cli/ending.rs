//! How runs end, and where their output goes.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    harness::{Tracer, eventually, in_new_namespace, mount_tmpfs, program, run, scratch},
    net::{self, pair},
};

/// Connections that begin and end, with ten transitions each.
fn make_connections(count: usize) {
    let listener = net::listen();
    for _ in 0..count {
        net::close_in_order(pair(&listener));
    }
    eventually("closed", || net::listed().iter().all(|(_, _, state)| [net::TIME_WAIT, net::LISTEN].contains(state)));
}

#[test]
fn a_duration_ends_a_run_in_order() {
    in_new_namespace(|| {
        let began = Instant::now();
        let ended = run("log --format jsonl --netns self --buffer 1M --duration 700ms").in_order();
        assert!(began.elapsed() >= Duration::from_millis(700));
        assert_eq!((ended.stdout.len(), ended.loss().seen), (0, 0));
        for command in ["log", "connections", "connections --open", "diagnose"] {
            run(&format!("{command} --netns self --buffer 1M --duration 0s")).in_order();
        }
    });
}

/// Longer than any clock counts is as good as for ever.
#[test]
fn a_duration_without_end() {
    in_new_namespace(|| {
        for command in ["log", "diagnose"] {
            let tracer = Tracer::start(&format!("{command} --duration 18446744073709551615s"));
            tracer.interrupt().in_order();
        }
    });
}

#[test]
fn a_count_is_exact() {
    in_new_namespace(|| {
        let counts = [1, 7, 40];
        let tracers = counts.map(|count| Tracer::log(&format!("--count {count}")));
        let connections = Tracer::connections("--count 3");
        let (csv, table) = (Tracer::start("log --format csv --count 5"), Tracer::start("log --count 5"));
        make_connections(10);
        for (count, tracer) in counts.into_iter().zip(tracers) {
            assert_eq!(tracer.ended().in_order().records().len(), count);
        }
        assert_eq!(connections.ended().in_order().records().len(), 3);
        // Below a header.
        assert_eq!(csv.ended().in_order().stdout.len(), 6);
        assert_eq!(table.ended().in_order().stdout.len(), 6);
    });
}

#[test]
fn open_connections_count_too() {
    in_new_namespace(|| {
        let listener = net::listen();
        let tracer = Tracer::connections("--open --count 2");
        let _open: Vec<_> = (0..3).map(|_| pair(&listener)).collect();
        assert_eq!(tracer.interrupt().in_order().records().len(), 2);
    });
}

#[test]
fn signals_end_a_run_with_everything_written() {
    in_new_namespace(|| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let (log, connections) = (Tracer::log(""), Tracer::connections(""));
            make_connections(30);
            log.signal(signal);
            connections.signal(signal);
            let (log, connections) = (log.ended().in_order(), connections.ended().in_order());
            // The listener's two and ten for each connection: nothing is filtered in userspace.
            let loss = log.loss();
            assert_eq!((loss.seen, loss.dropped), (302, 0));
            assert_eq!(log.records().len() as u64, loss.seen + loss.repaired);
            assert_eq!(connections.records().len(), 60);
        }
    });
}

#[test]
fn the_last_line_counts_what_was_seen_not_what_was_shown() {
    in_new_namespace(|| {
        let tracer = Tracer::log("--state CLOSE_WAIT");
        make_connections(1);
        let ended = tracer.interrupt().in_order();
        assert_eq!((ended.stdout.len(), ended.loss().seen), (2, 12));
    });
}

/// As in `tracer log | head`.
#[test]
fn a_reader_who_goes_ends_a_run_in_silence() {
    in_new_namespace(|| {
        for command in ["log", "log --format jsonl", "connections --format csv"] {
            let (reader, writer) = io::pipe().expect("a pipe");
            let mut command = program(&format!("{command} --netns self --buffer 1M"));
            let mut tracer = Tracer::start_command(command.stdout(writer));
            drop(reader);
            make_connections(1);
            let soon = Instant::now() + Duration::from_secs(10);
            while tracer.is_running() {
                assert!(Instant::now() < soon, "still running");
                std::thread::sleep(Duration::from_millis(5));
            }
            let ended = tracer.ended();
            assert_eq!((ended.status, &ended.stderr), (Some(0), &vec![]));
        }
    });
}

#[test]
fn a_file_is_for_its_owner_alone() {
    in_new_namespace(|| {
        let folder = scratch(None);
        for command in ["log --format jsonl", "connections --format csv", "diagnose --format json"] {
            let path = folder.join("out");
            let ended =
                run(&format!("{command} --netns self --buffer 1M --duration 0s -o {}", path.display())).in_order();
            assert!(ended.stdout.is_empty());
            let metadata = fs::metadata(&path).expect("a file");
            assert_eq!(metadata.mode() & 0o7777, 0o600, "{command}");
            fs::remove_file(path).expect("removed");
        }
    });
}

#[test]
fn a_file_gets_what_standard_output_would() {
    in_new_namespace(|| {
        let folder = scratch(None);
        let (file, stdout) = (folder.join("log"), folder.join("stdout"));
        // What is there already is replaced, when that is asked for.
        fs::write(&file, "x".repeat(100_000)).expect("written");
        run(&format!("log --output {}", file.display())).failed_saying(&["is there already", "--force"]);
        let to_file = Tracer::log(&format!("--force --output {}", file.display()));
        let to_stdout = Tracer::log("-o -");
        let mut redirected = program("log --format jsonl --netns self --buffer 1M");
        let redirected = Tracer::start_command(redirected.stdout(File::create(&stdout).expect("a file")));
        make_connections(2);
        assert!(to_file.interrupt().in_order().stdout.is_empty());
        redirected.interrupt().in_order();
        let expected = to_stdout.interrupt().in_order().records().len();
        assert_eq!(expected, 22);
        assert!(!fs::exists("-").expect("known"));
        for path in [file, stdout] {
            let text = fs::read_to_string(&path).expect("text");
            let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            assert_eq!(lines.len(), expected);
        }
    });
}

/// Forgetting sudo must not cost yesterday's log.
#[test]
fn a_run_that_cannot_start_does_not_empty_the_file() {
    in_new_namespace(|| {
        let path = scratch(None).join("yesterday");
        fs::write(&path, "precious\n").expect("written");
        mount_tmpfs("/sys/kernel/btf", None);
        for command in ["log -o", "record"] {
            let ended = run(&format!("{command} {} --attach btf --force", path.display()));
            ended.failed_saying(&["--attach btf"]);
            assert_eq!(fs::read_to_string(&path).expect("text"), "precious\n", "{command}");
        }
    });
}

#[test]
fn input_is_not_read() {
    in_new_namespace(|| {
        let mut command = program("log --netns self --buffer 1M --duration 0s");
        Tracer::spawn(command.stdin(Stdio::piped())).ended().in_order();
    });
}
