//! The command line as it is typed. It is only parsed here; `config` checks it against the machine, and clap's types go
//! no further than that.

use std::{collections::BTreeSet, ffi::OsStr, path::PathBuf};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
};
use clap_complete::Shell;
use ipnet::IpNet;

use crate::core::{manual, state::State};

/// Follows every TCP connection of this host through the kernel's state transitions, and says which program leaks
/// sockets and why.
///
/// Needs root, or CAP_BPF and CAP_PERFMON. Without a command: `tracer watch` on a terminal, else `tracer log`.
#[derive(Debug, Parser)]
#[command(name = "tracer", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// For when no command is given: options of `tracer log`, or of `tracer watch` as far as it has them.
    #[command(flatten)]
    pub log: StreamArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A live screen: connections, findings, destinations, listeners, transitions
    Watch(WatchArgs),
    /// Every transition, as it happens
    Log(StreamArgs),
    /// One record for each connection that ends
    Connections(ConnectionsArgs),
    /// Watch for a while, then say what is wrong, whose doing it is and what to do
    Diagnose(DiagnoseArgs),
    /// Write everything to a recording, for --from of the other commands
    Record(RecordArgs),
    /// Whether a trace works here, what it would go without, and whether what it reports is true
    Check {
        /// Size of the ring buffer that a trace would have
        #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
        buffer: u32,
    },
    /// What a state, a finding or a cause means
    Explain {
        /// A state (CLOSE_WAIT), a finding (close_wait), a cause (fin_unread) …; without one, the list
        #[arg(value_parser = Topic, hide_possible_values = true)]
        topic: Option<String>,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page (roff)
    Man {
        /// The page of this command; without one, that of the program
        command: Option<String>,
    },
}

/// Options of a stream of records.
#[derive(Args, Debug)]
pub struct StreamArgs {
    /// Where from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Which connections.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// When to stop.
    #[command(flatten)]
    pub window: WindowArgs,
    /// What to write.
    #[command(flatten)]
    pub output: OutputArgs,
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Options of `tracer connections`.
#[derive(Args, Debug)]
pub struct ConnectionsArgs {
    /// The options that all streams have.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// At the end, also those that are still open
    #[arg(long)]
    pub open: bool,
}

/// Options of `tracer diagnose`.
#[derive(Args, Debug)]
pub struct DiagnoseArgs {
    /// Where from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Which connections.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// How long to watch [default: 10s, and all of a recording]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Window")]
    pub duration: Option<std::time::Duration>,
    /// Do not watch: report at once, from the kernel's own lists, without BPF
    #[arg(long, conflicts_with_all = ["duration", "from"], help_heading = "Window")]
    pub snapshot: bool,
    /// Text for people, or JSON
    #[arg(long, value_enum, default_value = "text", help_heading = "Findings")]
    pub format: ReportFormat,
    /// End with status 1 when a finding is at least this severe
    #[arg(long, value_enum, value_name = "SEVERITY", default_value = "never", help_heading = "Findings")]
    pub fail_on: FailOn,
    /// When something is a finding.
    #[command(flatten)]
    pub thresholds: ThresholdArgs,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Overwrite the file if it is there already
    #[arg(long, requires = "output", help_heading = "Output")]
    pub force: bool,
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// When something is a finding.
#[derive(Args, Debug)]
#[command(next_help_heading = "Findings")]
pub struct ThresholdArgs {
    /// A socket in CLOSE_WAIT that has been quiet for this long is stuck
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub close_wait_age: std::time::Duration,
    /// Report a destination from this share of the local ports on
    #[arg(long, value_name = "PERCENT", default_value = "50%", value_parser = parse_percent)]
    pub port_usage: f64,
}

/// Options of `tracer watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// Where from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Which connections.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Stop after this time, as 30s or 5m [default: never, and all of a recording]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Window")]
    pub duration: Option<std::time::Duration>,
    /// When something is a finding.
    #[command(flatten)]
    pub thresholds: ThresholdArgs,
    /// Draw with ASCII alone; without it the locale decides
    #[arg(long, help_heading = "Screen")]
    pub ascii: bool,
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Options of `tracer record`.
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// The recording (an Arrow IPC stream); - for standard output
    pub file: PathBuf,
    /// Overwrite the file if it is there already
    #[arg(long)]
    pub force: bool,
    /// Go on in a new file after so much, as 1G; files are numbered
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Rotation")]
    pub rotate_size: Option<u64>,
    /// Go on in a new file after this time, as 1h
    #[arg(long, value_name = "TIME", value_parser = parse_period, help_heading = "Rotation")]
    pub rotate_every: Option<std::time::Duration>,
    /// Keep the latest N files only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Rotation")]
    pub keep: Option<u32>,
    /// Which connections.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// When to stop.
    #[command(flatten)]
    pub window: WindowArgs,
    /// How to trace.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Where transitions come from.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Source")]
pub struct SourceArgs {
    /// Recordings, or folders of them, to read instead of tracing; - for standard input
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub from: Vec<PathBuf>,
}

/// Which connections.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Filter")]
pub struct FilterArgs {
    /// Port at either end
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub port: Vec<u16>,
    /// Port at this host's end
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub local_port: Vec<u16>,
    /// Port at the peer's end
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub remote_port: Vec<u16>,
    /// Address or network at either end, as 10.0.0.0/8
    #[arg(long, value_name = "NET", value_delimiter = ',', value_parser = parse_net)]
    pub address: Vec<IpNet>,
    /// Process that owns the connection
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Name of the process that owns the connection
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub comm: Vec<String>,
    /// Network namespace: inode number, name, path, pid:N or self
    #[arg(long, value_name = "NETNS", value_delimiter = ',')]
    pub netns: Vec<String>,
    /// Cgroup (v2) by path, with all below it
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<String>,
    /// IPv4 only, v4-mapped addresses included
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// IPv6 only
    #[arg(short = '6', long)]
    pub ipv6: bool,
    /// State that is left or entered (log), or was passed through (connections)
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = parse_state)]
    pub state: Vec<State>,
}

