//! What a scenario has: the namespace that it runs in, servers, clients, and the tracer beside them. All that it started
//! ends with it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{process, workspace};

/// How long a program may take to start or to do what it is told.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Lab {
    tracer: PathBuf,
    folder: PathBuf,
    servers: Vec<Child>,
    clients: Vec<Child>,
}

/// A process as findings name it.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) pid: u32,
    pub(super) comm: String,
}

impl Program {
    fn of(pid: u32) -> Result<Self> {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).context("a program has ended at once")?;
        Ok(Self { pid, comm: comm.trim_end().to_owned() })
    }
}

/// A client that has done what it was told.
pub(super) struct Client {
    pub(super) program: Program,
    /// The descriptors that it keeps.
    pub(super) fds: Vec<i64>,
    /// Local port, bytes sent, bytes received.
    pub(super) connections: Vec<(u64, u64, u64)>,
}

/// A tracer that is watching.
pub(super) struct Watching {
    child: Child,
    output: PathBuf,
}

impl Lab {
    /// In the current namespace, which has to be new.
    pub(super) fn new(tracer: &Path) -> Result<Self> {
        process::succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        let folder = workspace::target_dir()?.join("field");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Self { tracer: tracer.to_owned(), folder, servers: Vec::new(), clients: Vec::new() })
    }

    /// A file of xtask/field.
    fn file(name: &str) -> PathBuf {
        workspace::root().join("xtask/field").join(name)
    }

    /// nginx's workers; its master owns no connection.
    pub(super) fn nginx(&mut self) -> Result<Vec<Program>> {
        let mut command = Command::new(program("nginx"));
        let master = self.serve(command.arg("-p").arg(&self.folder).arg("-c").arg(Self::file("nginx.conf")), 8081)?;
        let children = format!("/proc/{0}/task/{0}/children", master.pid);
        let children = fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
        children.split_ascii_whitespace().map(|pid| Program::of(pid.parse()?)).collect()
    }

    pub(super) fn haproxy(&mut self) -> Result<Program> {
        self.serve(Command::new(program("haproxy")).args(["-db", "-f"]).arg(Self::file("haproxy.cfg")), 9080)
    }

    /// Ends connections that are idle for a second.
    pub(super) fn redis(&mut self) -> Result<Program> {
        let mut command = Command::new(program("redis-server"));
        command.args(["--port", "6379", "--bind", "127.0.0.1", "--timeout", "1", "--save", "", "--dir"]);
        self.serve(command.arg(&self.folder), 6379)
    }

    fn serve(&mut self, command: &mut Command, port: u16) -> Result<Program> {
        let log = self.folder.join("servers.log");
        let log = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let server = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let server = server.spawn().with_context(|| format!("cannot start {}", process::shown(command)))?;
        let pid = server.id();
        self.servers.push(server);
        let shown = process::shown(command);
        until(&format!("{shown} to listen"), || listens(port))?;
        Program::of(pid)
    }

    pub(super) fn python(&mut self, what: &str, port: u16, count: usize) -> Result<Client> {
        self.client(Command::new("python3").arg(Self::file("client.py")), what, port, count)
    }

    pub(super) fn node(&mut self, what: &str, port: u16, count: usize) -> Result<Client> {
        self.client(Command::new("node").arg(Self::file("node.js")), what, port, count)
    }

    fn client(&mut self, command: &mut Command, what: &str, port: u16, count: usize) -> Result<Client> {
        command.args([what, &port.to_string(), &count.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", process::shown(command)))?;
        let (pid, stdout) = (child.id(), child.stdout.take());
        self.clients.push(child);
        let mut line = String::new();
        BufReader::new(stdout.context("no output")?).read_line(&mut line)?;
        let told: Value =
            serde_json::from_str(&line).with_context(|| format!("{} has failed", process::shown(command)))?;
        Ok(Client {
            program: Program::of(pid)?,
            fds: serde_json::from_value(told["fds"].clone())?,
            connections: serde_json::from_value(told["connections"].clone())?,
        })
    }

    /// Starts a live `diagnose` or `connections`, and waits until it watches.
    pub(super) fn watch(&self, args: &[&str]) -> Result<Watching> {
        let output = self.folder.join("output");
        let mut command = Command::new(&self.tracer);
        command.args(args).args(["--netns", "self", "--duration", "10m", "--force", "--output"]).arg(&output);
        let child = command.stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {}", process::shown(&command)))?;
        let fds = format!("/proc/{}/fd", child.id());
        until("the tracer to attach", || {
            let links = fs::read_dir(&fds)?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
            let links: Vec<_> = links.map(|link| link.to_string_lossy().into_owned()).collect();
            Ok(links.iter().any(|link| link.contains("bpf_link") || link.contains("perf_event")))
        })?;
        // The first dump.
        thread::sleep(Duration::from_millis(500));
        Ok(Watching { child, output })
    }

    /// The findings of this moment, without watching.
    pub(super) fn at_once(&self, args: &[&str]) -> Result<Vec<Value>> {
        let mut command = Command::new(&self.tracer);
        command.args(["diagnose", "--snapshot", "--format", "json", "--netns", "self"]).args(args);
        findings(&process::output(&mut command)?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for mut client in self.clients.drain(..) {
            // Its standard input ends, and so does it.
            drop(client.stdin.take());
            let _ = client.wait();
        }
        for mut server in self.servers.drain(..) {
            // nginx's master has workers to end; one that was stopped has to go on to do so.
            let ended = send("-TERM", server.id()).and_then(|()| send("-CONT", server.id()));
            if ended.is_err() {
                let _ = server.kill();
            }
            let _ = server.wait();
        }
    }
}

impl Watching {
    /// The findings.
    pub(super) fn findings(self) -> Result<Vec<Value>> {
        findings(&self.end()?)
    }

    /// The records.
    pub(super) fn records(self) -> Result<Vec<Value>> {
        self.end()?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn end(mut self) -> Result<String> {
        send("-INT", self.child.id())?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status} from the tracer");
        fs::read_to_string(&self.output).with_context(|| format!("cannot read {}", self.output.display()))
    }
}

fn findings(report: &str) -> Result<Vec<Value>> {
    let report: Value = serde_json::from_str(report).context("no report")?;
    report["findings"].as_array().cloned().context("no findings in the report")
}

/// Signals a process of ours.
pub(super) fn send(signal: &str, pid: u32) -> Result<()> {
    process::succeed(Command::new("kill").args([signal, &pid.to_string()]))
}

/// To try it would be a connection that the tracer sees.
fn listens(port: u16) -> Result<bool> {
    let end = format!("0100007F:{port:04X} 00000000:0000 0A");
    Ok(fs::read_to_string("/proc/self/net/tcp")?.contains(&end))
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done()? {
        if began.elapsed() > PATIENCE {
            bail!("waited in vain for {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn program(name: &str) -> PathBuf {
    process::find(name).unwrap_or_else(|| Path::new("/usr/sbin").join(name))
}
