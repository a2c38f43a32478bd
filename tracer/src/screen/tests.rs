//! Screens as they are seen: every view, empty and full, small and large; and that no key and no size does any harm.

use std::sync::Arc;

use proptest::prelude::*;
use ratatui::{
    buffer::Buffer,
    style::{Color, Modifier},
};

use super::{
    Action, Colours, Key, Picture, State, View, draw::draw, export::export, keys::Replay, picture::Rows,
    rows::ConnectionRow, state::Popup,
};
use crate::{
    core::{
        connection::{AfterClose, Closing},
        state::State as Tcp,
        transition::Errno,
    },
    output::Format,
};

mod made_up;

use self::made_up::*;

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
