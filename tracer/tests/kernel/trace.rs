//! The kernel's own trace of the same tracepoint (ftrace): a witness that shares no code with the tracer.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::lab;

/// An event in the kernel's trace.
pub(crate) struct Traced {
    pub(crate) mono_ns: u64,
    /// The current task.
    pub(crate) comm: String,
    pub(crate) tid: u32,
    pub(crate) protocol: String,
    /// This end, that end.
    pub(crate) ends: (SocketAddr, SocketAddr),
    pub(crate) old: String,
    pub(crate) new: String,
}

impl Traced {
    /// `task-tid [cpu] flags seconds.µs: inet_sock_set_state: family=… oldstate=… newstate=…`
    fn parse(line: &str) -> Option<Self> {
        let (head, tail) = line.split_once(": inet_sock_set_state: ")?;
        let (task, rest) = head.split_once(" [")?;
        let (comm, tid) = task.rsplit_once('-')?;
        let (seconds, micros) = rest.rsplit(' ').next()?.split_once('.')?;
        let fields: HashMap<&str, &str> = tail.split(' ').filter_map(|field| field.split_once('=')).collect();
        let field = |name: &str| fields.get(name).copied();
        let v6 = field("family")? == "AF_INET6";
        let end = |v4_name: &str, v6_name: &str, port: &str| {
            let ip: IpAddr = field(if v6 { v6_name } else { v4_name })?.parse().ok()?;
            Some(SocketAddr::new(ip.to_canonical(), field(port)?.parse().ok()?))
        };
        Some(Self {
            mono_ns: seconds.parse::<u64>().ok()? * 1_000_000_000 + micros.parse::<u64>().ok()? * 1000,
            comm: comm.trim_start().to_owned(),
            tid: tid.trim_end().parse().ok()?,
            protocol: field("protocol")?.to_owned(),
            ends: (end("saddr", "saddrv6", "sport")?, end("daddr", "daddrv6", "dport")?),
            old: field("oldstate")?.to_owned(),
            new: field("newstate")?.to_owned(),
        })
    }

    /// Whether a process was running that has nothing to do with these tests: neither this one nor a child of it, nor
    /// the kernel itself.
    pub(crate) fn is_in_a_strangers_context(&self) -> bool {
        let of_the_kernel =
            self.tid == 0 || ["ksoftirqd/", "kworker/", "rcu"].iter().any(|name| self.comm.starts_with(name));
        // Children run the same program, and their tests' threads are called by the test's name.
        let program = fs::read_to_string("/proc/self/comm").expect("this program's name");
        !of_the_kernel && ![lab::THREAD, program.trim_end(), "child::acts_as_"].contains(&self.comm.as_str())
    }
}

/// An instance of the kernel's tracer. Dropping it removes it.
pub(crate) struct Trace(PathBuf);

impl Trace {
    const PREFIX: &str = "tracer-test-";

    pub(crate) fn start(name: &str, buffer_kb: u32, filter: &str) -> Self {
        let trace = Self::of_nothing(name, buffer_kb);
        trace.set("events/sock/inet_sock_set_state/filter", filter);
        trace.set("events/sock/inet_sock_set_state/enable", "1");
        trace
    }

    fn of_nothing(name: &str, buffer_kb: u32) -> Self {
        let instances = Path::new("/sys/kernel/tracing/instances");
        remove_abandoned(instances);
        // While one is being removed its name is still taken.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let trace = Self(instances.join(format!("{}{}-{name}-{number}", Self::PREFIX, std::process::id())));
        fs::create_dir(&trace.0).expect("an instance of the kernel's tracer");
        trace.set("trace_clock", "mono");
        trace.set("buffer_size_kb", &buffer_kb.to_string());
        trace
    }

    fn set(&self, name: &str, value: &str) {
        let path = self.0.join(name);
        fs::write(&path, value).unwrap_or_else(|error| panic!("cannot write {value} to {}: {error}", path.display()));
    }

