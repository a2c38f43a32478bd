//! The rows of docs/kernel.md ("Transitions by scenario"), one test each, and what can go wrong around them.
//!
//! Steps are a second apart unless they say otherwise, so that every full state lasts one second.

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
        self.tracker.snapshot_begins();
        self.merge_begun(kind, self.now_ns, sockets);
    }

    /// Takes a dump in that began earlier, at `started_ns`.
    fn merge_begun(&mut self, kind: MergeKind, started_ns: u64, sockets: impl IntoIterator<Item = Socket>) {
        let snapshot = Snapshot {
            started_ns,
            ended_ns: self.now_ns,
            complete_netns: vec![NETNS],
            sockets: sockets.into_iter().collect(),
        };
        self.tracker.merge(&snapshot, kind, &holder, &mut self.effects);
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
    }
}

/// In these tests inode N000 + pid belongs to that process.
fn holder(inode: u64) -> Option<Process> {
    let pid = u32::try_from(inode % 1000).expect("a small number");
    (inode != 0).then(|| Process { pid, comm: Comm::from("holder"), source: ProcessSource::Holder })
}

mod scenarios {
    use super::*;

    #[test]
    fn listening_is_no_connection() {
        let mut bench = Bench::new();
        let local = Endpoint::new(address(1), 80);
        let annotation = bench.feed(listener(p(CLOSE, LISTEN), 1, local));
        assert_eq!(annotation.process.map(|process| process.pid), Some(APP));
        assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 1));
        bench.feed(listener(p(LISTEN, CLOSE), 1, local));
        assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 0));
        assert_eq!(bench.all_ended(), []);
    }

    #[test]
    fn an_active_close_leaves_a_time_wait_once_the_peers_fin_came() {
        let close = [
            p(ESTABLISHED, FIN_WAIT1).bytes(100, 51).inode(500),
            s(FIN_WAIT1, FIN_WAIT2).bytes(100, 52),
            s(FIN_WAIT2, CLOSE).bytes(101, 52).fin(),
        ];
        let connection = life(chain(active_open(), close));
        assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::TimeWait));
        assert_eq!(spans(&connection), exactly(&[SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2]));
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
        assert_eq!(whose(&connection), Some((APP, ProcessSource::Opener)));
        assert_eq!(connection.tuple, usual());
        assert_eq!(connection.inode, 500);
        assert_eq!(connection.opened_ns, Some(101 * SECOND));
        assert_eq!(connection.ended_ns, Some(105 * SECOND));
    }

    #[test]
    fn fin_and_ack_in_one_segment_are_an_active_close_too() {
        let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).fin().after(MICROSECOND)];
        let connection = life(chain(active_open(), close));
        assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::TimeWait));
    }

    #[test]
    fn an_orphan_in_fin_wait_2_becomes_a_mini_socket_that_the_close_does_not_mean() {
        let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).after(MICROSECOND)];
        let mut bench = Bench::with(Limits { fin_timeout_ns: 20 * SECOND, ..Limits::default() });
        bench.run(chain(active_open(), close));
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::FinWait2));
        let mini = bench.tracker.mini_sockets().iter().next().map(|(tuple, mini)| (*tuple, *mini));
        let (tuple, mini) = mini.expect("a mini-socket");
        assert_eq!((tuple, mini.state, mini.ends_ns), (usual(), FIN_WAIT2, bench.now_ns + 20 * SECOND));
        assert_eq!(mini.process.map(|process| process.pid), Some(APP));
    }

    #[test]
    fn an_orphan_spends_what_exceeds_a_minute_as_a_full_socket_and_then_as_a_mini_socket() {
        let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).after(30 * SECOND)];
        let mut bench = Bench::with(Limits { fin_timeout_ns: 90 * SECOND, ..Limits::default() });
        bench.run(chain(active_open(), close));
        let connection = bench.ended();
        assert_eq!(connection.after_close, AfterClose::FinWait2);
        assert_eq!(connection.spans.last().map(|span| span.ns), Some(30 * SECOND));
        let ends: Vec<u64> = bench.tracker.mini_sockets().iter().map(|(_, mini)| mini.ends_ns).collect();
        assert_eq!(ends, [bench.now_ns + 30 * SECOND]);
    }

    #[test]
    fn a_passive_close_leaves_nothing() {
        let close = [
            s(ESTABLISHED, CLOSE_WAIT).bytes(101, 0).inode(500),
            p(CLOSE_WAIT, LAST_ACK).bytes(101, 50).fin(),
            s(LAST_ACK, CLOSE).bytes(101, 51).fin(),
        ];
        let connection = life(chain(passive_open(), close));
        assert_eq!(story(&connection), (Opening::Passive, Closing::Passive, AfterClose::None));
        assert_eq!(spans(&connection), exactly(&[SYN_RECV, ESTABLISHED, CLOSE_WAIT, LAST_ACK]));
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
        assert_eq!(whose(&connection), Some((APP, ProcessSource::Closer)));
        assert_eq!(connection.inode, 500);
    }

    #[test]
    fn the_last_ack_may_come_while_the_process_runs() {
        let close = [s(ESTABLISHED, CLOSE_WAIT), p(CLOSE_WAIT, LAST_ACK), p(LAST_ACK, CLOSE).fin()];
        assert_eq!(life(chain(passive_open(), close)).closing, Some(Closing::Passive));
    }

    #[test]
    fn crossed_fins_are_a_simultaneous_close() {
        let close = [
            p(ESTABLISHED, FIN_WAIT1).bytes(10, 21),
            s(FIN_WAIT1, CLOSING).bytes(11, 21).fin(),
            s(CLOSING, CLOSE).bytes(11, 22).fin(),
        ];
        let connection = life(chain(active_open(), close));
        assert_eq!(story(&connection), (Opening::Active, Closing::Simultaneous, AfterClose::TimeWait));
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(10), Some(20)));
    }

    #[test]
    fn crossed_syns_are_a_simultaneous_open() {
        let steps = [
            p(CLOSE, SYN_SENT),
            s(SYN_SENT, SYN_RECV),
            s(SYN_RECV, ESTABLISHED).bytes(0, 1),
            p(ESTABLISHED, CLOSE).bytes(10, 21),
        ];
        let connection = life(steps);
        assert_eq!(connection.opening, Opening::Simultaneous);
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(10), Some(20)));
        assert_eq!(spans(&connection), exactly(&[SYN_SENT, SYN_RECV, ESTABLISHED]));
    }

    #[test]
    fn data_before_established_is_fast_open() {
        let with_data = s(SYN_RECV, ESTABLISHED).bytes(5, 0);
        let connection = life([s(LISTEN, SYN_RECV), with_data, p(ESTABLISHED, CLOSE)]);
        assert_eq!(connection.opening, Opening::FastOpen);
        let accepted = p(SYN_RECV, FIN_WAIT1).inode(500);
        let connection = life([s(LISTEN, SYN_RECV), accepted, s(FIN_WAIT1, CLOSE).error(Errno::ETIMEDOUT)]);
        assert_eq!(connection.opening, Opening::FastOpen);
        assert_eq!(whose(&connection), Some((APP, ProcessSource::Closer)));
    }

    #[test]
    fn a_refused_connect_is_refused_in_either_context() {
        for refused in [s(SYN_SENT, CLOSE), p(SYN_SENT, CLOSE)] {
            let reset = rst(ResetDirection::Received, SYN_SENT);
            let connection = life([p(CLOSE, SYN_SENT), reset, refused.error(Errno::ECONNREFUSED)]);
            assert_eq!(story(&connection), (Opening::Active, Closing::Refused, AfterClose::None));
            assert_eq!(connection.error, Errno::ECONNREFUSED);
            assert_eq!(whose(&connection), Some((APP, ProcessSource::Opener)));
        }
    }

    #[test]
    fn a_refused_connect_is_told_by_its_rst_where_the_error_cannot_be_read() {
        let connection = life([bare(CLOSE, SYN_SENT), rst(ResetDirection::Received, SYN_SENT), bare(SYN_SENT, CLOSE)]);
        assert_eq!(connection.closing, Some(Closing::Refused));
        assert_eq!((connection.bytes_in, connection.bytes_out), (None, None));
    }

    #[test]
    fn a_connect_without_answer_times_out() {
        let connection = life([p(CLOSE, SYN_SENT), s(SYN_SENT, CLOSE).error(Errno::ETIMEDOUT).after(127 * SECOND)]);
        assert_eq!(story(&connection), (Opening::Active, Closing::TimedOut, AfterClose::None));
        assert_eq!(spans(&connection), [(SYN_SENT, 127, Certainty::Exact)]);
    }

    #[test]
    fn close_while_connecting_is_given_up() {
        let connection = life([p(CLOSE, SYN_SENT).ends(tuple(0, 80)), p(SYN_SENT, CLOSE)]);
        assert_eq!(story(&connection), (Opening::Active, Closing::Aborted, AfterClose::None));
    }

    #[test]
    fn an_unreachable_peer_is_given_up_with_its_error() {
        let unreachable = Errno(113);
        let connection = life([p(CLOSE, SYN_SENT), s(SYN_SENT, CLOSE).error(unreachable)]);
        assert_eq!((connection.closing, connection.error), (Some(Closing::Aborted), unreachable));
    }

    #[test]
    fn a_second_connect_that_finds_no_port_is_not_what_ended_the_first() {
        let stale = |step: Step| step.error(Errno::ECONNRESET);
        let connect = |previous_port| {
            stale(p(CLOSE, SYN_SENT)).ends(tuple(0, 80)).detail(|details| details.previous_port = previous_port)
        };
        let mut bench = Bench::new();
        bench.run([connect(40_000)]);
        let annotation = bench.feed(stale(p(SYN_SENT, CLOSE)).ends(tuple(40_000, 80)));
        assert!(annotation.no_port);
        let connection = bench.ended();
        assert_eq!((connection.closing, connection.error), (Some(Closing::NoLocalPort), Errno::NONE));
        assert_eq!(connection.tuple.local.port, 0);
        // Another port, or a RST: it did find one.
        bench.run([connect(39_999), stale(p(SYN_SENT, CLOSE)).ends(tuple(40_000, 80))]);
        assert_ne!(bench.ended().closing, Some(Closing::NoLocalPort));
        bench.run([connect(40_000), rst(ResetDirection::Received, SYN_SENT)]);
        bench.run([stale(p(SYN_SENT, CLOSE)).ends(tuple(40_000, 80))]);
        assert_eq!(bench.ended().closing, Some(Closing::Refused));
    }

    #[test]
    fn a_local_port_that_stays_0_was_not_to_be_had() {
        let without = tuple(0, 80);
        let connection = life([p(CLOSE, SYN_SENT).ends(without), p(SYN_SENT, CLOSE).ends(without).after(MICROSECOND)]);
        assert_eq!(story(&connection), (Opening::Active, Closing::NoLocalPort, AfterClose::None));
        assert_eq!(connection.tuple, without);
    }

    #[test]
    fn close_after_shutdown_names_the_closer_and_changes_no_state() {
        let steps = [
            p(ESTABLISHED, FIN_WAIT1).by(11),
            s(FIN_WAIT1, FIN_WAIT2),
            p(FIN_WAIT2, FIN_WAIT2).by(12),
            s(FIN_WAIT2, CLOSE).fin(),
        ];
        let mut bench = Bench::new();
        bench.run(chain(passive_open(), steps));
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::Passive, Closing::Active, AfterClose::TimeWait));
        assert_eq!(whose(&connection), Some((12, ProcessSource::Closer)));
        let states = [(SYN_RECV, 1), (ESTABLISHED, 1), (FIN_WAIT1, 1), (FIN_WAIT2, 2)];
        assert_eq!(spans(&connection), states.map(|(state, seconds)| (state, seconds, Certainty::Exact)));
        assert!(!connection.gap);
    }

    #[test]
    fn the_time_at_a_self_transition_is_that_in_the_state_so_far() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [p(ESTABLISHED, FIN_WAIT1)]));
        assert_eq!(bench.feed(p(FIN_WAIT1, FIN_WAIT1)).in_state_ns, Some(SECOND));
        assert_eq!(bench.feed(s(FIN_WAIT1, FIN_WAIT2)).in_state_ns, Some(2 * SECOND));
    }

    #[test]
    fn close_with_unread_data_or_linger_0_sends_a_rst() {
        for from in [ESTABLISHED, CLOSE_WAIT] {
            let mut steps = active_open().to_vec();
            if from == CLOSE_WAIT {
                steps.push(s(ESTABLISHED, CLOSE_WAIT));
            }
            steps.push(p(from, CLOSE));
            let connection = life(steps.clone());
            assert_eq!(story(&connection), (Opening::Active, Closing::ResetSent, AfterClose::None), "from {from}");
            steps.push(rst(ResetDirection::Sent, CLOSE));
            assert_eq!(life(steps).closing, Some(Closing::ResetSent), "from {from}, RST seen");
        }
    }

    #[test]
    fn linger_0_in_fin_wait_2_is_told_by_the_rst_that_follows() {
        let mut bench = Bench::new();
        let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), p(FIN_WAIT2, CLOSE)];
        bench.run(chain(active_open(), close));
        assert_eq!(bench.minis(), 1);
        bench.feed(rst(ResetDirection::Sent, CLOSE));
        assert_eq!(bench.minis(), 0);
        assert_eq!(story(&bench.ended()), (Opening::Active, Closing::ResetSent, AfterClose::None));
    }

    #[test]
    fn a_rst_long_after_the_close_explains_nothing() {
        let mut bench = Bench::new();
        let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).fin()];
        bench.run(chain(active_open(), close));
        bench.feed(rst(ResetDirection::Sent, CLOSE).after(RESET_GRACE_NS + 1));
        assert_eq!(story(&bench.ended()), (Opening::Active, Closing::Active, AfterClose::TimeWait));
        assert_eq!(bench.minis(), 1);
    }

    #[test]
    fn a_record_waits_for_a_rst_and_no_longer() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [p(ESTABLISHED, CLOSE)]));
        let closed_ns = bench.now_ns;
        bench.tracker.advance(closed_ns + RESET_GRACE_NS - 1, &mut bench.effects);
        assert_eq!(bench.effects.ended.len(), 0);
        bench.tracker.advance(closed_ns + RESET_GRACE_NS, &mut bench.effects);
        assert_eq!(bench.effects.ended.len(), 1);
        assert!(bench.tracker.is_empty());
    }

    #[test]
    fn disconnect_and_connect_again_are_two_connections_of_one_socket() {
        let again = tuple(40_001, 81);
        let steps = [
            p(ESTABLISHED, CLOSE).ends(Tuple { netns: NETNS, ..tuple(0, 0) }),
            p(CLOSE, SYN_SENT).ends(tuple(0, 81)).after(MICROSECOND),
            s(SYN_SENT, ESTABLISHED).ends(again),
            s(ESTABLISHED, CLOSE_WAIT).ends(again),
            p(CLOSE_WAIT, LAST_ACK).ends(again),
            s(LAST_ACK, CLOSE).ends(again),
        ];
        let mut bench = Bench::new();
        bench.run(chain(active_open(), steps));
        let ended = bench.all_ended();
        let [first, second] = &ended[..] else { panic!("two connections: {ended:#?}") };
        assert_eq!(story(first), (Opening::Active, Closing::ResetSent, AfterClose::None));
        assert_eq!(story(second), (Opening::Active, Closing::Passive, AfterClose::None));
        assert_eq!((first.tuple, second.tuple), (usual(), again));
        assert_eq!((first.socket.cookie, second.socket.cookie), (7, 7));
        assert_eq!(bench.repaired(), []);
    }

    #[test]
    fn the_peers_rst_ends_a_connection_from_any_state() {
        let ways: [(&[Step], State, Errno); 6] = [
            (&[], ESTABLISHED, Errno::ECONNRESET),
            (&[s(ESTABLISHED, CLOSE_WAIT)], CLOSE_WAIT, Errno::EPIPE),
            (&[p(ESTABLISHED, FIN_WAIT1)], FIN_WAIT1, Errno::ECONNRESET),
            (&[p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2)], FIN_WAIT2, Errno::ECONNRESET),
            (&[p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, CLOSING)], CLOSING, Errno::ECONNRESET),
            (&[s(ESTABLISHED, CLOSE_WAIT), p(CLOSE_WAIT, LAST_ACK)], LAST_ACK, Errno::ECONNRESET),
        ];
        for (way, from, error) in ways {
            let until = active_open().into_iter().chain(way.iter().copied());
            let told_by_error = until.clone().chain([s(from, CLOSE).error(error).inode(500)]);
            let connection = life(told_by_error);
            let expected = (Opening::Active, Closing::ResetReceived, AfterClose::None);
            assert_eq!((story(&connection), connection.error), (expected, error), "from {from}");
            assert_eq!(connection.inode, 500, "its file may still be open");
            let reset = rst(ResetDirection::Received, from);
            let told_by_rst = until.chain([reset, bare(from, CLOSE).after(MICROSECOND)]);
            assert_eq!(story(&life(told_by_rst)), expected, "from {from}, without BTF");
        }
    }

    #[test]
    fn data_after_close_is_an_abort_by_this_host() {
        let steps = [
            p(ESTABLISHED, FIN_WAIT1),
            s(FIN_WAIT1, FIN_WAIT2),
            rst(ResetDirection::Received, FIN_WAIT2),
            s(FIN_WAIT2, CLOSE).error(Errno::ECONNRESET).after(MICROSECOND),
            rst(ResetDirection::Sent, CLOSE),
        ];
        let connection = life(chain(active_open(), steps));
        assert_eq!(story(&connection), (Opening::Active, Closing::ResetSent, AfterClose::None));
        assert_eq!(connection.error, Errno::ECONNRESET);
    }

    #[test]
    fn a_keepalive_that_is_not_answered_is_a_timeout_though_a_rst_is_sent_before() {
        for from in [ESTABLISHED, CLOSE_WAIT] {
            let mut steps = active_open().to_vec();
            if from == CLOSE_WAIT {
                steps.push(s(ESTABLISHED, CLOSE_WAIT));
            }
            let reset = rst(ResetDirection::Sent, from).after(SECOND);
            steps.extend([reset, s(from, CLOSE).error(Errno::ETIMEDOUT).after(MICROSECOND)]);
            assert_eq!(story(&life(steps)), (Opening::Active, Closing::TimedOut, AfterClose::None), "from {from}");
        }
    }

    #[test]
    fn retransmissions_that_are_not_answered_are_a_timeout() {
        let timeout = Errno::ETIMEDOUT;
        let established = life(chain(active_open(), [s(ESTABLISHED, CLOSE).error(timeout)]));
        assert_eq!(story(&established), (Opening::Active, Closing::TimedOut, AfterClose::None));
        let orphan = [p(ESTABLISHED, FIN_WAIT1).bytes(0, 11), s(FIN_WAIT1, CLOSE).error(timeout).bytes(0, 11)];
        let orphan = life(chain(active_open(), orphan));
        assert_eq!(story(&orphan), (Opening::Active, Closing::TimedOut, AfterClose::None));
        assert_eq!(orphan.bytes_out, Some(10), "the FIN was not acknowledged");
    }

    #[test]
    fn fin_wait_1_straight_to_close_is_an_abort() {
        let connection = life(chain(active_open(), [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, CLOSE)]));
        assert_eq!(story(&connection), (Opening::Active, Closing::Aborted, AfterClose::None));
    }

    #[test]
    fn a_killed_connection_is_not_its_killers() {
        let killed = p(ESTABLISHED, CLOSE).by(77).error(Errno::ECONNABORTED);
        let connection = life(chain(passive_open(), [killed, rst(ResetDirection::Sent, CLOSE)]));
        assert_eq!(story(&connection), (Opening::Passive, Closing::Killed, AfterClose::None));
        assert_eq!(whose(&connection), None);
    }

    #[test]
    fn a_killed_listener_closes_twice_and_is_gone() {
        let mut bench = Bench::new();
        let local = Endpoint::new(address(1), 80);
        bench.run([
            listener(p(CLOSE, LISTEN), 1, local),
            listener(p(LISTEN, CLOSE), 1, local).by(77).error(Errno::ECONNABORTED),
            listener(p(CLOSE, CLOSE), 1, local).by(77).error(Errno::ECONNABORTED),
        ]);
        assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 0));
        assert_eq!(bench.all_ended(), []);
    }

    #[test]
    fn a_listener_that_closes_resets_the_children_that_nobody_accepted() {
        let mut bench = Bench::new();
        let local = Endpoint::new(address(1), 40_000);
        bench.feed(listener(p(CLOSE, LISTEN), 1, local));
        bench.run(passive_open());
        bench.feed(listener(p(LISTEN, CLOSE), 1, local));
        bench.feed(p(ESTABLISHED, CLOSE).after(MICROSECOND));
        bench.feed(rst(ResetDirection::Sent, CLOSE));
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::Passive, Closing::ResetSent, AfterClose::None));
        assert_eq!(connection.inode, 0);
        assert_eq!(whose(&connection), Some((APP, ProcessSource::Closer)));
    }

    #[test]
    fn a_shared_descriptor_is_closed_by_the_last_who_has_it() {
        let steps = [s(ESTABLISHED, CLOSE_WAIT), p(CLOSE_WAIT, LAST_ACK).by(12), s(LAST_ACK, CLOSE)];
        assert_eq!(whose(&life(chain(passive_open(), steps))), Some((12, ProcessSource::Closer)));
        let steps = [s(ESTABLISHED, CLOSE_WAIT), p(CLOSE_WAIT, LAST_ACK).by(12), s(LAST_ACK, CLOSE)];
        let connection = life(chain(active_open(), steps));
        assert_eq!(whose(&connection), Some((APP, ProcessSource::Opener)), "who opened it is kept");
    }

    #[test]
    fn nobody_is_named_for_an_mptcp_subflow() {
        let subflow = |step: Step| step.detail(|details| details.mptcp = true);
        let steps = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), p(FIN_WAIT2, CLOSE).fin()];
        let connection = life(chain(passive_open(), steps).into_iter().map(subflow));
        assert_eq!(whose(&connection), None);
    }

    #[test]
    fn without_btf_an_active_close_does_not_tell_what_it_leaves() {
        let steps = [
            bare(CLOSE, SYN_SENT),
            bare(SYN_SENT, ESTABLISHED),
            bare(ESTABLISHED, FIN_WAIT1),
            bare(FIN_WAIT1, FIN_WAIT2),
            bare(FIN_WAIT2, CLOSE),
        ];
        let connection = life(steps);
        assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::Unknown));
        assert_eq!(whose(&connection), Some((BYSTANDER, ProcessSource::Opener)), "connect() is in its caller, always");
        assert_eq!((connection.bytes_in, connection.bytes_out), (None, None));
    }

    #[test]
    fn without_btf_an_abort_is_told_by_the_rst_that_follows() {
        let until = [bare(CLOSE, SYN_SENT), bare(SYN_SENT, ESTABLISHED), bare(ESTABLISHED, CLOSE)];
        assert_eq!(life(until).closing, Some(Closing::Aborted));
        assert_eq!(life(chain(until, [rst(ResetDirection::Sent, CLOSE)])).closing, Some(Closing::ResetSent));
    }

    #[test]
    fn an_accepted_connection_is_its_closers_and_not_the_bystanders() {
        let mut bench = Bench::new();
        bench.run(passive_open());
        assert_eq!(whose(&bench.open()), None);
        bench.feed(s(ESTABLISHED, CLOSE_WAIT).inode(500));
        assert_eq!(whose(&bench.open()), None);
        bench.feed(p(CLOSE_WAIT, LAST_ACK).by(12));
        assert_eq!(whose(&bench.open()), Some((12, ProcessSource::Closer)));
    }

    #[test]
    fn an_open_connection_is_in_its_last_state_at_least_so_long() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT).bytes(11, 21).inode(500)]));
        bench.now_ns += 9 * SECOND;
        let connection = bench.open();
        let expected =
            [(SYN_SENT, 1, Certainty::Exact), (ESTABLISHED, 1, Certainty::Exact), (CLOSE_WAIT, 9, Certainty::AtLeast)];
        assert_eq!(spans(&connection), expected);
        assert_eq!((connection.ended_ns, connection.closing), (None, None));
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(10), Some(20)));
        assert_eq!(bench.tracker.open_in(CLOSE_WAIT, bench.now_ns).count(), 1);
        assert_eq!(bench.tracker.open_in(ESTABLISHED, bench.now_ns).count(), 0);
    }
}

