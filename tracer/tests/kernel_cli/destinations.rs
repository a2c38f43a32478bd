//! Where recordings go: nothing is overwritten or followed by surprise, and what cannot be written is told in a line while
//! what was written stays whole.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    thread,
    time::Duration,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::{
    harness::{Tracer, eventually, in_new_namespace, program, run, scratch},
    load::Load,
    net::{self, close_in_order, pair},
    record::{await_closed, record, replay, replayed},
};

/// Every command that writes to a file, up to the file's name.
const WRITERS: [&str; 6] = [
    "record",
    "log --format jsonl -o",
    "log --format arrow -o",
    "log --format parquet -o",
    "connections --format csv -o",
    "diagnose -o",
];

/// Runs a command that writes, for a moment.
fn write(command: &str, to: &Path, force: &str) -> crate::harness::Ended {
    run(&format!("{command} {} {force} --netns self --buffer 64K --duration 0s", to.display()))
}

#[test]
fn a_disk_that_fills_up_keeps_a_recording_that_can_be_read() {
    in_new_namespace(|| {
        let folder = scratch(Some("size=2m"));
        for (args, name, first) in
            [("", "one.arrows", "one.arrows"), ("--rotate-size 512K", "many.arrows", "many.000000.arrows")]
        {
            let path = folder.join(name);
            let mut recorder = record(args, &path);
            // Some batches have room.
            Load::beside(Duration::from_millis(1), |_| eventually("full", || !recorder.is_running()));
            let stem = path.with_extension("");
            recorder.ended().failed_saying(&[&stem.display().to_string(), "No space left"]);
            let ended = replay("log", &folder.join(first));
            assert_eq!(ended.status, Some(0), "{ended:#?}");
            assert!(ended.records().len() > 100, "{ended:#?}");
            // What was cut off is told of the file that was being written.
            let ended = replay("connections", folder);
            let (_, notes) = ended.stderr.split_last().expect("a last line");
            let is_told = |note: &String| note.contains("it has no end mark") || note.contains("it is empty");
            assert!(ended.status == Some(0) && !notes.is_empty() && notes.iter().all(is_told), "{ended:#?}");
            for entry in fs::read_dir(folder).expect("the folder") {
                fs::remove_file(entry.expect("an entry").path()).expect("removed");
            }
        }
    });
}

#[test]
fn a_folder_that_goes_ends_a_rotated_recording_in_a_line() {
    in_new_namespace(|| {
        let folder = scratch(None).join("here");
        let gone = folder.with_file_name("gone");
        fs::create_dir(&folder).expect("a folder");
        let mut recorder = record("--rotate-every 100ms", &folder.join("trace.arrows"));
        close_in_order(pair(&net::listen()));
        await_closed();
        eventually("rotated", || fs::read_dir(&folder).expect("the folder").count() >= 2);
        fs::rename(&folder, &gone).expect("renamed");
        eventually("ended", || !recorder.is_running());
        recorder.ended().failed_saying(&[&folder.display().to_string(), "No such file"]);
        // To the last file everything was written, with its end mark.
        assert_eq!(replayed("connections", &gone).len(), 2);
    });
}

#[test]
fn a_reader_who_goes_ends_a_recording_in_silence() {
    in_new_namespace(|| {
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut command = program("record - --netns self --buffer 1M");
        let mut recorder = Tracer::start_command(command.stdout(writer));
        drop(command);
        drop(reader);
        Load::beside(Duration::from_millis(1), |_| eventually("ended", || !recorder.is_running()));
        let ended = recorder.ended();
        assert_eq!((ended.status, &ended.stderr), (Some(0), &vec![]));
    });
}

/// What is wrong with the output is not wrong with the recording.
#[test]
fn a_replay_that_cannot_write_names_its_output() {
    in_new_namespace(|| {
        let file = scratch(None).join("trace.arrows");
        let recorder = record("", &file);
        close_in_order(pair(&net::listen()));
        await_closed();
        recorder.interrupt().in_order();
        for command in ["log", "connections", "log --format jsonl", "log --format parquet", "diagnose"] {
            let command = format!("{command} --from {}", file.display());
            let (reader, writer) = io::pipe().expect("a pipe");
            drop(reader);
            let ended = Tracer::spawn(program(&command).stdout(writer)).ended();
            assert_eq!((ended.status, &ended.stderr), (Some(0), &vec![]), "{command}");
            let ended = run(&format!("{command} -o /dev/full"));
            ended.failed_saying(&["/dev/full", "No space left"]);
            assert!(!ended.stderr[0].contains("trace.arrows"), "{:?}", ended.stderr);
        }
    });
}

