//! The program as a child process, in a network namespace of its own.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::{
        fd::AsRawFd,
        unix::{
            fs::MetadataExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;

use crate::net;

/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tracer");

/// How long anything may take that should happen soon: a loaded machine must not fail a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Name of the thread that a test runs on, which is what `comm` shows of it.
pub(crate) const THREAD: &str = "cli-test";

/// What every run is told: to look at the test's namespace alone, with a buffer that lets many run at once.
const SCOPE: &str = "--netns self --buffer 1M";

/// Between fork and exec a child has all descriptors of this process: what a test closes at that moment stays open, and
/// is then closed by the child. So nobody closes (reading) while somebody forks (writing).
pub(crate) static FORKS: RwLock<()> = RwLock::new(());

thread_local! {
    /// Transitions that the kernel skipped while this thread's test was running.
    static MISSED: Cell<u64> = const { Cell::new(0) };
}

/// Runs a test on a thread in a new network namespace, and a new mount namespace: what is mounted there leaves no trace
/// on the machine.
///
/// The kernel skips a BPF program that interrupts itself and counts that. A test that failed while this happened says
/// nothing: it is run again. One that failed with nothing missed has failed.
pub(crate) fn in_new_namespace(test: impl Fn() + Send + Sync) {
    const TRIES: usize = 5;
    for attempt in 1.. {
        let (result, missed) = thread::scope(|scope| {
            let thread = thread::Builder::new().name(THREAD.to_owned());
            let entered = thread.spawn_scoped(scope, || {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    enter_new_namespace();
                    test();
                }));
                (result, MISSED.get())
            });
            entered.expect("a thread").join().expect("panics are caught")
        });
        match result {
            Ok(()) => return,
            Err(_) if missed > 0 && attempt < TRIES => {
                eprintln!("{missed} transitions were missed meanwhile: once more");
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Moves the current thread to namespaces of its own.
pub(crate) fn enter_new_namespace() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces (these tests need root)");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    if !Path::new("/sys/kernel/tracing/events").is_dir() {
        mount(Some("tracefs"), "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), none).expect("tracefs");
    }
    // Tests run side by side in this process, and one's sockets must not be another's shortage of descriptors.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("RLIMIT_NOFILE");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("RLIMIT_NOFILE");
    net::bring_up_loopback();
}

/// Inode number of the current network namespace.
pub(crate) fn own_netns() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").expect("a namespace").ino()
}

/// An empty file system over a directory, in this test's mount namespace.
pub(crate) fn mount_tmpfs(at: &str, options: Option<&str>) {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), options).expect("tmpfs");
}

/// A folder for files of this test, which goes with its mount namespace.
pub(crate) fn scratch(options: Option<&str>) -> &'static Path {
    let folder = env!("CARGO_TARGET_TMPDIR");
    fs::create_dir_all(folder).expect("a folder");
    mount_tmpfs(folder, options);
    Path::new(folder)
}

/// Waits until a condition holds that nothing tells of.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not {what} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The program with arguments, split at spaces; its input is empty, its output and errors are pipes.
pub(crate) fn program(args: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The program as somebody without any privilege, who may not even be allowed to come by its folder.
pub(crate) fn run_as_nobody(args: &str) -> Ended {
    const NOBODY: u32 = 65_534;
    let file = File::open(PROGRAM).expect("the program");
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    command.args(args.split_whitespace()).uid(NOBODY).gid(NOBODY);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Tracer::spawn(&mut command).ended()
}

/// Starts a process while nobody closes anything.
pub(crate) fn spawn(command: &mut Command) -> Child {
    let _guard = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Runs the program to its end.
pub(crate) fn run(args: &str) -> Ended {
    Tracer::spawn(&mut program(args)).ended()
}

/// Lines of a pipe, read by a thread.
struct Lines {
    incoming: Receiver<String>,
    read: Vec<String>,
}

impl Lines {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let (sender, incoming) = channel();
        if let Some(pipe) = pipe {
            thread::spawn(move || {
                let lines = BufReader::new(pipe).lines();
                lines.for_each(|line| drop(sender.send(line.expect("UTF-8"))));
            });
        }
        Self { incoming, read: Vec::new() }
    }

    /// Reads one more line; false at the end.
    fn advance(&mut self, deadline: Instant) -> bool {
        match self.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => self.read.push(line),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => panic!("nothing more within {PATIENCE:?}, after:\n{}", self.text()),
        }
        true
    }

    fn rest(&mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        while self.advance(deadline) {}
        std::mem::take(&mut self.read)
    }

    fn text(&self) -> String {
        self.read.join("\n")
    }
}

/// The running program. Dropping it ends it.
pub(crate) struct Tracer {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    /// The lines of `stdout` as JSON, as far as they were asked for.
    records: Vec<Value>,
}

impl Tracer {
    /// `tracer log`, as JSON lines, attached.
    pub(crate) fn log(args: &str) -> Self {
        Self::start(&format!("log --format jsonl {args}"))
    }

    /// `tracer connections`, as JSON lines, attached.
    pub(crate) fn connections(args: &str) -> Self {
        Self::start(&format!("connections --format jsonl {args}"))
    }

    /// Starts the program and returns when it is attached: what happens from here on in this namespace is seen.
    pub(crate) fn start(args: &str) -> Self {
        Self::start_command(&mut program(&format!("{args} {SCOPE}")))
    }

    /// Likewise, with exactly what the command says.
    pub(crate) fn start_command(command: &mut Command) -> Self {
        let mut tracer = Self::spawn(command);
        tracer.await_attached();
        tracer
    }

