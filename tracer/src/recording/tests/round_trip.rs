//! What is written comes back.

use std::collections::{HashMap, HashSet};

use arrow_array::Array as _;
use arrow_ipc::reader::StreamReader;
use proptest::{collection::vec, prelude::*, test_runner::Config};

use super::{
    any_input::{FIRST_ADDRESS, heard},
    *,
};
use crate::core::{
    tracker::{Effects, Limits, MergeKind, Tracker},
    transition::{KernelAddress, Origin, SocketId},
};

/// What is kept of each input: nothing of what was inferred, which is inferred again; and what a dump is for is told by
/// where it stands.
fn kept(heard: &[Heard]) -> Vec<Option<Input>> {
    let mut dumps = 0;
    let keep = |heard: &Heard| match &heard.input {
        Input::Event(Event::Transition(transition)) if transition.origin != Origin::Kernel => None,
        Input::DumpBegins(_) => {
            dumps += 1;
            Some(Input::DumpBegins(if dumps == 1 { MergeKind::StartUp } else { MergeKind::Resync }))
        }
        input => Some(input.clone()),
    };
    heard.iter().map(keep).collect()
}

/// Of times that pass without anything else, the last is told, before whatever comes next.
fn told(heard: &[Heard]) -> Vec<Input> {
    let mut told: Vec<Option<Input>> = Vec::new();
    for input in kept(heard) {
        match (told.last_mut(), input) {
            (Some(Some(Input::Now(before))), Some(Input::Now(now_ns))) => *before = now_ns.max(*before),
            (_, input) => told.push(input),
        }
    }
    told.into_iter().flatten().collect()
}

/// An input without its address, and that.
fn apart(input: &Input) -> (Input, Option<SocketId>) {
    let mut input = input.clone();
    let socket = match &mut input {
        Input::Event(Event::Transition(transition)) => Some(&mut transition.socket),
        Input::Event(Event::Reset(reset)) => Some(&mut reset.socket),
        Input::Forget(socket) => Some(socket),
        _ => None,
    };
    let known = socket.as_deref().copied();
    if let Some(socket) = socket {
        socket.address = KernelAddress(0);
    }
    (input, known)
}

/// The connections that inputs amount to, ended and open, in an order that does not depend on addresses.
fn connections<'a>(inputs: impl IntoIterator<Item = &'a Input>) -> (Vec<String>, Vec<String>) {
    let mut tracker = Tracker::new(Limits::default());
    let mut effects = Effects::default();
    for input in inputs {
        match input {
            Input::Event(event) => {
                tracker.event(event, &mut effects);
            }
            Input::Now(now_ns) => tracker.advance(*now_ns, &mut effects),
            Input::Forget(socket) => {
                tracker.forget_socket(*socket);
            }
            Input::DumpBegins(kind) => tracker.snapshot_begins(*kind),
            Input::DumpFailed => tracker.snapshot_failed(),
            Input::DumpPart(part) => tracker.merge_part(part, &mut effects),
            Input::Dump(rest) => tracker.merge(rest, &mut effects),
            Input::MiniSockets(snapshot) => tracker.merge_minis(snapshot),
            Input::Loss(_) | Input::Counters(_) | Input::Facts(_) => {}
        }
    }
    tracker.flush(&mut effects);
    let open: Vec<_> = tracker.open_connections(u64::MAX).collect();
    // An address is not shown.
    let mut connections: Vec<String> = effects.ended.iter().chain(&open).map(|its| format!("{its:?}")).collect();
    connections.sort();
    let mut repaired: Vec<String> = effects.repaired.iter().map(|its| format!("{its:?}")).collect();
    repaired.sort();
    (connections, repaired)
}

proptest! {
    #![proptest_config(Config { cases: 128, failure_persistence: None, ..Config::default() })]

    #[test]
    fn what_is_heard_comes_back_and_gives_the_same_connections(
        heard in vec(heard(), 0..60),
        in_batch in 1_usize..40,
    ) {
        let bytes = recorded(&heard, in_batch);
        let read = read(&bytes).expect("a recording");
        prop_assert_eq!(read.end.as_ref().ok(), Some(&Ending::Whole));
        let written = told(&heard);
        let mut numbers: HashMap<u64, u64> = HashMap::new();
        for (written, read) in written.iter().zip(read.inputs()) {
            let ((written, socket), (read, read_socket)) = (apart(written), apart(read));
            prop_assert_eq!(written, read);
            if let (Some(socket), Some(read)) = (socket, read_socket) {
                let number = *numbers.entry(socket.address.0).or_insert(read.address.0);
                prop_assert_eq!(number, read.address.0, "each address is told by the same number");
                prop_assert_eq!(socket.address.0 == 0, read.address.0 == 0);
            }
        }
        prop_assert_eq!(written.len(), read.inputs.len());
        let distinct: HashSet<u64> = numbers.values().copied().collect();
        prop_assert_eq!(distinct.len(), numbers.len(), "and others by others");
        prop_assert_eq!(connections(kept(&heard).iter().flatten()), connections(read.inputs()));
    }

    #[test]
    fn kernel_addresses_are_in_no_file(heard in vec(heard(), 1..40)) {
        let file = recorded(&heard, 100);
        let addresses: Vec<u64> = (0..4).map(|number| FIRST_ADDRESS + number * 2048).collect();
        // Compressed they might hide.
        for batch in StreamReader::try_new(&file[..], None).expect("a plain Arrow stream") {
            for column in batch.expect("a plain Arrow stream").columns() {
                for buffer in column.to_data().buffers() {
                    for bytes in buffer.windows(8) {
                        let number = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
                        prop_assert!(!addresses.contains(&number) && !addresses.contains(&number.swap_bytes()));
                    }
                    let text = String::from_utf8_lossy(buffer);
                    for told in addresses.iter().flat_map(|address| [address.to_string(), format!("{address:x}")]) {
                        prop_assert!(!text.contains(&told));
                    }
                }
            }
        }
    }
}

#[test]
fn two_recordings_tell_one_address_by_different_numbers() {
    let socket = SocketId { cookie: 0, address: KernelAddress(FIRST_ADDRESS) };
    let heard = [Heard { input: Input::Forget(socket), annotation: Annotation::default() }];
    let told = || {
        let read = read(&recorded(&heard, 1)).expect("a recording");
        apart(read.inputs()[0]).1.expect("a socket").address.0
    };
    assert_ne!(told(), told());
}

#[test]
fn a_file_says_of_its_run_what_was_written() {
    let file = recorded(&[], 1);
    assert_eq!(*Reader::new(&file[..]).expect("a recording").metadata(), metadata());
}

#[test]
fn in_the_next_file_the_first_dump_tells_nothing_new() {
    let heard = [Heard { input: Input::DumpBegins(MergeKind::Anew), annotation: Annotation::default() }];
    let file = recorded(&heard, 1);
    let mut reader = Reader::new(&file[..]).expect("a recording");
    reader.goes_on();
    let Ok(Some(Recorded::Input(Input::DumpBegins(kind)))) = reader.read() else { panic!("a dump") };
    assert_eq!(kind, MergeKind::Anew);
}
