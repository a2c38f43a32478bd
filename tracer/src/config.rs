//! What a run is to do: the command line, checked against the machine (names of namespaces and cgroups resolved).

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    cli::{
        AttachArg, ConnectionsArgs, DiagnoseArgs, FailOn, FilterArgs, OutputArgs, RecordArgs, ReportFormat, SourceArgs,
        StreamArgs, StreamFormat, ThresholdArgs, TraceArgs, WatchArgs,
    },
    core::{
        filter::{Family, OwnerFilter, SocketFilter},
        finding::{Severity, Thresholds},
        state::State,
    },
    output::Format,
    screen::{Abilities, Colours},
    source::{
        cgroups::{self, Cgroups},
        kernel::Attachment,
        netns,
    },
};

/// How long `tracer diagnose` watches.
const WATCHED_BY_DEFAULT: Duration = Duration::from_secs(10);

/// Which connections.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// By ends and namespace.
    pub socket: SocketFilter,
    /// By owner.
    pub owner: OwnerFilter,
    /// By state; none for all.
    pub states: Vec<State>,
    /// By path of a cgroup in a recording, which tells the ids that belong to it.
    pub recorded_cgroups: Vec<PathBuf>,
}

/// When facts for the findings are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// There are no findings.
    Never,
    /// Once, at the end.
    AtEnd,
    /// Again and again, and at the end.
    Always,
    /// Again and again for somebody who is looking, who does not wait for the end.
    Shown,
}

impl Sampling {
    /// How often, where it is again and again.
    #[must_use]
    pub fn period(self) -> Option<Duration> {
        match self {
            Self::Never | Self::AtEnd => None,
            Self::Always => Some(Duration::from_secs(10)),
            Self::Shown => Some(Duration::from_secs(2)),
        }
    }

    /// Whether also at the end.
    #[must_use]
    pub fn is_at_end(self) -> bool {
        matches!(self, Self::AtEnd | Self::Always)
    }
}

/// How to trace.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Recordings to read instead of tracing.
    pub from: Vec<PathBuf>,
    /// What is sampled for the findings.
    pub sampling: Sampling,
    /// Size of the ring buffer.
    pub buffer_bytes: u32,
    /// Bound of the tracker.
    pub max_connections: usize,
    /// `None` for the better one that works.
    pub attachment: Option<Attachment>,
    /// Which connections.
    pub filters: Filters,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Compare with the kernel's own list once more at the end.
    pub final_snapshot: bool,
    /// Say which capabilities are kept.
    pub verbose: bool,
}

/// A run of `tracer log` or `tracer connections`.
#[derive(Clone, Debug)]
pub struct Stream {
    /// How to trace.
    pub trace: Trace,
    /// Stop after this many records.
    pub count: Option<u64>,
    /// What to write.
    pub format: Format,
    /// Where to.
    pub output: Option<PathBuf>,
    /// Whether a file that is there already may go.
    pub overwrite: bool,
    /// At the end also the open connections.
    pub with_open: bool,
}

/// A run of `tracer record`.
#[derive(Clone, Debug)]
pub struct Record {
    /// How to trace.
    pub trace: Trace,
    /// Where to.
    pub file: PathBuf,
    /// Whether a file that is there already may go.
    pub overwrite: bool,
    /// Stop after this many transitions.
    pub count: Option<u64>,
    /// When to go on in another file.
    pub rotation: Option<Rotation>,
}

/// When a recording goes on in another file; whichever comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// After so much was written.
    pub bytes: Option<u64>,
    /// After this time.
    pub every: Option<Duration>,
    /// How many files are kept; `None` for all.
    pub keep: Option<usize>,
}

/// A run of `tracer diagnose`.
#[derive(Clone, Debug)]
pub struct Diagnose {
    /// How to trace.
    pub trace: Trace,
    /// When something is a finding.
    pub thresholds: Thresholds,
    /// JSON instead of text.
    pub json: bool,
    /// Colour in the text.
    pub colour: bool,
    /// Where to.
    pub output: Option<PathBuf>,
    /// Whether a file that is there already may go.
    pub overwrite: bool,
    /// At once, from the kernel's own lists alone.
    pub snapshot: bool,
    /// From which severity on the run fails.
    pub fail_on: Option<Severity>,
}

