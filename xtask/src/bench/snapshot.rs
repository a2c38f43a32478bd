//! `cargo xtask bench snapshot`: `tracer diagnose --snapshot` against `ss -tanp`, on a host full of sockets.
//!
//! The sockets are this program's own, in a network namespace that ends with it; some processes share those in CLOSE_WAIT,
//! for want of descriptors.

use std::{
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Times, in_namespace, listen, loopback, server_end, time};
use crate::process;

/// Sockets in CLOSE_WAIT that one process holds.
const HELD: usize = 5_000;

/// What an answer may take.
const GOAL: Duration = Duration::from_secs(1);

/// `tracer diagnose --snapshot` with 100 000 sockets in TIME_WAIT and 20 000 in CLOSE_WAIT, against `ss -tanp`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Sockets in TIME_WAIT
    #[arg(long, default_value_t = 100_000)]
    time_wait: usize,
    /// Sockets in CLOSE_WAIT
    #[arg(long, default_value_t = 20_000)]
    close_wait: usize,
    /// Runs of each program
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Measure here, in the namespace that was made for it, this tracer
    #[arg(long, hide = true, value_name = "TRACER")]
    inside: Option<PathBuf>,
    /// Hold this many sockets in CLOSE_WAIT until standard input ends
    #[arg(long, hide = true)]
    hold: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(count) = args.hold {
        return hold(count);
    }
    if let Some(tracer) = &args.inside {
        return measure(args, tracer);
    }
    let numbers = [("time-wait", args.time_wait), ("close-wait", args.close_wait), ("rounds", args.rounds)];
    in_namespace("snapshot", &numbers)
}

fn measure(args: &Args, tracer: &Path) -> Result<()> {
    let listener = loopback(args.time_wait + 2 * args.close_wait)?;
    let mut holders = Vec::new();
    for begun in (0..args.close_wait).step_by(HELD) {
        holders.push(Holder::start(HELD.min(args.close_wait - begun))?);
    }
    for number in 0..args.time_wait {
        drop(server_end(&listener, number)?);
    }

    let mut diagnose = Command::new(tracer);
    diagnose.args(["diagnose", "--snapshot", "--netns", "self", "--close-wait-age", "0s", "--format", "json"]);
    let mut list = list();
    let report: Value = serde_json::from_str(&process::output(&mut diagnose)?).context("no report")?;
    let found = report["findings"].as_array().into_iter().flatten();
    let found: u64 =
        found.filter(|finding| finding["kind"] == "close_wait").filter_map(|finding| finding["count"].as_u64()).sum();
    ensure!(found == args.close_wait as u64, "{found} in CLOSE_WAIT were found, and {} are there", args.close_wait);
    println!("{} in TIME-WAIT, {found} in CLOSE-WAIT", in_time_wait()?);
    println!("$ {}\n$ {}", process::shown(&diagnose), process::shown(&list));

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        ours.push(time(&mut diagnose)?);
        theirs.push(time(&mut list)?);
    }
    let (ours, theirs) = (Times::of(ours)?, Times::of(theirs)?);
    println!("tracer diagnose --snapshot  {ours}\nss -tanp                    {theirs}");
    println!("ratio {:.2}", ours.median.as_secs_f64() / theirs.median.as_secs_f64());
    let left = in_time_wait()?;
    ensure!(left >= args.time_wait, "{left} were left in TIME-WAIT at the end: fewer --rounds");
    ensure!(ours.median < GOAL, "it takes longer than {GOAL:?}");
    Ok(())
}

/// Makes them, says so, and waits.
fn hold(count: usize) -> Result<()> {
    let listener = listen()?;
    let stuck = (0..count).map(|number| server_end(&listener, number)).collect::<Result<Vec<_>>>()?;
    println!("{}", stuck.len());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// A process with sockets in CLOSE_WAIT, which ends with this value.
struct Holder(Child);

impl Holder {
    fn start(count: usize) -> Result<Self> {
        let descriptors = count + 100;
        let mut command = Command::new("prlimit");
        command.args([&format!("--nofile={descriptors}:{descriptors}"), "--"]).arg(std::env::current_exe()?);
        command.args(["bench", "snapshot", "--hold", &count.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Self(command.spawn().with_context(|| format!("cannot start {}", process::shown(&command)))?);
        let mut line = String::new();
        BufReader::new(holder.0.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line.trim_end() == count.to_string(), "{} did not make its sockets", process::shown(&command));
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn list() -> Command {
    let mut list = Command::new("ss");
    list.arg("-tanp");
    list
}

fn in_time_wait() -> Result<usize> {
    Ok(process::output(&mut list())?.lines().filter(|line| line.starts_with("TIME-WAIT")).count())
}