mod sockets_without_cookies {
    use super::*;

    #[test]
    fn an_address_is_used_again_by_the_next_connection() {
        let mut bench = Bench::new();
        for port in [80, 81] {
            bench.run([
                p(CLOSE, SYN_SENT).at_address(1).ends(tuple(0, port)).after(MICROSECOND),
                s(SYN_SENT, ESTABLISHED).at_address(1).ends(tuple(40_000, port)),
                p(ESTABLISHED, CLOSE).at_address(1).ends(tuple(40_000, port)),
            ]);
        }
        let ended = bench.all_ended();
        let ports: Vec<u16> = ended.iter().map(|connection| connection.tuple.remote.port).collect();
        assert_eq!(ports, [80, 81]);
        assert_eq!(bench.repaired(), []);
        assert!(bench.tracker.is_empty());
        assert_eq!(bench.tracker.by_address, 0);
    }

    #[test]
    fn an_address_used_again_by_a_child_of_a_listener_means_that_a_close_was_missed() {
        let mut bench = Bench::new();
        bench.run([
            p(CLOSE, SYN_SENT).at_address(1),
            s(SYN_SENT, ESTABLISHED).at_address(1),
            s(LISTEN, SYN_RECV).at_address(1).ends(tuple(8080, 50_000)),
        ]);
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
        assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
        assert_eq!((bench.open().opening, bench.open().gap), (Opening::Passive, false));
    }

