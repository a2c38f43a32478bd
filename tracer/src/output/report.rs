//! Findings: as text that is read at three in the morning, worst first, and as JSON.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{
    records::{ProcessRecord, VERSION},
    table, wrapped,
};
use crate::core::{
    connection::Certainty,
    endpoint::Endpoint,
    finding::{Cause, Finding, FoundSocket, Severity},
};

/// What happened to the events of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LossRecord {
    /// Transitions that the programs saw: delivered plus dropped.
    pub seen: u64,
    /// Found the ring buffer full.
    pub dropped: u64,
    /// Skipped by the kernel.
    pub missed: u64,
    /// Inferred afterwards.
    pub repaired: u64,
}

impl std::fmt::Display for LossRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seen, dropped, missed, repaired } = self;
        write!(f, "seen {seen} transitions, dropped {dropped}, missed {missed}, repaired {repaired}")
    }
}

#[derive(Serialize)]
struct ReportRecord<'a> {
    v: u8,
    window: WindowRecord,
    loss: LossRecord,
    findings: Vec<FindingRecord<'a>>,
}

#[derive(Serialize)]
struct WindowRecord {
    duration_ns: u64,
}

/// A finding, as in the report.
#[derive(Serialize)]
pub struct FindingRecord<'a> {
    kind: &'static str,
    severity: &'static str,
    title: &'a str,
    process: Option<ProcessRecord>,
    local: Option<String>,
    remote: Option<String>,
    netns: u32,
    count: u64,
    oldest_ns: u64,
    oldest_certainty: &'static str,
    growth_per_min: Option<f64>,
    eta_s: Option<u64>,
    cause: Option<&'static str>,
    evidence: &'a [String],
    remedy: &'a str,
    sockets: Vec<SocketRecord>,
}

#[derive(Serialize)]
struct SocketRecord {
    cookie: Option<u64>,
    local: String,
    /// `None` where the kernel tells it no more.
    remote: Option<String>,
    age_ns: u64,
    age_certainty: &'static str,
    fds: Vec<i32>,
}

impl From<&FoundSocket> for SocketRecord {
    fn from(socket: &FoundSocket) -> Self {
        Self {
            cookie: (socket.cookie != 0).then_some(socket.cookie),
            local: socket.local.to_string(),
            remote: (socket.remote != Endpoint::UNKNOWN).then(|| socket.remote.to_string()),
            age_ns: socket.age_ns,
            age_certainty: socket.age_certainty.name(),
            fds: socket.fds.clone(),
        }
    }
}

impl<'a> From<&'a Finding> for FindingRecord<'a> {
    fn from(finding: &'a Finding) -> Self {
        Self {
            kind: finding.kind.name(),
            severity: finding.severity.name(),
            title: &finding.title,
            process: finding.process.as_ref().map(ProcessRecord::from),
            local: finding.local.map(common_end),
            remote: finding.remote.map(common_end),
            netns: finding.netns,
            count: finding.count,
            oldest_ns: finding.oldest_ns,
            oldest_certainty: finding.oldest_certainty.name(),
            growth_per_min: finding.growth_per_min,
            eta_s: finding.eta_s,
            cause: finding.cause.map(Cause::name),
            evidence: &finding.evidence,
            remedy: &finding.remedy,
            sockets: finding.sockets.iter().map(SocketRecord::from).collect(),
        }
    }
}

/// Writes the report as one JSON object on one line.
pub fn write_json(to: &mut impl Write, window_ns: u64, loss: LossRecord, findings: &[Finding]) -> io::Result<()> {
    let report = ReportRecord {
        v: VERSION,
        window: WindowRecord { duration_ns: window_ns },
        loss,
        findings: findings.iter().map(FindingRecord::from).collect(),
    };
    let mut line = serde_json::to_vec(&report)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Writes the report as text; colour underlines the severity and never stands for it. What was lost is not in it: the line on stderr that ends every run says it.
pub fn write_text(to: &mut impl Write, window_ns: u64, findings: &[Finding], colour: bool) -> io::Result<()> {
    let mut text = Vec::new();
    if findings.is_empty() {
        writeln!(text, "No findings: no stuck sockets, no destination short of ports, nothing failing.")?;
    }
    for finding in findings {
        write_finding(&mut text, finding, colour)?;
    }
    match window_ns {
        0 => writeln!(text, "at this moment; without watching, rates, failures and resets are not known")?,
        _ => writeln!(text, "watched for {}", table::duration(window_ns))?,
    }
    to.write_all(&text)
}

/// How many sockets the text shows; JSON has more.
const SHOWN: usize = 5;

fn write_finding(to: &mut impl Write, finding: &Finding, colour: bool) -> io::Result<()> {
    let style = match finding.severity {
        Severity::Info => AnsiColor::Cyan.on_default(),
        Severity::Warning => AnsiColor::Yellow.on_default().bold(),
        Severity::Critical => AnsiColor::Red.on_default().bold(),
    };
    let severity = severity_word(finding.severity);
    let style = if colour { style } else { Style::new() };
    writeln!(to, "{style}{severity:<9}{style:#} {}", finding.title)?;
    let facts = measures(finding);
    if !facts.is_empty() {
        writeln!(to, "          {}", facts.join("   "))?;
    }
    for line in &finding.evidence {
        writeln!(to, "          {line}")?;
    }
    for socket in finding.sockets.iter().take(SHOWN).filter(|socket| socket.cookie != 0) {
        let fds = socket.fds.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
        let fds = if fds.is_empty() { String::new() } else { format!("   fd {fds}") };
        let age = format!("{}{}", at_least(socket.age_certainty), table::duration(socket.age_ns));
        let remote = if socket.remote == Endpoint::UNKNOWN { "?".to_owned() } else { socket.remote.to_string() };
        writeln!(to, "            {} ← {remote}   {age}{fds}", socket.local)?;
    }
    let hidden = (finding.count as usize).saturating_sub(SHOWN);
    if hidden > 0 && finding.sockets.iter().any(|socket| socket.cookie != 0) {
        writeln!(to, "            … and {hidden} more")?;
    }
    for (number, line) in wrapped(&finding.remedy, 95).into_iter().enumerate() {
        writeln!(to, "          {} {line}", if number == 0 { "fix:" } else { "    " })?;
    }
    writeln!(to, "          more: tracer explain {}", finding.topic)?;
    writeln!(to)
}

/// What a finding measures, in a few words each.
#[must_use]
pub fn measures(finding: &Finding) -> Vec<String> {
    let mut said = Vec::new();
    if finding.oldest_ns > 0 {
        said.push(format!("oldest {}{}", at_least(finding.oldest_certainty), table::duration(finding.oldest_ns)));
    }
    if let Some(growth) = finding.growth_per_min.filter(|growth| *growth > 0.0) {
        said.push(format!("+{growth:.0}/min"));
    }
    if let Some(eta_s) = finding.eta_s {
        said.push(format!("full in {}", table::duration(eta_s.saturating_mul(1_000_000_000))));
    }
    if let Some(remote) = finding.remote {
        said.push(format!("peer {}", common_end(remote)));
    }
    said
}

/// A severity as people read it.
#[must_use]
pub fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "INFO",
        Severity::Warning => "WARNING",
        Severity::Critical => "CRITICAL",
    }
}

/// The end that several sockets have in common: without a port when theirs differ.
fn common_end(end: Endpoint) -> String {
    if end.port == 0 { end.address.to_string() } else { end.to_string() }
}

/// The mark of a time that is not exact.
pub(crate) fn at_least(certainty: Certainty) -> &'static str {
    if certainty == Certainty::Exact { "" } else { "≥" }
}