#[test]
fn a_file_that_is_there_is_overwritten_when_that_is_asked_for() {
    in_new_namespace(|| {
        let path = scratch(None).join("yesterday");
        for command in WRITERS {
            fs::write(&path, "precious").expect("written");
            write(command, &path, "").failed_saying(&["yesterday", "--force"]);
            assert_eq!(fs::read(&path).expect("the file"), b"precious", "{command}");
            write(command, &path, "--force").in_order();
            assert!(!fs::read(&path).expect("the file").starts_with(b"precious"), "{command}");
        }
        // Shorter than what was there, and still whole.
        fs::write(&path, vec![b'x'; 1 << 20]).expect("written");
        write("record", &path, "--force").in_order();
        assert_eq!(replayed("log", &path).len(), 0);
    });
}

#[test]
fn links_lead_nowhere() {
    in_new_namespace(|| {
        let folder = scratch(None);
        let (link, target) = (folder.join("link"), folder.join("target"));
        symlink(&target, &link).expect("a link");
        for command in WRITERS {
            for force in ["", "--force"] {
                write(command, &link, force).failed_saying(&["link", "No such file"]);
                assert!(!target.exists(), "{command}");
            }
        }
        fs::write(&target, "precious").expect("written");
        for command in WRITERS {
            write(command, &link, "").failed_saying(&["link", "--force"]);
            assert_eq!(fs::read(&target).expect("the file"), b"precious", "{command}");
        }
        // The next name of a rotated recording is not one that somebody has put there.
        let next = folder.join("trace.000000.arrows");
        symlink(folder.join("elsewhere"), &next).expect("a link");
        write("record --rotate-size 1M", &folder.join("trace.arrows"), "").failed_saying(&["trace.000000.arrows"]);
        assert!(!folder.join("elsewhere").exists());
    });
}

#[test]
fn files_are_for_their_owner_alone() {
    in_new_namespace(|| {
        let folder = scratch(None);
        for (command, name, made) in [
            ("record", "a.arrows", "a.arrows"),
            ("record --rotate-size 1G", "b.arrows", "b.000000.arrows"),
            ("log --format arrow -o", "c", "c"),
            ("connections --format parquet -o", "d", "d"),
        ] {
            write(command, &folder.join(name), "").in_order();
            let mode = fs::metadata(folder.join(made)).expect("a file").mode();
            assert_eq!(mode & 0o7777, 0o600, "{command}");
        }
        assert!(!fs::exists("-").expect("known"));
    });
}

#[test]
fn devices_and_pipes_are_written_to() {
    in_new_namespace(|| {
        for command in WRITERS {
            write(command, Path::new("/dev/null"), "").in_order();
        }
        write("record", Path::new("/dev/full"), "").failed_saying(&["/dev/full", "No space left"]);
        let fifo = scratch(None).join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).expect("a fifo");
        thread::scope(|scope| {
            // It opens when somebody reads.
            let reader = scope.spawn(|| replay("log", &fifo));
            let recorder = record("", &fifo);
            close_in_order(pair(&net::listen()));
            await_closed();
            recorder.interrupt().in_order();
            let ended = reader.join().expect("the reader").in_order();
            // listen() and its end, and ten of the connection.
            assert_eq!(ended.stdout.len(), 12);
        });
    });
}

#[test]
fn a_terminal_is_no_place_for_binary_formats() {
    in_new_namespace(|| {
        for args in ["record -", "log --format arrow", "log --format parquet", "connections --format arrow -o -"] {
            let mut command = program(&format!("{args} --duration 0s --netns self --buffer 64K"));
            let (_ours, theirs) = terminal();
            Tracer::spawn(command.stdout(theirs)).ended().failed_saying(&["terminal", "-o FILE"]);
        }
        let mut command = program("log --from -");
        let (_ours, theirs) = terminal();
        Tracer::spawn(command.stdin(theirs)).ended().failed_saying(&["terminal"]);
    });
}

/// The two ends of a new terminal.
fn terminal() -> (File, File) {
    use std::os::fd::{FromRawFd, OwnedFd};
    let (mut ours, mut theirs) = (-1, -1);
    let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: it writes two descriptors; the rest may be null.
    let result = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, size) };
    assert_eq!(result, 0, "openpty: {}", io::Error::last_os_error());
    // SAFETY: they are new, and nobody else's.
    let [ours, theirs] = [ours, theirs].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (ours.into(), theirs.into())
}
