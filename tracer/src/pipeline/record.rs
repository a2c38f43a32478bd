//! What becomes of a trace in a recording: everything that it is fed with is written, into one file or a row of them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};

use super::follow::{Naming, View};
use crate::{
    config::{Record, Rotation},
    core::{input::Input, tracker::Annotation, transition::Event},
    output::{
        file::{Contents, Output},
        records::{LogRecord, Time},
    },
    recording::{Metadata, Recorder, VERSION, files::Rotated},
    source::{
        clock::{WallClock, monotonic_ns},
        host::Host,
    },
};

/// Writes a trace to a recording.
pub(super) struct RecordView {
    /// Opened, and not begun until there is something to record: a run that cannot start leaves the file as it was.
    first: Option<Output>,
    recorder: Option<Recorder<Output>>,
    metadata: Metadata,
    rotation: Option<(Rotation, Rotated)>,
    part_began: Instant,
    left: Option<u64>,
}

impl RecordView {
    pub(super) fn new(config: &Record, fin_timeout_ns: u64, clock: WallClock) -> Result<Self> {
        let metadata = metadata(config, fin_timeout_ns, clock)?;
        let (path, rotation) = match &config.rotation {
            None => (config.file.clone(), None),
            Some(rotation) => {
                let mut rotated = Rotated::new(&config.file)?;
                (rotated.next_path(), Some((rotation.clone(), rotated)))
            }
        };
        let first = Some(open(path, config.overwrite)?);
        Ok(Self { first, recorder: None, metadata, rotation, part_began: Instant::now(), left: config.count })
    }

    fn recorder(&mut self) -> Result<&mut Recorder<Output>> {
        if let Some(first) = self.first.take() {
            self.recorder = Some(Recorder::new(first, &self.metadata)?);
            self.delete_oldest()?;
        }
        self.recorder.as_mut().context("the recording could not begin")
    }

    /// The end of the recording.
    pub(super) fn finish(self) -> Result<()> {
        self.recorder.map_or(Ok(()), Recorder::finish)
    }

    fn is_due(&self, rotation: &Rotation) -> bool {
        let written = self.recorder.as_ref().map_or(0, Recorder::part_bytes);
        let too_large = rotation.bytes.is_some_and(|bytes| written >= bytes);
        too_large || rotation.every.is_some_and(|every| self.part_began.elapsed() >= every)
    }

    fn delete_oldest(&self) -> Result<()> {
        match &self.rotation {
            Some((Rotation { keep: Some(keep), .. }, rotated)) => rotated.delete_oldest(*keep),
            _ => Ok(()),
        }
    }
}

impl View for RecordView {
    fn heard(&mut self, event: &Event, annotation: &Annotation, naming: &mut Naming) -> Result<()> {
        // The clock that the metadata tells, so that a replay has the same times.
        let clock = WallClock::from_offset_ns(self.metadata.clock_offset_ns);
        let time = Time(clock.unix_ns(event.mono_ns()));
        let transition = match event {
            Event::Transition(transition) => transition,
            Event::Reset(reset) => return self.recorder()?.reset(reset, time),
        };
        self.left = self.left.map(|left| left.saturating_sub(1));
        let raw = transition.details.map_or(0, |details| details.cgroup);
        let recorder = self.recorder()?;
        recorder.cgroup(raw, || naming.cgroup(raw));
        recorder.cgroup(annotation.cgroup, || naming.cgroup(annotation.cgroup));
        let shown = LogRecord::new(transition, annotation, naming.cgroup(annotation.cgroup), clock);
        recorder.transition(transition, &shown)
    }

    fn input(&mut self, input: &Input, naming: &mut Naming) -> Result<()> {
        let recorder = self.recorder()?;
        if let Input::DumpPart(snapshot) | Input::Dump(snapshot) = input {
            for socket in &snapshot.sockets {
                recorder.cgroup(socket.cgroup, || naming.cgroup(socket.cgroup));
            }
        }
        recorder.input(input)
    }

    fn flush(&mut self) -> Result<()> {
        self.recorder()?.flush()
    }

    fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    fn is_behind(&self) -> bool {
        self.recorder.as_ref().is_some_and(Recorder::is_behind)
    }

    fn folder(&self) -> Option<&Path> {
        self.rotation.as_ref().map(|(_, rotated)| rotated.folder())
    }

    fn begins_anew(&mut self) -> Result<bool> {
        let is_due = self.rotation.as_ref().is_some_and(|(rotation, _)| self.is_due(rotation));
        let Some((_, rotated)) = self.rotation.as_mut().filter(|_| is_due) else {
            return Ok(false);
        };
        let path = rotated.next_path();
        self.metadata.part += 1;
        self.metadata.started_ns = monotonic_ns();
        let metadata = self.metadata.clone();
        self.recorder()?.begin_part(open(path, false)?, &metadata)?;
        self.part_began = Instant::now();
        self.delete_oldest()?;
        Ok(true)
    }
}

fn open(path: PathBuf, overwrite: bool) -> Result<Output> {
    Output::open(Some(&path), Contents::Pieces, overwrite)
}

fn metadata(config: &Record, fin_timeout_ns: u64, clock: WallClock) -> Result<Metadata> {
    let read = |path: &str| Ok::<_, std::io::Error>(fs::read_to_string(path)?.trim().to_owned());
    let Host { name, kernel } = Host::this()?;
    Ok(Metadata {
        format: VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: name,
        kernel,
        boot_id: read("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        // A random number that the kernel makes for each read.
        run: read("/proc/sys/kernel/random/uuid").context("cannot name the run")?,
        part: 0,
        clock_offset_ns: clock.unix_ns(0),
        started_ns: monotonic_ns(),
        fin_timeout_ns,
        max_connections: config.trace.max_connections,
        filters: config.trace.filters.socket.to_string(),
    })
}
