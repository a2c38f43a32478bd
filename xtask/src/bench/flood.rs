//! `cargo xtask bench flood`: what a tracer costs the traced, side by side with other tracers and with none.
//!
//! All runs take turns, in one network namespace, and medians are told: figures of a shared machine mean something only
//! against each other. Kernel time is the programs' own (`kernel.bpf_stats_enabled`, put back afterwards), in a stretch of
//! its own after each run: counting costs more than a small program does.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{Used, value};
use crate::{process, workspace};

/// Transitions of a connection that is opened, accepted and closed, at both ends.
const TRANSITIONS: f64 = 10.0;

/// How long the load goes on for the time in the kernel, s.
const KERNEL_SECONDS: u64 = 1;

/// How long a tracer may take to attach.
const PATIENCE: Duration = Duration::from_secs(20);

/// A flood of connections beside each tracer in turn: connections left, time in the kernel, losses, CPU, memory
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Length of a run, s
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Runs of each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only tracers whose name contains this, and none at all
    #[arg(long)]
    only: Option<String>,
    /// Connections a second; as many as can be without it
    #[arg(long)]
    rate: Option<u64>,
    /// Connections that are open all the while
    #[arg(long, default_value_t = 0)]
    live: usize,
    /// End connections with a RST
    #[arg(long)]
    aborts: bool,
    /// Write the figures of every run here too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure here, in the namespace that was made for it: this tracer and this load
    #[arg(long, hide = true, num_args = 2, value_names = ["TRACER", "LOAD"])]
    inside: Option<Vec<PathBuf>>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some([tracer, load]) = args.inside.as_deref() {
        return measure(args, tracer, load);
    }
    let built =
        |kind: &str, name: &str| workspace::build_executable(&["--release", "--package", "tracer", kind, name], name);
    let (tracer, load) = (built("--bin", "tracer")?, built("--example", "load")?);
    let mut command = process::as_root("unshare")?;
    command.args(["--net", "--"]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    process::succeed(command.arg("--inside").arg(tracer).arg(load))
}

/// Something that runs beside the load.
struct Beside {
    name: &'static str,
    program: PathBuf,
    args: Vec<String>,
}

/// What one run showed.
#[derive(Clone, Debug, Default, Serialize)]
struct Figures {
    connections_per_s: f64,
    kernel_ns_per_transition: Option<f64>,
    cpu_s_per_million: Option<f64>,
    peak_rss_mb: Option<f64>,
    dropped: Option<u64>,
    missed: Option<u64>,
}

fn besides(tracer: &Path, folder: &Path) -> Vec<Beside> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let file = |name: &str| folder.join(name).display().to_string();
    let mut besides = Vec::new();
    if let Some(bpftrace) = process::find("bpftrace") {
        let script =
            |action: &str| vec!["-e".to_owned(), format!("tracepoint:sock:inet_sock_set_state {{ {action} }}")];
        let printf = script(r#"printf("%d %s %d %d %d\n", nsecs, comm, args->oldstate, args->newstate, args->dport);"#);
        let to_file = [vec!["-o".to_owned(), file("bpftrace.txt")], printf].concat();
        besides.push(Beside { name: "bpftrace count", program: bpftrace.clone(), args: script("@ = count();") });
        besides.push(Beside { name: "bpftrace printf", program: bpftrace, args: to_file });
    }
    for name in ["tcpstates", "tcplife"] {
        if let Some(program) = process::find(name) {
            besides.push(Beside { name, program, args: Vec::new() });
        }
    }
    let mut ours = |name, args: &str, output: Option<&str>| {
        let mut args = words(args);
        if let Some(output) = output {
            args.extend(["--force".to_owned(), "-o".to_owned(), file(output)]);
        }
        args.extend(words("--netns self"));
        besides.push(Beside { name, program: tracer.to_owned(), args });
    };
    ours("tracer record", &format!("record --force {}", file("trace.arrows")), None);
    ours("tracer connections", "connections --format jsonl", Some("connections.jsonl"));
    ours("tracer log jsonl", "log --format jsonl", Some("log.jsonl"));
    ours("tracer log table", "log", Some("log.txt"));
    ours("tracer diagnose", "diagnose --duration 1h", Some("findings.txt"));
    if let Some(script) = process::find("script") {
        // It wants a terminal.
        let watch = format!("stty cols 160 rows 50; exec {} watch --netns self", tracer.display());
        let args = ["-q", "-e", "-c", &watch, "/dev/null"].map(str::to_owned).to_vec();
        besides.push(Beside { name: "tracer watch", program: script, args });
    }
    besides
}

