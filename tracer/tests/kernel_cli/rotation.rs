//! Recordings of many files: each stands alone, and all of them together are one.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::{
    alike::assert_alike_in_any_order,
    harness::{Tracer, eventually, in_new_namespace, run, scratch},
    load::Load,
    net::{self, close_in_order, local, pair},
    record::{await_closed, record, replay, replayed},
};

/// The files of a folder, by name.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn names_in(folder: &Path) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    files_in(folder).iter().map(name).collect()
}

/// A folder for rotated files.
fn new_folder() -> PathBuf {
    let folder = scratch(None).join("rotated");
    fs::create_dir(&folder).expect("a folder");
    folder
}

fn rotate(args: &str, folder: &Path) -> Tracer {
    record(args, &folder.join("trace.arrows"))
}

/// Waits until so many files were begun.
fn await_files(folder: &Path, count: usize) {
    eventually("rotated", || files_in(folder).len() >= count);
}

fn await_next_file(folder: &Path) {
    await_files(folder, files_in(folder).len() + 1);
}

/// Makes connections until so many files were begun.
fn fill(folder: &Path, count: usize) {
    Load::beside(Duration::from_millis(1), |_| await_files(folder, count));
}

/// What is told of one end of a connection; its port may have been another's before.
fn of_end<'a>(end: &TcpStream, records: &'a [Value]) -> Vec<&'a Value> {
    of_cookie(net::cookie(end), records)
}

fn of_cookie(cookie: u64, records: &[Value]) -> Vec<&Value> {
    records.iter().filter(|record| record["cookie"] == cookie).collect()
}

#[test]
fn files_that_are_rotated_by_time_stand_alone_and_together_are_one() {
    in_new_namespace(|| {
        let folder = new_folder();
        let whole = folder.with_file_name("whole.arrows");
        let listener = net::listen();
        let before = pair(&listener);
        let recorders = [record("", &whole), rotate("--rotate-every 100ms", &folder)];
        let meanwhile = pair(&listener);
        fill(&folder, 4);
        close_in_order(pair(&listener));
        // It closes in another file than it was opened in.
        let over = net::cookie(&meanwhile.0);
        close_in_order(meanwhile);
        await_closed_but(&before);
        for recorder in recorders {
            recorder.interrupt().in_order();
        }
        let names = names_in(&folder);
        for (number, name) in names.iter().enumerate() {
            assert_eq!(*name, format!("trace.{number:06}.arrows"));
        }

        for command in ["log", "connections --open"] {
            let (rotated, unrotated) = (replayed(command, &folder), replayed(command, &whole));
            assert!(unrotated.len() > 30);
            assert_alike_in_any_order(&rotated, &unrotated);
        }
        // The files in any order, and one of them twice, are the same as the folder.
        let mut files: Vec<String> = files_in(&folder).iter().map(|path| path.display().to_string()).collect();
        files.rotate_left(2);
        files.push(files[0].clone());
        let listed = run(&format!("connections --format jsonl --from {}", files.join(" "))).in_order().records();
        assert_eq!(listed, replayed("connections", &folder));

        // Each alone knows who was there when it began.
        for file in files_in(&folder) {
            let all = replayed("connections --open", &file);
            let [one] = of_end(&before.0, &all)[..] else { panic!("{}: {all:#?}", file.display()) };
            assert_eq!(
                (&one["open"], &one["ended"], &one["gap"]),
                (&"pre_existing".into(), &Value::Null, &false.into())
            );
        }
        let last = replayed("connections", files_in(&folder).last().expect("a file"));
        if let [one] = of_cookie(over, &last)[..] {
            assert_eq!((&one["open"], &one["gap"]), (&"pre_existing".into(), &false.into()), "{one:#}");
        }
    });
}

/// All but the two ends of one connection are closed.
fn await_closed_but((client, server): &(TcpStream, TcpStream)) {
    let (client, server) = (local(client).port(), local(server).port());
    let is_over = |(local, remote, state): &(u16, u16, u8)| {
        [net::TIME_WAIT, net::LISTEN].contains(state)
            || [(client, server), (server, client)].contains(&(*local, *remote))
    };
    eventually("closed", || net::listed().iter().all(is_over));
}

#[test]
fn files_that_are_rotated_by_size_are_of_about_that_size_and_the_latest_are_kept() {
    const SIZE: u64 = 8 << 10;
    in_new_namespace(|| {
        let folder = new_folder();
        let recorder = rotate("--rotate-size 8K --keep 3", &folder);
        let last = || names_in(&folder).last().cloned().unwrap_or_default();
        Load::beside(Duration::from_millis(1), |_| eventually("rotated", || *last() >= *"trace.000004.arrows"));
        await_closed();
        recorder.interrupt().in_order();
        let names = names_in(&folder);
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(*names[0] >= *"trace.000002.arrows", "{names:?}");
        let (current, finished) = names.split_last().expect("files");
        for name in finished {
            let length = fs::metadata(folder.join(name)).expect("a file").len();
            assert!(length >= SIZE, "{name}: {length}");
        }
        // Without those that went they are whole, too.
        assert!(replayed("connections", &folder).iter().all(|record| record["gap"] == false));
        assert!(!replayed("log", &folder).is_empty());
        replay("connections", &folder.join(current)).in_order();
    });
}

