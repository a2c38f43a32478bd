//! `cargo xtask demo`: a program that leaks sockets on purpose, and the tracer's report about it.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// Start a leaking server and let the tracer find the leak (takes 10 seconds)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the server does wrong: eof-read-not-closed, fin-unread, data-unread or never-accepted
    #[arg(long, default_value = "eof-read-not-closed")]
    kind: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (tracer, server) = build()?;
    let mut tracer = process::as_root(tracer)?;
    // The password now, not in the middle of the report.
    if !process::is_root() {
        process::succeed(&mut process::as_root("true")?)?;
    }
    let _server = Server::start(&server, &args.kind)?;
    tracer.args(["diagnose", "--duration", "8s", "--close-wait-age", "2s"]);
    println!("$ {}", process::shown(&tracer));
    process::succeed(&mut tracer)
}

/// Both programs: the tracer and the server.
fn build() -> Result<(PathBuf, PathBuf)> {
    let args = ["--release", "--package", "tracer", "--bin", "tracer", "--example", "leaky_server"];
    let mut built = workspace::build_executables(&args)?;
    let mut take = |name: &str| {
        let found = built.iter().position(|(target, _)| target == name);
        found.map(|found| built.swap_remove(found).1).with_context(|| format!("cargo built no `{name}`"))
    };
    Ok((take("tracer")?, take("leaky_server")?))
}

/// The leaking server, which ends with this value.
struct Server(Child);

impl Server {
    fn start(program: &Path, kind: &str) -> Result<Self> {
        let mut command = Command::new(program);
        // It ends by itself should this process be killed; --hold is for the rest.
        command.args(["--kind", kind, "--hold", "60"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = Self(command.spawn().with_context(|| format!("cannot start {}", process::shown(&command)))?);
        let mut first = String::new();
        if let Some(stdout) = server.0.stdout.as_mut() {
            BufReader::new(stdout).read_line(&mut first).context("cannot read what leaky_server prints")?;
        }
        if !first.starts_with("leaky_server ") {
            bail!("leaky_server did not start: try `{}`", process::shown(&command));
        }
        print!("{first}");
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
