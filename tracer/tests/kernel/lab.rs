//! The harness: a network namespace, the tracer attached to it, and exact expectations of what it reports.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::Location,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use socket2::Socket;
use tracer::{
    core::{
        connection::{Certainty, Connection},
        endpoint::Endpoint,
        filter::SocketFilter,
        input::Loss,
        state::State,
        tracker::{Effects, Limits, Tracker},
        transition::{Comm, Context, Errno, Event, KernelAddress, Reset, ResetDirection, Transition},
    },
    source::{
        clock::monotonic_ns,
        kernel::{Attachment, Kernel, Options, kernel_version},
    },
};

use crate::{
    net,
    trace::{self, Trace, Traced},
};

mod attempts;
mod namespace;

pub(crate) use self::{
    attempts::{run, run_with},
    namespace::{in_new_namespace, own_netns},
};

/// How long anything may take that should happen soon: a loaded machine must not fail a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Name of the thread that a scenario runs on, which is what `comm` shows.
pub(crate) const THREAD: &str = "lab";

/// Both ways in.
pub(crate) const BOTH: &[Attachment] = &[Attachment::Btf, Attachment::Tracepoint];
/// The usual one, where the way in makes no difference.
pub(crate) const BTF: &[Attachment] = &[Attachment::Btf];

/// The ends of a socket, by which its transitions are found, and what is to be checked of it besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// Whose socket it is: a name in [`Lab::processes`].
    owner: &'static str,
    cookie: Option<u64>,
    inode: Option<u64>,
}

impl Ends {
    pub(crate) fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local, remote, owner: "me", cookie: None, inode: None }
    }

    /// The same connection, seen from the other side.
    pub(crate) fn flipped(self) -> Self {
        Self::new(self.remote, self.local)
    }

    /// Without what only the socket itself can tell.
    pub(crate) fn without_socket(self) -> Self {
        Self { cookie: None, inode: None, ..self }
    }

    pub(crate) fn owned_by(self, owner: &'static str) -> Self {
        Self { owner, ..self }
    }
}

/// One socket's events, from its first transition to the last.
#[derive(Debug)]
pub(crate) struct Life {
    events: Vec<Event>,
    local: Endpoint,
    remote: Endpoint,
}

impl Life {
    pub(crate) fn transitions(&self) -> impl Iterator<Item = &Transition> {
        self.events.iter().filter_map(|event| match event {
            Event::Transition(transition) => Some(transition),
            Event::Reset(_) => None,
        })
    }

    pub(crate) fn belongs_to(&self, ends: &Ends) -> bool {
        let fits = |end: Endpoint, address: SocketAddr| {
            let unspecified = end.address.is_unspecified() && address.ip().is_unspecified();
            end.port == address.port() && (unspecified || end.address.ip() == address.ip().to_canonical())
        };
        fits(self.local, ends.local) && fits(self.remote, ends.remote)
    }
}

/// A namespace with the tracer attached.
pub(crate) struct Lab {
    // First, so that it is dropped before the runtime that it is registered with.
    kernel: Kernel,
    _runtime: tokio::runtime::Runtime,
    others: Arc<Trace>,
    begun_ns: u64,
    /// Only part of the events is asked for: the tracker is left out of it.
    filtered: bool,
    pub(crate) attachment: Attachment,
    pub(crate) netns: u32,
    pub(crate) tracker: Tracker,
    effects: Effects,
    pub(crate) lives: Vec<Life>,
    by_address: HashMap<u64, usize>,
    /// RSTs that mini-sockets sent or received.
    pub(crate) mini_resets: Vec<Reset>,
    pub(crate) ended: Vec<Connection>,
    pub(crate) repaired: Vec<Transition>,
    /// What the tracker is to make of connections, in the order in which they were expected.
    expected_lives: Vec<(Ends, String, &'static Location<'static>)>,
    /// Indices of the lives that were expected.
    expected: Vec<usize>,
    transitions_forgotten: usize,
    /// The names that expectations use, by process id; `me` is this process.
    processes: BTreeMap<u32, &'static str>,
    tid: u32,
}