/// When to stop.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Window")]
pub struct WindowArgs {
    /// Stop after this time, as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<std::time::Duration>,
    /// Stop after this many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// What to write, and where.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Format of the records [default: table]
    #[arg(long, value_enum)]
    pub format: Option<StreamFormat>,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite the file if it is there already
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// How to trace.
#[derive(Args, Debug)]
#[command(next_help_heading = "Tracing")]
pub struct TraceArgs {
    /// Size of the ring buffer between kernel and tracer, as 64M
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub buffer: u32,
    /// Connections that are kept at most
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Which tracepoint to attach to
    #[arg(long, value_enum, default_value = "auto")]
    pub attach: AttachArg,
    /// Say which capabilities are kept after the start
    #[arg(short, long)]
    pub verbose: bool,
}

/// Formats of a stream.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum StreamFormat {
    /// Columns for people
    #[default]
    Table,
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values with a header
    Csv,
    /// Parquet, for DuckDB, pandas, polars; complete when the run ends
    Parquet,
    /// An Arrow IPC stream
    Arrow,
}

/// Formats of a report.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ReportFormat {
    /// For people
    Text,
    /// For scripts
    Json,
}

/// From which severity on `diagnose` fails.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FailOn {
    /// At any finding
    Info,
    /// At a warning or worse
    Warning,
    /// At critical findings
    Critical,
    /// Never
    Never,
}

/// How to attach.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AttachArg {
    /// The typed tracepoint where the kernel has BTF, else the classic one
    Auto,
    /// The typed tracepoint (tp_btf)
    Btf,
    /// The classic tracepoint
    Tracepoint,
}

/// Any text, with the topics for the shell to complete. What is no topic is not clap's to refuse: there are more spellings
/// than it could list.
#[derive(Clone)]
struct Topic;

impl TypedValueParser for Topic {
    type Value = String;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, text: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, text)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names: BTreeSet<&str> = manual::topics().iter().map(|topic| topic.name).collect();
        Some(Box::new(names.into_iter().map(PossibleValue::new)))
    }
}

fn parse_state(text: &str) -> Result<State, String> {
    State::from_name(text).ok_or_else(|| {
        let names: Vec<String> = State::all().map(|state| state.to_string()).collect();
        format!("not a TCP state; there are {}", names.join(", "))
    })
}

fn parse_net(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "not an address or network; write 10.0.0.1, 10.0.0.0/8 or fe80::/10".to_owned())
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.trim_end_matches('%').trim().parse().map_err(|_| "not a percentage; write 50%".to_owned())?;
    if (0.0..=100.0).contains(&number) {
        Ok(number / 100.0)
    } else {
        Err("a percentage is between 0 and 100".to_owned())
    }
}

/// `64M`, `512K`, `1G` or bytes; binary units.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let upper = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let (digits, shift) = match upper.as_bytes().last() {
        Some(b'K') => (&upper[..upper.len() - 1], 10),
        Some(b'M') => (&upper[..upper.len() - 1], 20),
        Some(b'G') => (&upper[..upper.len() - 1], 30),
        _ => (upper, 0),
    };
    let number: u64 = digits.trim().parse().map_err(|_| "not a size; write 64M".to_owned())?;
    match number.saturating_mul(1 << shift) {
        0 => Err("nothing at all is too little".to_owned()),
        bytes => Ok(bytes),
    }
}

/// How often something is done.
fn parse_period(text: &str) -> Result<std::time::Duration, String> {
    match humantime::parse_duration(text).map_err(|error| error.to_string())? {
        std::time::Duration::ZERO => Err("no time at all is too little".to_owned()),
        period => Ok(period),
    }
}

/// The size of a ring buffer.
fn parse_size(text: &str) -> Result<u32, String> {
    match u32::try_from(parse_bytes(text)?) {
        Ok(bytes) if (64 << 10..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err("a ring buffer has between 64K and 1G".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_binary_units_and_bounds() {
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert_eq!(parse_size("131072"), Ok(131_072));
        for wrong in ["", "M", "1", "2G", "99999999999999999999G", "18446744073709551615K", "-1M", "µ"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_may_be_single_addresses() {
        assert_eq!(parse_net("10.0.0.1"), Ok("10.0.0.1/32".parse().expect("net")));
        assert_eq!(parse_net("fe80::/10"), Ok("fe80::/10".parse().expect("net")));
        assert!(parse_net("10.0.0").is_err());
    }

    #[test]
    fn percentages_may_carry_their_sign() {
        assert_eq!(parse_percent("50%"), Ok(0.5));
        assert_eq!(parse_percent("7.5"), Ok(0.075));
        assert!(parse_percent("150%").is_err());
        assert!(parse_percent("NaN").is_err());
    }
}