    /// Starts the program.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = spawn(command);
        let (stdout, stderr) = (Lines::of(child.stdout.take()), Lines::of(child.stderr.take()));
        Self { child, stdout, stderr, records: Vec::new() }
    }

    /// An attached program is a descriptor of the process that attached it; there are three.
    pub(crate) fn await_attached(&mut self) {
        let folder = format!("/proc/{}/fd", self.child.id());
        eventually("attached", || {
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("{status} instead of attached:\n{}", self.stderr.rest().join("\n"));
            }
            let descriptors = fs::read_dir(&folder).into_iter().flatten().flatten();
            let links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
            links.filter(|link| link.to_string_lossy().contains("bpf_link")).count() >= 3
        });
    }

    /// Waits until the records so far are as they should be.
    pub(crate) fn wait_until(&mut self, what: &str, enough: impl Fn(&[Value]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.records) {
            assert!(self.stdout.advance(deadline), "ended before {what}:\n{}", self.stdout.text());
            self.records.push(record(self.stdout.read.last().expect("a line")));
        }
    }

    /// Waits for so many lines.
    pub(crate) fn wait_for_lines(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.stdout.read.len() < count {
            assert!(self.stdout.advance(deadline), "ended before line {count}:\n{}", self.stdout.text());
        }
    }

    /// Waits for a line of stderr that contains something.
    pub(crate) fn wait_for_note(&mut self, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.stderr.read.iter().any(|line| line.contains(part)) {
            assert!(self.stderr.advance(deadline), "ended before {part:?}:\n{}", self.stderr.text());
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("a signal");
    }

    /// SIGSTOP takes effect a moment after it was sent.
    pub(crate) fn await_stopped(&self) {
        let folder = format!("/proc/{}/task", self.child.id());
        let is_stopped = |folder: &Path| {
            let stat = fs::read_to_string(folder.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        };
        eventually("stopped", || {
            fs::read_dir(&folder).expect("threads").flatten().all(|thread| is_stopped(&thread.path()))
        });
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn interrupt(self) -> Ended {
        self.signal(Signal::SIGINT);
        self.ended()
    }

    /// Ends it as the OOM killer does.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("a child");
    }

    /// Whether it is running.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> Ended {
        let (stdout, stderr) = (self.stdout.rest(), self.stderr.rest());
        let mut status = None;
        eventually("ended", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        let status = status.expect("ended");
        assert_eq!(status.signal(), None, "{stderr:?}");
        let ended = Ended { status: status.code(), stdout, stderr };
        ended.remember_missed();
        ended
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        if thread::panicking() {
            // The test failed before it came to this: was something missed?
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT);
            let deadline = Instant::now() + Duration::from_secs(5);
            while let Ok(line) = self.stderr.incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                self.stderr.read.push(line);
            }
            let stderr = std::mem::take(&mut self.stderr.read);
            Ended { status: None, stdout: Vec::new(), stderr }.remember_missed();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is left of a run.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

impl Ended {
    fn remember_missed(&self) {
        if let Some(loss) = self.stderr.last().and_then(|line| Loss::parse(line)) {
            MISSED.set(MISSED.get() + loss.missed);
        }
    }

    /// It ended in order, with nothing on stderr but the last line.
    pub(crate) fn in_order(self) -> Self {
        assert_eq!((self.status, self.stderr.len()), (Some(0), 1), "{:?}", self.stderr);
        self.loss();
        self
    }

    /// It failed, saying so in one line, which has these parts.
    pub(crate) fn failed_saying(&self, parts: &[&str]) {
        assert_eq!((self.status, self.stderr.len()), (Some(2), 1), "{self:?}");
        let line = &self.stderr[0];
        assert!(line.starts_with("tracer: "), "{line}");
        for part in parts {
            assert!(line.contains(part), "no {part:?} in: {line}");
        }
    }

    /// The line that ends every live run.
    pub(crate) fn loss(&self) -> Loss {
        let line = self.stderr.last().expect("a last line");
        Loss::parse(line).unwrap_or_else(|| panic!("not the last line of a run: {line:?}"))
    }

    pub(crate) fn records(&self) -> Vec<Value> {
        self.stdout.iter().map(|line| record(line)).collect()
    }
}

fn record(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

/// What became of the transitions of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) seen: u64,
    pub(crate) dropped: u64,
    pub(crate) missed: u64,
    pub(crate) repaired: u64,
}

impl Loss {
    /// Understands the line, exactly as it is promised.
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split([' ', ',']).filter_map(|word| word.parse().ok());
        let mut next = || numbers.next();
        let (seen, dropped, missed, repaired) = (next()?, next()?, next()?, next()?);
        let exact = format!("seen {seen} transitions, dropped {dropped}, missed {missed}, repaired {repaired}");
        (line == exact).then_some(Self { seen, dropped, missed, repaired })
    }
}

/// A record has these fields in this order, each of its type: `number`, `string`, `bool`, `array`, `object`, and a `?`
/// where it may be null.
pub(crate) fn assert_fields(record: &Value, fields: &[(&str, &str)]) {
    let object = record.as_object().unwrap_or_else(|| panic!("no object: {record}"));
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    let expected: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected);
    for (name, wanted) in fields {
        let value = &object[*name];
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits = wanted.strip_suffix('?').map_or(found == *wanted, |wanted| found == wanted || value.is_null());
        assert!(fits, "{name} is {value}, not {wanted}");
    }
}

/// A record has these values, whatever else it has.
pub(crate) fn assert_values(record: &Value, expected: &Value) {
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&record[name], value, "{name} of {record}");
    }
}
