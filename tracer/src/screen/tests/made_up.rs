//! What the tests' screens show: a host full of trouble, made up of numbers, with names that do harm; and how a screen is
//! seen, and its keys pressed.

use std::sync::Arc;

use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

use super::super::{
    Abilities, About, Action, Colours, Key, Picture, State, View,
    draw::draw,
    history::History,
    picture::{Mark, Progress, Recording, Rows},
    rows::{ConnectionRow, DestinationRow, First, ListenerRow},
};
use crate::{
    core::{
        connection::{AfterClose, Certainty, Connection, Opening, Process, ProcessSource, Span},
        endpoint::{Address, Endpoint, Tuple},
        finding::{
            Cause, Finding, FoundSocket, Kind, Severity,
            ports::{Destination, Use},
        },
        state::State as Tcp,
        tracker::Annotation,
        transition::{Comm, Context, Errno, Origin, SocketId, Task, Transition},
    },
    output::{records::LogRecord, report::LossRecord},
    source::clock::WallClock,
};

pub(super) const S: u64 = 1_000_000_000;
pub(super) const NOW: u64 = 100_000 * S;
pub(super) const SMALL: (u16, u16) = (80, 24);
pub(super) const LARGE: (u16, u16) = (160, 50);
pub(super) const COLOURFUL: Abilities = Abilities { ascii: false, colours: Colours::Many };

/// Names that processes gave themselves to do harm, or because that is how they write.
pub(super) const COMMS: [&str; 6] =
    ["leaky_server", "\x1b[2J\x1b[31mroot", "日本語サー", "\u{202e}drowssap", "שרת דואר", "a\u{301}\u{200d}\r\nb"];

pub(super) fn comm(name: &str) -> Comm {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    Comm::new(bytes)
}

pub(super) fn process(number: usize) -> Option<Process> {
    let comm = comm(COMMS[number % COMMS.len()]);
    (number % 7 != 6).then(|| Process { pid: 4_121 + number as u32, comm, source: ProcessSource::Holder })
}

pub(super) fn end(last: u8, port: u16) -> Endpoint {
    Endpoint::new(Address::v4([10, 2, 0, last]), port)
}

pub(super) fn v6(port: u16) -> Endpoint {
    Endpoint::new(Address::v6([0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6]), port)
}

pub(super) fn connection(number: usize) -> ConnectionRow {
    let state = [Tcp::CLOSE_WAIT, Tcp::ESTABLISHED, Tcp::SYN_SENT, Tcp::FIN_WAIT2][number % 4];
    let span = |state, ns, certainty| Span { state, ns, certainty };
    let is_old = number.is_multiple_of(5);
    let mut spans = vec![span(state, (number as u64 + 1) * 700_000_000, Certainty::AtLeast)];
    if !is_old && state != Tcp::SYN_SENT {
        spans.insert(0, span(Tcp::SYN_RECV, 20_100, Certainty::Exact));
        if state != Tcp::ESTABLISHED {
            spans.insert(1, span(Tcp::ESTABLISHED, 3_200_000_000, Certainty::Exact));
        }
    }
    let duration: u64 = spans.iter().map(|span| span.ns).sum();
    let remote = if number % 11 == 10 { v6(443) } else { end(9, 40_000 + number as u16) };
    let connection = Connection {
        socket: SocketId::from_cookie(number as u64 + 1),
        tuple: Tuple { netns: 4_026_531_840, local: end(1, 8080), remote },
        opened_ns: (!is_old).then(|| NOW - duration),
        ended_ns: None,
        opening: if is_old { Opening::PreExisting } else { Opening::Passive },
        closing: None,
        error: Errno::NONE,
        reset_cause: None,
        file_left: None,
        after_close: AfterClose::None,
        spans,
        bytes_in: (number % 3 != 2).then_some(18 * number as u64 * number as u64),
        bytes_out: Some(number as u64 * 1_000),
        process: process(number),
        cgroup: 7,
        inode: 22_000 + number as u64,
        gap: number.is_multiple_of(8),
    };
    ConnectionRow {
        connection,
        cgroup: Some(Arc::from("/system.slice/\x1b[31mnginx.service")),
        workload: Some(Arc::from("\u{202e}nginx.service")),
    }
}

