//! What the program is allowed to do: what it keeps of that, and what it makes of less.

use std::{
    fs::{self, File},
    io::Read,
    net::{TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;

use crate::{
    harness::{Ended, PROGRAM, Tracer, eventually, in_new_namespace, mount_tmpfs, own_netns, program, scratch},
    load::Load,
    net::{self, close_in_order, local, pair},
};

const NOBODY: u32 = 65_534;

/// What is of use in every mode, by name and number (linux/capability.h).
const CAPABILITIES: [(&str, u32); 6] =
    [("dac_read_search", 2), ("net_admin", 12), ("sys_ptrace", 19), ("sys_admin", 21), ("perfmon", 38), ("bpf", 39)];
const DAC_OVERRIDE: u64 = 1 << 1;
const FOWNER: u64 = 1 << 3;

/// A set of these.
fn set(names: &[&str]) -> u64 {
    let number = |name: &&str| CAPABILITIES.iter().find(|(known, _)| known == name).expect("a name").1;
    names.iter().map(number).map(|number| 1 << number).sum()
}

fn all_but(missing: &[&str]) -> Vec<&'static str> {
    CAPABILITIES.iter().map(|(name, _)| *name).filter(|name| !missing.contains(name)).collect()
}

/// The program as somebody who has only these capabilities, at a place that everybody may come by.
pub(crate) fn program_with(capabilities: &[&str], args: &str) -> Command {
    const PLACE: &str = "/mnt/tracer";
    if !Path::new(PLACE).exists() {
        mount_tmpfs("/mnt", Some("mode=755"));
        File::create(PLACE).expect("a file");
        mount(Some(PROGRAM), PLACE, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bound");
    }
    let list: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]);
    command.args(["--inh-caps", "--ambient-caps"].map(|option| format!("{option}=-all{list}")));
    command.arg(PLACE).args(args.split_whitespace());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run_with(capabilities: &[&str], args: &str) -> Ended {
    Tracer::spawn(&mut program_with(capabilities, args)).ended()
}

/// The sets of a thread, of /proc/PID/task/TID/status.
#[derive(Debug, PartialEq, Eq)]
struct Sets {
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
    bounding: u64,
    no_new_privileges: bool,
}

impl Sets {
    /// No more than these are left, and there is no way to more.
    fn only(kept: u64) -> Self {
        let none = 0;
        Self {
            effective: kept,
            permitted: kept,
            inheritable: none,
            ambient: none,
            bounding: kept,
            no_new_privileges: true,
        }
    }

    /// Those of all threads, with the names of these.
    fn of(pid: u32) -> Vec<(String, Self)> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let statuses = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
        let of = |status: String| {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.expect("a field").trim().to_owned()
            };
            let number = |name| u64::from_str_radix(&field(name), 16).expect("hexadecimal");
            let sets = Self {
                effective: number("CapEff"),
                permitted: number("CapPrm"),
                inheritable: number("CapInh"),
                ambient: number("CapAmb"),
                bounding: number("CapBnd"),
                no_new_privileges: field("NoNewPrivs") == "1",
            };
            (field("Name"), sets)
        };
        statuses.map(of).collect()
    }
}

/// Each thread of the program has no more than it needs from now on; the names of its threads.
fn assert_keeps(tracer: &Tracer, kept: u64) -> Vec<String> {
    let all = Sets::of(tracer.pid());
    assert!(!all.is_empty());
    for (name, sets) in &all {
        assert_eq!(*sets, Sets::only(kept), "thread {name}");
    }
    all.into_iter().map(|(name, _)| name).collect()
}

/// A run that says what it keeps has given up the rest by then.
fn start_verbose(command: &mut Command) -> Tracer {
    let mut tracer = Tracer::start_command(command.arg("--verbose"));
    tracer.wait_for_note("tracer: keeps ");
    tracer
}

#[test]
fn root_keeps_what_the_run_needs_later() {
    in_new_namespace(|| {
        let of_log = ["dac_read_search", "sys_ptrace", "sys_admin"];
        let tracer = start_verbose(&mut program("log --buffer 1M"));
        assert_keeps(&tracer, set(&of_log));
        let ended = tracer.interrupt();
        assert_eq!(ended.stderr[0], "tracer: keeps CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE and CAP_SYS_ADMIN");

        // Its own namespace need not be entered.
        let tracer = start_verbose(&mut program("connections --buffer 1M --netns self"));
        assert_keeps(&tracer, set(&of_log[..2]));
        tracer.interrupt();

        let tracer = start_verbose(&mut program("diagnose --duration 1h --buffer 1M --netns self"));
        assert_keeps(&tracer, set(&of_log) | set(&["net_admin"]));
        tracer.interrupt();
    });
}

