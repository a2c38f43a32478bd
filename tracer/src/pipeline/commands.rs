//! What each command makes of a trace.

use std::{
    io::{IsTerminal, Write},
    thread,
};

use anyhow::{Result, anyhow, bail};

use super::{
    dump::Parts,
    facts::Sampler,
    follow::{Follow, Naming, View, wanted_connection},
    held::Annotated,
    live::{self, limits},
    record::RecordView,
    replay::{self, Replayed},
};
use crate::{
    config::{Diagnose, Record, Stream, Trace},
    core::{connection::Connection, finding::Finding, input::Input, tracker::MergeKind},
    memory,
    output::{
        Row, Writer,
        file::{Contents, Output},
        records::{ConnectionRecord, LogRecord},
        report::{self, LossRecord},
    },
    problem::tell,
    source::{clock::WallClock, privileges::Later},
};

/// `tracer log`.
pub fn log(config: &Stream) -> Result<()> {
    let mut view = LogView { writer: Writer::new(config.format, open(config)?)?, left: config.count };
    let replayed = follow(&config.trace, &mut view);
    let Replayed { followed, damage } = finish(replayed, view.writer)?;
    close(followed.loss);
    replay::tell_damage(damage)
}

/// `tracer connections`.
pub fn connections(config: &Stream) -> Result<()> {
    let mut view = ConnectionsView { writer: Writer::new(config.format, open(config)?)?, left: config.count };
    let mut replayed = follow(&config.trace, &mut view);
    if let Ok(Replayed { followed, .. }) = &mut replayed
        && config.with_open
    {
        let mut open: Vec<Connection> = followed.tracker.open_connections(followed.ended_ns).collect();
        open.retain(|connection| wanted_connection(&config.trace.filters, connection));
        open.sort_by_key(|connection| (connection.opened_ns, connection.socket.cookie));
        for connection in open.iter().take(view.left.map_or(usize::MAX, |left| left as usize)) {
            view.ended(connection, &mut followed.naming)?;
        }
    }
    let Replayed { followed, damage } = finish(replayed, view.writer)?;
    close(followed.loss);
    replay::tell_damage(damage)
}

/// `tracer record`.
pub fn record(config: &Record) -> Result<()> {
    let fin_timeout_ns = limits(&config.trace).fin_timeout_ns;
    let mut view = RecordView::new(config, fin_timeout_ns, WallClock::now())?;
    let followed = live::run(&config.trace, &mut view);
    let finished = view.finish();
    let followed = followed?;
    finished?;
    close(followed.loss);
    Ok(())
}

/// `tracer diagnose`; the findings, for the exit status.
pub fn diagnose(config: &Diagnose) -> Result<Vec<Finding>> {
    let mut output = Output::open(config.output.as_deref(), Contents::Lines, config.overwrite)?;
    let Replayed { followed, damage } = if config.snapshot { look(config)? } else { watch(config)? };
    let Some(findings) = followed.findings(&config.trace.filters, &config.thresholds) else {
        replay::tell_damage(damage)?;
        bail!("the recording has no sample of the sockets that findings go by: it ends too early");
    };
    let window_ns = followed.window_ns;
    if config.json {
        report::write_json(&mut output, window_ns, followed.loss, &findings)?;
    } else {
        report::write_text(&mut output, window_ns, &findings, config.colour)?;
    }
    output.flush()?;
    if !config.snapshot {
        close(followed.loss);
    }
    replay::tell_damage(damage)?;
    Ok(findings)
}

fn open(config: &Stream) -> Result<Output> {
    let contents = if config.format.is_text() { Contents::Lines } else { Contents::Pieces };
    Output::open(config.output.as_deref(), contents, config.overwrite)
}

/// Whatever ended the run: what was seen is written.
fn finish<R: Row>(replayed: Result<Replayed>, writer: Writer<R, Output>) -> Result<Replayed> {
    let finished = writer.finish();
    let replayed = replayed?;
    finished?;
    Ok(replayed)
}

/// From the kernel, or out of recordings.
fn follow(trace: &Trace, view: &mut dyn View) -> Result<Replayed> {
    if trace.from.is_empty() {
        Ok(Replayed { followed: live::run(trace, view)?, damage: None })
    } else {
        memory::keep();
        replay::run(trace, view)
    }
}

fn watch(config: &Diagnose) -> Result<Replayed> {
    if config.trace.from.is_empty() && std::io::stderr().is_terminal() {
        let duration = config.trace.duration.unwrap_or_default();
        tell(format_args!("watching for {}; Ctrl-C reports at once", humantime::format_duration(duration)));
    }
    follow(&config.trace, &mut DiagnoseView)
}

/// From the kernel's own lists alone, without BPF: what can be said at once, and without root of what one may see.
fn look(config: &Diagnose) -> Result<Replayed> {
    let later = Later::Sockets { netns: config.trace.filters.socket.netns.clone(), unlisted: true };
    live::give_up_privileges(&later, config.trace.verbose, |_| ())?;
    let sampler = Sampler { netns: config.trace.filters.socket.netns.clone(), ..Sampler::default() };
    let mut view = DiagnoseView;
    let mut follow = Follow::new(config.trace.filters.clone(), limits(&config.trace), Naming::live(), &mut view);
    follow.input(Input::DumpBegins(MergeKind::StartUp))?;
    let (facts, rest) = thread::scope(|scope| {
        let (parts, mut handed) = Parts::new();
        let sampling = scope.spawn(move || sampler.sample_of_all(parts));
        while let Some(part) = handed.blocking_recv() {
            follow.input(Input::DumpPart(part))?;
        }
        sampling.join().map_err(|_| anyhow!("the thread that samples facts failed")).flatten()
    })?;
    follow.input(Input::Dump(rest))?;
    follow.input(Input::Facts(Box::new(facts)))?;
    Ok(Replayed { followed: follow.finish()?, damage: None })
}

/// The line that ends every run.
pub(super) fn close(loss: LossRecord) {
    // Where stderr is closed there is nobody to tell.
    let _ = std::io::stderr().write_all(format!("{loss}\n").as_bytes());
}

/// Counts down to the end of `--count`.
fn count_down(left: &mut Option<u64>) {
    if let Some(left) = left {
        *left = left.saturating_sub(1);
    }
}

struct LogView {
    writer: Writer<LogRecord, Output>,
    left: Option<u64>,
}

impl View for LogView {
    fn transition(&mut self, (transition, annotation): &Annotated, naming: &mut Naming) -> Result<()> {
        count_down(&mut self.left);
        let cgroup = naming.cgroup(annotation.cgroup);
        Ok(self.writer.write(&LogRecord::new(transition, annotation, cgroup, naming.clock))?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.writer.flush()?)
    }

    fn is_done(&self) -> bool {
        self.left == Some(0)
    }
}

struct ConnectionsView {
    writer: Writer<ConnectionRecord, Output>,
    left: Option<u64>,
}

impl View for ConnectionsView {
    fn ended(&mut self, connection: &Connection, naming: &mut Naming) -> Result<()> {
        count_down(&mut self.left);
        let cgroup = naming.cgroup(connection.cgroup);
        Ok(self.writer.write(&ConnectionRecord::new(connection, cgroup, naming.clock))?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.writer.flush()?)
    }

    fn is_done(&self) -> bool {
        self.left == Some(0)
    }
}

/// The findings come of what is known at the end.
struct DiagnoseView;

impl View for DiagnoseView {
    fn wants_one_run(&self) -> bool {
        true
    }
}
