//! What each command makes of a trace.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use rustc_hash::FxHashMap;

use super::{
    held::Annotated,
    live::{self, Finished, View},
};
use crate::{
    config::{Diagnose, Stream},
    core::{
        connection::Connection,
        filter::Verdict,
        finding::{self, Facts, Finding, Tally},
        snapshot::Socket,
    },
    output::{
        Writer,
        file::Output,
        records::{ConnectionRecord, LogRecord},
        report,
    },
    source::{
        cgroups::Cgroups,
        clock::{WallClock, monotonic_ns},
        netns::Namespace,
        owners::{self, Owners},
        sock_diag::{self, Wanted},
        sysctl,
    },
};

/// `tracer log`.
pub fn log(config: &Stream) -> Result<()> {
    let mut view = LogView {
        writer: Writer::new::<LogRecord>(config.format, Output::open(config.output.as_deref())?)?,
        naming: Naming::new(),
        left: config.count,
    };
    let finished = live::run(&config.trace, &mut view)?;
    close(&finished)
}

/// `tracer connections`.
pub fn connections(config: &Stream) -> Result<()> {
    let mut view = ConnectionsView {
        writer: Writer::new::<ConnectionRecord>(config.format, Output::open(config.output.as_deref())?)?,
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
        view.flush()?;
    }
    close(&finished)
}

/// `tracer diagnose`; the findings, for the exit status.
pub fn diagnose(config: &Diagnose) -> Result<Vec<Finding>> {
    let mut output = Output::open(config.output.as_deref())?;
    let mut view = DiagnoseView::default();
    if std::io::stderr().is_terminal() {
        let duration = config.trace.duration.unwrap_or_default();
        eprintln!("tracer: watching for {}; Ctrl-C reports at once", humantime::format_duration(duration));
    }
    let finished = live::run(&config.trace, &mut view)?;
    let facts = sample(config, &finished)?;
    let findings = finding::detect(&finished.tracker, &view.tally, &facts, &config.thresholds);
    let Finished { window_ns, loss, .. } = finished;
    if config.json {
        report::write_json(&mut output, window_ns, loss, &findings)?;
    } else {
        report::write_text(&mut output, window_ns, &findings)?;
    }
    output.flush()?;
    close(&finished)?;
    Ok(findings)
}

/// The line that ends every live run.
fn close(finished: &Finished) -> Result<()> {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{}", finished.loss);
    Ok(())
}

/// Samples what the findings need besides the tracker.
fn sample(config: &Diagnose, finished: &Finished) -> Result<Facts> {
    let namespaces = &finished.namespaces;
    let filters = &config.trace.filters;
    let snapshot = sock_diag::dump(namespaces, Wanted::CLOSE_WAIT).context("cannot look for stuck sockets")?;
    let wanted = |socket: &Socket| filters.socket.verdict(&socket.tuple, socket.state) != Verdict::No;
    let close_wait: Vec<Socket> = snapshot.sockets.into_iter().filter(wanted).collect();
    let owners = if close_wait.is_empty() { Owners::default() } else { Owners::scan() };
    let holders: FxHashMap<u64, Vec<_>> =
        close_wait.iter().map(|socket| (socket.inode, owners.of(socket.inode).to_vec())).collect();
    let pids: rustc_hash::FxHashSet<u32> = holders.values().flatten().map(|holder| holder.pid).collect();
    let descriptors =
        pids.into_iter().filter_map(|pid| owners::descriptor_usage(pid).map(|usage| (pid, usage))).collect();
    let settings = |namespace: &Namespace| Some((namespace.inum, namespace.enter(sysctl::port_settings).ok()?));
    Ok(Facts {
        now_ns: snapshot.ended_ns,
        window_ns: finished.window_ns,
        close_wait,
        holders,
        descriptors,
        ports: namespaces.iter().filter_map(settings).collect(),
        unreadable_processes: owners.denied,
    })
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
    writer: Writer<Output>,
    naming: Naming,
    left: Option<u64>,
}

impl View for LogView {
    fn transition(&mut self, (transition, annotation): &Annotated) -> Result<()> {
        count_down(&mut self.left);
        let cgroup = self.naming.cgroups.name(annotation.cgroup);
        let record = LogRecord::new(transition, annotation, cgroup.as_deref(), self.naming.clock);
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
    writer: Writer<Output>,
    naming: Naming,
    left: Option<u64>,
}

impl ConnectionsView {
    fn write(&mut self, connection: &Connection) -> Result<()> {
        count_down(&mut self.left);
        let cgroup = self.naming.cgroups.name(connection.cgroup);
        let record = ConnectionRecord::new(connection, cgroup.as_deref(), self.naming.clock);
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