/// What is read may be made to do harm to its reader.
#[test]
fn root_keeps_next_to_nothing_to_read_a_recording() {
    in_new_namespace(|| {
        let mut command = program("log --from - --verbose");
        let mut tracer = Tracer::spawn(command.stdin(Stdio::piped()));
        tracer.wait_for_note("tracer: keeps CAP_DAC_READ_SEARCH");
        assert_keeps(&tracer, set(&["dac_read_search"]));
    });
}

#[test]
fn threads_that_begin_later_have_no_more() {
    in_new_namespace(|| {
        let file = scratch(None).join("recording.arrows");
        let args = format!("record {} --buffer 1M --netns self", file.display());
        let tracer = start_verbose(&mut program(&args));
        let kept = set(&["dac_read_search", "net_admin", "sys_ptrace", "sys_admin"]);
        eventually("dumped and recorded", || {
            let names = assert_keeps(&tracer, kept);
            ["recorder", "tokio-rt-worker"].iter().all(|wanted| names.iter().any(|name| name.starts_with(wanted)))
        });
        tracer.interrupt();
    });
}

/// A folder of somebody else's, in which root alone may write.
fn folder_of_nobody(mode: u32) -> PathBuf {
    let folder = scratch(None).join("of-nobody");
    fs::create_dir(&folder).expect("a folder");
    chown(&folder, Some(NOBODY), Some(NOBODY)).expect("chown");
    fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("chmod");
    folder
}

/// Its later files are made long after the start.
#[test]
fn root_can_rotate_in_the_folder_of_somebody_else() {
    in_new_namespace(|| {
        for (mode, more) in [(0o700, DAC_OVERRIDE), (0o1777, FOWNER), (0o1755, DAC_OVERRIDE | FOWNER), (0o777, 0)] {
            let folder = folder_of_nobody(mode);
            // One that somebody else has made, for --keep to delete.
            let oldest = folder.join("trace.000000.arrows");
            fs::write(&oldest, "").expect("a file");
            chown(&oldest, Some(NOBODY), None).expect("chown");
            let args = format!(
                "record {}/trace.arrows --rotate-every 50ms --keep 2 --buffer 1M --netns self",
                folder.display()
            );
            let tracer = start_verbose(&mut program(&args));
            assert_keeps(&tracer, set(&["dac_read_search", "net_admin", "sys_ptrace", "sys_admin"]) | more);
            let has = |name: &str| folder.join(name).exists();
            Load::beside(Duration::from_millis(1), |_| eventually("rotated", || has("trace.000004.arrows")));
            let ended = tracer.interrupt();
            assert_eq!((ended.status, ended.stderr.len()), (Some(0), 2), "{mode:o}: {:?}", ended.stderr);
            assert!(!has("trace.000000.arrows") && !has("trace.000001.arrows"), "{mode:o}");
        }
    });
}

/// A connection that was there before: of another user, this process.
fn open_before(ended: &Ended, port: u16) -> Value {
    let found = ended.records().into_iter().find(|record| record["remote_port"] == port);
    let found = found.unwrap_or_else(|| panic!("no connection to port {port}: {ended:#?}"));
    assert_eq!((&found["open"], &found["gap"]), (&"pre_existing".into(), &false.into()));
    found
}

const CONNECTIONS: &str = "connections --open --format jsonl --buffer 1M --duration 0s";

#[test]
fn somebody_with_the_capabilities_sees_what_root_sees() {
    in_new_namespace(|| {
        let listener = net::listen();
        let before = pair(&listener);
        let all = all_but(&[]);
        let mut tracer =
            Tracer::start_command(&mut program_with(&all, "log --format jsonl --buffer 1M --netns self -v"));
        tracer.wait_for_note("tracer: keeps CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE");
        for (name, sets) in Sets::of(tracer.pid()) {
            let left = (sets.effective, sets.permitted, sets.ambient, sets.inheritable, sets.no_new_privileges);
            let kept = set(&["dac_read_search", "sys_ptrace"]);
            assert_eq!(left, (kept, kept, 0, 0, true), "thread {name}");
        }
        close_in_order(pair(&listener));
        tracer.wait_until("closed", |records| {
            records.iter().filter(|record| record["new_state"] == "CLOSE").count() == 2
        });
        let ended = tracer.interrupt();
        assert_eq!((ended.stdout.len(), ended.loss().seen), (10, 10));

        let ended = run_with(&all, &format!("{CONNECTIONS} --netns self")).in_order();
        let one = open_before(&ended, local(&listener).port());
        assert_eq!(one["process"]["pid"], std::process::id(), "{one}");
        drop(before);
    });
}

#[test]
fn without_a_look_at_other_processes_the_rest_is_right() {
    in_new_namespace(|| {
        let listener = net::listen();
        let _before = pair(&listener);
        for missing in ["sys_ptrace", "dac_read_search"] {
            let ended = run_with(&all_but(&[missing]), &format!("{CONNECTIONS} --netns self"));
            assert_eq!((ended.status, ended.stderr.len()), (Some(0), 2), "{ended:?}");
            let said = &ended.stderr[0];
            assert!(said.starts_with(&format!("tracer: without CAP_{}: who holds", missing.to_uppercase())), "{said}");
            let one = open_before(&ended, local(&listener).port());
            assert_eq!(one["process"], Value::Null, "{one}");
        }
    });
}

