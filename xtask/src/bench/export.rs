//! `cargo xtask bench export`: how large recordings and exports are, and how fast a recording is read and exported.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Times, in_namespace, loopback, server_end, time};
use crate::{process, workspace};

/// Transitions of a connection: five at each end.
const TRANSITIONS: usize = 10;

/// Between two connections of the trickle.
const PAUSE: Duration = Duration::from_millis(100);

/// For the tracer to attach and take its first dump.
const START: Duration = Duration::from_secs(2);

/// Bytes for a transition in recordings and exports, and transitions in a second of replays and exports
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connections under load
    #[arg(long, default_value_t = 30_000)]
    connections: usize,
    /// How long the recordings of a trickle and of nothing take
    #[arg(long, default_value_t = 60)]
    seconds: usize,
    /// Runs of each program
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure here, in the namespace that was made for it, this tracer
    #[arg(long, hide = true, value_name = "TRACER")]
    inside: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(tracer) = &args.inside else {
        let numbers = [("connections", args.connections), ("seconds", args.seconds), ("rounds", args.rounds)];
        return in_namespace("export", &numbers);
    };
    let folder = workspace::target_dir()?.join(format!("bench-export-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let measured = Bench { tracer, folder: &folder }.measure(args);
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    measured
}

struct Bench<'a> {
    tracer: &'a Path,
    folder: &'a Path,
}

impl Bench<'_> {
    fn measure(&self, args: &Args) -> Result<()> {
        let listener = loopback(args.connections + 1000)?;
        let idle = self.record("idle", args.seconds, 0, |_| Ok(()))?;
        println!("recording of nothing: {idle} bytes in {} s", args.seconds);

        let count = args.seconds * 1000 / PAUSE.as_millis() as usize;
        let trickle = self.record("trickle", 2 * args.seconds, count, |number| {
            thread::sleep(PAUSE);
            server_end(&listener, number).map(drop)
        })?;
        let transitions = count * TRANSITIONS;
        println!("recording of {count} connections in {} s: {}", args.seconds, each(trickle, transitions));

        let begun = Instant::now();
        let load = self.record("load", 600, args.connections, |number| server_end(&listener, number).map(drop))?;
        let transitions = args.connections * TRANSITIONS;
        let rate = transitions as f64 / (begun.elapsed() - START).as_secs_f64();
        println!("recording of {transitions} transitions, {rate:.0} a second: {}", each(load, transitions));

        for command in ["log", "connections"] {
            for format in ["jsonl", "csv", "arrow", "parquet"] {
                let file = self.folder.join(format!("{command}.{format}"));
                process::output(self.replay(command).args(["--format", format, "-o"]).arg(&file))?;
                let bytes = file.metadata()?.len();
                let records = if command == "log" { transitions } else { 2 * args.connections };
                println!("{command} --format {format}: {}", each(bytes, records));
            }
        }
        for (command, format) in [
            ("diagnose", "json"),
            ("log", "jsonl"),
            ("log", "csv"),
            ("log", "arrow"),
            ("log", "parquet"),
            ("connections", "jsonl"),
            ("connections", "parquet"),
        ] {
            let mut command = self.replay(command);
            command.args(["--format", format, "-o", "/dev/null"]);
            let times = Times::of((0..args.rounds).map(|_| time(&mut command)).collect::<Result<_>>()?)?;
            let rate = transitions as f64 / times.median.as_secs_f64();
            println!("$ {}\n  {times}, {rate:.0} transitions/s", process::shown(&command));
        }
        Ok(())
    }

    /// On one CPU.
    fn replay(&self, what: &str) -> Command {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0"]).arg(self.tracer).args([what, "--from"]).arg(self.folder.join("load"));
        command
    }

    /// Records so many connections, or nothing for so many seconds; the recording's size.
    fn record(
        &self,
        name: &str,
        seconds: usize,
        count: usize,
        mut connect: impl FnMut(usize) -> Result<()>,
    ) -> Result<u64> {
        let file = self.folder.join(name);
        let mut command = Command::new(self.tracer);
        command.args(["record", "--force", "--netns", "self", "--duration", &format!("{seconds}s")]).arg(&file);
        if count > 0 {
            command.args(["--count", &(count * TRANSITIONS).to_string()]);
        }
        let recorder = command.stderr(Stdio::piped()).spawn();
        let recorder = recorder.with_context(|| format!("cannot start {}", process::shown(&command)))?;
        thread::sleep(START);
        (0..count).try_for_each(&mut connect)?;
        let told = String::from_utf8_lossy(&recorder.wait_with_output()?.stderr).into_owned();
        let wanted = format!("seen {} transitions, dropped 0, missed 0, repaired 0", count * TRANSITIONS);
        ensure!(told.contains(&wanted), "not all was recorded: {told}");
        Ok(file.metadata()?.len())
    }
}

fn each(bytes: u64, records: usize) -> String {
    format!("{bytes} bytes, {:.1} for each of {records}", bytes as f64 / records as f64)
}