pub(super) fn finding(number: usize) -> Finding {
    let kinds = [
        (Kind::CloseWait, Severity::Critical, Some(Cause::EofReadNotClosed), "close() never called"),
        (
            Kind::TimeWaitPorts,
            Severity::Warning,
            None,
            "10.2.0.1 → 10.2.0.9:5432: 24900 of 28232 local ports in use (88 %)",
        ),
        (Kind::Churn, Severity::Info, None, "many short connections to 10.2.0.9:5432 that could be one"),
    ];
    let (kind, severity, cause, title) = kinds[number % kinds.len()];
    let who = process(number).map_or_else(String::new, |process| process.comm.to_string());
    let socket = |at: usize| FoundSocket {
        cookie: at as u64 + 1,
        local: end(1, 8080),
        remote: if at == 3 { Endpoint::UNKNOWN } else { end(9, 40_000 + at as u16) },
        age_ns: (20 - at as u64) * S,
        age_certainty: if at < 4 { Certainty::AtLeast } else { Certainty::Exact },
        fds: vec![12 + at as i32, 90 + at as i32],
    };
    Finding {
        kind,
        severity,
        title: format!("{who}[{}] {title}", 4_121 + number),
        process: process(number),
        local: Some(end(1, 8080)),
        remote: Some(end(9, number as u16)),
        netns: 4_026_531_840,
        count: 1_136,
        oldest_ns: 11_520 * S,
        oldest_certainty: Certainty::AtLeast,
        growth_per_min: Some(38.0),
        eta_s: Some(4_560),
        cause,
        evidence: vec![
            "the receive queues are empty, the FIN was read".to_owned(),
            "descriptors open: 1190 of 4096".to_owned(),
        ],
        remedy:
            "Look at what the program does when read() returns 0: the path that returns early there forgets close(), \
                 often the one for errors. Until it is mended only a restart frees the descriptors; ss -K does not."
                .to_owned(),
        topic: "eof_read_not_closed",
        sockets: (0..20).map(socket).collect(),
    }
}

pub(super) fn transition(number: usize) -> LogRecord {
    let (old, new) = [
        (Tcp::CLOSE, Tcp::SYN_SENT),
        (Tcp::SYN_SENT, Tcp::ESTABLISHED),
        (Tcp::ESTABLISHED, Tcp::CLOSE_WAIT),
        (Tcp::ESTABLISHED, Tcp::CLOSE),
    ][number % 4];
    let process = process(number);
    let transition = Transition {
        mono_ns: NOW - (100 - number as u64) * 10_000_000,
        socket: SocketId::from_cookie(number as u64 + 1),
        tuple: Tuple { netns: 1, local: end(1, 30_000 + number as u16), remote: end(9, 443) },
        old,
        new,
        task: process.map_or_else(Task::default, |process| Task { pid: process.pid, tid: 1, comm: process.comm }),
        context: Context::Process,
        details: None,
        origin: if number % 9 == 8 { Origin::Repaired } else { Origin::Kernel },
    };
    let annotation =
        Annotation { in_state_ns: (number % 5 != 4).then_some(46_500 * number as u64), ..Annotation::default() };
    LogRecord::new(&transition, &annotation, None, WallClock::from_offset_ns(0))
}

pub(super) fn destination(number: usize) -> DestinationRow {
    let usage = Use {
        time_wait: 24_900 / (number as u64 + 1),
        time_wait_kept: 20_000 / (number as u64 + 1),
        fin_wait2: 3,
        open: 310,
        served: 0,
    };
    let remote = if number == 1 { v6(5432) } else { end(number as u8, 5432) };
    let destination = Destination { netns: 4_026_531_840, local: end(1, 0).address, remote };
    DestinationRow { destination, usage, available: (number != 2).then_some(28_232) }
}

pub(super) fn listener(number: usize) -> ListenerRow {
    let address = if number == 1 { Address::UNSPECIFIED } else { Address::v4([127, 0, 0, number as u8]) };
    ListenerRow {
        netns: 4_026_531_840,
        local: Endpoint::new(address, 8_000 + number as u16),
        process: process(number),
        per_second: number as f64 * 1.5,
        queue: (number != 2).then_some((number as u32 * 40, 128)),
        open: 310 * number as u64,
        close_wait: 34 * number as u64,
    }
}

