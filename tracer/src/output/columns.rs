//! The records as Arrow columns: one definition for Arrow IPC, Parquet and the recording. Types are those that the tools
//! on the other side know best: times are timestamps, addresses and names are text, what is not known is null.

use std::{
    fmt::{Display, Write},
    sync::Arc,
};

use arrow_array::{
    ArrayRef, RecordBatch,
    builder::{
        ArrayBuilder, BooleanBuilder, ListBuilder, PrimitiveBuilder, StringBuilder, StructBuilder,
        TimestampNanosecondBuilder,
    },
    types::{UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema};

use super::{
    Row,
    records::{ConnectionRecord, LogRecord, Time, VERSION},
};
use crate::core::{endpoint::Tuple, state::State};

type U8s = PrimitiveBuilder<UInt8Type>;
type U16s = PrimitiveBuilder<UInt16Type>;
type U32s = PrimitiveBuilder<UInt32Type>;
type U64s = PrimitiveBuilder<UInt64Type>;

/// Records of one kind, gathered column by column.
pub trait Columns: Default {
    /// The records.
    type Record: Row;

    /// Names of the columns that are null where something is not known; the others never are.
    const NULLABLE: &'static [&'static str];

    /// Takes a record in.
    fn append(&mut self, record: &Self::Record);

    /// Gives out the columns in the order of the record's fields, and begins anew.
    fn arrays(&mut self) -> Vec<ArrayRef>;

    /// Names and types.
    fn schema() -> Schema {
        let arrays = Self::default().arrays();
        let field = |(name, array): (&&str, &ArrayRef)| {
            Field::new(*name, array.data_type().clone(), Self::NULLABLE.contains(name))
        };
        Schema::new(Self::Record::FIELDS.iter().zip(&arrays).map(field).collect::<Vec<_>>())
    }

    /// What was gathered, as a batch.
    fn batch(&mut self) -> Result<RecordBatch, ArrowError> {
        let arrays = self.arrays();
        RecordBatch::try_new(Arc::new(Self::schema()), arrays)
    }
}

/// Appends something as it is displayed.
pub(crate) fn append_text(column: &mut StringBuilder, value: impl Display) {
    // Writing to a buffer in memory does not fail; the empty value ends the text.
    let _ = write!(column, "{value}");
    column.append_value("");
}

/// Appends a state: by its name, where it has one, without a formatter.
fn append_state(column: &mut StringBuilder, state: State) {
    match state.name() {
        Some(name) => column.append_value(name),
        None => append_text(column, state),
    }
}

/// Appends something as it is displayed, or null.
pub(crate) fn append_known_text(column: &mut StringBuilder, value: Option<impl Display>) {
    match value {
        Some(value) => append_text(column, value),
        None => column.append_null(),
    }
}

fn times() -> TimestampNanosecondBuilder {
    TimestampNanosecondBuilder::new().with_timezone("UTC")
}

/// Times beyond the year 2262 have no place in the column; no clock gives them.
fn nanoseconds(time: Time) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

fn finished<B: ArrayBuilder>(column: &mut B) -> ArrayRef {
    ArrayBuilder::finish(column)
}

/// Columns of `tracer log`.
#[derive(Debug)]
pub struct LogColumns {
    v: U8s,
    time: TimestampNanosecondBuilder,
    mono_ns: U64s,
    cookie: U64s,
    netns: U32s,
    local_addr: StringBuilder,
    local_port: U16s,
    remote_addr: StringBuilder,
    remote_port: U16s,
    old_state: StringBuilder,
    new_state: StringBuilder,
    in_state_ns: U64s,
    pid: U32s,
    comm: StringBuilder,
    uid: U32s,
    inode: U64s,
    cgroup: StringBuilder,
    error: StringBuilder,
    origin: StringBuilder,
}

impl Default for LogColumns {
    fn default() -> Self {
        Self {
            v: U8s::new(),
            time: times(),
            mono_ns: U64s::new(),
            cookie: U64s::new(),
            netns: U32s::new(),
            local_addr: StringBuilder::new(),
            local_port: U16s::new(),
            remote_addr: StringBuilder::new(),
            remote_port: U16s::new(),
            old_state: StringBuilder::new(),
            new_state: StringBuilder::new(),
            in_state_ns: U64s::new(),
            pid: U32s::new(),
            comm: StringBuilder::new(),
            uid: U32s::new(),
            inode: U64s::new(),
            cgroup: StringBuilder::new(),
            error: StringBuilder::new(),
            origin: StringBuilder::new(),
        }
    }
}

