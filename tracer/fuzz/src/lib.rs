//! What the fuzz targets have in common: a trace that is fed with inputs, and what must hold of whatever comes out of it.

use tracer::{
    core::{
        connection::Connection,
        finding::{self, Facts, Tally, Thresholds},
        input::Input,
        tracker::{Effects, Limits, Tracker},
        transition::Event,
    },
    output::{
        Row,
        records::{ConnectionRecord, LogRecord},
        report::{LossRecord, write_json, write_text},
    },
    source::clock::WallClock,
};

/// A trace under way.
pub struct Trace {
    tracker: Tracker,
    tally: Tally,
    effects: Effects,
    facts: Facts,
    clock: WallClock,
    now_ns: u64,
}

impl Trace {
    pub fn new(max_connections: usize, clock_offset_ns: u64) -> Self {
        Self {
            tracker: Tracker::new(Limits { max_connections, ..Limits::default() }),
            tally: Tally::default(),
            effects: Effects::default(),
            facts: Facts::default(),
            clock: WallClock::from_offset_ns(clock_offset_ns),
            now_ns: 0,
        }
    }

    /// Takes an input in.
    pub fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                self.reached(event.mono_ns());
                let annotation = self.tracker.event(&event, &mut self.effects);
                if let Event::Transition(transition) = event {
                    is_printable(&LogRecord::new(&transition, &annotation, None, self.clock).table_line());
                }
            }
            Input::Now(now_ns) => {
                self.reached(now_ns);
                self.tracker.advance(now_ns, &mut self.effects);
            }
            Input::Forget(socket) => {
                self.tracker.forget_socket(socket);
            }
            Input::DumpBegins(kind) => self.tracker.snapshot_begins(kind),
            Input::DumpFailed => self.tracker.snapshot_failed(),
            Input::DumpPart(part) => {
                self.reached(part.started_ns.max(part.ended_ns));
                self.tracker.merge_part(&part, &mut self.effects);
            }
            Input::Dump(rest) => {
                self.reached(rest.started_ns.max(rest.ended_ns));
                self.tracker.merge(&rest, &mut self.effects);
            }
            Input::MiniSockets(snapshot) => self.tracker.merge_minis(&snapshot),
            Input::Loss(_) | Input::Counters(_) => {}
            Input::Facts(facts) => self.facts = *facts,
        }
        assert!(self.tracker.len() <= self.tracker.limits().max_connections);
        self.count_ended();
    }

    /// The end: judges, and prints what was found.
    pub fn finish(mut self) {
        self.tracker.flush(&mut self.effects);
        self.count_ended();
        assert_eq!(self.tracker.open_connections(self.now_ns).count(), self.tracker.len());
        for connection in self.tracker.open_connections(self.now_ns) {
            is_printable(&ConnectionRecord::new(&connection, None, self.clock).table_line());
        }
        for window_ns in [0, self.facts.window_ns, 60_000_000_000] {
            self.facts.window_ns = window_ns;
            let findings = finding::detect(&self.tracker, &self.tally, &self.facts, &Thresholds::default());
            let (mut text, mut json) = (Vec::new(), Vec::new());
            write_text(&mut text, window_ns, &findings, false).expect("memory takes everything");
            write_json(&mut json, window_ns, LossRecord::default(), &findings).expect("memory takes everything");
            String::from_utf8(text).expect("UTF-8").lines().for_each(is_printable);
        }
    }

    fn reached(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    fn count_ended(&mut self) {
        self.effects.repaired.clear();
        for connection in self.effects.ended.drain(..) {
            check_ended(&connection, self.now_ns);
            self.tally.count(&connection);
            is_printable(&ConnectionRecord::new(&connection, None, self.clock).table_line());
        }
    }
}

fn check_ended(connection: &Connection, latest_ns: u64) {
    let ended_ns = connection.ended_ns.expect("it ended");
    assert!(connection.closing.is_some());
    assert!(ended_ns <= latest_ns);
    assert!(connection.duration_ns() <= ended_ns);
    assert!(connection.opened_ns.is_none_or(|opened_ns| opened_ns <= ended_ns));
}

/// Nothing that goes to a terminal may carry control characters.
pub fn is_printable(line: &str) {
    assert!(!line.chars().any(char::is_control), "{line:?}");
}
