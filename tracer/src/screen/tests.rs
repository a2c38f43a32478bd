//! Screens as they are seen: every view, empty and full, small and large; and that no key and no size does any harm.

use std::sync::Arc;

use proptest::prelude::*;
use ratatui::{
    Terminal,
    backend::TestBackend,
    buffer::Buffer,
    style::{Color, Modifier},
};

use super::{
    Abilities, About, Action, Colours, Key, Picture, State, View,
    draw::draw,
    export::export,
    history::History,
    keys::Replay,
    picture::{Mark, Progress, Recording, Rows},
    rows::{ConnectionRow, DestinationRow, First, ListenerRow},
    state::Popup,
};
use crate::{
    core::{
        connection::{AfterClose, Certainty, Closing, Connection, Opening, Process, ProcessSource, Span},
        endpoint::{Address, Endpoint, Tuple},
        finding::{
            Cause, Finding, FoundSocket, Kind, Severity,
            ports::{Destination, Use},
        },
        state::State as Tcp,
        tracker::Annotation,
        transition::{Comm, Context, Errno, Origin, SocketId, Task, Transition},
    },
    output::{Format, records::LogRecord, report::LossRecord},
    source::clock::WallClock,
};

const S: u64 = 1_000_000_000;
const NOW: u64 = 100_000 * S;
const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (160, 50);
const COLOURFUL: Abilities = Abilities { ascii: false, colours: Colours::Many };

/// Names that processes gave themselves to do harm, or because that is how they write.
const COMMS: [&str; 6] =
    ["leaky_server", "\x1b[2J\x1b[31mroot", "日本語サー", "\u{202e}drowssap", "שרת דואר", "a\u{301}\u{200d}\r\nb"];

fn comm(name: &str) -> Comm {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    Comm::new(bytes)
}

fn process(number: usize) -> Option<Process> {
    let comm = comm(COMMS[number % COMMS.len()]);
    (number % 7 != 6).then(|| Process { pid: 4_121 + number as u32, comm, source: ProcessSource::Holder })
}

fn end(last: u8, port: u16) -> Endpoint {
    Endpoint::new(Address::v4([10, 2, 0, last]), port)
}

fn v6(port: u16) -> Endpoint {
    Endpoint::new(Address::v6([0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6]), port)
}

