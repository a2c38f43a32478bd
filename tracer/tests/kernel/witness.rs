//! The tracer against an independent witness, under load: the kernel's own trace of the same tracepoint, and the
//! kernel's own table of sockets.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
};

use socket2::Socket;
use tracer::{
    core::{
        connection::Connection,
        endpoint::Endpoint,
        filter::SocketFilter,
        input::Loss,
        state::State,
        tracker::{Effects, Limits, MergeKind, Tracker},
        transition::{Event, Transition},
    },
    source::{
        clock::monotonic_ns,
        kernel::{Attachment, Kernel},
        netns::Namespace,
        sock_diag::{self, Wanted},
    },
};

use crate::{
    lab,
    net::{self, Family},
    trace::{Trace, Traced},
};

const THREADS: u8 = 4;
const EACH: u16 = 6000;
const SERVER_PORT: u16 = 7000;
const CLOSED_PORT: u16 = 7001;
const FIRST_CLIENT_PORT: u16 = 10_000;

/// Nobody else on the machine uses these: 127.77.0.N for servers, 127.77.1.N for clients.
fn server_address(thread: u8) -> IpAddr {
    Ipv4Addr::new(127, 77, 0, thread + 1).into()
}

fn client_address(thread: u8) -> IpAddr {
    Ipv4Addr::new(127, 77, 1, thread + 1).into()
}

fn is_ours(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets()[..2] == [127, 77])
}

/// What a connection does; the client tells the server by this byte.
const ENDINGS: &[u8; 8] = b"abcdefgh";
/// The connections that stay: established, and half closed.
const STAYS: u8 = b'y';
const STAYS_HALF_CLOSED: u8 = b'z';

fn ending(number: u16) -> u8 {
    match number % 500 {
        0 => STAYS,
        1 => STAYS_HALF_CLOSED,
        _ => ENDINGS[usize::from(number) % ENDINGS.len()],
    }
}

/// Opens and closes connections, in all ways; returns what stays open.
fn client(thread: u8) -> Vec<Socket> {
    use std::io::{Read, Write};
    let mut kept = Vec::new();
    for number in 0..EACH {
        let socket = net::socket(Family::V4);
        // Bound, so that every event of it carries its port.
        socket.bind(&SocketAddr::new(client_address(thread), FIRST_CLIENT_PORT + number).into()).expect("bound");
        let ending = ending(number);
        if ending == b'a' {
            let to = SocketAddr::new(server_address(thread), CLOSED_PORT);
            socket.connect(&to.into()).expect_err("refused");
            continue;
        }
        socket.connect(&SocketAddr::new(server_address(thread), SERVER_PORT).into()).expect("connected");
        let _ = (&socket).write_all(&[ending]);
        match ending {
            // The client closes first.
            b'b' => {}
            // The server does, in its own time, by a FIN or a RST.
            b'c' | b'd' => {
                let _ = (&socket).read(&mut [0; 1]);
            }
            // The client aborts.
            b'e' => net::linger_zero(&socket),
            // The server does not read all of it.
            b'f' => {
                let _ = (&socket).write_all(&[b'x'; 100]);
                let _ = (&socket).read(&mut [0; 1]);
            }
            // One end after the other.
            b'g' => {
                socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
                let _ = (&socket).read(&mut [0; 1]);
            }
            // Disconnected.
            b'h' => net::disconnect(&socket),
            STAYS => kept.push(socket),
            STAYS_HALF_CLOSED => {
                socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
                kept.push(socket);
            }
            _ => unreachable!("no such ending"),
        }
    }
    kept
}

fn server(listener: &Socket) -> Vec<Socket> {
    use std::io::Read;
    let mut kept = Vec::new();
    let accepted = (0..EACH).filter(|number| ending(*number) != b'a').count();
    for _ in 0..accepted {
        let socket = net::accept(listener);
        let mut ending = [0];
        if (&socket).read(&mut ending).is_err() {
            continue;
        }
        match ending[0] {
            b'b' | b'g' => {
                let _ = (&socket).read(&mut [0; 1]);
            }
            b'd' => net::linger_zero(&socket),
            STAYS => kept.push(socket),
            STAYS_HALF_CLOSED => {
                net::read_end(&socket);
                kept.push(socket);
            }
            _ => {}
        }
    }
    kept
}

