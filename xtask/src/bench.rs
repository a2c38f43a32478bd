//! `cargo xtask bench`: what the tracer costs, against the tools that one would take instead. One module for each thing
//! that is measured, in a network namespace of its own; here is what they share.

mod export;
mod flood;
mod idle;
mod snapshot;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// Measure the tracer on this machine, against other tools
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Export(export::Args),
    Flood(flood::Args),
    Idle(idle::Args),
    Snapshot(snapshot::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Export(args) => export::run(args),
        What::Flood(args) => flood::run(args),
        What::Idle(args) => idle::run(args),
        What::Snapshot(args) => snapshot::run(args),
    }
}

/// Runs `cargo xtask bench WHAT --inside TRACER` with these numbers, as root in a new namespace.
fn in_namespace(what: &str, numbers: &[(&str, usize)]) -> Result<()> {
    let tracer = workspace::build_executable(&["--release", "--package", "tracer", "--bin", "tracer"], "tracer")?;
    let mut command = process::as_root("unshare")?;
    command.args(["--net", "--"]).arg(std::env::current_exe()?).args(["bench", what]);
    command.args(numbers.iter().map(|(name, number)| format!("--{name}={number}")));
    process::succeed(command.arg("--inside").arg(tracer))
}

/// Something to connect to, in a new namespace that has room for so many mini-sockets.
fn loopback(minis: usize) -> Result<TcpListener> {
    process::succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    for (name, value) in [
        ("ip_local_port_range", "10000 65000"),
        ("tcp_max_tw_buckets", &minis.to_string()),
        // By default loopback takes over ports in TIME_WAIT.
        ("tcp_tw_reuse", "0"),
    ] {
        let path = Path::new("/proc/sys/net/ipv4").join(name);
        fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))?;
    }
    listen()
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot listen")
}

/// The server's end of a connection that its client has closed; the destinations take turns, so that there are ports.
fn server_end(listener: &TcpListener, number: usize) -> Result<TcpStream> {
    const DESTINATIONS: usize = 16;
    let port = listener.local_addr()?.port();
    let to = SocketAddr::from(([127, 0, 0, 1 + (number % DESTINATIONS) as u8], port));
    let client = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    let (server, _) = listener.accept().context("cannot accept")?;
    drop(client);
    Ok(server)
}

fn time(command: &mut Command) -> Result<Duration> {
    let began = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let took = began.elapsed();
    if !status.success() {
        bail!("{status} from {}", process::shown(command));
    }
    Ok(took)
}

/// How long the runs took.
struct Times {
    median: Duration,
    least: Duration,
    most: Duration,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Result<Self> {
        times.sort_unstable();
        let (least, most) = times.first().zip(times.last()).context("no --rounds")?;
        Ok(Self { median: times[times.len() / 2], least: *least, most: *most })
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:.0} ms (median; {:.0} to {:.0})", ms(self.median), ms(self.least), ms(self.most))
    }
}

/// What a process has used so far.
struct Used {
    cpu_s: f64,
    rss_kb: u64,
    peak_rss_kb: u64,
}

impl Used {
    fn of(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}");
        let schedstat = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("schedstat")).ok();
        // Nanoseconds, where stat has ticks; of each thread.
        let threads = fs::read_dir(format!("{folder}/task"))?.flatten().filter_map(schedstat);
        let ns = threads.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let cpu_s = ns.sum::<u64>() as f64 / 1e9;
        let status = fs::read_to_string(format!("{folder}/status"))?;
        let kb = |name: &str| value(&status, name).unwrap_or(0);
        Ok(Self { cpu_s, rss_kb: kb("VmRSS:"), peak_rss_kb: kb("VmHWM:") })
    }
}

/// A number after its name, as the files of /proc have it.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}