fn connection(number: usize) -> ConnectionRow {
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

fn finding(number: usize) -> Finding {
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

fn transition(number: usize) -> LogRecord {
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

fn destination(number: usize) -> DestinationRow {
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

fn listener(number: usize) -> ListenerRow {
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

fn rows<R: super::rows::Row>(rows: impl Iterator<Item = R>, state: &State) -> Rows<R> {
    let ask = state.ask();
    let mut first = First::new(&ask.filter, ask.sort, ask.reverse);
    rows.for_each(|row| first.push(row));
    first.finish()
}

fn history() -> History {
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
fn full(state: &State) -> Picture {
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

fn screen(size: (u16, u16)) -> State {
    let about = About { host: "web-1".to_owned(), kernel: "6.18.44".to_owned(), ..About::default() };
    State::new(about, COLOURFUL, size)
}

fn busy(size: (u16, u16), view: View) -> State {
    let mut state = screen(size);
    state.about.filters = "--port 443,8080 --comm \x1b[31mnginx".to_owned();
    state.view = view;
    let picture = full(&state);
    state.take(picture);
    state
}

fn replayed(size: (u16, u16)) -> State {
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

fn drawn(state: &State) -> Buffer {
    let (width, height) = state.size;
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(state, frame.buffer_mut())).expect("drawn");
    terminal.backend().buffer().clone()
}

/// What somebody sees. A wide character hides the cell behind it.
fn seen(state: &State) -> String {
    let buffer = drawn(state);
    let mut text = format!("{}x{}\n", state.size.0, state.size.1);
    for y in 0..buffer.area.height {
        let mut line = String::new();
        let mut hidden = 0;
        for x in 0..buffer.area.width {
            let symbol = buffer[(x, y)].symbol();
            if hidden == 0 {
                line.push_str(symbol);
                hidden = super::text::width(symbol).max(1);
            }
            hidden -= 1;
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn press(state: &mut State, keys: &str) -> Action {
    keys.chars().fold(Action::Draw, |_, c| match c {
        '\n' => state.key(Key::Enter),
        c => state.key(Key::Char(c)),
    })
}

#[test]
fn every_view_empty_and_full_small_and_large() {
    for view in View::ALL {
        let mut screens = String::new();
        for size in [SMALL, LARGE] {
            let mut empty = screen(size);
            empty.view = view;
            screens += &seen(&empty);
            screens += &seen(&busy(size, view));
        }
        insta::assert_snapshot!(format!("view_{}", view.name().to_lowercase()), screens);
    }
}

#[test]
fn what_lies_over_a_view() {
    let mut screens = String::new();
    for size in [SMALL, LARGE] {
        for (view, keys) in [(View::Overview, "?"), (View::Findings, "j\n"), (View::Connections, "jjjjj\n")] {
            let mut state = busy(size, view);
            press(&mut state, keys);
            assert!(state.popup.is_some());
            screens += &seen(&state);
        }
    }
    insta::assert_snapshot!("popups", screens);
}

#[test]
fn a_connection_that_has_ended_while_somebody_looks() {
    let mut state = busy(SMALL, View::Connections);
    press(&mut state, "jj\n");
    let Some(Popup::Connection(row, true)) = state.popup.clone() else { panic!("{:?}", state.popup) };
    let mut ended = *row;
    let connection = &mut ended.connection;
    (connection.ended_ns, connection.closing) = (Some(NOW), Some(Closing::ResetReceived));
    (connection.error, connection.after_close) = (Errno::ECONNRESET, AfterClose::None);
    assert_eq!(state.ask().opened, Some(ended.connection.socket.cookie));
    let picture = Picture { opened: Some(ended), ..full(&state) };
    state.take(picture);
    insta::assert_snapshot!("ended", seen(&state));
    // And one that is not known any more stays as it was.
    state.take(full(&state));
    assert!(matches!(state.popup, Some(Popup::Connection(_, false))));
}

#[test]
fn a_replay_has_its_time() {
    insta::assert_snapshot!("replay", seen(&replayed(SMALL)));
    let mut state = replayed(LARGE);
    assert_eq!(press(&mut state, " "), Action::Replay(Replay::Pause));
    assert_eq!(press(&mut state, "n"), Action::Replay(Replay::Seek(NOW + 100 * S)));
    assert_eq!(press(&mut state, "N"), Action::Replay(Replay::Seek(NOW - 300 * S)));
    assert_eq!(press(&mut state, "^"), Action::Replay(Replay::Seek(NOW - 600 * S)));
    assert_eq!(press(&mut state, "$"), Action::Replay(Replay::End));
    assert_eq!(press(&mut state, "<"), Action::Replay(Replay::Seek(NOW - 10 * S)));
    state.about.recording.as_mut().expect("a recording").is_pipe = true;
    assert_eq!(press(&mut state, "<"), Action::Draw);
    assert!(seen(&state).contains("no way back"));
}

#[test]
fn ascii_alone_where_the_terminal_has_nothing_else() {
    let mut state = busy(SMALL, View::Overview);
    state.abilities.ascii = true;
    let text = seen(&state);
    assert!(text.is_ascii());
    insta::assert_snapshot!("ascii", text);
    for view in View::ALL {
        state.view = view;
        assert!(seen(&state).is_ascii(), "{view:?}");
    }
}

#[test]
fn without_colours_nothing_has_one_and_the_selection_still_shows() {
    for view in View::ALL {
        let mut state = busy(LARGE, view);
        state.abilities.colours = Colours::None;
        let buffer = drawn(&state);
        assert!(buffer.content.iter().all(|cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset)), "{view:?}");
        assert!(buffer.content.iter().any(|cell| cell.modifier.contains(Modifier::REVERSED)), "{view:?}");
        state.abilities.colours = Colours::Sixteen;
        let many = |cell: &ratatui::buffer::Cell| matches!(cell.fg, Color::Indexed(_) | Color::Rgb(..));
        assert!(!drawn(&state).content.iter().any(many), "{view:?}");
    }
}

#[test]
fn no_name_moves_the_cursor_or_shifts_a_column() {
    for size in [SMALL, LARGE, (110, 30)] {
        for view in View::ALL {
            let mut state = busy(size, view);
            for keys in ["", "G", "\n"] {
                press(&mut state, keys);
                let harmful =
                    |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}');
                assert!(!drawn(&state).content.iter().any(|cell| cell.symbol().contains(harmful)), "{view:?}");
            }
        }
        let buffer = drawn(&busy(size, View::Connections));
        // Where the head of the column is, the peer's address begins in each row.
        let row = |y: u16| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<Vec<_>>();
        let head = row(2);
        let at = (0..head.len() - 4).find(|at| head[*at..at + 4].concat() == "PEER").expect("a head");
        for y in 3..size.1 - 1 {
            assert!(["1", "["].contains(&row(y)[at]), "{size:?} {y}: {}", row(y).concat());
        }
    }
}

#[test]
fn keys_are_those_of_less_and_htop() {
    let mut state = busy(SMALL, View::Overview);
    let shown = |state: &State| state.list().selected;
    assert_eq!(press(&mut state, "q"), Action::Quit);
    state.key(Key::Tab);
    state.key(Key::Right);
    assert_eq!(state.view, View::Connections);
    press(&mut state, "jjj");
    assert_eq!(shown(&state), 3);
    state.key(Key::PageDown);
    assert_eq!(shown(&state), 23);
    press(&mut state, "G");
    assert_eq!((shown(&state), state.length()), (999, 1_000));
    press(&mut state, "gk");
    assert_eq!(shown(&state), 0);
    state.key(Key::WheelDown);
    assert_eq!(shown(&state), 3);
    press(&mut state, "ss");
    assert_eq!((state.choice().sort, state.choice().reverse), (2, false));
    press(&mut state, "Sr");
    assert_eq!((state.choice().sort, state.choice().reverse), (1, true));
    press(&mut state, "/q?e");
    assert_eq!((state.choice().filter.as_str(), state.typing), ("q?e", true));
    state.key(Key::Enter);
    assert_eq!((state.ask().filter.as_str(), state.typing), ("q?e", false));
    state.key(Key::Escape);
    assert_eq!(state.choice().filter, "");
    press(&mut state, "?");
    assert_eq!((state.popup.clone(), press(&mut state, "q")), (Some(Popup::Help), Action::Draw));
    assert_eq!(state.popup, None);
    assert_eq!(state.key(Key::Ctrl('c')), Action::Quit);
    assert_eq!(state.key(Key::Ctrl('z')), Action::Suspend);
    assert_eq!(press(&mut state, "m"), Action::Mouse(false));
    assert_eq!(press(&mut state, "ej"), Action::Export(Format::Jsonl));
    assert_eq!(press(&mut state, "ec"), Action::Export(Format::Csv));
    assert_eq!(press(&mut state, "ex"), Action::Draw);
}

#[test]
fn a_listener_leads_to_its_connections() {
    let mut state = busy(SMALL, View::Listeners);
    press(&mut state, "\n");
    assert_eq!((state.view, state.ask().filter), (View::Connections, "127.0.0.29:8029".to_owned()));
    let mut state = busy(SMALL, View::Destinations);
    press(&mut state, "\n");
    assert_eq!(state.ask().filter, "10.2.0.1 10.2.0.0:5432");
}

#[test]
fn what_stands_still_stands_still_and_nothing_is_lost_meanwhile() {
    let mut state = busy(SMALL, View::Log);
    press(&mut state, " ");
    let before = seen(&state);
    for number in 90..95 {
        state.take(Picture { now_ns: NOW, log: vec![transition(number)], ..Picture::default() });
    }
    assert_eq!(seen(&state), before);
    press(&mut state, " ");
    assert_eq!(state.log.len(), 95);
}

#[test]
fn the_log_follows_unless_somebody_looks_at_something() {
    let mut state = busy(SMALL, View::Log);
    assert_eq!(state.list().selected, 89);
    press(&mut state, "kk");
    let looked_at = state.selected();
    state.take(Picture { now_ns: NOW, log: vec![transition(91)], ..Picture::default() });
    assert_eq!((state.selected(), state.length()), (looked_at, 91));
    press(&mut state, "G");
    state.take(Picture { now_ns: NOW, log: vec![transition(92)], ..Picture::default() });
    assert_eq!(state.list().selected, 91);
    press(&mut state, "/close_wait");
    assert!(state.length() < 30 && state.length() > 10);
}

#[test]
fn the_log_is_bounded() {
    let mut state = screen(SMALL);
    state.frozen = true;
    for _ in 0..10 {
        state.take(Picture { log: (0..2_000).map(|number| transition(number % 100)).collect(), ..Picture::default() });
    }
    press(&mut state, " ");
    assert_eq!((state.log.len(), state.log_left_out), (5_000, 15_000));
}

#[test]
fn a_selection_goes_with_its_row() {
    let mut state = busy(SMALL, View::Connections);
    press(&mut state, "jjjj");
    let selected = state.selected();
    let mut picture = full(&state);
    picture.connections.as_mut().expect("rows").first.drain(1..3);
    state.take(picture);
    assert_eq!((state.selected(), state.list().selected), (selected, 2));
}

#[test]
fn rows_are_the_first_in_their_order_however_many_there_are() {
    let mut state = screen(SMALL);
    let all = rows((0..5_000).rev().map(connection), &state);
    assert_eq!((all.first.len(), all.matching, all.all), (1_000, 5_000, 5_000));
    let falls = |rows: &Rows<ConnectionRow>| rows.first.windows(2).all(|two| two[0].last().ns >= two[1].last().ns);
    assert!(falls(&all));
    assert_eq!(all.first[0].connection.socket.cookie, 5_000);
    state.view = View::Connections;
    press(&mut state, "/CLOSE_WAIT  leaky\n");
    let some = rows((0..5_000).map(connection), &state);
    assert!(some.matching > 100 && some.matching < 1_300 && falls(&some));
    assert!(some.first.iter().all(|row| row.state() == Tcp::CLOSE_WAIT));
    for column in 0..8 {
        press(&mut state, "rrs");
        let sorted = rows((0..300).map(connection), &state);
        assert!(
            sorted.first.windows(2).all(|two| { super::rows::Row::order(&two[0], &two[1], (column + 1) % 8).is_le() })
        );
    }
}

#[test]
fn what_is_shown_is_exported() {
    let mut exports = String::new();
    for view in View::ALL {
        let mut state = busy(SMALL, view);
        if let Some(rows) = &mut state.picture.connections {
            rows.first.truncate(2);
            // What comes out of the pipeline has been made printable where it entered.
            rows.first.iter_mut().for_each(|row| row.cgroup = Some(Arc::from("/system.slice/nginx.service")));
        }
        for format in [Format::Jsonl, Format::Csv] {
            let export = export(&state, format).expect("an export");
            let text = String::from_utf8(export.text).expect("UTF-8");
            assert_eq!(text.lines().count(), export.rows + usize::from(format == Format::Csv), "{view:?}");
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
            exports += &format!("{}.{}\n", export.name, export.ending);
            text.lines().take(2).for_each(|line| exports += &format!("{line}\n"));
        }
    }
    insta::assert_snapshot!("exports", exports);
}

fn any_key() -> impl Strategy<Value = Key> {
    let keys = [
        Key::Up,
        Key::Down,
        Key::Left,
        Key::Right,
        Key::PageUp,
        Key::PageDown,
        Key::Home,
        Key::End,
        Key::Enter,
        Key::Escape,
        Key::Tab,
        Key::BackTab,
        Key::Backspace,
        Key::WheelUp,
        Key::WheelDown,
        Key::Function(6),
    ];
    prop_oneof![
        proptest::sample::select(keys.to_vec()),
        any::<char>().prop_map(Key::Char),
        proptest::sample::select(&b"/jkhlgGsSrnN<>^$.+-123456? em\n"[..]).prop_map(|byte| Key::Char(byte as char)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_key_and_no_size_does_any_harm(
        keys in proptest::collection::vec((any_key(), 0_u16..170, 0_u16..60, 0_u8..8), 1..60),
        is_replay: bool,
        ascii: bool,
    ) {
        let mut state = if is_replay { replayed(SMALL) } else { busy(SMALL, View::Overview) };
        state.abilities.ascii = ascii;
        let pictures = [Picture::default(), full(&state)];
        for (key, width, height, event) in keys {
            state.key(key);
            match event {
                0 => state.resize((width, height)),
                1 => state.take(pictures[0].clone()),
                2 => state.take(pictures[1].clone()),
                _ => {}
            }
            let (width, height) = if event == 3 { (width, height) } else { state.size };
            let mut buffer = Buffer::empty(ratatui::layout::Rect::new(0, 0, width, height));
            draw(&state, &mut buffer);
            prop_assert!(state.ask().filter.len() <= 104);
        }
    }
}