/// One socket: this end, that end.
type Ends = (SocketAddr, SocketAddr);

/// The states that a socket went through, as the kernel names them, by socket.
type Histories = BTreeMap<Ends, Vec<(String, String)>>;

#[test]
fn the_kernels_own_trace_agrees_event_for_event_under_load() {
    lab::in_new_namespace(|| {
        let trace = Trace::start("all", 48 << 10, "0");
        let runtime = lab::runtime();
        let guard = runtime.enter();
        // No filter: only so can every event that was missed be looked for in the trace.
        let attach = |attachment| Observer {
            attachment,
            kernel: lab::attach(attachment, SocketFilter::default(), 32 << 20),
            events: Vec::new(),
        };
        let mut observers = [attach(Attachment::Btf), attach(Attachment::Tracepoint)];
        drop(guard);
        let loss_before = observers.each_ref().map(|observer| observer.kernel.loss().expect("the loss counters"));
        let begun = monotonic_ns();
        let kept = load(&mut observers);
        let ended = monotonic_ns();
        let loss_after = observers.each_ref().map(|observer| observer.kernel.loss().expect("the loss counters"));
        trace.stop();
        let traced = trace.events();
        for ((observer, before), after) in observers.iter_mut().zip(loss_before).zip(loss_after) {
            observer.drain();
            let missed = after.missed - before.missed;
            observer.compare(&traced, begun..=ended, &after, missed);
            let complete = missed == 0 && observer.in_blind_contexts(&traced) == 0;
            observer.compare_tables(complete);
        }
        drop(kept);
    });
}

/// Runs the load on threads of its own while the observers' events are taken off the kernel's hands.
fn load(observers: &mut [Observer]) -> Vec<Socket> {
    let listeners: Vec<Socket> = (0..THREADS)
        .map(|thread| {
            let listener = net::socket(Family::V4);
            listener.bind(&SocketAddr::new(server_address(thread), SERVER_PORT).into()).expect("bound");
            listener.listen(1024).expect("listening");
            listener
        })
        .collect();
    let mut kept = thread::scope(|scope| {
        let servers: Vec<_> = listeners.iter().map(|listener| scope.spawn(move || server(listener))).collect();
        let clients: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || client(thread))).collect();
        let all: Vec<_> = servers.into_iter().chain(clients).collect();
        while !all.iter().all(thread::ScopedJoinHandle::is_finished) {
            observers.iter_mut().for_each(Observer::drain);
            thread::sleep(std::time::Duration::from_millis(5));
        }
        all.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    kept.extend(listeners);
    await_rest();
    kept
}

/// Waits until nothing is under way any more: the last ACKs may still be delayed.
fn await_rest() {
    net::eventually("at rest", || {
        !sockets().keys().any(|(_, _, state, _)| {
            [State::FIN_WAIT1, State::LAST_ACK, State::CLOSING, State::SYN_SENT, State::SYN_RECV].contains(state)
        })
    });
}

struct Observer {
    attachment: Attachment,
    kernel: Kernel,
    events: Vec<Event>,
}

impl Observer {
    fn drain(&mut self) {
        let events = &mut self.events;
        self.kernel.drain(usize::MAX, |event| events.push(event)).expect("drained");
    }

    fn transitions(&self) -> impl Iterator<Item = &Transition> {
        self.events.iter().filter_map(|event| match event {
            Event::Transition(transition) => Some(transition),
            Event::Reset(_) => None,
        })
    }

