//! Snapshots of every output, with names that a hostile process would choose.

use super::{
    Format, Row, Writer,
    records::{ConnectionRecord, LogRecord},
    report::{self, LossRecord},
};
use crate::{
    core::{
        connection::{AfterClose, Certainty, Closing, Connection, Opening, Process, ProcessSource, Span},
        endpoint::{Address, Endpoint, Tuple},
        finding::{Cause, Finding, FoundSocket, Kind, Severity},
        state::State,
        tracker::Annotation,
        transition::{Comm, Context, Details, Errno, KernelAddress, Origin, SocketId, Task, Transition},
    },
    source::clock::WallClock,
};

const CLOCK_OFFSET_NS: u64 = 1_790_000_000_000_000_000;

fn clock() -> WallClock {
    WallClock::from_offset_ns(CLOCK_OFFSET_NS)
}

fn tuple() -> Tuple {
    let v6: std::net::IpAddr = "2001:db8::17".parse().expect("an address");
    Tuple {
        netns: 4_026_531_833,
        local: Endpoint::new(Address::v4([10, 0, 0, 5]), 40_112),
        remote: Endpoint::new(v6, 443),
    }
}

/// What a log prints: an ordinary line, one with everything hostile, and one with nothing known.
fn log_records() -> Vec<LogRecord> {
    let details = Details {
        fin_received: true,
        orphaned: false,
        send_shutdown: false,
        previous_port: 0,
        linger: false,
        mptcp: false,
        inode: 29_539,
        cgroup: 77,
        uid: 1000,
        error: Errno::NONE,
        bytes_received: 10,
        bytes_acked: 20,
        srtt_us: 30,
        retransmits: 0,
    };
    let closing = Transition {
        mono_ns: 2_442_855_793_083,
        socket: SocketId { cookie: 4711, address: KernelAddress(0xffff_8881_0000_0000) },
        tuple: tuple(),
        old: State::CLOSE_WAIT,
        new: State::LAST_ACK,
        task: Task { pid: 4121, tid: 4125, comm: Comm::from("java") },
        context: Context::Process,
        details: Some(details),
        origin: Origin::Kernel,
    };
    let annotation = Annotation { in_state_ns: Some(11_520_000_000_000), ..Annotation::default() };
    let hostile = Transition {
        task: Task { comm: Comm::from("\u{1b}[2J\"a,\nb"), ..closing.task },
        new: State::CLOSE,
        details: Some(Details { error: Errno::ECONNRESET, ..details }),
        ..closing
    };
    let unknown = Transition {
        socket: SocketId::default(),
        tuple: Tuple { netns: 0, local: Endpoint::UNKNOWN, remote: Endpoint::UNKNOWN },
        old: State(99),
        new: State::CLOSE,
        context: Context::Unknown,
        details: None,
        origin: Origin::Repaired,
        ..closing
    };
    vec![
        LogRecord::new(&closing, &annotation, Some("/system.slice/cart.service".into()), clock()),
        LogRecord::new(&hostile, &annotation, Some("/a,\"b\u{fffd}".into()), clock()),
        LogRecord::new(&unknown, &Annotation::default(), None, clock()),
    ]
}

fn connection_records() -> Vec<ConnectionRecord> {
    let span = |state, ns, certainty| Span { state, ns, certainty };
    let ended = Connection {
        socket: SocketId::from_cookie(4711),
        tuple: tuple(),
        opened_ns: Some(1_000_000_000),
        ended_ns: Some(3_000_001_500),
        opening: Opening::Active,
        closing: Some(Closing::Active),
        error: Errno::NONE,
        reset_cause: None,
        file_left: None,
        after_close: AfterClose::TimeWait,
        spans: vec![
            span(State::SYN_SENT, 1_500, Certainty::Exact),
            span(State::ESTABLISHED, 2_000_000_000, Certainty::Exact),
        ],
        bytes_in: Some(1_234),
        bytes_out: Some(99),
        process: Some(Process { pid: 88, comm: Comm::from("a,\"b\"\u{7}"), source: ProcessSource::Opener }),
        cgroup: 0,
        inode: 0,
        gap: false,
    };
    let open = Connection {
        opened_ns: None,
        ended_ns: None,
        opening: Opening::PreExisting,
        closing: None,
        after_close: AfterClose::None,
        spans: vec![
            span(State::ESTABLISHED, 5, Certainty::Unknown),
            span(State::CLOSE_WAIT, 60_000_000_000, Certainty::AtLeast),
        ],
        bytes_in: None,
        bytes_out: None,
        process: None,
        gap: true,
        ..ended.clone()
    };
    vec![
        ConnectionRecord::new(&ended, Some("/user.slice".into()), clock()),
        ConnectionRecord::new(&open, None, clock()),
    ]
}

fn bytes<R: Row>(format: Format, records: &[R]) -> Vec<u8> {
    let mut writer = Writer::<R, _>::new(format, Vec::new()).expect("a header");
    for record in records {
        writer.write(record).expect("a record");
    }
    writer.finish().expect("the end")
}