    #[test]
    fn an_address_used_again_by_a_listener_means_that_a_close_was_missed() {
        let mut bench = Bench::new();
        bench.run([p(CLOSE, SYN_SENT).at_address(1), p(CLOSE, LISTEN).at_address(1).ends(tuple(80, 0))]);
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
        assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 1));
    }

    #[test]
    fn a_cookie_that_comes_later_keeps_the_connection() {
        let mut bench = Bench::new();
        bench.run([
            p(CLOSE, SYN_SENT).at_address(1),
            s(SYN_SENT, ESTABLISHED).at_address(1),
            s(ESTABLISHED, CLOSE_WAIT).on(9, 1),
            p(CLOSE_WAIT, LAST_ACK).on(9, 1),
            s(LAST_ACK, CLOSE).on(9, 1),
        ]);
        assert_eq!(bench.tracker.by_address, 0);
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::Active, Closing::Passive, AfterClose::None));
        assert_eq!(connection.socket.cookie, 9);
        assert_eq!(bench.repaired(), []);
    }

    #[test]
    fn a_cookie_that_comes_with_the_close_keeps_the_connection() {
        let mut bench = Bench::new();
        bench.run([p(CLOSE, SYN_SENT).at_address(1), s(SYN_SENT, CLOSE).on(9, 1).error(Errno::ECONNREFUSED)]);
        assert_eq!((bench.ended().opening, bench.repaired()), (Opening::Active, vec![]));
        assert!(bench.tracker.is_empty());
    }

    #[test]
    fn a_cookie_on_a_reused_address_does_not_take_the_closed_connection_over() {
        let mut bench = Bench::new();
        bench.run([
            p(CLOSE, SYN_SENT).at_address(1),
            s(SYN_SENT, CLOSE).at_address(1).error(Errno::ECONNREFUSED),
            p(CLOSE, SYN_SENT).on(9, 1).after(MICROSECOND),
            s(SYN_SENT, ESTABLISHED).on(9, 1),
        ]);
        assert_eq!(bench.ended().closing, Some(Closing::Refused));
        assert_eq!((bench.open().socket.cookie, bench.repaired()), (9, vec![]));
    }

    #[test]
    fn a_rst_finds_the_connection_by_its_address() {
        let mut bench = Bench::new();
        bench.run([
            bare(CLOSE, SYN_SENT).at_address(1),
            rst(ResetDirection::Received, SYN_SENT).on(9, 1),
            bare(SYN_SENT, CLOSE).at_address(1),
        ]);
        assert_eq!(bench.ended().closing, Some(Closing::Refused));
    }

    #[test]
    fn a_connection_that_a_dump_gave_a_cookie_is_still_found_by_its_address() {
        for cookie in [0, 9] {
            let mut bench = Bench::new();
            bench.run([p(CLOSE, SYN_SENT).at_address(1), s(SYN_SENT, ESTABLISHED).at_address(1)]);
            bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
            assert_eq!(bench.open().socket.cookie, 9, "the dump told it");
            bench.feed(p(ESTABLISHED, CLOSE).on(cookie, 1));
            assert_eq!(bench.ended().opening, Opening::Active);
            assert_eq!(bench.repaired(), []);
            assert!(bench.tracker.is_empty());
        }
    }

    #[test]
    fn another_cookie_at_the_same_ends_is_another_connection() {
        let mut bench = Bench::new();
        bench.run([p(CLOSE, SYN_SENT).at_address(1), s(SYN_SENT, ESTABLISHED).at_address(1)]);
        bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
        bench.merge(MergeKind::Resync, [dumped(10, usual(), ESTABLISHED)]);
        assert_eq!(bench.ended().socket.cookie, 9);
        assert_eq!(bench.open().socket.cookie, 10);
    }

    #[test]
    fn a_later_connection_at_the_same_ends_is_found_by_what_the_dump_tells() {
        let mut bench = Bench::new();
        let before = [p(CLOSE, SYN_SENT), s(SYN_SENT, ESTABLISHED), p(ESTABLISHED, FIN_WAIT1)];
        bench.run(before.map(|step| step.at_address(1)));
        bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
        bench.feed(p(ESTABLISHED, CLOSE).at_address(1));
        assert_eq!((bench.ended().socket.cookie, bench.tracker.len()), (9, 0));
    }

    #[test]
    fn a_dump_finds_the_connection_of_an_event_that_could_not_tell_its_namespace() {
        let nowhere = Tuple { netns: 0, ..usual() };
        let mut bench = Bench::new();
        bench.run([
            bare(CLOSE, SYN_SENT).at_address(1).ends(nowhere),
            bare(SYN_SENT, ESTABLISHED).at_address(1).ends(nowhere),
        ]);
        bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
        assert_eq!((bench.open().socket.cookie, bench.open().tuple), (9, usual()));
        bench.feed(bare(ESTABLISHED, CLOSE).at_address(1).ends(nowhere));
        assert_eq!(bench.ended().opening, Opening::Active);
        assert_eq!(bench.repaired(), []);
    }

    #[test]
    fn an_event_without_a_cookie_finds_what_a_dump_found_by_its_ends() {
        for netns in [NETNS, 0] {
            let ends = Tuple { netns, ..usual() };
            let mut bench = Bench::new();
            bench.merge(
                MergeKind::StartUp,
                [dumped(8, tuple(1, 2), ESTABLISHED), Socket { inode: 1012, ..dumped(9, usual(), CLOSE_WAIT) }],
            );
            bench.feed(bare(CLOSE_WAIT, LAST_ACK).at_address(1).ends(ends));
            bench.feed(bare(LAST_ACK, CLOSE).at_address(1).ends(ends));
            let connection = bench.ended();
            assert_eq!(story(&connection), (Opening::PreExisting, Closing::Passive, AfterClose::None));
            assert_eq!((connection.socket.cookie, connection.tuple), (9, usual()));
            assert_eq!((bench.open().socket.cookie, bench.repaired()), (8, vec![]));
        }
    }

    #[test]
    fn one_that_closed_while_the_dump_was_taken_is_not_brought_back() {
        let mut bench = Bench::new();
        bench.run([p(CLOSE, SYN_SENT).at_address(1), s(SYN_SENT, ESTABLISHED).at_address(1)]);
        let started_ns = bench.now_ns + 1;
        bench.tracker.snapshot_begins();
        bench.feed(p(ESTABLISHED, CLOSE).at_address(1));
        bench.ended();
        bench.merge_begun(MergeKind::Resync, started_ns, [dumped(9, usual(), ESTABLISHED)]);
        assert!(bench.tracker.is_empty());
        assert_eq!(bench.repaired(), []);
    }

    #[test]
    fn a_listener_whose_cookie_came_later_is_removed_by_either() {
        let mut bench = Bench::new();
        let place = tuple(80, 0);
        bench.feed(p(CLOSE, LISTEN).at_address(1).ends(place));
        bench.feed(p(LISTEN, CLOSE).on(9, 1).ends(place));
        assert_eq!(bench.tracker.listener_count(), 0);
    }
}