/// Attaches, or fails the test with the whole reason.
pub(crate) fn attach(attachment: Attachment, filter: SocketFilter, buffer_bytes: u32) -> Kernel {
    let options = Options { buffer_bytes, filter, attachment: Some(attachment) };
    let kernel = Kernel::attach(&options).unwrap_or_else(|error| panic!("cannot attach ({attachment:?}): {error:#}"));
    assert_eq!(kernel.attachment(), attachment);
    kernel
}

/// A runtime for the kernel's descriptors.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime")
}

impl Lab {
    fn new(attachment: Attachment, filter: SocketFilter) -> Self {
        let netns = own_netns();
        let runtime = runtime();
        let guard = runtime.enter();
        let filtered = filter != SocketFilter::default();
        let kernel = attach(attachment, SocketFilter { netns: vec![netns], ..filter }, 1 << 20);
        drop(guard);
        Self {
            kernel,
            _runtime: runtime,
            others: trace::of_other_tasks(),
            begun_ns: monotonic_ns(),
            filtered,
            attachment,
            netns,
            tracker: Tracker::new(Limits::default()),
            effects: Effects::default(),
            lives: Vec::new(),
            by_address: HashMap::new(),
            mini_resets: Vec::new(),
            ended: Vec::new(),
            repaired: Vec::new(),
            expected_lives: Vec::new(),
            expected: Vec::new(),
            transitions_forgotten: 0,
            processes: BTreeMap::from([(std::process::id(), "me")]),
            tid: nix::unistd::gettid().as_raw().cast_unsigned(),
        }
    }