    /// What the trace has and the observer has not must be exactly what the kernel says that it kept from the observer.
    fn compare(&self, traced: &[Traced], window: std::ops::RangeInclusive<u64>, loss: &Loss, missed: u64) {
        assert_eq!(loss.dropped, 0, "{:?}: the buffer was too small for this test", self.attachment);
        let mut theirs = Histories::new();
        for event in traced.iter().filter(|event| is_ours(event.ends.0.ip()) && event.protocol == "IPPROTO_TCP") {
            theirs.entry(event.ends).or_default().push((event.old.clone(), event.new.clone()));
        }
        let mut ours = Histories::new();
        for transition in self.transitions().filter(|transition| is_ours(transition.tuple.local.address.ip())) {
            let name = |state: State| format!("TCP_{state}");
            let socket = |end: Endpoint| SocketAddr::new(end.address.ip(), end.port);
            let ends = (socket(transition.tuple.local), socket(transition.tuple.remote));
            ours.entry(ends).or_default().push((name(transition.old), name(transition.new)));
        }
        let count = |histories: &Histories| histories.values().map(|history| history.len() as u64).sum::<u64>();
        assert!(theirs.len() >= 40_000, "{} sockets are no load", theirs.len());
        for ends in ours.keys() {
            assert!(theirs.contains_key(ends), "{:?}: the trace does not know {ends:?}", self.attachment);
        }
        for (ends, history) in &theirs {
            let seen = ours.get(ends).map_or(&[][..], Vec::as_slice);
            assert!(
                is_part_of(seen, history),
                "{:?}: {ends:?} went {history:?} and was seen to go {seen:?}",
                self.attachment
            );
        }
        let missing = count(&theirs) - count(&ours);
        // Other namespaces' events interrupt the program as well.
        let elsewhere = |ip: IpAddr, at: u64| !is_ours(ip) && window.contains(&at);
        let others_seen =
            self.transitions().filter(|event| elsewhere(event.tuple.local.address.ip(), event.mono_ns)).count() as u64;
        let others = |tcp: bool| {
            traced
                .iter()
                .filter(|event| elsewhere(event.ends.0.ip(), event.mono_ns))
                .filter(|event| (event.protocol == "IPPROTO_TCP") == tcp)
                .count() as u64
        };
        let others_missing = others(true).saturating_sub(others_seen);
        println!(
            "{:?}: {} sockets, {} events, {missing} missing here and {others_missing} elsewhere, {missed} missed",
            self.attachment,
            theirs.len(),
            count(&theirs)
        );
        let missing = missing + others_missing;
        // Of what is not TCP nothing can be said but that it may have been missed. And a kernel may run no BPF programs
        // while certain processes are current (docs/kernel.md, "Lost events"): it does not count that.
        let blind = self.in_blind_contexts(traced);
        let explained = missing.saturating_sub(blind)..=missing + others(false);
        let incomplete = || -> Vec<String> {
            let seen = |ends: &Ends| ours.get(ends).map_or(&[][..], Vec::as_slice);
            let differing = theirs.iter().filter(|(ends, history)| seen(ends).len() < history.len());
            differing.map(|(ends, history)| format!("{ends:?}: {history:?}, seen {:?}", seen(ends))).collect()
        };
        assert!(
            explained.contains(&missed),
            "{:?}: {missed} missed, {explained:?} missing; {loss:?}, {} delivered\n{:#?}",
            self.attachment,
            self.transitions().count(),
            incomplete()
        );
    }

    /// How many events there were in the context of strangers of whom not one event was delivered.
    fn in_blind_contexts(&self, traced: &[Traced]) -> u64 {
        let mut strangers: HashMap<u32, u64> = HashMap::new();
        for event in traced.iter().filter(|event| event.protocol == "IPPROTO_TCP" && event.is_in_a_strangers_context())
        {
            *strangers.entry(event.tid).or_default() += 1;
        }
        for transition in self.transitions() {
            strangers.remove(&transition.task.tid);
        }
        strangers.values().sum()
    }

