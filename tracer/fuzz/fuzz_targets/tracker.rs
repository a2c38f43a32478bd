//! Any sequence of inputs to the tracker, dumps and facts included. Numbers are small for the most part, so that things
//! meet, and now and then anything at all.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use tracer::core::{
    connection::{Process, ProcessSource},
    endpoint::{Address, Endpoint, Tuple},
    finding::{
        ClosedSocket, DescriptorUsage, Facts, Holder, NamespaceCounters, NamespaceFacts, PortRange, PortSettings,
    },
    input::Input,
    snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
    state::State,
    tracker::MergeKind,
    transition::{
        Comm, Context, Details, Errno, Event, KernelAddress, Origin, Reset, ResetDirection, SocketId, Task, Transition,
    },
};
use tracer_fuzz::Trace;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let max_connections = bytes.int_in_range(1..=8).unwrap_or(1);
    let mut trace = Trace::new(max_connections, 0);
    while !bytes.is_empty() {
        let Ok(input) = input(&mut bytes) else { break };
        trace.take(input);
    }
    trace.finish();
});

fn input(u: &mut Unstructured<'_>) -> Result<Input> {
    Ok(match u.int_in_range(0..=31_u8)? {
        0..=17 => Input::Event(Event::Transition(transition(u)?)),
        18..=20 => Input::Event(Event::Reset(reset(u)?)),
        21 => Input::Now(time(u)?),
        22 => Input::Forget(socket_id(u)?),
        23 => Input::DumpBegins(*u.choose(&MergeKind::ALL)?),
        24 => Input::DumpFailed,
        25..=26 => Input::DumpPart(snapshot(u)?),
        27..=28 => Input::Dump(snapshot(u)?),
        29 => Input::MiniSockets(snapshot(u)?),
        _ => Input::Facts(Box::new(facts(u)?)),
    })
}

/// One byte for what is usual, and one in sixteen is any number.
fn number<T: for<'a> Arbitrary<'a> + From<u8>>(u: &mut Unstructured<'_>) -> Result<T> {
    let byte = u.arbitrary::<u8>()?;
    if byte >= 0xf0 { u.arbitrary() } else { Ok(T::from(byte)) }
}

/// One of a few, so that things meet.
fn small(u: &mut Unstructured<'_>) -> Result<u64> {
    let number: u64 = number(u)?;
    Ok(if number < 0xf0 { number % 5 } else { number })
}

/// Steps of ten milliseconds, or anything.
fn time(u: &mut Unstructured<'_>) -> Result<u64> {
    let steps: u64 = number(u)?;
    Ok(if steps < 0xf0 { steps * 10_000_000 } else { steps })
}

/// A few of something.
fn some<T>(u: &mut Unstructured<'_>, make: impl Fn(&mut Unstructured<'_>) -> Result<T>) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=8)?).map(|_| make(u)).collect()
}

fn maybe<T>(u: &mut Unstructured<'_>, make: impl Fn(&mut Unstructured<'_>) -> Result<T>) -> Result<Option<T>> {
    if u.arbitrary()? { make(u).map(Some) } else { Ok(None) }
}

fn socket_id(u: &mut Unstructured<'_>) -> Result<SocketId> {
    Ok(SocketId { cookie: small(u)?, address: KernelAddress(small(u)?) })
}

fn state(u: &mut Unstructured<'_>) -> Result<State> {
    let number: u8 = number(u)?;
    Ok(State(if number < 0xf0 { number % 13 + 1 } else { number }))
}

fn endpoint(u: &mut Unstructured<'_>) -> Result<Endpoint> {
    let address = match u.int_in_range(0..=7_u8)? {
        0 => Address::UNSPECIFIED,
        1 => Address::v4([0; 4]),
        2 => Address::v6(u.arbitrary()?),
        3 => Address::v4([127, 0, 0, 1]),
        last => Address::v4([10, 0, 0, last]),
    };
    Ok(Endpoint { address, port: small(u)? as u16 })
}

fn tuple(u: &mut Unstructured<'_>) -> Result<Tuple> {
    Ok(Tuple { netns: small(u)? as u32, local: endpoint(u)?, remote: endpoint(u)? })
}

fn comm(u: &mut Unstructured<'_>) -> Result<Comm> {
    Ok(if u.ratio(1, 8)? { Comm::new(u.arbitrary()?) } else { Comm::from("app") })
}

fn process(u: &mut Unstructured<'_>) -> Result<Process> {
    let sources = [ProcessSource::Opener, ProcessSource::Holder, ProcessSource::Closer, ProcessSource::Listener];
    Ok(Process { pid: small(u)? as u32, comm: comm(u)?, source: *u.choose(&sources)? })
}