    /// Starts the tracker anew, with other settings.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.tracker = Tracker::new(limits);
    }

    /// Names a process for expectations.
    pub(crate) fn name_process(&mut self, name: &'static str, pid: u32) {
        self.processes.insert(pid, name);
    }

    fn name_of(&self, pid: u32) -> &'static str {
        self.processes.get(&pid).copied().unwrap_or("?")
    }

    pub(crate) fn loss(&self) -> Loss {
        self.kernel.loss().expect("the loss counters")
    }

    /// The ends of a connected or listening socket. With the typed tracepoint its cookie is noted too; with the classic
    /// one asking for it would make the kernel give it one, and how the tracer does without is part of the test.
    pub(crate) fn ends(&self, socket: &Socket) -> Ends {
        let local = address_of(socket.local_addr());
        let remote = match socket.peer_addr() {
            Ok(address) => address_of(Ok(address)),
            Err(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        };
        self.ends_with(socket, local, remote)
    }

    /// Likewise for a socket that does not tell its peer, because it is not connected yet.
    pub(crate) fn ends_to(&self, socket: &Socket, remote: SocketAddr) -> Ends {
        self.ends_with(socket, address_of(socket.local_addr()), remote)
    }

    fn ends_with(&self, socket: &Socket, local: SocketAddr, remote: SocketAddr) -> Ends {
        let cookie = gives_cookies(self.attachment).then(|| socket.cookie().expect("SO_COOKIE"));
        Ends { cookie, inode: Some(inode_of(socket)), ..Ends::new(local, remote) }
    }

    /// Takes in what the kernel has reported so far.
    pub(crate) fn drain(&mut self) {
        let (lives, by_address, mini_resets) = (&mut self.lives, &mut self.by_address, &mut self.mini_resets);
        let (tracker, effects, filtered) = (&mut self.tracker, &mut self.effects, self.filtered);
        let drained = self.kernel.drain(usize::MAX, |event| {
            if !filtered {
                tracker.event(&event, effects);
            }
            record(event, lives, by_address, mini_resets);
        });
        drained.expect("drained");
        self.tracker.advance(monotonic_ns(), &mut self.effects);
        self.ended.append(&mut self.effects.ended);
        self.repaired.append(&mut self.effects.repaired);
    }

    /// Takes in events until a condition holds.
    pub(crate) fn settle(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.drain();
            if condition(self) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "no {what} within {PATIENCE:?}; there were\n{}\nand there are\n{}",
                self.all(),
                net::table()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The only life with these ends that was not expected yet, if it has begun.
    fn find(&self, ends: &Ends) -> Option<usize> {
        let claimed = |index: &usize| self.expected.contains(index);
        (0..self.lives.len()).find(|index| !claimed(index) && self.lives[*index].belongs_to(ends))
    }

    /// Waits until a socket has made this many steps, and returns its life.
    pub(crate) fn life(&mut self, ends: &Ends, steps: usize) -> &Life {
        let mut found = None;
        let what = format!("{steps} events of {} → {}", ends.local, ends.remote);
        self.settle(&what, |lab| {
            found = lab.find(ends);
            found.is_some_and(|index| lab.lives[index].events.len() >= steps)
        });
        &self.lives[found.expect("just found")]
    }

    /// Expects exactly these events of a socket, then exactly this life of it.
    ///
    /// An event is `OLD>NEW` and who was running, or `rst>` (sent) or `rst<` (received):
    /// - `P`: process context, and [`Transition::owner`] names the socket's process; `P name`: it names another one
    /// - `S`: softirq or timer, no owner
    /// - `b`: process context of the socket's process, but no owner, because such a transition does not tell
    /// - `K name`: process context of another process, no owner
    /// - `B`: whichever of `S`, `P` and `b`. On loopback a segment that arrives while its socket is locked waits for the
    ///   lock's holder, so that both are right and neither is certain; `B name`: that holder is another process
    ///
    /// The life is `opening: states -> closing, after_close[, error]; in N, out N; source of the process[ name]`.
    ///
    /// The events are awaited at once, the life at the end of the scenario: the tracker gives a connection some time
    /// before it is over, for a RST that may follow.
    #[track_caller]
    pub(crate) fn expect(&mut self, ends: Ends, events: &str, life: &str) {
        self.expect_events(ends, events);
        self.expected_lives.push((ends, life.to_owned(), Location::caller()));
    }

    /// The first half of [`Self::expect`]: of a socket that is no connection, or still open.
    #[track_caller]
    pub(crate) fn expect_events(&mut self, ends: Ends, events: &str) {
        let wanted: Vec<&str> = events.split(", ").collect();
        self.life(&ends, wanted.len());
        let index = self.find(&ends).expect("just found");
        let got = self.told(index, &ends);
        self.compare(index, ends, &wanted, &got);
    }

    /// Likewise, whatever RSTs there are.
    #[track_caller]
    pub(crate) fn expect_transitions(&mut self, ends: Ends, events: &str) {
        let wanted: Vec<&str> = events.split(", ").collect();
        self.life(&ends, wanted.len());
        let index = self.find(&ends).expect("just found");
        let mut got = self.told(index, &ends);
        got.retain(|event| !event.starts_with("rst"));
        self.compare(index, ends, &wanted, &got);
    }

    #[track_caller]
    fn compare(&mut self, index: usize, ends: Ends, wanted: &[&str], got: &[String]) {
        let matches = |wanted: &&str, got: &String| {
            let words: Vec<&str> = wanted.split(' ').collect();
            match words[..] {
                [step, "B"] => ["S", "P", "b"].iter().any(|who| *got == format!("{step} {who}")),
                [step, "B", name] => {
                    *got == format!("{step} S") || ["P", "K"].iter().any(|who| *got == format!("{step} {who} {name}"))
                }
                _ => wanted == got,
            }
        };
        let same = wanted.len() == got.len() && wanted.iter().zip(got).all(|(wanted, got)| matches(wanted, got));
        assert!(
            same,
            "{} → {}:\n  wanted {}\n  but is {}\nof\n{}",
            ends.local,
            ends.remote,
            wanted.join(", "),
            got.join(", "),
            self.all()
        );
        self.check_identity(index, &ends);
        self.expected.push(index);
    }

    /// What holds for every transition of a socket.
    fn check_identity(&self, index: usize, ends: &Ends) {
        for transition in self.lives[index].transitions() {
            assert_eq!(transition.tuple.netns, self.netns, "{transition:?}");
            let details = transition.details.expect("the kernel's memory can be read");
            assert_eq!(details.uid, nix::unistd::geteuid().as_raw(), "{transition:?}");
            if child_is_unfinished(transition) {
                let (cookie, remote) = (transition.socket.cookie, transition.tuple.remote.port);
                assert_eq!((cookie, remote), (0, 0), "{transition:?}");
                continue;
            }
            if let Some(inode) = ends.inode {
                assert!([0, inode].contains(&details.inode), "the inode is {inode}: {transition:?}");
            }
            match ends.cookie {
                Some(cookie) => assert_eq!(transition.socket.cookie, cookie),
                None if gives_cookies(self.attachment) => assert_ne!(transition.socket.cookie, 0),
                None => {}
            }
            assert_ne!(transition.socket.address, KernelAddress(0));
            assert!(transition.mono_ns <= monotonic_ns());
        }
    }

    /// The second half of [`Self::expect`], at once.
    #[track_caller]
    pub(crate) fn expect_life(&mut self, ends: &Ends, wanted: &str) {
        self.expect_life_of(ends, wanted, Location::caller());
    }

    fn expect_life_of(&mut self, ends: &Ends, wanted: &str, place: &Location) {
        let connection = self.connection(ends);
        let got = self.life_told(&connection, ends);
        assert_eq!(got, wanted, "at {place}: {} → {}, of\n{}", ends.local, ends.remote, self.all());
        self.check_connection(&connection, ends);
    }

    /// Waits for the record of an ended connection and takes it.
    pub(crate) fn connection(&mut self, ends: &Ends) -> Connection {
        let mut found = None;
        self.settle(&format!("end of {} → {}", ends.local, ends.remote), |lab| {
            found = lab.ended.iter().position(|connection| {
                let tuple = connection.tuple;
                Life { events: Vec::new(), local: tuple.local, remote: tuple.remote }.belongs_to(ends)
            });
            found.is_some()
        });
        self.ended.remove(found.expect("just found"))
    }

    /// What holds for every connection that was seen from its beginning to its end.
    fn check_connection(&self, connection: &Connection, ends: &Ends) {
        assert!(!connection.gap, "{connection:?}");
        assert!(connection.spans.iter().all(|span| span.certainty == Certainty::Exact), "{connection:?}");
        let (opened, ended) = (connection.opened_ns.expect("opened"), connection.ended_ns.expect("ended"));
        assert_eq!(connection.duration_ns(), ended - opened, "{connection:?}");
        assert_eq!(connection.tuple.netns, self.netns);
        if let Some(cookie) = ends.cookie {
            assert_eq!(connection.socket.cookie, cookie);
        }
        if let (Some(inode), true) = (ends.inode, connection.inode != 0) {
            assert_eq!(connection.inode, inode);
        }
    }

    /// A life's events as [`Self::expect`] writes them.
    fn told(&self, index: usize, ends: &Ends) -> Vec<String> {
        self.lives[index].events.iter().map(|event| self.event_told(event, ends)).collect()
    }

    fn event_told(&self, event: &Event, ends: &Ends) -> String {
        match event {
            Event::Reset(Reset { direction: ResetDirection::Sent, .. }) => "rst>".to_owned(),
            Event::Reset(Reset { direction: ResetDirection::Received, .. }) => "rst<".to_owned(),
            Event::Transition(transition) => {
                let who = self.who(transition, ends);
                format!("{}>{} {who}", short(transition.old), short(transition.new))
            }
        }
    }

    fn who(&self, transition: &Transition, ends: &Ends) -> String {
        let name = |pid: u32| self.name_of(pid);
        let running = name(transition.task.pid);
        match (transition.context, transition.owner()) {
            (Context::Softirq, None) => "S".to_owned(),
            (Context::Process, None) if running == ends.owner => "b".to_owned(),
            (Context::Process, None) => format!("K {running}"),
            (Context::Process, Some(task)) => {
                let owner = name(task.pid);
                if owner == "me" && (task.tid != self.tid || task.comm != Comm::from(THREAD)) {
                    return format!("P as thread {} {:?}", task.tid, task.comm);
                }
                if owner == ends.owner { "P".to_owned() } else { format!("P {owner}") }
            }
            (context, owner) => format!("{context:?} {owner:?}"),
        }
    }

    fn life_told(&self, connection: &Connection, ends: &Ends) -> String {
        let states: Vec<String> = connection.spans.iter().map(|span| short(span.state)).collect();
        let mut text = format!("{}: {} -> ", connection.opening.name(), states.join(" "));
        text += connection.closing.map_or("open", |closing| closing.name());
        text += &format!(", {}", connection.after_close.name());
        if connection.error != Errno::NONE {
            text += &format!(", {}", connection.error.name().unwrap_or_default());
        }
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        text += &format!("; in {}, out {}; ", bytes(connection.bytes_in), bytes(connection.bytes_out));
        match connection.process {
            None => text += "nobody",
            Some(process) => {
                let name = self.name_of(process.pid);
                text += process.source.name();
                if name != ends.owner {
                    text += &format!(" {name}");
                }
            }
        }
        text
    }

    /// Everything, for a message.
    fn all(&self) -> String {
        let mut text = String::new();
        for (index, life) in self.lives.iter().enumerate() {
            let ends = Ends::new(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), SocketAddr::from(([0; 4], 0)));
            let told = self.told(index, &ends).join(", ");
            text += &format!("  {} → {}: {told}\n", life.local, life.remote);
        }
        text + &format!("  {:?}", self.loss())
    }

    /// Nothing happened but what was expected, and the tracker had nothing to guess.
    fn finish(&mut self) {
        for (ends, wanted, place) in std::mem::take(&mut self.expected_lives) {
            self.expect_life_of(&ends, &wanted, place);
        }
        self.drain();
        for index in 0..self.lives.len() {
            assert!(self.expected.contains(&index), "the life number {index} was not expected:\n{}", self.all());
        }
        assert!(self.repaired.is_empty(), "repaired: {:?}\nof\n{}", self.repaired, self.all());
        let loss = self.loss();
        assert_eq!(loss.dropped, 0);
        let transitions: usize = self.lives.iter().map(|life| life.transitions().count()).sum();
        assert_eq!(
            loss.seen,
            (self.transitions_forgotten + transitions) as u64,
            "the programs' count and what was delivered"
        );
        if self.attachment == Attachment::Btf {
            assert_eq!(self.tracker.counts().repaired, 0);
        }
    }

    /// Forgets what happened up to now.
    pub(crate) fn forget_lives(&mut self) {
        self.drain();
        self.transitions_forgotten += self.lives.iter().map(|life| life.transitions().count()).sum::<usize>();
        self.lives.clear();
        self.by_address.clear();
        self.expected.clear();
    }

    /// The inode number of a socket's file.
    pub(crate) fn inode_of(&self, socket: &Socket) -> u64 {
        inode_of(socket)
    }

    /// Events of this lab's sockets that came while a process that is none of ours was current.
    fn events_in_strangers_contexts(&self) -> usize {
        let here = |event: &&Traced| {
            let (local, remote) = event.ends;
            self.lives.iter().any(|life| life.belongs_to(&Ends::new(local, remote)))
        };
        let events = self.others.events();
        let strangers =
            events.iter().filter(|event| event.mono_ns >= self.begun_ns && event.is_in_a_strangers_context());
        strangers.filter(here).count()
    }

    /// How many lives there are so far.
    pub(crate) fn life_count(&mut self) -> usize {
        self.drain();
        self.lives.len()
    }

    /// What the tracker takes to be open, as `local remote state`, sorted.
    pub(crate) fn open(&mut self) -> Vec<String> {
        self.drain();
        let mut open: Vec<String> = self
            .tracker
            .open_connections(monotonic_ns())
            .map(|connection| {
                let state = connection.spans.last().map_or_else(String::new, |span| short(span.state));
                format!("{} {} {state}", connection.tuple.local, connection.tuple.remote)
            })
            .collect();
        open.sort();
        open
    }
}