#[test]
fn a_missing_file_is_told_and_what_it_hides_is_marked() {
    in_new_namespace(|| {
        let folder = new_folder();
        let recorder = rotate("--rotate-every 100ms", &folder);
        let listener = net::listen();
        let (closing, open) = (pair(&listener), pair(&listener));
        await_next_file(&folder);
        let closed = net::cookie(&closing.0);
        let missing = {
            // In the file that goes it closes, and another one opens.
            let current = files_in(&folder).last().expect("a file").clone();
            close_in_order(closing);
            current
        };
        let late = pair(&listener);
        await_next_file(&folder);
        await_next_file(&folder);
        recorder.interrupt().in_order();
        // In which of two it is, is a matter of luck.
        let number = files_in(&folder).iter().position(|path| *path == missing).expect("its file");
        for path in &files_in(&folder)[number..=number + 1] {
            fs::remove_file(path).expect("removed");
        }
        let ended = replay("connections --open", &folder);
        assert_eq!((ended.status, ended.stderr.len()), (Some(0), 2), "{ended:#?}");
        assert!(ended.stderr[0].contains("2 file(s) before it are missing"), "{ended:#?}");
        let all = ended.records();
        let [one] = of_cookie(closed, &all)[..] else { panic!("{all:#?}") };
        assert_eq!((&one["close"], &one["gap"]), (&"unknown".into(), &true.into()), "{one:#}");
        assert!(one["ended"].is_string(), "{one:#}");
        for (ends, gap) in [(&open, false), (&late, true)] {
            let [one] = of_end(&ends.0, &all)[..] else { panic!("{all:#?}") };
            assert_eq!((&one["ended"], &one["gap"]), (&Value::Null, &gap.into()), "{one:#}");
        }
    });
}

#[test]
fn a_second_run_goes_on_with_the_numbers_and_is_a_run_of_its_own() {
    in_new_namespace(|| {
        let folder = new_folder();
        let listener = net::listen();
        let mut seen = 0;
        let open = pair(&listener);
        for _ in 0..2 {
            let recorder = rotate("--rotate-size 1G", &folder);
            close_in_order(pair(&listener));
            await_closed_but(&open);
            seen += recorder.interrupt().in_order().loss().seen;
        }
        assert_eq!(names_in(&folder), ["trace.000000.arrows", "trace.000001.arrows"]);
        let ended = replay("log", &folder).in_order();
        assert_eq!((ended.stdout.len(), ended.loss().seen, seen), (20, 20, 20));
        assert_eq!(replayed("connections", &folder).len(), 4);
        // What the first run knew of what was open is nothing that the second one would repeat.
        assert_eq!(replayed("connections --open", &folder).len(), 6);
        // Findings are of one run.
        let ended = run(&format!("diagnose --format json --from {}", folder.display()));
        assert_eq!((ended.status, ended.loss().seen), (Some(0), 10), "{ended:#?}");
        assert!(ended.stderr[0].contains("1 file(s) are of earlier runs"), "{ended:#?}");
    });
}

/// Two recorders of the same time, whose files were put together.
#[test]
fn runs_side_by_side_are_read_one_after_the_other() {
    in_new_namespace(|| {
        let folder = new_folder();
        let other = folder.join("other.arrows");
        let recorders = [rotate("--rotate-every 100ms", &folder), record("--rotate-every 100ms", &other)];
        fill(&folder, 6);
        await_closed();
        for recorder in recorders {
            recorder.interrupt().in_order();
        }
        let both: Vec<String> = files_in(&folder).iter().map(|path| path.display().to_string()).collect();
        let (others, first): (Vec<&String>, Vec<&String>) = both.iter().partition(|path| path.contains("other."));
        let of = |command: &str, paths: &[&String]| {
            let paths: Vec<&str> = paths.iter().map(|path| path.as_str()).collect();
            run(&format!("{command} --format jsonl --from {}", paths.join(" "))).in_order().records()
        };
        let all = replayed("connections", &folder);
        assert!(all.iter().all(|record| record["open"] != "pre_existing"), "{all:#?}");
        // Only of what was told to neither of them, whose seams are at different times, a gap is no seam's fault.
        for gap in all.iter().filter(|record| record["gap"] == true) {
            let cookie = gap["cookie"].as_u64().expect("a cookie");
            let told = |paths: &[&String]| {
                let told = of("log", paths);
                let told = of_cookie(cookie, &told).into_iter().filter(|record| record["origin"] == "kernel");
                told.map(|record| (record["old_state"].clone(), record["new_state"].clone())).collect::<Vec<_>>()
            };
            let steps = told(&first);
            let is_whole = steps.windows(2).all(|two| two[0].1 == two[1].0)
                && steps.first().is_some_and(|(old, _)| ["CLOSE", "LISTEN"].iter().any(|state| old == state))
                && steps.last().is_some_and(|(_, new)| new == "CLOSE");
            assert!(!is_whole && steps == told(&others), "{gap:#}: {steps:?}");
        }
        assert_eq!([of("connections", &first), of("connections", &others)].concat().len(), all.len());
    });
}

#[test]
fn options_of_rotation_that_mean_nothing_are_refused() {
    for (args, part) in [
        ("record - --rotate-size 1M", "standard output"),
        ("record /nosuch/x --keep 3", "--rotate-size"),
        ("record /nosuch/x --rotate-size 0", "--rotate-size"),
        ("record /nosuch/x --rotate-every soon", "--rotate-every"),
        ("record /nosuch/x --rotate-every 0s", "--rotate-every"),
        ("record /nosuch/x --rotate-size 1M --keep 0", "--keep"),
        ("record .. --rotate-size 1M", "file name"),
    ] {
        run(&format!("{args} --duration 0s --buffer 1M")).failed_saying(&[part]);
    }
}