fn measure(args: &Args, tracer: &Path, load: &Path) -> Result<()> {
    process::succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    // With few places for TIME_WAIT ports are free again at once; searching for one would be all that is measured.
    for (name, value) in [("tcp_max_tw_buckets", "4096"), ("ip_local_port_range", "10000 65000")] {
        write(&Path::new("/proc/sys/net/ipv4").join(name), value)?;
    }
    let folder = workspace::target_dir()?.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut besides = besides(tracer, &folder);
    besides.retain(|beside| args.only.as_ref().is_none_or(|only| beside.name.contains(only.as_str())));

    let mut runs: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
    for _ in 0..args.rounds {
        runs.entry("none").or_default().push(one_run(args, load, None)?);
        for beside in &besides {
            let figures = one_run(args, load, Some(beside)).with_context(|| beside.name.to_owned())?;
            runs.entry(beside.name).or_default().push(figures);
        }
    }
    let names = std::iter::once("none").chain(besides.iter().map(|beside| beside.name));
    print(names, &runs);
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&runs)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn one_run(args: &Args, load: &Path, beside: Option<&Beside>) -> Result<Figures> {
    let mut child = beside.map(Running::start).transpose()?;
    let before = child.as_ref().map(|child| Used::of(child.pid)).transpose()?;
    let (connections, seconds) = make_connections(args, load, args.seconds)?;
    let mut figures = Figures { connections_per_s: connections / seconds, ..Figures::default() };
    let (Some(child), Some(before)) = (&mut child, before) else {
        return Ok(figures);
    };
    // What is in its buffers belongs to the run.
    thread::sleep(Duration::from_millis(300));
    let after = Used::of(child.pid)?;
    figures.cpu_s_per_million = Some((after.cpu_s - before.cpu_s) / (connections * TRANSITIONS) * 1e6);
    figures.peak_rss_mb = Some(after.peak_rss_kb as f64 / 1024.0);
    let stats = Stats::enable()?;
    let before_ns = child.kernel_ns()?;
    let (connections, _) = make_connections(args, load, KERNEL_SECONDS)?;
    let kernel_ns = child.kernel_ns()? - before_ns;
    drop(stats);
    figures.kernel_ns_per_transition = Some(kernel_ns as f64 / (connections * TRANSITIONS));
    let said = child.end()?;
    let told = |name: &str| {
        let (_, rest) = said.lines().last()?.split_once(name)?;
        rest.trim_start().split([',', ' ']).next()?.parse().ok()
    };
    (figures.dropped, figures.missed) = (told("dropped"), told("missed"));
    Ok(figures)
}

/// Runs the load; how many connections it made, in how many seconds.
fn make_connections(args: &Args, load: &Path, seconds: u64) -> Result<(f64, f64)> {
    let mut command = Command::new(load);
    command.args(["--seconds", &seconds.to_string(), "--live", &args.live.to_string()]);
    if let Some(rate) = args.rate {
        command.args(["--rate", &rate.to_string()]);
    }
    command.args(args.aborts.then_some("--aborts"));
    let said = process::output(&mut command)?;
    let mut numbers = said.split_whitespace().filter_map(|number| number.parse::<f64>().ok());
    let (connections, seconds) = numbers.next().zip(numbers.next()).context("no figures from the load")?;
    ensure!(connections > 0.0 && seconds > 0.0, "the load made no connection");
    Ok((connections, seconds))
}

