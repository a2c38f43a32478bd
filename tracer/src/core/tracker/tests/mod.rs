//! What the tracker makes of events and dumps. Here is what its tests are written with: steps, and a bench to run them on.
//!
//! Steps are a second apart unless they say otherwise, so that every full state lasts one second.

mod eviction;
mod listeners_owners;
mod minis;
mod missed;
mod scenarios;
mod snapshots;
mod sockets_without_cookies;
mod whose_transition;

use super::{merge::MergeKind, *};
use crate::core::{
    connection::{Certainty, Closing},
    endpoint::{Address, Endpoint},
    snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
    transition::{Comm, Context, Errno, KernelAddress, Origin, SocketId},
};

const CLOSE: State = State::CLOSE;
const LISTEN: State = State::LISTEN;
const SYN_SENT: State = State::SYN_SENT;
const SYN_RECV: State = State::SYN_RECV;
const ESTABLISHED: State = State::ESTABLISHED;
const FIN_WAIT1: State = State::FIN_WAIT1;
const FIN_WAIT2: State = State::FIN_WAIT2;
const CLOSING: State = State::CLOSING;
const CLOSE_WAIT: State = State::CLOSE_WAIT;
const LAST_ACK: State = State::LAST_ACK;

const SECOND: u64 = 1_000_000_000;
const MICROSECOND: u64 = 1_000;
const NETNS: u32 = 1;
/// The process whose socket it is.
const APP: u32 = 10;
/// Whoever was interrupted by a softirq.
const BYSTANDER: u32 = 99;

/// One event, a while after the one before.
#[derive(Clone, Copy)]
struct Step {
    event: Event,
    after_ns: u64,
}

fn address(last: u8) -> Address {
    Address::v4([10, 0, 0, last])
}

fn tuple(local: u16, remote: u16) -> Tuple {
    Tuple { netns: NETNS, local: Endpoint::new(address(1), local), remote: Endpoint::new(address(2), remote) }
}

/// The ends that every step has unless it says otherwise.
fn usual() -> Tuple {
    tuple(40_000, 80)
}

fn task(pid: u32) -> Task {
    Task { pid, tid: pid, comm: Comm::from(if pid == APP { "app" } else { "other" }) }
}

fn details() -> Details {
    Details {
        fin_received: false,
        orphaned: false,
        send_shutdown: false,
        previous_port: 0,
        linger: false,
        mptcp: false,
        inode: 0,
        cgroup: 0,
        uid: 0,
        error: Errno::NONE,
        bytes_received: 0,
        bytes_acked: 0,
        srtt_us: 0,
        retransmits: 0,
    }
}

fn step(old: State, new: State, pid: u32, context: Context) -> Step {
    let transition = Transition {
        mono_ns: 0,
        socket: SocketId { cookie: 7, address: KernelAddress(0xffff_8880_0000_0700) },
        tuple: usual(),
        old,
        new,
        task: task(pid),
        context,
        details: Some(details()),
        origin: Origin::Kernel,
    };
    Step { event: Event::Transition(transition), after_ns: SECOND }
}

/// In process context: the owner acts.
fn p(old: State, new: State) -> Step {
    step(old, new, APP, Context::Process)
}

/// In softirq or timer context, in the middle of someone else.
fn s(old: State, new: State) -> Step {
    step(old, new, BYSTANDER, Context::Softirq)
}

/// Without BTF: neither context nor details.
fn bare(old: State, new: State) -> Step {
    step(old, new, BYSTANDER, Context::Unknown).with(|transition| transition.details = None)
}

/// A RST, a microsecond after the step before.
fn rst(direction: ResetDirection, state: State) -> Step {
    let Event::Transition(Transition { socket, tuple, .. }) = s(state, state).event else { unreachable!() };
    let reset = Reset { mono_ns: 0, socket, tuple, state, direction };
    Step { event: Event::Reset(reset), after_ns: MICROSECOND }
}

impl Step {
    fn with(mut self, change: impl FnOnce(&mut Transition)) -> Self {
        if let Event::Transition(transition) = &mut self.event {
            change(transition);
        }
        self
    }

    fn detail(self, change: impl FnOnce(&mut Details)) -> Self {
        self.with(|transition| change(transition.details.as_mut().expect("a step with details")))
    }

    fn after(self, after_ns: u64) -> Self {
        Self { after_ns, ..self }
    }

    fn error(self, error: Errno) -> Self {
        self.detail(|details| details.error = error)
    }

    /// SOCK_DONE: the peer's FIN was received.
    fn fin(self) -> Self {
        self.detail(|details| details.fin_received = true)
    }

    fn inode(self, inode: u64) -> Self {
        self.detail(|details| details.inode = inode)
    }

    fn bytes(self, received: u64, acked: u64) -> Self {
        self.detail(|details| (details.bytes_received, details.bytes_acked) = (received, acked))
    }

    fn ends(mut self, tuple: Tuple) -> Self {
        match &mut self.event {
            Event::Transition(transition) => transition.tuple = tuple,
            Event::Reset(reset) => reset.tuple = tuple,
        }
        self
    }

    fn on(mut self, cookie: u64, address: u64) -> Self {
        let socket = SocketId { cookie, address: KernelAddress(0xffff_8880_0000_0000 + address) };
        match &mut self.event {
            Event::Transition(transition) => transition.socket = socket,
            Event::Reset(reset) => reset.socket = socket,
        }
        self
    }