impl Columns for LogColumns {
    type Record = LogRecord;

    const NULLABLE: &'static [&'static str] =
        &["cookie", "netns", "in_state_ns", "pid", "comm", "uid", "inode", "cgroup", "error"];

    fn append(&mut self, record: &LogRecord) {
        self.v.append_value(record.v);
        self.time.append_value(nanoseconds(record.time));
        self.mono_ns.append_value(record.mono_ns);
        self.cookie.append_option(record.cookie);
        self.netns.append_option(record.netns);
        append_text(&mut self.local_addr, record.local_addr);
        self.local_port.append_value(record.local_port);
        append_text(&mut self.remote_addr, record.remote_addr);
        self.remote_port.append_value(record.remote_port);
        append_state(&mut self.old_state, record.old_state);
        append_state(&mut self.new_state, record.new_state);
        self.in_state_ns.append_option(record.in_state_ns);
        self.pid.append_option(record.pid);
        append_known_text(&mut self.comm, record.comm);
        self.uid.append_option(record.uid);
        self.inode.append_option(record.inode);
        self.cgroup.append_option(record.cgroup.as_deref());
        append_known_text(&mut self.error, record.error);
        self.origin.append_value(record.origin.name());
    }

    fn arrays(&mut self) -> Vec<ArrayRef> {
        vec![
            finished(&mut self.v),
            finished(&mut self.time),
            finished(&mut self.mono_ns),
            finished(&mut self.cookie),
            finished(&mut self.netns),
            finished(&mut self.local_addr),
            finished(&mut self.local_port),
            finished(&mut self.remote_addr),
            finished(&mut self.remote_port),
            finished(&mut self.old_state),
            finished(&mut self.new_state),
            finished(&mut self.in_state_ns),
            finished(&mut self.pid),
            finished(&mut self.comm),
            finished(&mut self.uid),
            finished(&mut self.inode),
            finished(&mut self.cgroup),
            finished(&mut self.error),
            finished(&mut self.origin),
        ]
    }
}

/// What a recording says in the log's columns of something that is no transition; `None` is null.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SparseRow {
    pub(crate) time: Option<Time>,
    pub(crate) mono_ns: Option<u64>,
    pub(crate) cookie: Option<u64>,
    pub(crate) tuple: Option<Tuple>,
    pub(crate) old_state: Option<State>,
    pub(crate) new_state: Option<State>,
    pub(crate) uid: Option<u32>,
    pub(crate) inode: Option<u64>,
}

impl LogColumns {
    /// Takes something in that is no transition.
    pub(crate) fn append_sparse(&mut self, row: &SparseRow) {
        let (local, remote) = (row.tuple.map(|tuple| tuple.local), row.tuple.map(|tuple| tuple.remote));
        self.v.append_value(VERSION);
        self.time.append_option(row.time.map(nanoseconds));
        self.mono_ns.append_option(row.mono_ns);
        self.cookie.append_option(row.cookie);
        self.netns.append_option(row.tuple.map(|tuple| tuple.netns));
        append_known_text(&mut self.local_addr, local.map(|end| end.address));
        self.local_port.append_option(local.map(|end| end.port));
        append_known_text(&mut self.remote_addr, remote.map(|end| end.address));
        self.remote_port.append_option(remote.map(|end| end.port));
        append_known_text(&mut self.old_state, row.old_state);
        append_known_text(&mut self.new_state, row.new_state);
        self.in_state_ns.append_null();
        self.pid.append_null();
        self.comm.append_null();
        self.uid.append_option(row.uid);
        self.inode.append_option(row.inode);
        self.cgroup.append_null();
        self.error.append_null();
        self.origin.append_null();
    }
}

/// Columns of `tracer connections`; `states` is a list, `process` a structure.
#[derive(Debug)]
pub struct ConnectionColumns {
    v: U8s,
    cookie: U64s,
    netns: U32s,
    local_addr: StringBuilder,
    local_port: U16s,
    remote_addr: StringBuilder,
    remote_port: U16s,
    opened: TimestampNanosecondBuilder,
    ended: TimestampNanosecondBuilder,
    duration_ns: U64s,
    open: StringBuilder,
    close: StringBuilder,
    after_close: StringBuilder,
    states: ListBuilder<StructBuilder>,
    bytes_in: U64s,
    bytes_out: U64s,
    process: StructBuilder,
    cgroup: StringBuilder,
    gap: BooleanBuilder,
}

fn fields<const N: usize>(fields: [(&str, DataType); N]) -> Fields {
    fields.into_iter().map(|(name, kind)| Field::new(name, kind, false)).collect()
}