/// Kernel time of BPF programs is counted while this lives.
struct Stats(String);

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Stats {
    fn enable() -> Result<Self> {
        let before = fs::read_to_string(STATS).with_context(|| format!("cannot read {STATS}"))?;
        write(Path::new(STATS), "1")?;
        Ok(Self(before))
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        let _ = fs::write(STATS, self.0.trim());
    }
}

/// A tracer that watches.
struct Running {
    child: Child,
    /// The tracer's own, where the child is `script`.
    pid: u32,
}

impl Running {
    fn start(beside: &Beside) -> Result<Self> {
        let mut command = Command::new(&beside.program);
        command.args(&beside.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot start {}", process::shown(&command)))?;
        let mut running = Self { pid: child.id(), child };
        let began = Instant::now();
        while running.programs()?.is_empty() {
            ensure!(running.child.try_wait()?.is_none(), "{} ended at once", process::shown(&command));
            let own = running.child.id();
            let below = fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
            running.pid = below.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(own);
            ensure!(began.elapsed() < PATIENCE, "waited in vain for {} to attach", process::shown(&command));
            thread::sleep(Duration::from_millis(20));
        }
        // The first dump, and what else a start is.
        thread::sleep(Duration::from_millis(500));
        Ok(running)
    }

    /// What the kernel says of its BPF programs.
    fn programs(&self) -> Result<Vec<String>> {
        let folder = format!("/proc/{}/fdinfo", self.pid);
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?.flatten();
        let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        let programs: Vec<String> = texts.filter(|text| text.contains("prog_type:")).collect();
        // Loaded is not attached: that is a link, or a perf event.
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid))?.flatten();
        let attached = fds.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| {
            let link = link.to_string_lossy();
            link.contains("bpf_link") || link.contains("perf_event")
        });
        Ok(if attached { programs } else { Vec::new() })
    }

    /// How long its programs have run, ns.
    fn kernel_ns(&self) -> Result<u64> {
        // A program that several descriptors are of counts once.
        let programs = self.programs()?;
        let times = programs.iter().filter_map(|text| Some((value(text, "prog_id:")?, value(text, "run_time_ns:")?)));
        Ok(times.collect::<BTreeMap<u64, u64>>().values().sum())
    }

    /// Ends it in order; what it said on standard error.
    fn end(&mut self) -> Result<String> {
        process::succeed(Command::new("kill").args(["-INT", &self.pid.to_string()]))?;
        let mut said = String::new();
        self.child.stderr.take().context("no standard error")?.read_to_string(&mut said)?;
        self.child.wait()?;
        Ok(said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {}", path.display()))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn print<'a>(names: impl Iterator<Item = &'a str>, runs: &BTreeMap<&str, Vec<Figures>>) {
    let of = |name: &str, pick: fn(&Figures) -> Option<f64>| {
        median(runs.get(name).into_iter().flatten().filter_map(pick).collect())
    };
    let rate: fn(&Figures) -> Option<f64> = |figures| Some(figures.connections_per_s);
    let untraced = of("none", rate).unwrap_or(f64::NAN);
    let shown =
        |value: Option<f64>, decimals: usize| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.decimals$}"));
    println!(
        "{:<20} {:>13} {:>7} {:>14} {:>9} {:>8} {:>8} {:>8}",
        "BESIDE", "CONNECTIONS/S", "LEFT", "NS/TRANSITION", "CPU S/M", "RSS MB", "DROPPED", "MISSED"
    );
    for name in names {
        let connections = of(name, rate).unwrap_or(f64::NAN);
        println!(
            "{name:<20} {connections:>13.0} {:>5.1} % {:>14} {:>9} {:>8} {:>8} {:>8}",
            connections / untraced * 100.0,
            shown(of(name, |figures| figures.kernel_ns_per_transition), 0),
            shown(of(name, |figures| figures.cpu_s_per_million), 2),
            shown(of(name, |figures| figures.peak_rss_mb), 0),
            shown(of(name, |figures| figures.dropped.map(|dropped| dropped as f64)), 0),
            shown(of(name, |figures| figures.missed.map(|missed| missed as f64)), 0),
        );
    }
}
