//! `cargo xtask bench idle`: what a tracer costs where nothing happens, how soon it sees something, and how soon it is gone.

use std::{
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Times, Used, in_namespace, loopback};
use crate::process;

/// What runs: its name, its arguments.
const MODES: [(&str, &str); 4] = [
    ("log", "log --format jsonl -o /dev/null"),
    ("connections", "connections -o /dev/null"),
    ("record", "record --force /dev/null"),
    ("diagnose", "diagnose --duration 1h -o /dev/null"),
];

/// A tracer where nothing happens: CPU, memory, the time to its first event and to its end
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each is left alone
    #[arg(long, default_value_t = 20)]
    seconds: usize,
    /// Starts and ends of each
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Measure here, in the namespace that was made for it, this tracer
    #[arg(long, hide = true, value_name = "TRACER")]
    inside: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(tracer) = &args.inside else {
        return in_namespace("idle", &[("seconds", args.seconds), ("rounds", args.rounds)]);
    };
    let listener = loopback(1000)?;
    let first: Vec<Duration> = (0..args.rounds).map(|_| to_first_event(tracer, &listener)).collect::<Result<_>>()?;
    println!("from the start to the first event: {}", Times::of(first)?);
    for (name, mode) in MODES {
        let ends: Vec<Duration> = (0..args.rounds).map(|_| to_end(tracer, mode)).collect::<Result<_>>()?;
        let mut tracer = start(tracer, mode)?;
        let before = Used::of(tracer.id())?;
        thread::sleep(Duration::from_secs(args.seconds as u64));
        let after = Used::of(tracer.id())?;
        end(&mut tracer)?;
        println!(
            "{name:<12} {:.3} % of a core, {:.1} MB, from SIGINT to the end {}",
            (after.cpu_s - before.cpu_s) / args.seconds as f64 * 100.0,
            after.rss_kb as f64 / 1024.0,
            Times::of(ends)?
        );
    }
    Ok(())
}

/// The time until a connection that is made again and again is told.
fn to_first_event(tracer: &Path, listener: &TcpListener) -> Result<Duration> {
    let to = listener.local_addr()?;
    let began = Instant::now();
    let mut child = spawn(Command::new(tracer).args(["log", "--format", "jsonl", "--netns", "self", "--count", "1"]))?;
    let lines = BufReader::new(child.stdout.take().context("no standard output")?);
    let told = thread::spawn(move || lines.lines().next().map(|_| began.elapsed()));
    while !told.is_finished() {
        drop((TcpStream::connect(to)?, listener.accept()?));
        thread::sleep(Duration::from_millis(1));
    }
    child.wait()?;
    told.join().ok().flatten().context("nothing was told")
}

fn to_end(tracer: &Path, mode: &str) -> Result<Duration> {
    let mut tracer = start(tracer, mode)?;
    let began = Instant::now();
    end(&mut tracer)?;
    Ok(began.elapsed())
}

/// Starts one, and leaves it the time that its first dump takes.
fn start(tracer: &Path, mode: &str) -> Result<Child> {
    let child = spawn(Command::new(tracer).args(mode.split(' ')).args(["--netns", "self"]))?;
    thread::sleep(Duration::from_secs(2));
    Ok(child)
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start {}", process::shown(command)))
}

fn end(child: &mut Child) -> Result<()> {
    process::succeed(Command::new("kill").args(["-INT", &child.id().to_string()]))?;
    child.wait().context("cannot wait for the tracer")?;
    Ok(())
}