/// A run of `tracer watch`.
#[derive(Clone, Debug)]
pub struct Watch {
    /// How to trace.
    pub trace: Trace,
    /// When something is a finding.
    pub thresholds: Thresholds,
    /// What the terminal can show.
    pub abilities: Abilities,
    /// The conditions on connections, as they were typed.
    pub filtered: String,
}

impl Stream {
    /// Of `tracer log`.
    pub fn log(args: &StreamArgs) -> Result<Self> {
        Ok(Self {
            trace: trace(&args.trace, &args.source, &args.filter, args.window.duration)?,
            count: args.window.count,
            format: match args.output.format.unwrap_or_default() {
                StreamFormat::Table => Format::Table,
                StreamFormat::Jsonl => Format::Jsonl,
                StreamFormat::Csv => Format::Csv,
                StreamFormat::Arrow => Format::Arrow,
                StreamFormat::Parquet => Format::Parquet,
            },
            output: args.output.output.clone(),
            overwrite: args.output.force,
            with_open: false,
        })
    }

    /// Of `tracer connections`.
    pub fn connections(args: &ConnectionsArgs) -> Result<Self> {
        let mut stream = Self { with_open: args.open, ..Self::log(&args.stream)? };
        stream.trace.final_snapshot = args.open;
        Ok(stream)
    }
}

impl Record {
    /// Of `tracer record`.
    pub fn new(args: &RecordArgs) -> Result<Self> {
        let FilterArgs { pid, comm, cgroup, state, .. } = &args.filter;
        if !(pid.is_empty() && comm.is_empty() && cgroup.is_empty() && state.is_empty()) {
            bail!(
                "a recording has whole connections, whose they are may turn out late: give --pid, --comm, --cgroup and \
                 --state when it is read (tracer log --from FILE)"
            );
        }
        let trace = trace(&args.trace, &SourceArgs::default(), &args.filter, args.window.duration)?;
        let rotates = args.rotate_size.is_some() || args.rotate_every.is_some();
        if args.keep.is_some() && !rotates {
            bail!("--keep says how many rotated files stay: give --rotate-size or --rotate-every too");
        }
        if rotates && args.file == Path::new("-") {
            bail!("standard output cannot be rotated: give a file");
        }
        Ok(Self {
            trace: Trace { final_snapshot: true, sampling: Sampling::Always, ..trace },
            file: args.file.clone(),
            overwrite: args.force,
            count: args.window.count,
            rotation: rotates.then(|| Rotation {
                bytes: args.rotate_size,
                every: args.rotate_every,
                keep: args.keep.map(|keep| keep as usize),
            }),
        })
    }
}

impl Diagnose {
    /// Of `tracer diagnose`.
    pub fn new(args: &DiagnoseArgs) -> Result<Self> {
        let default = args.source.from.is_empty().then_some(WATCHED_BY_DEFAULT);
        let trace = trace(&args.trace, &args.source, &args.filter, args.duration.or(default))?;
        Ok(Self {
            trace: Trace { final_snapshot: true, sampling: Sampling::AtEnd, ..trace },
            thresholds: thresholds(&args.thresholds),
            json: matches!(args.format, ReportFormat::Json),
            colour: args.output.is_none() && std::io::stdout().is_terminal() && !no_color(),
            output: args.output.clone(),
            overwrite: args.force,
            snapshot: args.snapshot,
            fail_on: match args.fail_on {
                FailOn::Info => Some(Severity::Info),
                FailOn::Warning => Some(Severity::Warning),
                FailOn::Critical => Some(Severity::Critical),
                FailOn::Never => None,
            },
        })
    }
}

impl Watch {
    /// Of `tracer watch`.
    pub fn new(args: &WatchArgs) -> Result<Self> {
        if !std::io::stdout().is_terminal() {
            bail!("standard output is no terminal, which `watch` needs: use `tracer log` or `tracer diagnose`");
        }
        if !terminal_can() {
            bail!("TERM says that this terminal cannot place text: use `tracer log` or `tracer diagnose`");
        }
        let trace = trace(&args.trace, &args.source, &args.filter, args.duration)?;
        Ok(Self {
            trace: Trace { sampling: Sampling::Shown, ..trace },
            thresholds: thresholds(&args.thresholds),
            abilities: abilities(args.ascii),
            filtered: described(&args.filter),
        })
    }