mod missed {
    use super::*;

    /// After `before` and everything up to `revealing` missed: what is repaired, and the connection when it closes.
    fn after_a_gap(before: &[Step], revealing: Step, expected: &[(State, State)]) -> Connection {
        let mut bench = Bench::new();
        bench.run(before.iter().copied());
        let known_ns = bench.now_ns;
        let annotation = bench.feed(revealing.after(5 * SECOND));
        assert_eq!(annotation.in_state_ns, None, "when the state began was missed");
        assert_eq!(bench.repaired(), expected);
        for repaired in &bench.effects.repaired {
            assert_eq!(repaired.origin, Origin::Repaired);
            assert_eq!(repaired.mono_ns, bench.now_ns, "the latest that it can have been");
            assert_eq!((repaired.socket.cookie, repaired.tuple), (7, usual()));
            assert_eq!((repaired.task, repaired.details), (Task::default(), None));
            assert_eq!(repaired.owner(), None);
        }
        let Event::Transition(Transition { new, .. }) = revealing.event else { unreachable!() };
        if new != CLOSE {
            bench.feed(p(new, CLOSE));
        }
        let connection = bench.ended();
        assert!(connection.gap);
        let lasted = connection.ended_ns.expect("it ended") - connection.opened_ns.expect("its opening was seen");
        assert_eq!(connection.duration_ns(), lasted);
        let uncertain = connection.spans.iter().find(|span| span.certainty == Certainty::Unknown);
        assert_eq!(uncertain.map(|span| span.ns), Some(5 * SECOND), "since {known_ns}");
        assert!(bench.tracker.is_empty());
        connection
    }

    #[test]
    fn an_opening_that_was_missed_where_all_sockets_are_known_is_repaired_to_its_start() {
        let mut bench = Bench::new();
        bench.merge(MergeKind::StartUp, []);
        bench.run([s(State::ESTABLISHED, State::CLOSE_WAIT)]);
        assert_eq!(
            bench.repaired(),
            [(State::CLOSE, State::SYN_SENT), (State::SYN_SENT, State::ESTABLISHED)],
            "nobody listens on the port, so this side connected"
        );
        let connection = bench.open();
        assert_eq!((connection.opening, connection.opened_ns, connection.gap), (Opening::Active, None, true));
    }

    #[test]
    fn a_missed_passive_opening_is_known_by_its_listener() {
        let mut bench = Bench::new();
        bench.merge(MergeKind::StartUp, []);
        let listener = Tuple { remote: Endpoint::UNKNOWN, ..usual() };
        bench.run([p(State::CLOSE, State::LISTEN).on(1, 0x100).ends(listener)]);
        bench.run([s(State::SYN_RECV, State::ESTABLISHED)]);
        assert_eq!(bench.repaired(), [(State::LISTEN, State::SYN_RECV)]);
        let connection = bench.open();
        assert_eq!((connection.opening, connection.gap), (Opening::Passive, true));
        assert_eq!(connection.process.map(|process| process.pid), Some(APP));
    }

    #[test]
    fn where_not_all_sockets_are_known_nothing_is_claimed_to_have_been_missed() {
        let mut bench = Bench::new();
        bench.run([s(State::ESTABLISHED, State::CLOSE_WAIT)]);
        assert_eq!((bench.repaired(), bench.open().opening), (vec![], Opening::PreExisting));
        let mut bench = Bench::new();
        bench.merge(MergeKind::StartUp, []);
        let wiped = Tuple { local: Endpoint::UNKNOWN, remote: Endpoint::UNKNOWN, ..usual() };
        bench.run([p(State::ESTABLISHED, State::CLOSE).ends(wiped)]);
        assert_eq!(bench.repaired(), [], "a filter may have left this socket out");
    }

    #[test]
    fn the_establishment_is_repaired() {
        let before = [p(CLOSE, SYN_SENT)];
        let connection = after_a_gap(&before, s(ESTABLISHED, CLOSE_WAIT), &[(SYN_SENT, ESTABLISHED)]);
        assert_eq!(story(&connection), (Opening::Active, Closing::ResetSent, AfterClose::None));
        let expected = [
            (SYN_SENT, 5, Certainty::Unknown),
            (ESTABLISHED, 0, Certainty::Unknown),
            (CLOSE_WAIT, 1, Certainty::Exact),
        ];
        assert_eq!(spans(&connection), expected);
        let before = [s(LISTEN, SYN_RECV)];
        let connection = after_a_gap(&before, s(ESTABLISHED, CLOSE_WAIT), &[(SYN_RECV, ESTABLISHED)]);
        assert_eq!(connection.opening, Opening::Passive);
    }