    /// Stops, and makes sure that nothing was lost.
    pub(crate) fn stop(&self) {
        self.set("tracing_on", "0");
        for cpu in fs::read_dir(self.0.join("per_cpu")).expect("CPUs").flatten() {
            let stats = fs::read_to_string(cpu.path().join("stats")).expect("statistics");
            for lost in ["overrun", "commit overrun", "dropped events"] {
                assert!(stats.lines().any(|line| line == format!("{lost}: 0")), "the witness is not complete: {stats}");
            }
        }
    }

    /// The events, in the order of time.
    pub(crate) fn events(&self) -> Vec<Traced> {
        let text = fs::read_to_string(self.0.join("trace")).expect("the trace");
        text.lines()
            .filter(|line| line.contains(": inet_sock_set_state: "))
            .map(|line| Traced::parse(line).unwrap_or_else(|| panic!("not understood: {line}")))
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("events/enable"), "0");
        let _ = fs::remove_dir(&self.0);
    }
}

/// Calls of the kernel's own functions (kprobes).
pub(crate) struct Calls {
    trace: Trace,
    group: String,
    names: Vec<&'static str>,
}

/// One of them.
pub(crate) struct Call {
    pub(crate) mono_ns: u64,
    pub(crate) name: String,
    arguments: HashMap<String, i64>,
}

impl Call {
    pub(crate) fn argument(&self, name: &str) -> i64 {
        self.arguments.get(name).copied().unwrap_or_else(|| panic!("{} has no {name}", self.name))
    }

    /// `task-tid [cpu] flags seconds.µs: name: (function+0x0/0x1) argument=1 …`
    fn parse(line: &str) -> Option<Self> {
        let (head, tail) = line.split_once(": (")?;
        let (head, name) = head.rsplit_once(": ")?;
        let (seconds, micros) = head.rsplit(' ').next()?.split_once('.')?;
        let argument = |field: &str| {
            let (name, value) = field.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Some(Self {
            mono_ns: seconds.parse::<u64>().ok()? * 1_000_000_000 + micros.parse::<u64>().ok()? * 1000,
            name: name.to_owned(),
            arguments: tail.split(' ').filter_map(argument).collect(),
        })
    }
}

impl Calls {
    const PROBES: &str = "/sys/kernel/tracing/kprobe_events";

    /// Of each name the first function that this kernel has, with the arguments that are given; `None` where there are no
    /// kprobes, or a function is in none of its forms.
    pub(crate) fn start(wanted: &[(&'static str, &[&str], &str)]) -> Option<Self> {
        let group = format!("tracer_test_{}", std::process::id());
        let mut calls = Self { trace: Trace::of_nothing("calls", 1024), group, names: Vec::new() };
        for (name, functions, arguments) in wanted {
            functions
                .iter()
                .find(|function| append(&format!("p:{}/{name} {function} {arguments}", calls.group)).is_ok())?;
            calls.names.push(name);
            calls.trace.set(&format!("events/{}/{name}/enable", calls.group), "1");
        }
        Some(calls)
    }

    /// All so far, in the order of time.
    pub(crate) fn seen(&self) -> Vec<Call> {
        self.trace.stop();
        let text = fs::read_to_string(self.trace.0.join("trace")).expect("the trace");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| Call::parse(line).unwrap_or_else(|| panic!("not understood: {line}"))).collect()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = fs::write(self.trace.0.join(format!("events/{}/{name}/enable", self.group)), "0");
            let _ = append(&format!("-:{}/{name}", self.group));
        }
    }
}

/// Whoever writes without appending takes away the probes of everybody else.
fn append(line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(Calls::PROBES)?.write_all(line.as_bytes())
}

/// A test that was killed could not clear up.
fn remove_abandoned(instances: &Path) {
    for instance in fs::read_dir(instances).expect("tracefs instances").flatten() {
        let name = instance.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(Trace::PREFIX));
        let pid = rest.and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::write(instance.path().join("events/enable"), "0");
            let _ = fs::remove_dir(instance.path());
        }
    }
}

/// A trace of what happens while other threads than the scenarios' are current; all scenarios that run share it.
pub(crate) fn of_other_tasks() -> Arc<Trace> {
    static SHARED: Mutex<Weak<Trace>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let trace = Arc::new(Trace::start("others", 512, &format!("COMM != \"{}\"", lab::THREAD)));
        *shared = Arc::downgrade(&trace);
        trace
    })
}
