//! What cannot be done is said in one line that names it, with status 2 and nothing else.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Stdio,
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    harness::{PATIENCE, Tracer, assert_values, in_new_namespace, mount_tmpfs, program, run, run_as_nobody, scratch},
    net::{self, pair},
};

#[test]
fn mistakes_on_the_command_line() {
    let mistakes: &[(&str, &[&str])] = &[
        ("log --format x", &["--format", "'x'", "jsonl"]),
        ("diagnose --format csv", &["--format", "'csv'", "json"]),
        ("log --state FOO", &["--state", "'FOO'", "CLOSE_WAIT"]),
        ("log --duration abc", &["--duration", "'abc'"]),
        ("log --count 0", &["--count", "'0'"]),
        ("log --buffer 1", &["--buffer", "'1'", "64K"]),
        ("log --buffer 2G", &["--buffer", "'2G'", "1G"]),
        ("log --netns nosuch", &["--netns nosuch", "/run/netns/nosuch"]),
        ("log --netns pid:4000000000", &["--netns pid:4000000000"]),
        ("log --netns pid:me", &["--netns pid:me"]),
        ("log --cgroup /no/such/cgroup", &["--cgroup /no/such/cgroup"]),
        ("log --address 10.0.0", &["--address", "'10.0.0'", "10.0.0.0/8"]),
        ("log --address 10.0.0.0/33", &["--address", "'10.0.0.0/33'"]),
        ("log --port 70000", &["--port", "'70000'", "65535"]),
        ("log --port http", &["--port", "'http'"]),
        ("log --port", &["--port"]),
        ("log --pid init", &["--pid", "'init'"]),
        ("log -4 -6", &["--ipv4", "--ipv6"]),
        ("log --attach kprobe", &["--attach", "'kprobe'", "btf"]),
        ("log --max-connections 0", &["--max-connections", "'0'"]),
        ("diagnose --fail-on always", &["--fail-on", "'always'", "critical"]),
        ("diagnose --port-usage 101", &["--port-usage", "'101'"]),
        ("diagnose --close-wait-age 5", &["--close-wait-age", "'5'"]),
        ("log --no-such-option", &["--no-such-option", "--help"]),
        ("log extra", &["extra"]),
        ("watch", &["no terminal", "tracer log"]),
        ("watch --format jsonl", &["--format"]),
        ("watch --count 3", &["--count"]),
        ("nosuch", &["nosuch", "--help"]),
        ("explain no-such-topic", &["no-such-topic", "tracer explain"]),
        ("completions tcsh", &["'tcsh'", "bash"]),
        ("man nosuch", &["nosuch", "--help"]),
    ];
    for (args, parts) in mistakes {
        let ended = run(args);
        ended.failed_saying(parts);
        assert!(ended.stdout.is_empty(), "{args}: {:?}", ended.stdout);
    }
}

/// Taken for one, it would be a filter that nothing ever passes.
#[test]
fn a_file_that_is_no_namespace() {
    let ended = run("log --duration 0s --buffer 1M --netns /etc/passwd");
    ended.failed_saying(&["--netns /etc/passwd"]);
}

#[test]
fn outputs_that_cannot_be_opened() {
    in_new_namespace(|| {
        let folder = scratch(None);
        for command in ["log", "connections", "diagnose"] {
            for (path, why) in [(&*folder.join("no/such"), "No such file"), (folder, "directory")] {
                let path = path.display().to_string();
                let ended = run(&format!("{command} --duration 0s --netns self --buffer 1M -o {path}"));
                ended.failed_saying(&[&path, why]);
                assert!(ended.stdout.is_empty());
            }
        }
    });
}

#[test]
fn somebody_who_is_not_root() {
    for command in ["log", "connections", "diagnose"] {
        let ended = run_as_nobody(&format!("{command} --duration 0s --buffer 1M"));
        ended.failed_saying(&["root", "CAP_BPF"]);
        assert!(ended.stdout.is_empty(), "{:?}", ended.stdout);
    }
}

