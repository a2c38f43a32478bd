//! Any bytes as records of the BPF programs: the first one says what is known on this kernel and how much the tracker
//! keeps, the rest is cut into records.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::{
    core::input::Input,
    source::kernel::{Known, RECORD_SIZE, decode},
};
use tracer_fuzz::Trace;

fuzz_target!(|bytes: &[u8]| {
    let Some((settings, mut rest)) = bytes.split_first() else { return };
    let known = Known { details: settings & 1 != 0 };
    let mut trace = Trace::new(usize::from(settings >> 1) + 1, 0);
    while let Some((record, after)) = rest.split_at_checked(RECORD_SIZE) {
        if let Some(event) = decode(record, known) {
            trace.take(Input::Event(event));
        }
        rest = after;
    }
    assert_eq!(decode(rest, known), None);
    assert_eq!(bytes.get(..=RECORD_SIZE).and_then(|bytes| decode(bytes, known)), None);
    trace.finish();
});