pub(super) fn rows<R: super::super::rows::Row>(rows: impl Iterator<Item = R>, state: &State) -> Rows<R> {
    let ask = state.ask();
    let mut first = First::new(&ask.filter, ask.sort, ask.reverse);
    rows.for_each(|row| first.push(row));
    first.finish()
}

pub(super) fn history() -> History {
    let mut history = History::default();
    for second in 0..400 {
        let wave = (second % 60) as u32;
        let now = history.at(NOW - (400 - second) * S);
        (now.opens, now.closes, now.resets, now.failures) = (wave, wave / 2, u32::from(wave == 30), 0);
        now.states[1] = 200 + wave * 3;
        now.states[6] = 20_000 + 40 * second as u32;
        now.states[8] = second as u32 * 3;
    }
    history.advance(NOW);
    history
}

/// What a picture of a busy host has for this screen.
pub(super) fn full(state: &State) -> Picture {
    let history = history().seconds();
    Picture {
        now_ns: NOW,
        began_ns: NOW - 900 * S,
        clock: WallClock::from_offset_ns(1_700_000_000 * S),
        loss: LossRecord { seen: 1_203_441, dropped: 17, missed: 2, repaired: 19 },
        let_go: 3,
        states: history.last().expect("a second").states,
        listening: 12,
        history,
        findings: Some((0..7).map(finding).collect()),
        sampled_ns: NOW - 2 * S,
        connections: Some(rows((0..3_000).map(connection), state)),
        destinations: Some(rows((0..60).map(destination), state)),
        listeners: Some(rows((0..30).map(listener), state)),
        log: (0..90).map(transition).collect(),
        log_left_out: 0,
        opened: None,
        replay: None,
        notes: vec!["17 transitions dropped, the ring buffer was full: try a larger --buffer".to_owned()],
    }
}

pub(super) fn screen(size: (u16, u16)) -> State {
    let about = About { host: "web-1".to_owned(), kernel: "6.18.44".to_owned(), ..About::default() };
    State::new(about, COLOURFUL, size)
}

pub(super) fn busy(size: (u16, u16), view: View) -> State {
    let mut state = screen(size);
    state.about.filters = "--port 443,8080 --comm \x1b[31mnginx".to_owned();
    state.view = view;
    let picture = full(&state);
    state.take(picture);
    state
}

pub(super) fn replayed(size: (u16, u16)) -> State {
    let mut state = busy(size, View::Overview);
    let mark = |mono_ns| Mark { mono_ns, severity: Severity::Warning, title: "a leak".to_owned() };
    state.about.recording = Some(Recording {
        name: "host.arrows".to_owned(),
        began_ns: NOW - 600 * S,
        ended_ns: Some(NOW + 600 * S),
        marks: vec![mark(NOW - 300 * S), mark(NOW + 100 * S), mark(NOW + 400 * S)],
        is_pipe: false,
    });
    state.picture.replay = Some(Progress { speed: Some(10.0), ..Progress::default() });
    state
}

pub(super) fn drawn(state: &State) -> Buffer {
    let (width, height) = state.size;
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(state, frame.buffer_mut())).expect("drawn");
    terminal.backend().buffer().clone()
}

/// What somebody sees. A wide character hides the cell behind it.
pub(super) fn seen(state: &State) -> String {
    let buffer = drawn(state);
    let mut text = format!("{}x{}\n", state.size.0, state.size.1);
    for y in 0..buffer.area.height {
        let mut line = String::new();
        let mut hidden = 0;
        for x in 0..buffer.area.width {
            let symbol = buffer[(x, y)].symbol();
            if hidden == 0 {
                line.push_str(symbol);
                hidden = super::super::text::width(symbol).max(1);
            }
            hidden -= 1;
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn press(state: &mut State, keys: &str) -> Action {
    keys.chars().fold(Action::Draw, |_, c| match c {
        '\n' => state.key(Key::Enter),
        c => state.key(Key::Char(c)),
    })
}
