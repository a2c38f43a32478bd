//! Any bytes as a recording. Batches without a checksum are read too, so that a mutation is not stopped by it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::{
    problem,
    recording::{Reader, Recorded},
};
use tracer_fuzz::{Trace, is_printable};

fuzz_target!(|bytes: &[u8]| {
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return is_printable(&problem::one_line(&error)),
    };
    let metadata = reader.metadata();
    for text in [&metadata.host, &metadata.kernel, &metadata.version, &metadata.filters, &metadata.run] {
        is_printable(text);
    }
    let mut trace = Trace::new(metadata.max_connections.clamp(1, 1000), metadata.clock_offset_ns);
    loop {
        match reader.read() {
            Ok(Some(Recorded::Input(input))) => trace.take(input),
            Ok(Some(Recorded::Cgroup { path, .. })) => is_printable(&path),
            Ok(None) => break,
            Err(error) => {
                is_printable(&problem::one_line(&error));
                break;
            }
        }
    }
    assert!(reader.ending().is_some());
    assert!(reader.read_bytes() <= bytes.len() as u64);
    trace.finish();
});