    #[test]
    fn several_steps_in_a_row_are_repaired_in_order() {
        let missed = [(SYN_SENT, ESTABLISHED), (ESTABLISHED, CLOSE_WAIT), (CLOSE_WAIT, LAST_ACK)];
        let connection = after_a_gap(&[p(CLOSE, SYN_SENT)], s(LAST_ACK, CLOSE), &missed);
        assert_eq!(story(&connection), (Opening::Active, Closing::Passive, AfterClose::None));
        let missed = [(SYN_SENT, ESTABLISHED), (ESTABLISHED, FIN_WAIT1), (FIN_WAIT1, FIN_WAIT2)];
        let connection = after_a_gap(&[p(CLOSE, SYN_SENT)], s(FIN_WAIT2, CLOSE).fin(), &missed);
        assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::TimeWait));
    }

    #[test]
    fn the_first_fin_is_repaired_on_either_side() {
        let connection = after_a_gap(&active_open(), s(CLOSE_WAIT, LAST_ACK), &[(ESTABLISHED, CLOSE_WAIT)]);
        assert_eq!(connection.opening, Opening::Active);
        after_a_gap(&active_open(), s(FIN_WAIT1, FIN_WAIT2), &[(ESTABLISHED, FIN_WAIT1)]);
        let missed = [(ESTABLISHED, FIN_WAIT1), (FIN_WAIT1, CLOSING)];
        let connection = after_a_gap(&active_open(), s(CLOSING, CLOSE), &missed);
        assert_eq!(connection.closing, Some(Closing::Simultaneous));
    }

    #[test]
    fn the_second_fin_is_repaired() {
        let before = chain(active_open(), [p(ESTABLISHED, FIN_WAIT1)]);
        let connection = after_a_gap(&before, s(FIN_WAIT2, CLOSE).fin(), &[(FIN_WAIT1, FIN_WAIT2)]);
        assert_eq!(connection.after_close, AfterClose::TimeWait);
        let before = chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT)]);
        let connection = after_a_gap(&before, s(LAST_ACK, CLOSE).fin(), &[(CLOSE_WAIT, LAST_ACK)]);
        assert_eq!(connection.closing, Some(Closing::Passive));
    }

    #[test]
    fn a_self_transition_reveals_as_well() {
        let before = chain(active_open(), [p(ESTABLISHED, FIN_WAIT1)]);
        after_a_gap(&before, p(FIN_WAIT2, FIN_WAIT2), &[(FIN_WAIT1, FIN_WAIT2)]);
    }

    #[test]
    fn a_new_connect_on_the_socket_ends_the_one_before() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT).bytes(101, 51)]));
        bench.run([p(CLOSE, SYN_SENT).ends(tuple(0, 81)).after(5 * SECOND)]);
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::Active, Closing::Unknown, AfterClose::Unknown));
        assert_eq!(connection.ended_ns, Some(bench.now_ns));
        assert_eq!(connection.spans.last().map(|span| span.certainty), Some(Certainty::Unknown));
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
        assert!(connection.gap);
        assert_eq!(bench.repaired(), [(CLOSE_WAIT, CLOSE)]);
        assert_eq!((bench.open().gap, bench.open().opened_ns), (false, Some(bench.now_ns)));
    }

    #[test]
    fn a_handshake_on_an_established_socket_is_that_of_a_later_connection() {
        let later = tuple(40_001, 80);
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [s(SYN_SENT, ESTABLISHED).ends(later)]));
        let connection = bench.ended();
        assert_eq!((connection.closing, connection.tuple), (Some(Closing::Unknown), usual()));
        assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
        let open = bench.open();
        assert_eq!((open.opening, open.opened_ns, open.gap, open.tuple), (Opening::Active, None, true, later));
    }

    #[test]
    fn a_state_that_cannot_come_after_the_known_one_is_that_of_a_later_connection() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT), p(FIN_WAIT1, FIN_WAIT1)]));
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
        assert_eq!(bench.repaired(), [(CLOSE_WAIT, CLOSE)]);
        assert_eq!(spans(&bench.open()), [(FIN_WAIT1, 0, Certainty::AtLeast)]);
    }

    #[test]
    fn other_ends_are_those_of_a_later_connection() {
        let later = tuple(40_001, 81);
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT).ends(later)]));
        let connection = bench.ended();
        assert_eq!((connection.closing, connection.tuple), (Some(Closing::Unknown), usual()));
        assert_eq!((bench.open().tuple, bench.open().opening), (later, Opening::PreExisting));
    }

    #[test]
    fn a_listeners_close_on_a_connection_means_that_its_close_was_missed() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [p(LISTEN, CLOSE)]));
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
        assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
    }

    #[test]
    fn a_kill_of_what_is_closed_already_means_that_its_close_was_missed() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [p(CLOSE, CLOSE).by(77).error(Errno::ECONNABORTED)]));
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
        assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
    }

    #[test]
    fn a_kill_of_what_was_seen_to_close_changes_nothing() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [p(ESTABLISHED, CLOSE), p(CLOSE, CLOSE).by(77).after(MICROSECOND)]));
        bench.feed(rst(ResetDirection::Sent, CLOSE));
        assert_eq!((bench.ended().closing, bench.repaired()), (Some(Closing::ResetSent), vec![]));
    }

    #[test]
    fn a_connection_first_heard_of_in_the_middle_was_there_before() {
        let mut bench = Bench::new();
        let annotation = bench.feed(s(ESTABLISHED, CLOSE_WAIT).bytes(101, 51));
        assert_eq!(annotation.in_state_ns, None);
        bench.run([p(CLOSE_WAIT, LAST_ACK).bytes(101, 51).fin(), s(LAST_ACK, CLOSE).bytes(101, 52).fin()]);
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::PreExisting, Closing::Passive, AfterClose::None));
        assert_eq!((connection.opened_ns, connection.gap, bench.repaired()), (None, false, vec![]));
        let expected =
            [(ESTABLISHED, 0, Certainty::AtLeast), (CLOSE_WAIT, 1, Certainty::Exact), (LAST_ACK, 1, Certainty::Exact)];
        assert_eq!(spans(&connection), expected);
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)), "nobody listens there: our SYN");
    }

    #[test]
    fn a_connection_first_heard_of_on_a_served_port_has_no_syn_of_ours() {
        let mut bench = Bench::new();
        bench.feed(listener(p(CLOSE, LISTEN), 1, Endpoint::new(Address::v4([0; 4]), 40_000)));
        bench.feed(s(ESTABLISHED, CLOSE_WAIT).bytes(101, 51));
        assert_eq!(bench.open().bytes_out, Some(51));
    }

    #[test]
    fn a_connection_first_heard_of_in_its_handshake_has_a_gap() {
        for (old, opening) in [(SYN_SENT, Opening::Active), (SYN_RECV, Opening::Passive)] {
            let mut bench = Bench::new();
            bench.run([s(old, ESTABLISHED), p(ESTABLISHED, CLOSE)]);
            let connection = bench.ended();
            assert_eq!(story(&connection), (opening, Closing::ResetSent, AfterClose::None));
            assert_eq!((connection.opened_ns, connection.gap), (None, true));
            assert_eq!(spans(&connection), [(old, 0, Certainty::Unknown), (ESTABLISHED, 1, Certainty::Exact)]);
        }
    }

    #[test]
    fn a_close_alone_is_a_connection_too() {
        let mut bench = Bench::new();
        bench.feed(s(LAST_ACK, CLOSE));
        assert_eq!(story(&bench.ended()), (Opening::PreExisting, Closing::Passive, AfterClose::None));
    }

    #[test]
    fn a_reset_of_a_socket_that_is_not_known_is_nothing() {
        let mut bench = Bench::new();
        bench.feed(rst(ResetDirection::Sent, ESTABLISHED));
        bench.feed(rst(ResetDirection::Received, ESTABLISHED));
        assert!(bench.tracker.is_empty());
    }

    #[test]
    fn states_without_a_name_are_carried_along() {
        let odd = State(77);
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [s(ESTABLISHED, odd), s(odd, CLOSE)]));
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::Active, Closing::Aborted, AfterClose::None));
        assert_eq!(spans(&connection), exactly(&[SYN_SENT, ESTABLISHED, odd]));
        assert_eq!(bench.repaired(), []);
    }

    #[test]
    fn a_state_without_a_name_that_was_reached_unseen_is_repaired_as_it_is() {
        let odd = State(200);
        let connection = after_a_gap(&active_open(), s(odd, CLOSE), &[(ESTABLISHED, odd)]);
        assert_eq!(connection.closing, Some(Closing::Aborted));
    }

    #[test]
    fn more_states_than_a_life_has_lose_their_names_and_not_their_time() {
        let odd = |number: u8| State(100 + number);
        let steps = (0..10).map(|number| s(odd(number), odd(number + 1)));
        let mut bench = Bench::new();
        bench.run(active_open().into_iter().chain([s(ESTABLISHED, odd(0))]).chain(steps));
        bench.feed(s(odd(10), CLOSE));
        let connection = bench.ended();
        assert_eq!(connection.duration_ns(), 13 * SECOND);
        assert_eq!(connection.spans.last().map(|span| span.certainty), Some(Certainty::Unknown));
    }

    #[test]
    fn time_that_runs_backwards_counts_as_none() {
        let mut bench = Bench::new();
        bench.run(active_open());
        bench.now_ns -= 10 * SECOND;
        bench.feed(p(ESTABLISHED, CLOSE));
        let connection = bench.ended();
        assert_eq!(spans(&connection), [(SYN_SENT, 1, Certainty::Exact), (ESTABLISHED, 0, Certainty::Exact)]);
        assert_eq!(connection.ended_ns.zip(connection.opened_ns).map(|(end, start)| end - start), Some(SECOND));
    }
}

mod listeners_owners {
    use super::*;

    const ANY: Address = Address::v4([0; 4]);

    /// Who a connection to 10.0.0.1:80 is said to belong to with these listeners there.
    fn owner(listeners: &[(Address, u16, u32)]) -> Option<(u32, ProcessSource)> {
        let mut bench = Bench::new();
        for (cookie, (address, port, pid)) in (100..).zip(listeners) {
            bench.feed(listener(p(CLOSE, LISTEN), cookie, Endpoint::new(*address, *port)).by(*pid));
        }
        bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
        whose(&bench.open())
    }

    #[test]
    fn a_passive_connection_is_its_listeners() {
        assert_eq!(owner(&[(address(1), 80, 11)]), Some((11, ProcessSource::Listener)));
        assert_eq!(owner(&[(ANY, 80, 11)]), Some((11, ProcessSource::Listener)));
        assert_eq!(owner(&[(Address::UNSPECIFIED, 80, 11)]), Some((11, ProcessSource::Listener)));
    }

    #[test]
    fn a_listener_elsewhere_has_nothing_to_do_with_it() {
        assert_eq!(owner(&[(address(1), 81, 11)]), None);
        assert_eq!(owner(&[(address(3), 80, 11)]), None);
        assert_eq!(owner(&[]), None);
    }

