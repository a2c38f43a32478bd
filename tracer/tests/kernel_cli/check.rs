//! `tracer check`, and the connection that each trace begins with.

use std::{fs, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    harness::{Ended, Tracer, in_new_namespace, mount_tmpfs, run, run_as_nobody, scratch},
    net,
    privileges::run_with,
};

/// The lines about one thing: the grade, and what is said.
fn rows<'a>(ended: &'a Ended, what: &str) -> Vec<(&'a str, &'a str)> {
    let lines = ended.stdout.iter().filter_map(|line| line.strip_prefix(&format!("{what:<20}")));
    lines.map(|rest| rest.split_once(' ').map(|(grade, says)| (grade, says.trim_start())).expect("a grade")).collect()
}

fn grade<'a>(ended: &'a Ended, what: &str) -> &'a str {
    let rows = rows(ended, what);
    assert_eq!(rows.len(), 1, "{what} in {:#?}", ended.stdout);
    rows[0].0
}

fn assert_grades(ended: &Ended, grades: &[(&str, &str)]) {
    for (what, wanted) in grades {
        assert_eq!(grade(ended, what), *wanted, "{what} in {:#?}", ended.stdout);
    }
}

#[test]
fn everything_works_here() {
    in_new_namespace(|| {
        let ended = run("check --buffer 1M");
        assert_eq!((ended.status, &ended.stderr[..]), (Some(0), &[][..]), "{:#?}", ended.stdout);
        assert!(ended.stdout.iter().all(|line| !line.contains("FAILS")), "{:#?}", ended.stdout);
        for way in ["typed tracepoint", "classic tracepoint"] {
            let (grade, says) = rows(&ended, way)[0];
            assert_eq!(grade, "works");
            assert!(says.contains("IPv4 and IPv6") && says.contains("12 transitions"), "{says}");
        }
        let things = ["kernel", "capabilities", "kernel types (BTF)", "tracefs", "ring buffer", "resets", "sock_diag"];
        assert_grades(&ended, &things.map(|what| (what, "works")));
    });
}

#[test]
fn what_is_missing_is_told_with_its_cost_and_is_no_failure() {
    in_new_namespace(|| {
        mount_tmpfs("/sys/kernel/btf", None);
        let ended = run("check --buffer 1M");
        assert_eq!(ended.status, Some(0), "{:?}", ended.stderr);
        assert_grades(
            &ended,
            &[("typed tracepoint", "missing"), ("classic tracepoint", "works"), ("cookies", "missing")],
        );
        let (grade, says) = rows(&ended, "kernel types (BTF)")[0];
        assert_eq!(grade, "missing");
        assert!(says.contains("/sys/kernel/btf/vmlinux"), "{says}");
        assert!(ended.stdout.join(" ").contains("cgroups stay empty"), "{:#?}", ended.stdout);

        // Without either there is no way in.
        for folder in ["/sys/kernel/tracing", "/sys/kernel/debug"] {
            if Path::new(folder).is_dir() {
                mount_tmpfs(folder, None);
            }
        }
        let ended = run("check --buffer 1M");
        ended.failed_saying(&["no trace works here", "tracefs"]);
        assert_grades(&ended, &[("tracefs", "missing"), ("classic tracepoint", "FAILS")]);
    });
}

#[test]
fn without_privileges_no_trace_works() {
    in_new_namespace(|| {
        let ended = run_as_nobody("check --buffer 1M");
        ended.failed_saying(&["no trace works here", "CAP_BPF"]);
        assert_eq!(rows(&ended, "capabilities")[0].0, "FAILS", "{:#?}", ended.stdout);
    });
}

/// The names of two members of the same size change places, in what this test's mount namespace takes for the kernel's
/// types: as if the program did not understand a kernel.
fn exchange_members(one: &str, other: &str) {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    assert_eq!(one.len(), other.len());
    let mut types = fs::read(BTF).expect("the kernel's types");
    let find = |name: &str| {
        let wanted = format!("\0{name}\0").into_bytes();
        types.windows(wanted.len()).position(|part| part == wanted).unwrap_or_else(|| panic!("no {name}")) + 1
    };
    let (at, other_at) = (find(one), find(other));
    types[at..at + one.len()].copy_from_slice(other.as_bytes());
    types[other_at..other_at + one.len()].copy_from_slice(one.as_bytes());
    let changed = scratch(None).join("vmlinux");
    fs::write(&changed, types).expect("written");
    mount(Some(&changed), BTF, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bound");
}

#[test]
fn an_offset_that_is_wrong_is_refused() {
    // What each is reported as, as far as it can be known beforehand.
    for (one, other, told) in [
        ("sk_uid", "sk_err", "the error is 104 at ESTABLISHED→CLOSE and is reported as 0"),
        ("srtt_us", "mdev_us", "the round-trip time"),
    ] {
        in_new_namespace(|| {
            exchange_members(one, other);
            let ended = run("check --buffer 1M");
            assert_eq!(grade(&ended, "typed tracepoint"), "FAILS", "{:#?}", ended.stdout);
            ended.failed_saying(&["no trace works here", told]);
            for attach in ["auto", "btf"] {
                let ended = run(&format!("log --duration 0s --buffer 1M --attach {attach}"));
                ended.failed_saying(&["nothing wrong is to be printed", told, "tracer check"]);
                assert!(ended.stdout.is_empty(), "{:?}", ended.stdout);
            }
        });
    }
}

#[test]
fn where_no_connection_can_be_made_the_trace_is_not_checked_and_says_so() {
    in_new_namespace(|| {
        // A namespace of this thread's own once more, in which `lo` is down, and no way to another one.
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        let few = ["bpf", "perfmon", "dac_read_search"];
        let ended = run_with(&few, "log --duration 0s --buffer 1M --netns self");
        assert_eq!(ended.status, Some(0), "{:?}", ended.stderr);
        assert!(ended.stderr.iter().any(|line| line.contains("not checked by a connection")), "{:?}", ended.stderr);
        let ended = run_with(&few, "check --buffer 1M");
        assert_eq!((ended.status, grade(&ended, "typed tracepoint")), (Some(0), "missing"), "{:?}", ended.stderr);
        net::bring_up_loopback();
        assert_eq!(grade(&run_with(&few, "check --buffer 1M"), "typed tracepoint"), "works");
    });
}

/// Neither does it show in a trace of the same namespace, nor does anything stay of it.
#[test]
fn the_connection_is_nobody_elses_business() {
    in_new_namespace(|| {
        let tracer = Tracer::log("");
        for attach in ["btf", "tracepoint"] {
            run(&format!("log --duration 0s --buffer 1M --netns self --attach {attach}")).in_order();
        }
        let ended = tracer.interrupt();
        assert!(ended.stdout.is_empty(), "{:#?}", ended.stdout);
        let sockets = fs::read_to_string("/proc/thread-self/net/sockstat").expect("sockstat");
        let tcp = sockets.lines().find(|line| line.starts_with("TCP:")).expect("TCP");
        assert!(tcp.contains("inuse 0") && tcp.contains("tw 0"), "{tcp}");
    });
}
