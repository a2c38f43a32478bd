//! What is written comes back, and whatever is read does no harm.

mod any_input;
mod damage;
mod hostile;
mod round_trip;

use std::{
    io::{self, Write},
    ops::Range,
    sync::{Arc, Mutex},
};

use super::*;
use crate::{
    core::{input::Input, tracker::Annotation, transition::Event},
    output::records::{LogRecord, Time},
    source::clock::WallClock,
};

const CLOCK: WallClock = WallClock::from_offset_ns(1_700_000_000_000_000_000);

fn metadata() -> Metadata {
    Metadata {
        format: VERSION,
        version: "0.1.0".to_owned(),
        host: "host".to_owned(),
        kernel: "6.1.0".to_owned(),
        boot_id: "7b0d".to_owned(),
        run: "c5a1".to_owned(),
        part: 0,
        clock_offset_ns: CLOCK.unix_ns(0),
        started_ns: 17,
        fin_timeout_ns: 60_000_000_000,
        max_connections: 1000,
        filters: "--port 80".to_owned(),
    }
}

/// A file in memory.
#[derive(Clone, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().map_err(|_| io::ErrorKind::Other)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a trace hears, with the ends that the tracker tells.
#[derive(Clone, Debug)]
struct Heard {
    input: Input,
    annotation: Annotation,
}

/// A recording, with so many inputs in a batch.
fn recorded(heard: &[Heard], in_batch: usize) -> Vec<u8> {
    let file = File::default();
    let mut recorder = Recorder::new(file.clone(), &metadata()).expect("memory takes everything");
    for heard in heard.chunks(in_batch) {
        for Heard { input, annotation } in heard {
            let written = match input {
                Input::Event(Event::Transition(transition)) => {
                    recorder.transition(transition, &LogRecord::new(transition, annotation, None, CLOCK))
                }
                Input::Event(Event::Reset(reset)) => recorder.reset(reset, Time(CLOCK.unix_ns(reset.mono_ns))),
                input => recorder.input(input),
            };
            written.expect("memory takes everything");
        }
        recorder.write_out().expect("memory takes everything");
    }
    recorder.finish().expect("memory takes everything");
    let bytes = file.0.lock().expect("nobody panicked");
    bytes.clone()
}

/// What a reader gave out until it ended, and where in the file it was by then.
struct Read {
    inputs: Vec<(Input, u64)>,
    end: anyhow::Result<Ending>,
}

impl Read {
    fn inputs(&self) -> Vec<&Input> {
        self.inputs.iter().map(|(input, _)| input).collect()
    }
}

fn read(bytes: &[u8]) -> anyhow::Result<Read> {
    let mut reader = Reader::new(bytes)?;
    let mut inputs = Vec::new();
    let end = loop {
        match reader.read() {
            Ok(Some(Recorded::Input(input))) => inputs.push((input, reader.read_bytes())),
            Ok(Some(Recorded::Cgroup { .. })) => {}
            Ok(None) => break Ok(reader.ending().expect("it has ended")),
            Err(error) => {
                assert!(reader.read().is_ok_and(|more| more.is_none()), "after an error nothing comes");
                break Err(error);
            }
        }
    };
    Ok(Read { inputs, end })
}

/// Where the messages of a stream are, the end mark left out.
fn messages(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().expect("four bytes")) as usize;
        if length == 0 {
            return ranges;
        }
        let head = &bytes[at + 8..at + 8 + length];
        let body = arrow_ipc::root_as_message(head).expect("a message").bodyLength() as usize;
        ranges.push(at..at + 8 + length + body);
        at += 8 + length + body;
    }
}

/// Small numbers that look random and are the same each time.
fn numbers() -> impl FnMut(usize) -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    }
}