    /// On a socket of which only the address is known.
    fn at_address(self, address: u64) -> Self {
        self.on(0, address)
    }

    fn by(self, pid: u32) -> Self {
        self.with(|transition| transition.task = task(pid))
    }
}

/// A tracker and what it gave.
struct Bench {
    tracker: Tracker,
    effects: Effects,
    now_ns: u64,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self { tracker: Tracker::new(limits), effects: Effects::default(), now_ns: 100 * SECOND }
    }

    fn feed(&mut self, step: Step) -> Annotation {
        self.now_ns += step.after_ns;
        let mut event = step.event;
        match &mut event {
            Event::Transition(transition) => transition.mono_ns = self.now_ns,
            Event::Reset(reset) => reset.mono_ns = self.now_ns,
        }
        self.tracker.event(&event, &mut self.effects)
    }

    fn run(&mut self, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            self.feed(step);
        }
    }

    /// Every connection that has ended so far.
    fn all_ended(&mut self) -> Vec<Connection> {
        self.tracker.flush(&mut self.effects);
        std::mem::take(&mut self.effects.ended)
    }

    /// The one connection that has ended.
    fn ended(&mut self) -> Connection {
        only(self.all_ended())
    }

    /// The one connection that is open.
    fn open(&self) -> Connection {
        only(self.tracker.open_connections(self.now_ns).collect())
    }

    fn minis(&self) -> u64 {
        self.tracker.mini_sockets().count_in(NETNS)
    }

    /// Old and new states of what was repaired, in order.
    fn repaired(&self) -> Vec<(State, State)> {
        assert_eq!(self.effects.repaired.len() as u64, self.tracker.counts().repaired);
        self.effects.repaired.iter().map(|repaired| (repaired.old, repaired.new)).collect()
    }

    /// Takes a dump in that ran from the last event on.
    fn merge(&mut self, kind: MergeKind, sockets: impl IntoIterator<Item = Socket>) {
        self.now_ns += SECOND;
        self.tracker.snapshot_begins(kind);
        self.merge_begun(self.now_ns, sockets);
    }

    /// Takes a dump in that began earlier, at `started_ns`.
    fn merge_begun(&mut self, started_ns: u64, sockets: impl IntoIterator<Item = Socket>) {
        let snapshot = Snapshot {
            started_ns,
            ended_ns: self.now_ns,
            complete_netns: vec![NETNS],
            sockets: sockets.into_iter().map(|socket| Socket { holder: holder(socket.inode), ..socket }).collect(),
        };
        self.tracker.merge(&snapshot, &mut self.effects);
    }
}

fn only(mut connections: Vec<Connection>) -> Connection {
    assert_eq!(connections.len(), 1, "{connections:#?}");
    connections.pop().expect("one connection")
}

/// The one connection of a run in which nothing was missed.
fn life(steps: impl IntoIterator<Item = Step>) -> Connection {
    let mut bench = Bench::new();
    bench.run(steps);
    let connection = bench.ended();
    assert_eq!(bench.repaired(), []);
    assert!(!connection.gap);
    assert!(bench.tracker.is_empty());
    if let (Some(opened_ns), Some(ended_ns)) = (connection.opened_ns, connection.ended_ns) {
        assert_eq!(connection.duration_ns(), ended_ns - opened_ns);
    }
    connection
}

fn story(connection: &Connection) -> (Opening, Closing, AfterClose) {
    (connection.opening, connection.closing.expect("an ended connection"), connection.after_close)
}

/// States, whole seconds and certainties.
fn spans(connection: &Connection) -> Vec<(State, u64, Certainty)> {
    connection.spans.iter().map(|span| (span.state, span.ns / SECOND, span.certainty)).collect()
}

fn exactly(states: &[State]) -> Vec<(State, u64, Certainty)> {
    states.iter().map(|state| (*state, 1, Certainty::Exact)).collect()
}

fn whose(connection: &Connection) -> Option<(u32, ProcessSource)> {
    connection.process.map(|process| (process.pid, process.source))
}

/// connect(), with the local port known only once it is established.
fn active_open() -> [Step; 2] {
    [p(CLOSE, SYN_SENT).ends(tuple(0, 80)).bytes(0, 0), s(SYN_SENT, ESTABLISHED).bytes(0, 1)]
}

fn passive_open() -> [Step; 2] {
    [s(LISTEN, SYN_RECV), s(SYN_RECV, ESTABLISHED)]
}

fn chain<const A: usize, const B: usize>(first: [Step; A], then: [Step; B]) -> Vec<Step> {
    first.into_iter().chain(then).collect()
}

/// A listener's steps are on a socket of its own.
fn listener(step: Step, cookie: u64, local: Endpoint) -> Step {
    step.on(cookie, cookie << 8).ends(Tuple { netns: NETNS, local, remote: Endpoint::UNKNOWN }).inode(1000 + cookie)
}

fn dumped(cookie: u64, tuple: Tuple, state: State) -> Socket {
    Socket {
        cookie,
        tuple,
        state,
        kind: SocketKind::Full,
        inode: 0,
        cgroup: 0,
        uid: 0,
        receive_queue: 0,
        send_queue: 0,
        info: None,
        holder: None,
    }
}

/// In these tests inode N000 + pid belongs to that process.
fn holder(inode: u64) -> Option<Process> {
    let pid = u32::try_from(inode % 1000).expect("a small number");
    (inode != 0).then(|| Process { pid, comm: Comm::from("holder"), source: ProcessSource::Holder })
}