/// Empties a folder of /sys for this test.
fn hide(folder: &str) {
    if Path::new(folder).is_dir() {
        mount_tmpfs(folder, None);
    }
}

#[test]
fn no_tracefs() {
    in_new_namespace(|| {
        hide("/sys/kernel/tracing");
        hide("/sys/kernel/debug");
        let ended = run("log --attach tracepoint --duration 0s --buffer 1M");
        ended.failed_saying(&["tracefs", "mount -t tracefs"]);
        assert!(ended.stdout.is_empty());
        // The typed tracepoint needs none.
        run("log --duration 0s --buffer 1M").in_order();
        hide("/sys/kernel/btf");
        let ended = run("log --duration 0s --buffer 1M");
        assert_eq!(ended.status, Some(2));
        assert!(ended.stdout.is_empty());
        let said = ended.stderr.last().expect("a line");
        assert!(said.starts_with("tracer: ") && said.contains("mount -t tracefs"), "{:?}", ended.stderr);
    });
}

#[test]
fn no_btf() {
    in_new_namespace(|| {
        hide("/sys/kernel/btf");
        let ended = run("log --attach btf --duration 0s --buffer 1M");
        ended.failed_saying(&["--attach btf", "/sys/kernel/btf/vmlinux"]);
        assert!(ended.stdout.is_empty());

        // --netns would be refused now; the address is this test's own.
        const OWN: Ipv4Addr = Ipv4Addr::new(127, 83, 79, 67);
        let listener = TcpListener::bind((OWN, 0)).expect("a listener");
        let mut command = program(&format!("log --format jsonl --buffer 1M --address {OWN}"));
        let mut tracer = Tracer::start_command(&mut command);
        let ends = pair(&listener);
        let ports = [&ends.0, &ends.1].map(|end| net::local(end).port());
        net::close_in_order(ends);
        tracer.wait_until("closed", |records| {
            records.iter().filter(|record| record["new_state"] == "CLOSE").count() == 2
        });
        let ended = tracer.interrupt();
        assert_eq!((ended.status, ended.stderr.len()), (Some(0), 2), "{:?}", ended.stderr);
        assert!(ended.stderr[0].starts_with("tracer: ") && ended.stderr[0].contains("/sys/kernel/btf/vmlinux"));
        ended.loss();

        let records = ended.records();
        assert_eq!(records.len(), 10, "{records:#?}");
        let unknown = json!({
            "cookie": null, "netns": null, "uid": null, "inode": null, "cgroup": null, "error": null, "origin": "kernel",
        });
        let mut paths = [Vec::new(), Vec::new()];
        for record in &records {
            assert_values(record, &unknown);
            let (old, new) = (record["old_state"].as_str().expect("text"), record["new_state"].as_str().expect("text"));
            let client = [old, new].iter().any(|state| ["SYN_SENT", "FIN_WAIT1", "FIN_WAIT2"].contains(state));
            let port = if (old, new) == ("CLOSE", "SYN_SENT") { 0 } else { ports[usize::from(!client)] };
            let ends = json!({
                "local_addr": OWN, "remote_addr": OWN,
                "local_port": port, "remote_port": ports[usize::from(client)],
            });
            if client {
                // Where the client connects from is the kernel's choice.
                let ends = json!({"local_port": port, "remote_addr": OWN, "remote_port": ports[1]});
                assert_values(record, &ends);
            } else {
                assert_values(
                    record,
                    &json!({"local_addr": OWN, "local_port": port, "remote_port": ends["remote_port"]}),
                );
            }
            // Only where the state alone says who acts.
            let acts = [("CLOSE", "SYN_SENT"), ("ESTABLISHED", "FIN_WAIT1"), ("CLOSE_WAIT", "LAST_ACK")];
            let pid = if acts.contains(&(old, new)) { json!(std::process::id()) } else { Value::Null };
            assert_eq!(record["pid"], pid, "{record}");
            assert_eq!(record["comm"].is_null(), pid.is_null());
            paths[usize::from(!client)].push(new);
        }
        assert_eq!(paths[0], ["SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE"]);
        assert_eq!(paths[1], ["SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE"]);
    });
}