    #[test]
    fn the_exact_address_goes_before_the_wildcard() {
        assert_eq!(owner(&[(ANY, 80, 11), (address(1), 80, 12)]), Some((12, ProcessSource::Listener)));
        assert_eq!(owner(&[(address(1), 80, 12), (ANY, 80, 11)]), Some((12, ProcessSource::Listener)));
    }

    #[test]
    fn several_processes_on_one_port_leave_it_open() {
        assert_eq!(owner(&[(ANY, 80, 11), (ANY, 80, 12)]), None);
        assert_eq!(owner(&[(address(1), 80, 11), (address(1), 80, 12)]), None);
        assert_eq!(owner(&[(ANY, 80, 11), (ANY, 80, 11)]), Some((11, ProcessSource::Listener)));
    }

    #[test]
    fn before_linux_6_15_a_child_begins_with_the_listeners_address() {
        let mut bench = Bench::new();
        let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
        bench.feed(listener(p(CLOSE, LISTEN), 100, place.local).by(11));
        bench.feed(s(LISTEN, SYN_RECV).ends(place));
        assert_eq!(whose(&bench.open()), Some((11, ProcessSource::Listener)));
        bench.feed(s(SYN_RECV, ESTABLISHED).ends(tuple(80, 50_000)));
        assert_eq!(bench.open().tuple, tuple(80, 50_000));
    }

    #[test]
    fn one_namespace_does_not_answer_for_another() {
        let mut bench = Bench::new();
        bench.feed(listener(p(CLOSE, LISTEN), 100, Endpoint::new(ANY, 80)));
        bench.feed(s(LISTEN, SYN_RECV).ends(Tuple { netns: 2, ..tuple(80, 50_000) }));
        assert_eq!(whose(&bench.open()), None);
    }

    #[test]
    fn a_listener_that_closed_answers_for_nothing() {
        let mut bench = Bench::new();
        let local = Endpoint::new(ANY, 80);
        bench.feed(listener(p(CLOSE, LISTEN), 100, local).by(11));
        bench.feed(listener(p(LISTEN, CLOSE), 100, local).by(11));
        bench.feed(listener(p(CLOSE, LISTEN), 101, local).by(12));
        bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
        assert_eq!(whose(&bench.open()), Some((12, ProcessSource::Listener)));
    }

    #[test]
    fn a_listener_whose_close_was_missed_answers_for_nothing_once_its_socket_connects() {
        let mut bench = Bench::new();
        bench.feed(listener(p(CLOSE, LISTEN), 100, Endpoint::new(ANY, 80)));
        bench.feed(p(CLOSE, SYN_SENT).on(100, 1));
        assert_eq!(bench.tracker.listener_count(), 0);
    }

    #[test]
    fn a_dump_finds_the_owners_of_listeners_that_were_there_before() {
        let mut bench = Bench::new();
        let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
        bench.merge(MergeKind::StartUp, [Socket { inode: 1011, ..dumped(100, place, LISTEN) }]);
        assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 1));
        bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
        assert_eq!(whose(&bench.open()), Some((11, ProcessSource::Listener)));
    }

    #[test]
    fn a_dump_does_not_replace_the_owner_that_listen_told() {
        let mut bench = Bench::new();
        let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
        bench.feed(listener(p(CLOSE, LISTEN), 100, place.local).by(11));
        bench.merge(MergeKind::Resync, [Socket { inode: 1012, ..dumped(100, place, LISTEN) }]);
        bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
        assert_eq!(whose(&bench.open()), Some((11, ProcessSource::Listener)));
    }

    #[test]
    fn a_listener_that_a_complete_dump_does_not_have_is_gone() {
        let mut bench = Bench::new();
        bench.feed(listener(p(CLOSE, LISTEN), 100, Endpoint::new(ANY, 80)));
        bench.feed(listener(p(CLOSE, LISTEN), 101, Endpoint::new(ANY, 81)));
        let elsewhere = Tuple { netns: 2, local: Endpoint::new(ANY, 82), remote: Endpoint::UNKNOWN };
        bench.feed(p(CLOSE, LISTEN).on(102, 102).ends(elsewhere));
        let started_ns = bench.now_ns + 1;
        bench.tracker.snapshot_begins();
        bench.feed(listener(p(CLOSE, LISTEN), 103, Endpoint::new(ANY, 83)));
        let there = Tuple { netns: NETNS, local: Endpoint::new(ANY, 81), remote: Endpoint::UNKNOWN };
        bench.merge_begun(MergeKind::Resync, started_ns, [dumped(101, there, LISTEN)]);
        let owned = |port, netns| {
            let ends = Tuple { netns, local: Endpoint::new(ANY, port), remote: Endpoint::UNKNOWN };
            bench.tracker.listeners.owner_for(&ends).is_some()
        };
        let found = [owned(80, NETNS), owned(81, NETNS), owned(82, 2), owned(83, NETNS)];
        assert_eq!(found, [false, true, true, true]);
    }

    #[test]
    fn a_listener_that_closed_while_the_dump_was_taken_is_not_brought_back() {
        let mut bench = Bench::new();
        let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
        bench.feed(listener(p(CLOSE, LISTEN), 100, place.local));
        let started_ns = bench.now_ns + 1;
        bench.tracker.snapshot_begins();
        bench.feed(listener(p(LISTEN, CLOSE), 100, place.local));
        bench.merge_begun(MergeKind::StartUp, started_ns, [dumped(100, place, LISTEN)]);
        assert_eq!(bench.tracker.listener_count(), 0);
    }

    #[test]
    fn a_listener_known_by_its_address_is_not_found_twice() {
        let mut bench = Bench::new();
        let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
        bench.feed(p(CLOSE, LISTEN).at_address(1).ends(place));
        bench.merge(MergeKind::Resync, [dumped(100, place, LISTEN)]);
        assert_eq!(bench.tracker.listener_count(), 1);
        bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
        assert_eq!(whose(&bench.open()), Some((APP, ProcessSource::Listener)));
        bench.feed(p(LISTEN, CLOSE).on(100, 1).ends(place));
        assert_eq!(bench.tracker.listener_count(), 0);
    }
}

mod eviction {
    use super::*;

    fn bench(max_connections: usize) -> Bench {
        Bench::with(Limits { max_connections, ..Limits::default() })
    }

    fn port(port: u16) -> Step {
        p(CLOSE, SYN_SENT).on(u64::from(port), u64::from(port)).ends(tuple(port, 80))
    }

    fn refused(port: u16) -> Step {
        let step = s(SYN_SENT, CLOSE).error(Errno::ECONNREFUSED);
        step.on(u64::from(port), u64::from(port)).ends(tuple(port, 80))
    }

    #[test]
    fn beyond_the_limit_one_goes_for_each_new_one_and_is_counted() {
        let mut bench = bench(3);
        for number in 1..=10 {
            bench.feed(port(number));
            assert!(bench.tracker.len() <= 3);
        }
        assert_eq!(bench.tracker.counts(), Counts { repaired: 0, evicted: 7 });
        assert_eq!(bench.all_ended(), [], "nothing is known of how they ended");
        let mut left: Vec<u16> =
            bench.tracker.open_connections(bench.now_ns).map(|connection| connection.tuple.local.port).collect();
        left.sort_unstable();
        assert!(left.contains(&10), "the newest is there: {left:?}");
    }

    #[test]
    fn one_in_close_wait_is_kept_before_others() {
        let mut bench = bench(4);
        bench.feed(port(1));
        let stuck = |step: Step| step.on(1, 1).ends(tuple(1, 80));
        bench.feed(stuck(s(SYN_SENT, ESTABLISHED)));
        bench.feed(stuck(s(ESTABLISHED, CLOSE_WAIT)));
        for number in 2..=50 {
            bench.feed(port(number));
        }
        assert_eq!(bench.tracker.open_in(CLOSE_WAIT, bench.now_ns).count(), 1);
        assert_eq!((bench.tracker.len(), bench.tracker.counts().evicted), (4, 46));
    }

    #[test]
    fn when_all_are_in_close_wait_one_goes_nevertheless() {
        let mut bench = bench(2);
        for number in 1..=5 {
            let cookie = u64::from(number);
            bench.feed(s(ESTABLISHED, CLOSE_WAIT).on(cookie, cookie).ends(tuple(number, 80)));
        }
        assert_eq!((bench.tracker.len(), bench.tracker.counts().evicted), (2, 3));
    }

    #[test]
    fn closed_ones_make_room_first_and_are_handed_out() {
        let mut bench = bench(2);
        bench.feed(port(1));
        bench.feed(port(2));
        bench.feed(refused(1));
        bench.feed(port(3).after(MICROSECOND));
        assert_eq!(bench.tracker.counts().evicted, 0);
        assert_eq!(only(std::mem::take(&mut bench.effects.ended)).closing, Some(Closing::Refused));
        assert_eq!(bench.tracker.len(), 2);
    }

    #[test]
    fn a_socket_that_reconnected_while_it_waited_makes_no_room_of_its_own() {
        let mut bench = bench(2);
        bench.feed(port(1));
        bench.feed(port(2));
        bench.feed(refused(1));
        bench.feed(port(1).after(MICROSECOND));
        bench.feed(port(3).after(MICROSECOND));
        assert_eq!((bench.tracker.len(), bench.tracker.counts().evicted), (2, 1));
    }

    #[test]
    fn an_evicted_connection_that_is_heard_of_again_was_there_before() {
        let mut bench = bench(1);
        bench.feed(port(1));
        bench.feed(port(2));
        bench.feed(s(ESTABLISHED, CLOSE_WAIT).on(1, 1).ends(tuple(1, 80)));
        assert_eq!((bench.open().opening, bench.open().gap), (Opening::PreExisting, false));
        assert_eq!(bench.tracker.len(), 1);
    }