/// Adds an event to its socket's life. A socket's address is used again as soon as it is free, so a life begins with
/// each first transition.
fn record(event: Event, lives: &mut Vec<Life>, by_address: &mut HashMap<u64, usize>, mini_resets: &mut Vec<Reset>) {
    let (socket, tuple, begins) = match &event {
        Event::Transition(transition) => {
            let first = matches!(
                (transition.old, transition.new),
                (State::CLOSE, State::SYN_SENT | State::LISTEN) | (State::LISTEN, State::SYN_RECV)
            );
            // With a filter the first events may be missing.
            let last =
                by_address.get(&transition.socket.address.0).and_then(|index| lives[*index].transitions().last());
            let begins = first || last.is_some_and(|last| last.new != transition.old);
            (transition.socket, transition.tuple, begins)
        }
        Event::Reset(reset) if reset.state == State::TIME_WAIT => {
            mini_resets.push(*reset);
            return;
        }
        Event::Reset(reset) => (reset.socket, reset.tuple, false),
    };
    let known = by_address.get(&socket.address.0).copied().filter(|_| !begins);
    let index = known.unwrap_or_else(|| {
        lives.push(Life { events: Vec::new(), local: Endpoint::UNKNOWN, remote: Endpoint::UNKNOWN });
        by_address.insert(socket.address.0, lives.len() - 1);
        lives.len() - 1
    });
    let life = &mut lives[index];
    life.events.push(event);
    // Ends are wiped when a socket is disconnected: the last that was known counts.
    for (known, now) in [(&mut life.local, tuple.local), (&mut life.remote, tuple.remote)] {
        if now.port != 0 {
            known.port = now.port;
        }
        if !now.address.is_unspecified() {
            known.address = now.address;
        }
    }
}

