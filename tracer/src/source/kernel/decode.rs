//! From the ring buffer's bytes to the core's events. Never panics: a record of the wrong size or kind is `None`.

use tracer_ebpf::{
    ABSENT, FLAG_LOCK_OWNED, FLAG_MPTCP, KIND_RESET_RECEIVED, KIND_RESET_SENT, KIND_TRANSITION, Layout, Record,
    SEND_SHUTDOWN, SOCK_DEAD, SOCK_DONE, SOCK_LINGER,
};

use crate::core::{
    endpoint::{Endpoint, Tuple},
    state::State,
    transition::{
        Comm, Context, Details, Errno, Event, KernelAddress, Origin, Reset, ResetDirection, SocketId, Task, Transition,
    },
};

const AF_INET6: u16 = 10;

/// What the programs can know on this kernel, which decides what a zero in a record means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Struct members could be resolved, so [`Details`] are there.
    pub details: bool,
    /// Each socket's cgroup is told; otherwise 0 stands for one that is not known.
    pub cgroups: bool,
}

impl From<&Layout> for Known {
    fn from(layout: &Layout) -> Self {
        let has = |members: &[u32]| !members.contains(&ABSENT);
        Self {
            details: has(&[layout.lock_owned, layout.sk_flags, layout.err]),
            cgroups: has(&[layout.cgroup, layout.cgroup_kn, layout.kn_id]),
        }
    }
}

/// Bytes of one item of the ring buffer.
pub const RECORD_SIZE: usize = size_of::<Record>();

/// Decodes one item of the ring buffer.
#[must_use]
pub fn decode(bytes: &[u8], known: Known) -> Option<Event> {
    if bytes.len() != RECORD_SIZE {
        return None;
    }
    // SAFETY: a Record consists of integers without padding, so any bytes of its size are one; the read is unaligned.
    let record = unsafe { bytes.as_ptr().cast::<Record>().read_unaligned() };
    event(&record, known)
}

fn event(record: &Record, known: Known) -> Option<Event> {
    let ipv6 = record.family == AF_INET6;
    let tuple = Tuple {
        netns: record.netns,
        local: Endpoint::from_bytes(ipv6, record.local_addr, record.local_port),
        remote: Endpoint::from_bytes(ipv6, record.remote_addr, record.remote_port),
    };
    let socket = SocketId { cookie: record.cookie, address: KernelAddress(record.sock) };
    let direction = match record.kind {
        KIND_TRANSITION => return Some(Event::Transition(transition(record, known, socket, tuple))),
        KIND_RESET_SENT => ResetDirection::Sent,
        KIND_RESET_RECEIVED => ResetDirection::Received,
        _ => return None,
    };
    Some(Event::Reset(Reset { mono_ns: record.mono_ns, socket, tuple, state: State(record.old_state), direction }))
}

fn transition(record: &Record, known: Known, socket: SocketId, tuple: Tuple) -> Transition {
    let details = known.details.then_some(Details {
        fin_received: record.sk_flags & SOCK_DONE != 0,
        orphaned: record.sk_flags & SOCK_DEAD != 0,
        previous_port: record.previous_port,
        send_shutdown: record.shutdown & SEND_SHUTDOWN != 0,
        linger: record.sk_flags & SOCK_LINGER != 0,
        mptcp: record.flags & FLAG_MPTCP != 0,
        inode: record.inode,
        cgroup: record.cgroup,
        uid: record.uid,
        error: Errno(record.err),
        bytes_received: record.bytes_received,
        bytes_acked: record.bytes_acked,
        srtt_us: record.srtt_us8 / 8,
        retransmits: record.retransmits,
    });
    let context = match (known.details, record.flags & FLAG_LOCK_OWNED != 0) {
        (false, _) => Context::Unknown,
        (true, true) => Context::Process,
        (true, false) => Context::Softirq,
    };
    Transition {
        mono_ns: record.mono_ns,
        socket,
        tuple,
        old: State(record.old_state),
        new: State(record.new_state),
        task: Task { pid: record.pid, tid: record.tid, comm: Comm::new(record.comm) },
        context,
        details,
        origin: Origin::Kernel,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: Known = Known { details: true, cgroups: true };

    fn zeros() -> Vec<u8> {
        vec![0; RECORD_SIZE]
    }

    #[test]
    fn a_v4_mapped_end_is_ipv4() {
        let mut bytes = zeros();
        bytes[56 + 10..56 + 16].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        bytes[140] = 10;
        let Some(Event::Transition(transition)) = decode(&bytes, KNOWN) else { panic!("a transition") };
        assert_eq!(transition.tuple.local.to_string(), "127.0.0.1:0");
    }

    #[test]
    fn without_types_nothing_is_claimed() {
        let Some(Event::Transition(transition)) = decode(&zeros(), Known { details: false, cgroups: false }) else {
            panic!("a transition")
        };
        assert_eq!(transition.details, None);
        assert_eq!(transition.context, Context::Unknown);
    }

    #[test]
    fn records_of_another_size_or_kind_are_refused() {
        assert_eq!(decode(&[], KNOWN), None);
        assert_eq!(decode(&zeros()[1..], KNOWN), None);
        let mut bytes = zeros();
        bytes[142] = 9;
        assert_eq!(decode(&bytes, KNOWN), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes, KNOWN);
        }

        #[test]
        fn any_record_decodes_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), RECORD_SIZE)) {
            bytes[142] %= 3;
            prop_assert!(decode(&bytes, KNOWN).is_some());
        }
    }
}