    #[test]
    fn a_dump_keeps_the_limit_too() {
        let mut bench = bench(3);
        bench.merge(
            MergeKind::StartUp,
            (1..=10).map(|number| dumped(u64::from(number), tuple(number, 80), ESTABLISHED)),
        );
        assert_eq!((bench.tracker.len(), bench.tracker.counts().evicted), (3, 7));
    }

    #[test]
    fn those_known_by_address_are_let_go_as_well() {
        let mut bench = bench(2);
        for number in 1..=5 {
            bench.feed(port(number).at_address(u64::from(number)));
        }
        assert_eq!((bench.tracker.len(), bench.tracker.by_key.len(), bench.tracker.by_address), (2, 2, 2));
    }
}

mod snapshots {
    use super::*;

    #[test]
    fn a_connection_that_no_event_told_of_was_there_before() {
        let mut bench = Bench::new();
        let info = TcpInfo { bytes_acked: 51, bytes_received: 100, ..TcpInfo::default() };
        let socket = Socket { inode: 1012, cgroup: 3, info: Some(info), ..dumped(9, usual(), ESTABLISHED) };
        bench.merge(MergeKind::StartUp, [socket]);
        bench.now_ns += 4 * SECOND;
        let connection = bench.open();
        assert_eq!((connection.opening, connection.opened_ns, connection.gap), (Opening::PreExisting, None, false));
        assert_eq!(spans(&connection), [(ESTABLISHED, 4, Certainty::AtLeast)]);
        assert_eq!((connection.inode, connection.cgroup), (1012, 3));
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
        assert_eq!(whose(&connection), Some((12, ProcessSource::Holder)));
        assert_eq!(bench.repaired(), []);
    }

    #[test]
    fn it_goes_on_with_the_events_that_follow() {
        let mut bench = Bench::new();
        bench.merge(MergeKind::StartUp, [Socket { inode: 1012, ..dumped(7, usual(), ESTABLISHED) }]);
        assert_eq!(bench.feed(s(ESTABLISHED, CLOSE_WAIT)).in_state_ns, None);
        assert_eq!(bench.feed(p(CLOSE_WAIT, LAST_ACK).by(13)).in_state_ns, Some(SECOND));
        bench.feed(s(LAST_ACK, CLOSE));
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::PreExisting, Closing::Passive, AfterClose::None));
        let expected =
            [(ESTABLISHED, 1, Certainty::AtLeast), (CLOSE_WAIT, 1, Certainty::Exact), (LAST_ACK, 1, Certainty::Exact)];
        assert_eq!(spans(&connection), expected);
        assert_eq!(whose(&connection), Some((13, ProcessSource::Closer)), "who closed it is better known");
    }

    #[test]
    fn the_last_ack_is_a_lower_bound_for_the_age_of_a_close_wait() {
        let mut bench = Bench::new();
        let info = TcpInfo { last_ack_recv_ms: 90_000, ..TcpInfo::default() };
        let socket = Socket { inode: 1012, info: Some(info), ..dumped(9, usual(), CLOSE_WAIT) };
        bench.merge(MergeKind::StartUp, [socket]);
        let connection = bench.open();
        assert_eq!(spans(&connection), [(CLOSE_WAIT, 90, Certainty::AtLeast)]);
        assert_eq!(connection.inode, 1012);
    }

    #[test]
    fn a_connection_through_a_listener_that_nobody_accepted_is_the_listeners() {
        let mut bench = Bench::new();
        let place = Tuple { netns: NETNS, local: Endpoint::new(address(1), 40_000), remote: Endpoint::UNKNOWN };
        let info = TcpInfo { bytes_acked: 50, ..TcpInfo::default() };
        let sockets = [
            Socket { info: Some(info), ..dumped(9, usual(), ESTABLISHED) },
            Socket { inode: 1011, ..dumped(8, place, LISTEN) },
        ];
        bench.merge(MergeKind::StartUp, sockets);
        assert_eq!(whose(&bench.open()), Some((11, ProcessSource::Listener)));
        assert_eq!(bench.open().bytes_out, Some(50), "our SYN was none");
        bench.merge(MergeKind::Resync, [sockets[0]]);
        assert_eq!(bench.tracker.listener_count(), 0);
        assert_eq!(bench.open().bytes_out, Some(50), "which the end of its listener does not change");
    }

    #[test]
    fn minis_and_requests_are_no_connections() {
        let mut bench = Bench::new();
        let mini = SocketKind::Mini { expires_in_ms: 30_000 };
        let sockets = [
            Socket { kind: mini, ..dumped(9, usual(), State::TIME_WAIT) },
            Socket { kind: SocketKind::Request, ..dumped(8, tuple(80, 50_000), SYN_RECV) },
        ];
        bench.merge(MergeKind::StartUp, sockets);
        assert!(bench.tracker.is_empty());
        assert_eq!(bench.minis(), 1);
    }

    #[test]
    fn a_later_event_wins_over_the_dump() {
        let mut bench = Bench::new();
        let started_ns = bench.now_ns;
        bench.tracker.snapshot_begins();
        bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT)]));
        let socket = Socket { inode: 1012, ..dumped(7, usual(), ESTABLISHED) };
        bench.merge_begun(MergeKind::StartUp, started_ns, [socket]);
        let connection = bench.open();
        assert_eq!(connection.spans.last().map(|span| span.state), Some(CLOSE_WAIT));
        assert_eq!((connection.gap, bench.repaired()), (false, vec![]));
    }

    #[test]
    fn a_dump_tells_of_a_connection_that_was_heard_of_meanwhile_what_no_event_can() {
        let mut bench = Bench::new();
        let started_ns = bench.now_ns;
        bench.tracker.snapshot_begins();
        bench.feed(s(ESTABLISHED, CLOSE_WAIT).bytes(101, 51));
        let place = Tuple { netns: NETNS, local: Endpoint::new(address(1), 40_000), remote: Endpoint::UNKNOWN };
        let sockets = [dumped(8, place, LISTEN), Socket { inode: 1012, ..dumped(7, usual(), CLOSE_WAIT) }];
        bench.merge_begun(MergeKind::StartUp, started_ns, sockets);
        let connection = bench.open();
        assert_eq!(whose(&connection), Some((12, ProcessSource::Holder)));
        assert_eq!(connection.bytes_out, Some(51), "it came through the listener: our SYN was none");
    }

    #[test]
    fn what_closed_while_the_dump_was_taken_is_not_brought_back() {
        for grace_over in [false, true] {
            let mut bench = Bench::new();
            bench.run(active_open());
            let started_ns = bench.now_ns + 1;
            bench.tracker.snapshot_begins();
            bench.feed(p(ESTABLISHED, CLOSE));
            if grace_over {
                bench.tracker.flush(&mut bench.effects);
            }
            bench.merge_begun(MergeKind::Resync, started_ns, [dumped(7, usual(), ESTABLISHED)]);
            bench.tracker.flush(&mut bench.effects);
            assert!(bench.tracker.is_empty());
            assert_eq!((bench.ended().gap, bench.repaired()), (false, vec![]));
        }
    }

    #[test]
    fn a_dump_that_failed_is_forgotten() {
        let mut bench = Bench::new();
        bench.run(active_open());
        bench.tracker.snapshot_begins();
        bench.tracker.snapshot_failed();
        bench.feed(p(ESTABLISHED, CLOSE));
        assert!(bench.tracker.closed_meanwhile.is_none());
    }

    #[test]
    fn a_resync_repairs_a_state_that_differs() {
        let mut bench = Bench::new();
        bench.run(active_open());
        let info = TcpInfo { bytes_acked: 51, bytes_received: 101, ..TcpInfo::default() };
        bench.merge(MergeKind::Resync, [Socket { inode: 1012, info: Some(info), ..dumped(7, usual(), LAST_ACK) }]);
        assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE_WAIT), (CLOSE_WAIT, LAST_ACK)]);
        let connection = bench.open();
        assert!(connection.gap);
        let expected = [
            (SYN_SENT, 1, Certainty::Exact),
            (ESTABLISHED, 1, Certainty::Unknown),
            (CLOSE_WAIT, 0, Certainty::Unknown),
            (LAST_ACK, 0, Certainty::Unknown),
        ];
        assert_eq!(spans(&connection), expected);
        assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
        bench.feed(s(LAST_ACK, CLOSE));
        assert_eq!(bench.ended().closing, Some(Closing::Passive));
    }

    #[test]
    fn a_resync_marks_what_it_finds_as_missed() {
        let mut bench = Bench::new();
        bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
        assert_eq!(bench.repaired(), [(CLOSE, ESTABLISHED)]);
        assert_eq!(bench.effects.repaired[0].origin, Origin::Snapshot);
        assert_eq!((bench.open().gap, bench.open().opened_ns), (true, None));
    }

    #[test]
    fn a_resync_ends_what_is_gone_in_complete_namespaces_only() {
        let mut bench = Bench::new();
        let elsewhere = Tuple { netns: 2, ..usual() };
        bench.run(active_open());
        bench.run(active_open().map(|step| step.on(8, 8).ends(elsewhere)));
        bench.merge(MergeKind::Resync, []);
        assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::Active, Closing::Unknown, AfterClose::Unknown));
        assert_eq!((connection.tuple, connection.ended_ns), (usual(), Some(bench.now_ns)));
        assert_eq!(bench.open().tuple, elsewhere);
    }

    #[test]
    fn a_first_dump_ends_nothing() {
        let mut bench = Bench::new();
        bench.run(active_open());
        bench.merge(MergeKind::StartUp, []);
        assert!(!bench.open().gap);
    }

    #[test]
    fn what_opened_while_the_dump_was_taken_is_not_ended() {
        let mut bench = Bench::new();
        let started_ns = bench.now_ns + 1;
        bench.tracker.snapshot_begins();
        bench.run(active_open());
        bench.merge_begun(MergeKind::Resync, started_ns, []);
        assert_eq!((bench.open().gap, bench.repaired()), (false, vec![]));
    }

    #[test]
    fn a_socket_found_twice_is_one_connection() {
        let mut bench = Bench::new();
        for kind in [MergeKind::StartUp, MergeKind::Resync, MergeKind::Resync] {
            bench.merge(kind, [dumped(9, usual(), ESTABLISHED)]);
        }
        assert_eq!((bench.open().gap, bench.repaired()), (false, vec![]));
        bench.merge(MergeKind::Resync, []);
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    }

    #[test]
    fn a_resync_tells_a_later_connection_of_the_socket_from_the_one_before() {
        let later = tuple(40_001, 81);
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT)]));
        bench.merge(MergeKind::Resync, [dumped(7, later, ESTABLISHED)]);
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
        assert_eq!(bench.repaired(), [(CLOSE_WAIT, CLOSE), (CLOSE, ESTABLISHED)]);
        assert_eq!((bench.open().tuple, bench.open().gap), (later, true));
    }

    #[test]
    fn a_resync_finds_what_connected_again_after_a_close_that_was_seen() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [p(ESTABLISHED, CLOSE)]));
        let started_ns = bench.now_ns + 1;
        bench.tracker.snapshot_begins();
        bench.merge_begun(MergeKind::Resync, started_ns, [dumped(7, usual(), SYN_SENT)]);
        assert_eq!(bench.ended().closing, Some(Closing::ResetSent));
        assert_eq!(bench.repaired(), [(CLOSE, SYN_SENT)]);
        assert_eq!(bench.open().spans.last().map(|span| span.state), Some(SYN_SENT));
    }

    #[test]
    fn a_dump_never_brings_a_closed_state() {
        let mut bench = Bench::new();
        bench.run(active_open());
        bench.merge(MergeKind::Resync, [dumped(7, usual(), CLOSE), dumped(8, tuple(1, 2), CLOSE)]);
        assert_eq!(bench.ended().closing, Some(Closing::Unknown));
        assert!(bench.tracker.is_empty());
    }
}