/// Whether the kernel shows a child before it is filled in, as it did before 6.15: the local port is there, and no more.
fn child_is_unfinished(transition: &Transition) -> bool {
    (transition.old, transition.new) == (State::LISTEN, State::SYN_RECV) && !is_kernel_from((6, 15))
}

/// Whether a socket has a cookie from its first transition on, which typed programs may give it since 5.12.
fn gives_cookies(attachment: Attachment) -> bool {
    attachment == Attachment::Btf && is_kernel_from((5, 12))
}

/// Whether the running kernel is of this version or newer.
pub(crate) fn is_kernel_from(version: (u32, u32)) -> bool {
    kernel_version().expect("the kernel's version") >= version
}

/// Says that this kernel does something in another way than the newest; `cargo xtask vm` lists it.
pub(crate) fn differs(how: &str) {
    println!("this kernel: {how}");
}

/// The abbreviations of the tables in docs/kernel.md.
fn short(state: State) -> String {
    const NAMES: [(State, &str); 11] = [
        (State::LISTEN, "LI"),
        (State::SYN_SENT, "SS"),
        (State::SYN_RECV, "SR"),
        (State::ESTABLISHED, "ES"),
        (State::FIN_WAIT1, "F1"),
        (State::FIN_WAIT2, "F2"),
        (State::CLOSING, "CG"),
        (State::CLOSE_WAIT, "CW"),
        (State::LAST_ACK, "LA"),
        (State::CLOSE, "CL"),
        (State::TIME_WAIT, "TW"),
    ];
    NAMES.iter().find(|(known, _)| *known == state).map_or_else(|| state.to_string(), |(_, name)| (*name).to_owned())
}

fn address_of(address: std::io::Result<socket2::SockAddr>) -> SocketAddr {
    let address = address.expect("an address").as_socket().expect("an IP address");
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn inode_of(socket: &Socket) -> u64 {
    nix::sys::stat::fstat(socket).expect("fstat").st_ino
}