    /// Of `tracer` without a command, where somebody sits at a terminal and nothing was asked for that only a stream of
    /// records has.
    pub fn without_command(args: &StreamArgs) -> Result<Option<Self>> {
        let StreamArgs { output: OutputArgs { format, output, .. }, window, .. } = args;
        let is_stream = format.is_some() || output.is_some() || window.count.is_some();
        if is_stream || !std::io::stdout().is_terminal() || !terminal_can() {
            return Ok(None);
        }
        let trace = trace(&args.trace, &args.source, &args.filter, window.duration)?;
        Ok(Some(Self {
            trace: Trace { sampling: Sampling::Shown, ..trace },
            thresholds: Thresholds::default(),
            abilities: abilities(false),
            filtered: described(&args.filter),
        }))
    }
}

/// Text of a variable of the environment; empty where it is not set.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// <https://no-color.org>
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

fn terminal_can() -> bool {
    !matches!(variable("TERM").as_str(), "" | "dumb")
}

/// What the environment says of the terminal.
fn abilities(ascii: bool) -> Abilities {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].map(variable).into_iter().find(|value| !value.is_empty());
    let utf8 = locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    });
    let many = variable("TERM").contains("256color") || !variable("COLORTERM").is_empty();
    let colours = match (no_color(), many) {
        (true, _) => Colours::None,
        (false, true) => Colours::Many,
        (false, false) => Colours::Sixteen,
    };
    Abilities { ascii: ascii || !utf8, colours }
}

fn thresholds(args: &ThresholdArgs) -> Thresholds {
    Thresholds {
        close_wait_age_ns: u64::try_from(args.close_wait_age.as_nanos()).unwrap_or(u64::MAX),
        port_usage: args.port_usage,
    }
}

fn trace(args: &TraceArgs, source: &SourceArgs, filter: &FilterArgs, duration: Option<Duration>) -> Result<Trace> {
    Ok(Trace {
        from: source.from.clone(),
        sampling: Sampling::Never,
        buffer_bytes: args.buffer,
        max_connections: args.max_connections as usize,
        attachment: match args.attach {
            AttachArg::Auto => None,
            AttachArg::Btf => Some(Attachment::Btf),
            AttachArg::Tracepoint => Some(Attachment::Tracepoint),
        },
        filters: filters(filter, !source.from.is_empty())?,
        duration,
        final_snapshot: false,
        verbose: args.verbose,
    })
}

/// The conditions in words; nothing where there is none.
fn described(args: &FilterArgs) -> String {
    fn list<T: ToString>(name: &str, values: &[T]) -> Option<String> {
        let values: Vec<String> = values.iter().map(T::to_string).collect();
        (!values.is_empty()).then(|| format!("--{name} {}", values.join(",")))
    }
    let options = [
        list("port", &args.port),
        list("local-port", &args.local_port),
        list("remote-port", &args.remote_port),
        list("address", &args.address),
        list("pid", &args.pid),
        list("comm", &args.comm),
        list("netns", &args.netns),
        list("cgroup", &args.cgroup),
        args.ipv4.then(|| "-4".to_owned()),
        args.ipv6.then(|| "-6".to_owned()),
        list("state", &args.state),
    ];
    options.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn filters(args: &FilterArgs, recorded: bool) -> Result<Filters> {
    let netns: Result<Vec<u32>> =
        args.netns.iter().map(|text| netns::parse(text).with_context(|| format!("--netns {text}"))).collect();
    let mut ids = Vec::new();
    for path in args.cgroup.iter().filter(|_| !recorded) {
        ids.extend(Cgroups::new().ids_below(path).with_context(|| format!("--cgroup {path}"))?);
    }
    Ok(Filters {
        socket: SocketFilter {
            ports: args.port.clone(),
            local_ports: args.local_port.clone(),
            remote_ports: args.remote_port.clone(),
            addresses: args.address.clone(),
            family: match (args.ipv4, args.ipv6) {
                (true, _) => Some(Family::V4),
                (_, true) => Some(Family::V6),
                _ => None,
            },
            netns: netns?,
        },
        owner: OwnerFilter { pids: args.pid.clone(), comms: args.comm.clone(), cgroups: ids },
        states: args.state.clone(),
        recorded_cgroups: args.cgroup.iter().filter(|_| recorded).map(|path| cgroups::below_root(path)).collect(),
    })
}
