//! `tracer diagnose` and a recording beside it: whatever is found live is found when the recording is read, too.

use std::{fs::File, os::fd::AsRawFd};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    signal::Signal,
};
use serde_json::Value;

use crate::{
    alike::assert_alike,
    harness::{Ended, Tracer, program},
};

/// With a buffer that has room for all that happens while a busy machine does something else.
const SCOPE: &str = "--netns self --buffer 16M";

/// A live run and its recording.
pub(crate) struct Diagnosis {
    live: Tracer,
    recorder: Tracer,
    recording: File,
    args: String,
}

impl Diagnosis {
    /// Both are attached.
    pub(crate) fn watch(args: &str) -> Self {
        let mut diagnosis = Self::spawn(args, "10m");
        diagnosis.recorder.await_attached();
        diagnosis.live.await_attached();
        diagnosis
    }

    fn spawn(args: &str, duration: &str) -> Self {
        let recording: File = memfd_create("recording", MFdFlags::MFD_CLOEXEC).expect("a file in memory").into();
        let mut recorder = program(&format!("record - --duration {duration} {SCOPE}"));
        let recorder = Tracer::spawn(recorder.stdout(recording.try_clone().expect("a descriptor")));
        let live = Tracer::spawn(&mut program(&format!("diagnose --format json {args} --duration {duration} {SCOPE}")));
        Self { live, recorder, recording, args: args.to_owned() }
    }

    /// Ends both as Ctrl-C does; what the live run found, which is what the recording tells.
    pub(crate) fn interrupt(self) -> Ended {
        self.recorder.signal(Signal::SIGINT);
        self.live.signal(Signal::SIGINT);
        self.ended()
    }

    fn ended(self) -> Ended {
        let live = self.live.ended();
        self.recorder.ended().in_order();
        // Opened anew it is read from its beginning.
        let recording = File::open(format!("/proc/self/fd/{}", self.recording.as_raw_fd())).expect("the recording");
        let mut replay = program(&format!("diagnose --format json {} --netns self --from -", self.args));
        let replayed = Tracer::spawn(replay.stdin(recording)).ended();
        assert_eq!(live.status, replayed.status);
        assert_alike(&findings(&live), &findings(&replayed));
        live
    }
}

/// Runs it on what is there now.
pub(crate) fn at_once(args: &str) -> Ended {
    Diagnosis::spawn(args, "0s").ended()
}

fn findings(ended: &Ended) -> Vec<Value> {
    let report = ended.records().remove(0);
    report["findings"].as_array().expect("findings").clone()
}
