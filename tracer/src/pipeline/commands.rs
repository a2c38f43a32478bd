//! What each command makes of a trace.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use rustc_hash::FxHashSet;

use super::{
    facts::{self, Baseline, Watched},
    held::Annotated,
    live::{self, Finished, View},
};
use crate::{
    config::{Diagnose, Stream},
    core::{
        connection::Connection,
        finding::{self, Finding, Tally},
        tracker::{Effects, Limits, MergeKind, Tracker},
    },
    output::{
        Writer,
        file::{Contents, Output},
        records::{ConnectionRecord, LogRecord},
        report::{self, LossRecord},
    },
    problem::tell,
    source::{
        cgroups::Cgroups,
        clock::{WallClock, monotonic_ns},
    },
};

/// `tracer log`.
pub fn log(config: &Stream) -> Result<()> {
    let mut view =
        LogView { writer: Writer::new(config.format, open(config)?)?, naming: Naming::new(), left: config.count };
    let finished = live::run(&config.trace, &mut view)?;
    view.writer.finish()?;
    close(finished.loss);
    Ok(())
}

/// `tracer connections`.
pub fn connections(config: &Stream) -> Result<()> {
    let mut view = ConnectionsView {
        writer: Writer::new(config.format, open(config)?)?,
        naming: Naming::new(),
        left: config.count,
    };
    let finished = live::run(&config.trace, &mut view)?;
    if config.with_open {
        let now_ns = monotonic_ns();
        let mut open: Vec<Connection> = finished.tracker.open_connections(now_ns).collect();
        open.retain(|connection| live::wanted_connection(&config.trace.filters, connection));
        open.sort_by_key(|connection| (connection.opened_ns, connection.socket.cookie));
        for connection in open.iter().take(view.left.map_or(usize::MAX, |left| left as usize)) {
            view.write(connection)?;
        }
    }
    view.writer.finish()?;
    close(finished.loss);
    Ok(())
}

/// `tracer diagnose`; the findings, for the exit status.
pub fn diagnose(config: &Diagnose) -> Result<Vec<Finding>> {
    let mut output = Output::open(config.output.as_deref(), Contents::Lines, config.overwrite)?;
    let Judged { mut findings, loss, window_ns } =
        if config.snapshot { judge_now(config)? } else { watch_and_judge(config)? };
    let owner = &config.trace.filters.owner;
    findings.retain(|finding| owner.matches_process(finding.process.as_ref()));
    if config.json {
        report::write_json(&mut output, window_ns, loss, &findings)?;
    } else {
        report::write_text(&mut output, window_ns, &findings, config.colour)?;
    }
    output.flush()?;
    if !config.snapshot {
        close(loss);
    }
    Ok(findings)
}

fn open(config: &Stream) -> Result<Output> {
    let contents = if config.format.is_text() { Contents::Lines } else { Contents::Pieces };
    Output::open(config.output.as_deref(), contents, config.overwrite)
}

struct Judged {
    findings: Vec<Finding>,
    loss: LossRecord,
    window_ns: u64,
}

fn watch_and_judge(config: &Diagnose) -> Result<Judged> {
    if std::io::stderr().is_terminal() {
        let duration = config.trace.duration.unwrap_or_default();
        tell(format_args!("watching for {}; Ctrl-C reports at once", humantime::format_duration(duration)));
    }
    let filter = &config.trace.filters.socket;
    let baseline = Baseline::read(&live::namespaces(&filter.netns)?);
    let mut view = DiagnoseView::default();
    let Finished { tracker, unlisted, namespaces, loss, window_ns } = live::run(&config.trace, &mut view)?;
    let watched = Watched {
        filters: &config.trace.filters,
        namespaces: &namespaces,
        tally: &view.tally,
        baseline: &baseline,
        unlisted: &unlisted,
        window_ns,
    };
    let facts = facts::sample(&watched, facts::dump(&config.trace.filters, &namespaces)?);
    let findings = finding::detect(&tracker, &view.tally, &facts, &config.thresholds);
    Ok(Judged { findings, loss, window_ns })
}

/// From the kernel's own lists alone, without BPF: what can be said at once, and without root of what one may see.
fn judge_now(config: &Diagnose) -> Result<Judged> {
    let filter = &config.trace.filters.socket;
    let namespaces = live::namespaces(&filter.netns)?;
    let dump = facts::dump(&config.trace.filters, &namespaces)?;
    let mut tracker = Tracker::new(Limits { max_connections: config.trace.max_connections, ..Limits::default() });
    tracker.merge(&dump.snapshot, MergeKind::StartUp, &|_| None, &mut Effects::default());
    let (tally, baseline) = (Tally::default(), Baseline::read(&[]));
    let watched = Watched {
        filters: &config.trace.filters,
        namespaces: &namespaces,
        tally: &tally,
        baseline: &baseline,
        unlisted: &FxHashSet::default(),
        window_ns: 0,
    };
    let facts = facts::sample(&watched, dump);
    let findings = finding::detect(&tracker, &tally, &facts, &config.thresholds);
    Ok(Judged { findings, loss: LossRecord::default(), window_ns: 0 })
}

/// The line that ends every live run.
fn close(loss: LossRecord) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{loss}");
}

/// Wall time and names of cgroups.
struct Naming {
    clock: WallClock,
    cgroups: Cgroups,
}

impl Naming {
    fn new() -> Self {
        Self { clock: WallClock::now(), cgroups: Cgroups::new() }
    }
}

/// Counts down to the end of `--count`.
fn count_down(left: &mut Option<u64>) {
    if let Some(left) = left {
        *left = left.saturating_sub(1);
    }
}

struct LogView {
    writer: Writer<LogRecord, Output>,
    naming: Naming,
    left: Option<u64>,
}

impl View for LogView {
    fn transition(&mut self, (transition, annotation): &Annotated) -> Result<()> {
        count_down(&mut self.left);
        let cgroup = self.naming.cgroups.name(annotation.cgroup);
        let record = LogRecord::new(transition, annotation, cgroup, self.naming.clock);
        Ok(self.writer.write(&record)?)
    }

    fn ended(&mut self, _: &Connection) -> Result<()> {
        Ok(())
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
    naming: Naming,
    left: Option<u64>,
}

impl ConnectionsView {
    fn write(&mut self, connection: &Connection) -> Result<()> {
        count_down(&mut self.left);
        let cgroup = self.naming.cgroups.name(connection.cgroup);
        let record = ConnectionRecord::new(connection, cgroup, self.naming.clock);
        Ok(self.writer.write(&record)?)
    }
}

impl View for ConnectionsView {
    fn transition(&mut self, _: &Annotated) -> Result<()> {
        Ok(())
    }

    fn ended(&mut self, connection: &Connection) -> Result<()> {
        self.write(connection)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.writer.flush()?)
    }

    fn is_done(&self) -> bool {
        self.left == Some(0)
    }
}

#[derive(Default)]
struct DiagnoseView {
    tally: Tally,
}

impl View for DiagnoseView {
    fn transition(&mut self, _: &Annotated) -> Result<()> {
        Ok(())
    }

    fn ended(&mut self, connection: &Connection) -> Result<()> {
        self.tally.count(connection);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_done(&self) -> bool {
        false
    }
}