mod minis {
    use super::*;

    /// Leaves a TIME_WAIT on the usual ends.
    fn time_wait() -> Bench {
        let mut bench = Bench::new();
        let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).fin()];
        bench.run(chain(active_open(), close));
        assert_eq!(bench.minis(), 1);
        bench
    }

    #[test]
    fn a_time_wait_lasts_a_minute() {
        let mut bench = time_wait();
        bench.tracker.advance(bench.now_ns + TIME_WAIT_NS - 1, &mut bench.effects);
        assert_eq!(bench.minis(), 1);
        bench.tracker.advance(bench.now_ns + TIME_WAIT_NS + SECOND, &mut bench.effects);
        assert_eq!(bench.minis(), 0);
    }

    #[test]
    fn connecting_from_its_port_again_takes_it_away_once_the_port_is_known() {
        let mut bench = time_wait();
        bench.feed(p(CLOSE, SYN_SENT).on(8, 8).ends(tuple(0, 80)));
        assert_eq!(bench.minis(), 1);
        bench.feed(s(SYN_SENT, ESTABLISHED).on(8, 8));
        assert_eq!(bench.minis(), 0);
    }

    #[test]
    fn connecting_from_a_bound_port_takes_it_away_at_once() {
        let mut bench = time_wait();
        bench.feed(p(CLOSE, SYN_SENT).on(8, 8));
        assert_eq!(bench.minis(), 0);
    }

    #[test]
    fn an_acceptable_syn_takes_it_away() {
        let mut bench = time_wait();
        bench.feed(s(LISTEN, SYN_RECV).on(8, 8));
        assert_eq!(bench.minis(), 0);
    }

    #[test]
    fn an_acceptable_syn_takes_it_away_where_its_peer_is_known_only_later() {
        let mut bench = time_wait();
        bench.feed(s(LISTEN, SYN_RECV).on(8, 8).ends(tuple(40_000, 0)));
        assert_eq!(bench.minis(), 1);
        bench.feed(s(SYN_RECV, ESTABLISHED).on(8, 8));
        assert_eq!(bench.minis(), 0);
    }

    #[test]
    fn other_ends_leave_it_alone() {
        let mut bench = time_wait();
        bench.feed(p(CLOSE, SYN_SENT).on(8, 8).ends(tuple(40_001, 80)));
        bench.feed(p(CLOSE, SYN_SENT).on(9, 9).ends(Tuple { netns: 2, ..usual() }));
        assert_eq!(bench.minis(), 1);
    }

    #[test]
    fn a_rst_that_it_sends_takes_it_away_and_one_that_it_gets_may_not() {
        let mut bench = time_wait();
        bench.feed(rst(ResetDirection::Received, State::TIME_WAIT).after(SECOND));
        assert_eq!(bench.minis(), 1);
        bench.feed(rst(ResetDirection::Sent, State::TIME_WAIT));
        assert_eq!(bench.minis(), 0);
        assert_eq!(bench.ended().closing, Some(Closing::Active), "the connection had ended before");
    }

    #[test]
    fn an_abort_leaves_none() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [p(ESTABLISHED, CLOSE)]));
        assert_eq!(bench.minis(), 0);
    }

    #[test]
    fn a_close_that_was_missed_leaves_what_only_a_dump_can_tell() {
        let mut bench = Bench::new();
        bench.run(chain(active_open(), [p(ESTABLISHED, FIN_WAIT1)]));
        let mini = SocketKind::Mini { expires_in_ms: 30_000 };
        bench.merge(MergeKind::Resync, [Socket { kind: mini, ..dumped(7, usual(), State::TIME_WAIT) }]);
        assert_eq!(story(&bench.ended()), (Opening::Active, Closing::Unknown, AfterClose::Unknown));
        assert_eq!(bench.minis(), 1);
    }

    #[test]
    fn a_dump_of_minis_alone_leaves_connections_alone() {
        let mut bench = time_wait();
        bench.run(active_open().map(|step| step.on(8, 8).ends(tuple(40_001, 80))));
        bench.now_ns += TIME_WAIT_NS;
        let snapshot = Snapshot {
            started_ns: bench.now_ns,
            ended_ns: bench.now_ns,
            complete_netns: vec![NETNS],
            sockets: Vec::new(),
        };
        bench.tracker.merge_minis(&snapshot);
        assert_eq!((bench.minis(), bench.open().gap), (0, false));
    }
}

mod whose_transition {
    use super::*;

    /// Whom a transition names in process, softirq and unknown context.
    fn owners(old: State, new: State) -> [bool; 3] {
        [Context::Process, Context::Softirq, Context::Unknown].map(|context| {
            let Event::Transition(transition) = step(old, new, APP, context).event else { unreachable!() };
            let owner = transition.owner();
            assert!(owner.is_none() || owner == Some(task(APP)));
            owner.is_some()
        })
    }

    #[test]
    fn connect_listen_shutdown_and_close_are_in_their_caller_wherever_that_cannot_be_denied() {
        let acts = [
            (CLOSE, SYN_SENT),
            (CLOSE, LISTEN),
            (ESTABLISHED, FIN_WAIT1),
            (SYN_RECV, FIN_WAIT1),
            (CLOSE_WAIT, LAST_ACK),
            (FIN_WAIT1, FIN_WAIT1),
            (FIN_WAIT2, FIN_WAIT2),
            (LAST_ACK, LAST_ACK),
        ];
        for (old, new) in acts {
            assert_eq!(owners(old, new), [true, false, true], "{old} → {new}");
        }
    }

    #[test]
    fn a_close_is_in_its_caller_only_where_the_lock_says_so() {
        for old in [SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSING, CLOSE_WAIT, LAST_ACK] {
            assert_eq!(owners(old, CLOSE), [true, false, false], "from {old}");
        }
    }

    #[test]
    fn a_listeners_close_is_its_callers_only_when_it_says_that_nothing_will_be_sent_any_more() {
        assert_eq!(owners(LISTEN, CLOSE), [false; 3], "it may have been killed");
        let Event::Transition(closed) = p(LISTEN, CLOSE).detail(|details| details.send_shutdown = true).event else {
            panic!("a transition")
        };
        assert_eq!(closed.owner(), Some(task(APP)));
    }

    #[test]
    fn what_segments_do_is_nobodys() {
        let segments = [
            (SYN_SENT, ESTABLISHED),
            (SYN_SENT, SYN_RECV),
            (LISTEN, SYN_RECV),
            (SYN_RECV, ESTABLISHED),
            (ESTABLISHED, CLOSE_WAIT),
            (FIN_WAIT1, FIN_WAIT2),
            (FIN_WAIT1, CLOSING),
        ];
        for (old, new) in segments {
            assert_eq!(owners(old, new), [false; 3], "{old} → {new}");
        }
    }

    #[test]
    fn a_killer_a_worker_and_the_idle_task_are_never_owners() {
        let transition = |step: Step| {
            let Event::Transition(transition) = step.event else { unreachable!() };
            transition
        };
        assert_eq!(transition(p(ESTABLISHED, CLOSE).error(Errno::ECONNABORTED)).owner(), None);
        assert_eq!(transition(p(CLOSE, SYN_SENT).by(0)).owner(), None);
        for (old, new) in [(CLOSE, SYN_SENT), (ESTABLISHED, FIN_WAIT1), (ESTABLISHED, CLOSE), (FIN_WAIT2, FIN_WAIT2)] {
            assert_eq!(transition(p(old, new).detail(|details| details.mptcp = true)).owner(), None);
        }
        assert!(transition(p(ESTABLISHED, CLOSE).error(Errno::ECONNRESET)).owner().is_some());
    }
}