fn details(u: &mut Unstructured<'_>) -> Result<Details> {
    Ok(Details {
        fin_received: u.arbitrary()?,
        orphaned: u.arbitrary()?,
        send_shutdown: u.arbitrary()?,
        linger: u.arbitrary()?,
        previous_port: small(u)? as u16,
        mptcp: u.ratio(1, 8)?,
        inode: small(u)?,
        cgroup: small(u)?,
        uid: 0,
        error: Errno(number(u)?),
        bytes_received: number(u)?,
        bytes_acked: number(u)?,
        srtt_us: 0,
        retransmits: 0,
    })
}

fn transition(u: &mut Unstructured<'_>) -> Result<Transition> {
    let pid = small(u)? as u32;
    Ok(Transition {
        mono_ns: time(u)?,
        socket: socket_id(u)?,
        tuple: tuple(u)?,
        old: state(u)?,
        new: state(u)?,
        task: Task { pid, tid: pid, comm: comm(u)? },
        context: *u.choose(&[Context::Process, Context::Softirq, Context::Unknown])?,
        details: maybe(u, details)?,
        origin: Origin::Kernel,
    })
}

fn reset(u: &mut Unstructured<'_>) -> Result<Reset> {
    Ok(Reset {
        mono_ns: time(u)?,
        socket: socket_id(u)?,
        tuple: tuple(u)?,
        state: state(u)?,
        direction: *u.choose(&[ResetDirection::Sent, ResetDirection::Received])?,
    })
}

fn socket(u: &mut Unstructured<'_>) -> Result<Socket> {
    Ok(Socket {
        cookie: small(u)?,
        tuple: tuple(u)?,
        state: state(u)?,
        kind: match u.int_in_range(0..=5_u8)? {
            0 => SocketKind::Mini { expires_in_ms: number(u)? },
            1 => SocketKind::Request,
            _ => SocketKind::Full,
        },
        inode: small(u)?,
        cgroup: small(u)?,
        uid: 0,
        receive_queue: number(u)?,
        send_queue: number(u)?,
        info: maybe(u, |u| {
            Ok(TcpInfo {
                last_data_sent_ms: number(u)?,
                last_data_recv_ms: number(u)?,
                last_ack_recv_ms: number::<u32>(u)?.saturating_mul(1000),
                bytes_acked: number(u)?,
                bytes_received: number(u)?,
            })
        })?,
        holder: maybe(u, process)?,
    })
}

fn snapshot(u: &mut Unstructured<'_>) -> Result<Snapshot> {
    Ok(Snapshot {
        started_ns: time(u)?,
        ended_ns: time(u)?,
        complete_netns: some(u, |u| Ok(small(u)? as u32))?,
        sockets: some(u, socket)?,
    })
}

fn namespace(u: &mut Unstructured<'_>) -> Result<NamespaceFacts> {
    let range = |u: &mut Unstructured<'_>| Ok(PortRange { first: u.arbitrary()?, last: u.arbitrary()? });
    Ok(NamespaceFacts {
        ports: PortSettings { range: range(u)?, reserved: some(u, range)?, time_wait_reuse: u.arbitrary()? },
        mini_sockets: maybe(u, number)?,
        time_wait_max: maybe(u, number)?,
        counters: NamespaceCounters { time_wait_overflows: number(u)?, listen_overflows: number(u)? },
    })
}

fn facts(u: &mut Unstructured<'_>) -> Result<Facts> {
    let closed = |u: &mut Unstructured<'_>| {
        Ok(ClosedSocket {
            inode: small(u)?,
            cookie: small(u)?,
            tuple: tuple(u)?,
            quiet_ns: u.arbitrary()?,
            closed_for_ns: u.arbitrary()?,
        })
    };
    let holder = |u: &mut Unstructured<'_>| Ok(Holder { pid: small(u)? as u32, comm: comm(u)?, fd: u.arbitrary()? });
    let usage = |u: &mut Unstructured<'_>| Ok(DescriptorUsage { used: number(u)?, limit: maybe(u, number)? });
    Ok(Facts {
        now_ns: time(u)?,
        window_ns: time(u)?,
        sockets: some(u, socket)?,
        closed: some(u, closed)?,
        holders: some(u, |u| Ok((small(u)?, some(u, holder)?)))?.into_iter().collect(),
        descriptors: some(u, |u| Ok((small(u)? as u32, usage(u)?)))?.into_iter().collect(),
        namespaces: some(u, |u| Ok((small(u)? as u32, namespace(u)?)))?.into_iter().collect(),
        cgroups: some(u, |u| Ok((small(u)?, "/system.slice/app.service".into())))?.into_iter().collect(),
        unreadable_processes: u.arbitrary()?,
    })
}