    /// The tracker's open connections, listeners and mini-sockets against the kernel's table.
    fn compare_tables(&self, complete: bool) {
        let netns = lab::own_netns();
        let mut tracker = Tracker::new(Limits::default());
        let mut effects = Effects::default();
        let mut ended = 0;
        for event in &self.events {
            let here = match event {
                Event::Transition(transition) => transition.tuple.netns == netns,
                Event::Reset(reset) => reset.tuple.netns == netns,
            };
            if here {
                tracker.event(event, &mut effects);
                ended += effects.ended.len();
                effects.ended.clear();
            }
        }
        let table = sockets();
        if complete {
            assert_eq!(tracker.counts().repaired, 0, "{:?}", self.attachment);
            self.compare_open(&tracker, &table, false);
        }
        tracker.snapshot_begins(MergeKind::Resync);
        let snapshot = sock_diag::dump(&[Namespace::own().expect("a namespace")], Wanted::ALL).expect("a dump");
        tracker.merge(&snapshot, &mut effects);
        self.compare_open(&tracker, &table, true);
        tracker.advance(monotonic_ns() + 1_000_000_000, &mut effects);
        let refused = (0..EACH).filter(|number| ending(*number) == b'a').count();
        let stay = (0..EACH).filter(|number| [STAYS, STAYS_HALF_CLOSED].contains(&ending(*number))).count();
        let all = (2 * usize::from(EACH) - refused - 2 * stay) * usize::from(THREADS);
        assert_eq!(ended + effects.ended.len(), all, "{:?}: connections that ended", self.attachment);
    }

    fn compare_open(&self, tracker: &Tracker, table: &Table, snapshot: bool) {
        let mut states: HashMap<State, usize> = HashMap::new();
        let full = |mini: bool| table.iter().filter(move |((.., is_mini), _)| *is_mini == mini);
        for connection in tracker.open_connections(monotonic_ns()) {
            let state = state_of(&connection);
            let socket = |end: Endpoint| SocketAddr::new(end.address.ip(), end.port);
            let key = (socket(connection.tuple.local), socket(connection.tuple.remote), state, false);
            assert!(table.contains_key(&key), "{:?}, snapshot: {snapshot}: there is no {key:?}", self.attachment);
            *states.entry(state).or_default() += 1;
        }
        let mut theirs: HashMap<State, usize> = HashMap::new();
        for ((_, _, state, _), count) in full(false) {
            *theirs.entry(*state).or_default() += count;
        }
        let listeners = theirs.remove(&State::LISTEN).unwrap_or(0);
        assert_eq!(states, theirs, "{:?}, snapshot: {snapshot}", self.attachment);
        assert_eq!(tracker.listener_count(), listeners, "{:?}, snapshot: {snapshot}", self.attachment);
        let minis: usize = full(true).map(|(_, count)| count).sum();
        let known = tracker.mini_sockets().count_in(lab::own_netns()) as usize;
        // A RST ends a mini-socket in FIN_WAIT2 and no event tells (tcp_timewait_state_process()): up to a snapshot there
        // may be fewer than the tracker knows of.
        let gone = if snapshot { 0 } else { known.saturating_sub(minis) };
        assert!(gone <= known / 50, "{:?}: {known} mini-sockets known, {minis} there", self.attachment);
        assert_eq!(known - gone, minis, "{:?}, snapshot: {snapshot}: mini-sockets", self.attachment);
    }
}

fn state_of(connection: &Connection) -> State {
    connection.spans.last().expect("a state").state
}

/// Whether these are those, with some left out.
fn is_part_of<T: PartialEq>(part: &[T], whole: &[T]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|item| rest.any(|other| other == item))
}

/// This end, that end, state, and whether it is a mini-socket.
type Table = BTreeMap<(SocketAddr, SocketAddr, State, bool), usize>;

/// The namespace's sockets according to /proc (`tcp4_seq_show()`, net/ipv4/tcp_ipv4.c).
fn sockets() -> Table {
    const TIMER_OF_MINI_SOCKETS: &str = "03:";
    let end = |text: &str| {
        let (address, port) = text.split_once(':').expect("an address");
        let address = u32::from_str_radix(address, 16).expect("an address");
        let port = u16::from_str_radix(port, 16).expect("a port");
        SocketAddr::new(Ipv4Addr::from(address.to_ne_bytes()).into(), port)
    };
    let mut table = Table::new();
    for line in fs::read_to_string("/proc/thread-self/net/tcp").expect("the table").lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let state = State(u8::from_str_radix(fields[3], 16).expect("a state"));
        let mini = fields[5].starts_with(TIMER_OF_MINI_SOCKETS);
        *table.entry((end(fields[1]), end(fields[2]), state, mini)).or_default() += 1;
    }
    table
}