/// What cannot be decided must not look like an answer.
#[test]
fn no_btf_and_a_filter_that_needs_it() {
    in_new_namespace(|| {
        hide("/sys/kernel/btf");
        for (command, filter) in [("log", "--netns self"), ("log", "--cgroup /"), ("diagnose", "--netns self")] {
            let ended = run(&format!("{command} --duration 0s --buffer 1M {filter}"));
            let (name, _) = filter.split_once(' ').expect("a name");
            ended.failed_saying(&[name]);
        }
    });
}

const COMMANDS: [&str; 3] = ["log", "connections --format csv", "diagnose --format json"];

fn full_device() -> File {
    File::options().write(true).open("/dev/full").expect("/dev/full")
}

#[test]
fn a_full_device_is_named() {
    in_new_namespace(|| {
        for args in COMMANDS {
            let ended = run(&format!("{args} --netns self --buffer 1M --duration 0s -o /dev/full"));
            ended.failed_saying(&["/dev/full", "No space left"]);
        }
    });
}

#[test]
fn a_full_standard_output_is_named() {
    in_new_namespace(|| {
        for args in COMMANDS {
            let mut command = program(&format!("{args} --netns self --buffer 1M --duration 0s"));
            let ended = Tracer::spawn(command.stdout(full_device())).ended();
            ended.failed_saying(&["standard output", "No space left"]);
        }
    });
}

/// As in `tracer log 2>&1 | head`: what cannot be said is not said, and changes nothing else.
#[test]
fn nobody_reads_the_errors() {
    in_new_namespace(|| {
        let without_errors = |args: &str, stderr: Stdio| Tracer::spawn(program(args).stderr(stderr)).ended().status;
        for full in [true, false] {
            let stderr = || {
                let (_, writer) = io::pipe().expect("a pipe");
                if full { Stdio::from(full_device()) } else { Stdio::from(writer) }
            };
            assert_eq!(without_errors("log --no-such-option", stderr()), Some(2));
            assert_eq!(without_errors("log -o /no/such/file", stderr()), Some(2));
            assert_eq!(without_errors("log --netns self --buffer 1M --duration 0s", stderr()), Some(0));
        }
        hide("/sys/kernel/btf");
        // Something is to be said at the start here.
        assert_eq!(without_errors("log --buffer 1M --duration 0s", full_device().into()), Some(0));
    });
}

#[test]
fn a_disk_that_fills_up_keeps_whole_lines() {
    in_new_namespace(|| {
        let path = scratch(Some("size=64k")).join("log.jsonl");
        // A buffer in which all of this has room until the disk is full.
        let args = format!("log --format jsonl --netns self --buffer 64M -o {}", path.display());
        let mut tracer = Tracer::start_command(&mut program(&args));
        let listener = net::listen();
        let deadline = Instant::now() + PATIENCE;
        while tracer.is_running() {
            assert!(Instant::now() < deadline, "still running");
            net::close_in_order(pair(&listener));
        }
        let ended = tracer.ended();
        ended.failed_saying(&[&path.display().to_string(), "No space left"]);
        let text = fs::read_to_string(&path).expect("text");
        assert!(text.len() > 32 << 10 && text.ends_with('\n'), "{} bytes", text.len());
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
            assert_eq!(record["v"], 1);
        }
    });
}

#[test]
fn a_reader_of_text_may_go_early() {
    for args in ["man", "man record", "completions bash", "explain", "explain CLOSE_WAIT", "--help"] {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let ended = Tracer::spawn(program(args).stdout(writer)).ended();
        assert_eq!((ended.status, &ended.stderr), (Some(0), &vec![]), "{args}");
    }
}