fn written<R: Row>(format: Format, records: &[R]) -> String {
    String::from_utf8(bytes(format, records)).expect("text")
}

#[test]
fn log_as_a_table() {
    insta::assert_snapshot!(written(Format::Table, &log_records()));
}

#[test]
fn log_as_json_lines() {
    insta::assert_snapshot!(written(Format::Jsonl, &log_records()));
}

#[test]
fn log_as_csv() {
    insta::assert_snapshot!(written(Format::Csv, &log_records()));
}

#[test]
fn connections_as_a_table() {
    insta::assert_snapshot!(written(Format::Table, &connection_records()));
}

#[test]
fn connections_as_json_lines() {
    insta::assert_snapshot!(written(Format::Jsonl, &connection_records()));
}

#[test]
fn connections_as_csv() {
    insta::assert_snapshot!(written(Format::Csv, &connection_records()));
}

#[test]
fn every_line_of_json_is_an_object_with_the_fields_by_their_names() {
    fn check<R: Row>(records: &[R]) {
        for line in written(Format::Jsonl, records).lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(value.as_object().expect("an object").keys().eq(R::NAMES), "{line}");
        }
    }
    check(&log_records());
    check(&connection_records());
}

#[test]
fn csv_reads_back_as_it_was_written() {
    let text = written(Format::Csv, &log_records());
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(&rows[1][13], "\u{fffd}[2J\"a,\u{fffd}b");
    assert_eq!(&rows[1][16], "/a,\"b\u{fffd}");
}

#[test]
fn nothing_written_carries_a_control_character_or_a_kernel_address() {
    for format in [Format::Table, Format::Jsonl, Format::Csv] {
        let text = written(format, &log_records()) + &written(format, &connection_records());
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        assert!(!text.contains("ffff8881") && !text.contains(&0xffff_8881_0000_0000_u64.to_string()), "{text}");
    }
}

fn findings() -> Vec<Finding> {
    let socket = |fd| FoundSocket {
        cookie: 5,
        local: Endpoint::new(Address::v4([10, 0, 0, 5]), 8080),
        remote: Endpoint::new(Address::v4([10, 2, 0, 9]), 443),
        age_ns: 11_520_000_000_000,
        age_certainty: Certainty::AtLeast,
        fds: vec![fd],
    };
    vec![Finding {
        kind: Kind::CloseWait,
        severity: Severity::Critical,
        title: "java[4121] leaves 7 sockets in CLOSE_WAIT: EOF was read, close() never called".to_owned(),
        process: Some(Process { pid: 4121, comm: Comm::from("java"), source: ProcessSource::Holder }),
        local: Some(Endpoint::new(Address::v4([10, 0, 0, 5]), 8080)),
        remote: Some(Endpoint::new(Address::v4([10, 2, 0, 9]), 0)),
        netns: 1,
        count: 7,
        oldest_ns: 11_520_000_000_000,
        oldest_certainty: Certainty::AtLeast,
        growth_per_min: Some(38.0),
        eta_s: Some(4560),
        cause: Some(Cause::EofReadNotClosed),
        evidence: vec!["descriptors open: 1190 of 4096".to_owned()],
        remedy: "the program forgets close() after read() returned 0".to_owned(),
        topic: "eof_read_not_closed",
        sockets: (12..19).map(socket).collect(),
    }]
}

const WINDOW_NS: u64 = 10_000_000_000;

#[test]
fn findings_as_text() {
    let mut text = Vec::new();
    report::write_text(&mut text, WINDOW_NS, &findings(), false).expect("a report");
    insta::assert_snapshot!(String::from_utf8(text).expect("text"));
    let mut text = Vec::new();
    report::write_text(&mut text, WINDOW_NS, &[], false).expect("a report");
    insta::assert_snapshot!("no_findings_as_text", String::from_utf8(text).expect("text"));
}

#[test]
fn colour_adds_to_the_text_and_takes_nothing_away() {
    let text = |colour| {
        let mut text = Vec::new();
        report::write_text(&mut text, WINDOW_NS, &findings(), colour).expect("a report");
        String::from_utf8(text).expect("text")
    };
    let coloured = text(true);
    assert!(coloured.contains("\u{1b}[1m\u{1b}[31mCRITICAL"), "{coloured:?}");
    let plain = coloured.replace("\u{1b}[1m", "").replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
    assert_eq!(plain, text(false));
}

#[test]
fn findings_as_json() {
    let loss = LossRecord { seen: 320, dropped: 1, missed: 2, repaired: 3 };
    let mut text = Vec::new();
    report::write_json(&mut text, WINDOW_NS, loss, &findings()[..1]).expect("a report");
    insta::assert_snapshot!(String::from_utf8(text).expect("text"));
    assert_eq!(loss.to_string(), "seen 320 transitions, dropped 1, missed 2, repaired 3");
}