/// A connection in another namespace than the test's, until it is dropped.
struct Elsewhere {
    port: u16,
    netns: u64,
    _ends: (TcpListener, (TcpStream, TcpStream)),
}

/// One that has a name, as ip-netns(8) gives it.
fn elsewhere() -> Elsewhere {
    mount_tmpfs("/run", None);
    fs::create_dir("/run/netns").expect("a folder");
    let (sender, receiver) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            net::bring_up_loopback();
            let name = "/run/netns/elsewhere";
            File::create(name).expect("a file");
            let own = Some("/proc/thread-self/ns/net");
            mount(own, name, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bound");
            let listener = net::listen();
            let ends = pair(&listener);
            let port = local(&listener).port();
            sender.send(Elsewhere { port, netns: own_netns(), _ends: (listener, ends) }).expect("sent");
        });
    });
    receiver.recv().expect("a connection")
}

#[test]
fn without_a_way_into_other_namespaces_this_one_is_right() {
    in_new_namespace(|| {
        let elsewhere = elsewhere();
        let listener = net::listen();
        let _before = pair(&listener);
        let port = local(&listener).port();
        let args = format!("{CONNECTIONS} --netns self,elsewhere");
        for (missing, lines) in [(&[][..], 1), (&["sys_admin"], 2)] {
            let ended = run_with(&all_but(missing), &args);
            assert_eq!((ended.status, ended.stderr.len()), (Some(0), lines), "{ended:?}");
            assert_eq!(open_before(&ended, port)["netns"], own_netns());
            let of_other = ended.records().into_iter().filter(|record| record["netns"] == elsewhere.netns);
            let ports: Vec<Value> = of_other.map(|record| record["remote_port"].clone()).collect();
            let is_known = ports.contains(&elsewhere.port.into());
            assert_eq!(is_known, missing.is_empty(), "{ended:#?}");
            assert_eq!(ended.stderr[0].contains("without CAP_SYS_ADMIN: "), !missing.is_empty());
        }
    });
}

/// This thread is in another namespace than its process, which is what it is taken to be in.
#[test]
fn without_asking_sockets_for_their_namespace_it_is_that_of_the_process() {
    in_new_namespace(|| {
        let listener = net::listen();
        let (client, over) = pair(&listener);
        net::linger_zero(&client);
        net::close(client);
        (&over).read(&mut [0]).expect_err("a reset");
        let args = "diagnose --snapshot --format json --netns self --close-wait-age 0s";
        let found = |ended: &Ended| {
            let report: Value = serde_json::from_str(&ended.stdout.join("\n")).expect("a report");
            report["findings"].as_array().expect("findings").iter().any(|one| one["kind"] == "closed_not_released")
        };
        let ended = run_with(&all_but(&[]), args);
        assert!(ended.stderr.is_empty() && found(&ended), "{ended:#?}");
        let ended = run_with(&all_but(&["net_admin"]), args);
        assert_eq!((ended.status, ended.stderr.len()), (Some(0), 1), "{ended:?}");
        assert!(ended.stderr[0].starts_with("tracer: without CAP_NET_ADMIN: "), "{ended:?}");
        assert!(!found(&ended), "{ended:#?}");
    });
}

/// CAP_SYS_ADMIN was all that there was once, and still stands for both.
#[test]
fn bpf_takes_two_capabilities_or_one_old_one() {
    in_new_namespace(|| {
        let args = "log --buffer 1M --netns self --duration 0s";
        for missing in ["bpf", "perfmon"] {
            let ended = run_with(&all_but(&[missing, "sys_admin"]), args);
            ended.failed_saying(&[&format!("without CAP_{}: ", missing.to_uppercase()), "sudo tracer"]);
            run_with(&all_but(&[missing]), args).in_order();
        }
        let ended = run_with(&all_but(&["bpf", "perfmon", "sys_admin"]), args);
        ended.failed_saying(&["CAP_PERFMON and CAP_BPF: ", "sudo tracer"]);

        // With nothing but these it sees what is this user's.
        let ended = run_with(&["bpf", "perfmon"], args);
        assert_eq!((ended.status, ended.stderr.len()), (Some(0), 2), "{ended:?}");
        assert_eq!(
            ended.stderr[0],
            "tracer: without CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE: this network namespace only, and holders of this \
             user only"
        );
    });
}

#[test]
fn the_classic_tracepoint_takes_a_look_into_tracefs() {
    in_new_namespace(|| {
        let args = "log --attach tracepoint --buffer 1M --netns self --duration 0s";
        run_with(&all_but(&[]), args).in_order();
        run_with(&all_but(&["dac_read_search"]), args).failed_saying(&["/tracing", "CAP_DAC_READ_SEARCH"]);
    });
}
