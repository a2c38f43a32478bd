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

const SCOPE: &str = "--netns self";

/// A live run and its recording.
pub(crate) struct Diagnosis {
    live: Tracer,
    recorder: Tracer,
    recording: File,
    args: String,
}

impl Diagnosis {
    /// Both are attached. The recorder, which does more with each transition, has the larger buffer.
    pub(crate) fn watch(args: &str) -> Self {
        let mut diagnosis = Self::spawn(args, "10m");
        diagnosis.recorder.await_attached();
        diagnosis.live.await_attached();
        diagnosis
    }

    fn spawn(args: &str, duration: &str) -> Self {
        let recording: File = memfd_create("recording", MFdFlags::MFD_CLOEXEC).expect("a file in memory").into();
        let mut recorder = program(&format!("record - --duration {duration} {SCOPE} --buffer 16M"));
        let recorder = Tracer::spawn(recorder.stdout(recording.try_clone().expect("a descriptor")));
        let live = Tracer::spawn(&mut program(&format!(
            "diagnose --format json {args} --duration {duration} {SCOPE} --buffer 1M"
        )));
        Self { live, recorder, recording, args: args.to_owned() }
    }

    /// Ends both as Ctrl-C does; what the live run found, which is what the recording tells.
    pub(crate) fn interrupt(self) -> Ended {
        let (live, replayed) = self.interrupt_both();
        assert_eq!(live.status, replayed.status);
        assert_alike(&findings(&live), &findings(&replayed));
        live
    }

    /// Where the programs go on: what the two find is not of the same moment.
    pub(crate) fn interrupt_both(self) -> (Ended, Ended) {
        self.recorder.signal(Signal::SIGINT);
        self.live.signal(Signal::SIGINT);
        self.ended()
    }

    fn ended(self) -> (Ended, Ended) {
        let live = self.live.ended();
        self.recorder.ended().in_order();
        // Opened anew it is read from its beginning.
        let recording = File::open(format!("/proc/self/fd/{}", self.recording.as_raw_fd())).expect("the recording");
        let mut replay = program(&format!("diagnose --format json {} --netns self --from -", self.args));
        (live, Tracer::spawn(replay.stdin(recording)).ended())
    }
}

/// Runs it on what is there now.
pub(crate) fn at_once(args: &str) -> Ended {
    let (live, replayed) = Diagnosis::spawn(args, "0s").ended();
    assert_eq!(live.status, replayed.status);
    assert_alike(&findings(&live), &findings(&replayed));
    live
}

fn findings(ended: &Ended) -> Vec<Value> {
    let report = ended.records().remove(0);
    report["findings"].as_array().expect("findings").clone()
}
