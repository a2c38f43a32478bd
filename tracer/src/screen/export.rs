//! What is shown, as JSON lines or CSV.

use std::io;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    history::{place, rate},
    picture::{Rows, View},
    rows::{ConnectionRow, DestinationRow, ListenerRow},
    state::State,
};
use crate::{
    core::{
        endpoint::{Address, Endpoint},
        state::State as TcpState,
    },
    output::{
        Format, Row as Record, lines, lines_of_objects,
        records::{ConnectionRecord, ProcessRecord, Time, VERSION},
        report::{FindingRecord, LossRecord},
    },
};

/// What goes to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name without its ending; the moment is part of it.
    pub name: String,
    /// The ending.
    pub ending: &'static str,
    /// Its contents.
    pub text: Vec<u8>,
    /// How many rows these are.
    pub rows: usize,
}

/// The counts of the overview.
#[derive(Serialize)]
struct OverviewRecord {
    v: u8,
    time: String,
    states: Map<String, Value>,
    listening: usize,
    opens_per_s: f64,
    closes_per_s: f64,
    resets_per_s: f64,
    failures_per_s: f64,
    loss: LossRecord,
}

#[derive(Serialize)]
struct DestinationRecord {
    v: u8,
    netns: u32,
    local_addr: String,
    remote_addr: String,
    remote_port: u16,
    open: u64,
    time_wait: u64,
    fin_wait_2: u64,
    ports_used: u64,
    ports: Option<u64>,
}

#[derive(Serialize)]
struct ListenerRecord {
    v: u8,
    netns: u32,
    local_addr: String,
    local_port: u16,
    process: Option<ProcessRecord>,
    accepts_per_s: f64,
    queued: Option<u32>,
    backlog: Option<u32>,
    open: u64,
    close_wait: u64,
}

impl From<&DestinationRow> for DestinationRecord {
    fn from(row: &DestinationRow) -> Self {
        let DestinationRow { destination, usage, available } = row;
        Self {
            v: VERSION,
            netns: destination.netns,
            local_addr: destination.local.to_string(),
            remote_addr: destination.remote.address.to_string(),
            remote_port: destination.remote.port,
            open: usage.open,
            time_wait: usage.time_wait,
            fin_wait_2: usage.fin_wait2,
            ports_used: usage.ports(),
            ports: *available,
        }
    }
}

impl From<&ListenerRow> for ListenerRecord {
    fn from(row: &ListenerRow) -> Self {
        let Endpoint { address, port } = row.local;
        let text = |address: Address| address.to_string();
        Self {
            v: VERSION,
            netns: row.netns,
            local_addr: text(address),
            local_port: port,
            process: row.process.as_ref().map(ProcessRecord::from),
            accepts_per_s: row.per_second,
            queued: row.queue.map(|(queued, _)| queued),
            backlog: row.queue.map(|(_, backlog)| backlog),
            open: row.open,
            close_wait: row.close_wait,
        }
    }
}

/// Makes the export of the view that is open.
pub fn export(state: &State, format: Format) -> io::Result<Export> {
    fn rows<R>(rows: Option<&Rows<R>>) -> &[R] {
        rows.map_or(&[], |rows| &rows.first)
    }
    let picture = &state.picture;
    let (rows, text) = match state.view {
        View::Overview => (1, lines_of_objects(&[overview(state)], format)?),
        View::Findings => objects(state.findings().into_iter().map(FindingRecord::from), format)?,
        View::Connections => {
            let record =
                |row: &ConnectionRow| ConnectionRecord::new(&row.connection, row.cgroup.clone(), picture.clock);
            records(rows(picture.connections.as_ref()).iter().map(record), format)?
        }
        View::Destinations => objects(rows(picture.destinations.as_ref()).iter().map(DestinationRecord::from), format)?,
        View::Listeners => objects(rows(picture.listeners.as_ref()).iter().map(ListenerRecord::from), format)?,
        View::Log => {
            let shown = state.log_shown.iter().filter_map(|at| state.log.get(*at));
            records(shown.cloned(), format)?
        }
    };
    // 2026-11-21T03:20:32.164… → 20261121T032032
    let moment = Time(picture.clock.unix_ns(picture.now_ns)).to_string();
    let moment: String = moment.chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
    let ending = if format == Format::Csv { "csv" } else { "jsonl" };
    Ok(Export { name: format!("tracer-{}-{moment}", state.view.name().to_lowercase()), ending, text, rows })
}

fn objects<T: Serialize>(objects: impl Iterator<Item = T>, format: Format) -> io::Result<(usize, Vec<u8>)> {
    let objects: Vec<T> = objects.collect();
    Ok((objects.len(), lines_of_objects(&objects, format)?))
}

fn records<R: Record>(records: impl Iterator<Item = R>, format: Format) -> io::Result<(usize, Vec<u8>)> {
    let records: Vec<R> = records.collect();
    Ok((records.len(), lines(&records, format)?))
}

fn overview(state: &State) -> OverviewRecord {
    let picture = &state.picture;
    let states = TcpState::all().filter_map(|state| Some((state, picture.states[place(state)?])));
    let per_second = |value: fn(&super::history::Second) -> u32| rate(&picture.history, 5, value);
    OverviewRecord {
        v: VERSION,
        time: Time(picture.clock.unix_ns(picture.now_ns)).to_string(),
        states: states
            .filter(|(_, count)| *count > 0)
            .map(|(state, count)| (state.to_string(), count.into()))
            .collect(),
        listening: picture.listening,
        opens_per_s: per_second(|second| second.opens),
        closes_per_s: per_second(|second| second.closes),
        resets_per_s: per_second(|second| second.resets),
        failures_per_s: per_second(|second| second.failures),
        loss: picture.loss,
    }
}