impl Default for ConnectionColumns {
    fn default() -> Self {
        let text = || Box::new(StringBuilder::new());
        let state = StructBuilder::new(
            fields([("state", DataType::Utf8), ("ns", DataType::UInt64), ("certainty", DataType::Utf8)]),
            vec![text(), Box::new(U64s::new()), text()],
        );
        let process = StructBuilder::new(
            fields([("pid", DataType::UInt32), ("comm", DataType::Utf8), ("source", DataType::Utf8)]),
            vec![Box::new(U32s::new()), text(), text()],
        );
        Self {
            v: U8s::new(),
            cookie: U64s::new(),
            netns: U32s::new(),
            local_addr: StringBuilder::new(),
            local_port: U16s::new(),
            remote_addr: StringBuilder::new(),
            remote_port: U16s::new(),
            opened: times(),
            ended: times(),
            duration_ns: U64s::new(),
            open: StringBuilder::new(),
            close: StringBuilder::new(),
            after_close: StringBuilder::new(),
            states: ListBuilder::new(state),
            bytes_in: U64s::new(),
            bytes_out: U64s::new(),
            process,
            cgroup: StringBuilder::new(),
            gap: BooleanBuilder::new(),
        }
    }
}

impl ConnectionColumns {
    fn append_states(&mut self, record: &ConnectionRecord) {
        let structure = self.states.values();
        for state in &record.states {
            // The builders are those that `default` has put there.
            structure.field_builder::<StringBuilder>(0).into_iter().for_each(|c| append_state(c, state.state));
            structure.field_builder::<U64s>(1).into_iter().for_each(|c| c.append_value(state.ns));
            structure.field_builder::<StringBuilder>(2).into_iter().for_each(|c| c.append_value(state.certainty));
            structure.append(true);
        }
        self.states.append(true);
    }

    fn append_process(&mut self, record: &ConnectionRecord) {
        let process = record.process.as_ref();
        let structure = &mut self.process;
        // Under a null structure the parts hold something that is not looked at.
        let pid = process.map_or(0, |process| process.pid);
        structure.field_builder::<U32s>(0).into_iter().for_each(|c| c.append_value(pid));
        let comm = process.map(|process| process.comm).unwrap_or_default();
        structure.field_builder::<StringBuilder>(1).into_iter().for_each(|c| append_text(c, comm));
        let source = process.map_or("", |process| process.source);
        structure.field_builder::<StringBuilder>(2).into_iter().for_each(|c| c.append_value(source));
        structure.append(process.is_some());
    }
}

impl Columns for ConnectionColumns {
    type Record = ConnectionRecord;

    const NULLABLE: &'static [&'static str] =
        &["cookie", "netns", "opened", "ended", "close", "bytes_in", "bytes_out", "process", "cgroup"];

    fn append(&mut self, record: &ConnectionRecord) {
        self.v.append_value(record.v);
        self.cookie.append_option(record.cookie);
        self.netns.append_option(record.netns);
        append_text(&mut self.local_addr, record.local_addr);
        self.local_port.append_value(record.local_port);
        append_text(&mut self.remote_addr, record.remote_addr);
        self.remote_port.append_value(record.remote_port);
        self.opened.append_option(record.opened.map(nanoseconds));
        self.ended.append_option(record.ended.map(nanoseconds));
        self.duration_ns.append_value(record.duration_ns);
        self.open.append_value(record.open);
        self.close.append_option(record.close);
        self.after_close.append_value(record.after_close);
        self.append_states(record);
        self.bytes_in.append_option(record.bytes_in);
        self.bytes_out.append_option(record.bytes_out);
        self.append_process(record);
        self.cgroup.append_option(record.cgroup.as_deref());
        self.gap.append_value(record.gap);
    }

    fn arrays(&mut self) -> Vec<ArrayRef> {
        vec![
            finished(&mut self.v),
            finished(&mut self.cookie),
            finished(&mut self.netns),
            finished(&mut self.local_addr),
            finished(&mut self.local_port),
            finished(&mut self.remote_addr),
            finished(&mut self.remote_port),
            finished(&mut self.opened),
            finished(&mut self.ended),
            finished(&mut self.duration_ns),
            finished(&mut self.open),
            finished(&mut self.close),
            finished(&mut self.after_close),
            finished(&mut self.states),
            finished(&mut self.bytes_in),
            finished(&mut self.bytes_out),
            finished(&mut self.process),
            finished(&mut self.cgroup),
            finished(&mut self.gap),
        ]
    }
}
