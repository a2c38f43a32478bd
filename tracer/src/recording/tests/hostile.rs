//! Files that nobody recorded: other formats, and lies.

use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray, UInt8Array, UInt64Array, new_null_array};
use arrow_ipc::{
    BodyCompression, BodyCompressionArgs, BodyCompressionMethod, Buffer, CompressionType, FieldNode, Message,
    MessageArgs, MessageHeader, MetadataVersion, RecordBatchArgs,
    writer::{FileWriter, StreamWriter},
};
use arrow_schema::{DataType, Field, Schema, UnionFields, UnionMode};
use flatbuffers::FlatBufferBuilder;

use super::{
    rows::{MAX_RESERVED, MAX_SOCKETS, RecordingColumns},
    *,
};
use crate::{
    core::{
        finding::{Facts, NamespaceFacts},
        tracker::MergeKind,
    },
    output::{fields::Columnar as _, records::LogRecord},
    problem,
};

fn schema() -> Schema {
    RecordingColumns::schema().with_metadata(metadata().to_schema())
}

/// Rows that say this and nothing else.
fn batch(columns: &[(&str, ArrayRef)]) -> RecordBatch {
    let rows = columns[0].1.len();
    let schema = schema();
    let column = |field: &Arc<Field>| match columns.iter().find(|(name, _)| name == field.name()) {
        Some((_, column)) => Arc::clone(column),
        None => new_null_array(field.data_type(), rows),
    };
    let columns = schema.fields().iter().map(column).collect();
    RecordBatch::try_new(Arc::new(schema), columns).expect("columns of one length")
}

/// A row of a kind, with a detail.
fn said(kind: &str, detail: &str) -> RecordBatch {
    batch(&[("kind", text(kind)), ("detail", text(detail))])
}

fn text(text: &str) -> ArrayRef {
    Arc::new(StringArray::from(vec![text]))
}

fn number(number: u64) -> ArrayRef {
    Arc::new(UInt64Array::from(vec![number]))
}

/// As somebody else would write it.
fn stream(schema: &Schema, batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema).expect("memory takes everything");
    for batch in batches {
        writer.write(batch).expect("memory takes everything");
    }
    writer.into_inner().expect("memory takes everything")
}

fn read_batches(batches: &[RecordBatch]) -> Read {
    read(&stream(&schema(), batches)).expect("it begins as a recording")
}

/// Why a file is refused at its beginning.
fn refusal(bytes: &[u8]) -> String {
    problem::one_line(&Reader::new(bytes).err().expect("no recording"))
}

/// Why it is not read to its end.
fn damage(read: Read) -> String {
    problem::one_line(&read.end.expect_err("it is damaged"))
}

/// A beginning that is fine, and a message that is not: its head with so many rows, nodes and buffers, and a body.
fn forged(rows: i64, nodes: &[FieldNode], buffers: &[Buffer], body_length: i64, body: &[u8]) -> Vec<u8> {
    let mut file = beginning();
    file.extend(message(rows, nodes, buffers, Some(CompressionType::ZSTD), body_length));
    file.extend(body);
    file
}

fn message(
    rows: i64,
    nodes: &[FieldNode],
    buffers: &[Buffer],
    codec: Option<CompressionType>,
    body_length: i64,
) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let (nodes, buffers) = (Some(builder.create_vector(nodes)), Some(builder.create_vector(buffers)));
    let compression = codec.map(|codec| {
        let args = BodyCompressionArgs { codec, method: BodyCompressionMethod::BUFFER };
        BodyCompression::create(&mut builder, &args)
    });
    let batch = RecordBatchArgs { length: rows, nodes, buffers, compression, variadicBufferCounts: None };
    let header = Some(arrow_ipc::RecordBatch::create(&mut builder, &batch).as_union_value());
    let message = MessageArgs {
        version: MetadataVersion::V5,
        header_type: MessageHeader::RecordBatch,
        header,
        bodyLength: body_length,
        custom_metadata: None,
    };
    let message = Message::create(&mut builder, &message);
    builder.finish(message, None);
    let head = builder.finished_data();
    [&u32::MAX.to_le_bytes(), &(head.len() as u32).to_le_bytes(), head].concat()
}

fn beginning() -> Vec<u8> {
    let mut file = stream(&schema(), &[]);
    file.truncate(messages(&file)[0].end);
    file
}

#[test]
fn other_files_are_no_recordings() {
    let schema = Schema::new(vec![Field::new("a", DataType::UInt8, false)]);
    let mut arrow_file = FileWriter::try_new(Vec::new(), &schema).expect("memory takes everything");
    arrow_file.finish().expect("memory takes everything");
    let arrow_file = arrow_file.into_inner().expect("memory takes everything");
    let log = stream(&Schema::new(LogRecord::fields()), &[]);
    let files: [&[u8]; 8] =
        [b"", b"PAR1", b"{\"v\":1}\n", b"\x7fELF\x02\x01\x01\0", &arrow_file, &log, &[0; 4096], &[0xff; 4096]];
    for file in files {
        assert!(refusal(file).contains("not a recording"), "{}", refusal(file));
    }
}

#[test]
fn a_newer_format_is_told_by_its_number() {
    let newer = Metadata { format: VERSION + 1, ..metadata() };
    let schema = RecordingColumns::schema().with_metadata(newer.to_schema());
    let refusal = refusal(&stream(&schema, &[]));
    assert!(refusal.contains("format version 2") && refusal.contains("use a newer one"), "{refusal}");
}

#[test]
fn columns_that_are_missing_or_of_another_type_are_named() {
    let schema = schema();
    let without = schema.fields().iter().filter(|field| field.name() != "task_comm").cloned().collect::<Vec<_>>();
    let without = Schema::new(without).with_metadata(schema.metadata().clone());
    assert!(refusal(&stream(&without, &[])).contains("task_comm"));
    let other = schema.fields().iter().map(|field| match field.name().as_str() {
        "mono_ns" => Arc::new(Field::new("mono_ns", DataType::Utf8, true)),
        _ => Arc::clone(field),
    });
    let other = Schema::new(other.collect::<Vec<_>>()).with_metadata(schema.metadata().clone());
    assert!(refusal(&stream(&other, &[])).contains("mono_ns"));
}

#[test]
fn a_later_version_may_have_other_columns_for_people() {
    let union = UnionFields::try_new([0], [Field::new("u", DataType::UInt8, true)]).expect("a union");
    let types = [
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        DataType::List(Arc::new(Field::new("item", DataType::UInt8, true))),
        DataType::Struct(vec![Field::new("a", DataType::Utf8, true)].into()),
        DataType::Union(union, UnionMode::Sparse),
        DataType::Utf8View,
        DataType::FixedSizeBinary(3),
        DataType::Null,
    ];
    let now = batch(&[("kind", text("now")), ("mono_ns", number(7))]);
    let for_people = |field: &Arc<Field>| ["comm", "in_state_ns"].contains(&field.name().as_str());
    let of_now = now.schema();
    let (mut fields, mut columns): (Vec<Arc<Field>>, Vec<ArrayRef>) = of_now
        .fields()
        .iter()
        .cloned()
        .zip(now.columns().iter().cloned())
        .filter(|(field, _)| !for_people(field))
        .unzip();
    for (at, kind) in types.iter().enumerate() {
        fields.push(Arc::new(Field::new(format!("later_{at}"), kind.clone(), true)));
        columns.push(new_null_array(kind, 1));
    }
    let schema = Schema::new(fields).with_metadata(metadata().to_schema());
    let later = RecordBatch::try_new(Arc::new(schema.clone()), columns).expect("a batch");
    let read = read(&stream(&schema, &[later])).expect("a recording");
    assert_eq!(read.inputs(), [&Input::Now(7)]);
    assert_eq!(read.end.ok(), Some(Ending::Whole));
}

#[test]
fn rows_of_a_later_version_are_passed_over() {
    let read = read_batches(&[said("something_new", "{}"), said("dump_begins", "")]);
    assert_eq!(read.inputs(), [&Input::DumpBegins(MergeKind::StartUp)]);
}

#[test]
fn lengths_are_not_believed() {
    const HUGE: [i64; 5] = [-1, i64::MIN, i64::MAX, 1 << 60, 1 << 40];
    for huge in HUGE {
        let node = FieldNode::new(huge, huge);
        for bytes in [
            forged(0, &[], &[], huge, &[]),
            forged(huge, &[], &[], 0, &[]),
            forged(1, &[node; 60], &[Buffer::new(0, 0); 200], 0, &[]),
            forged(1, &[FieldNode::new(1, 0); 60], &[Buffer::new(huge, 8); 200], 8, &[0; 8]),
            forged(1, &[FieldNode::new(1, 0); 60], &[Buffer::new(0, huge); 200], 8, &[0; 8]),
            forged(1, &[FieldNode::new(1, 0); 60], &[Buffer::new(0, 8); 200], 8, &huge.to_le_bytes()),
        ] {
            let read = read(&bytes).expect("it begins as a recording");
            assert!(read.inputs.is_empty());
            assert!(damage(read).contains("damaged"));
        }
        let mut head = beginning();
        head.extend(u32::MAX.to_le_bytes());
        head.extend(huge.to_le_bytes());
        assert!(read(&head).is_ok_and(|read| read.end.is_err() || read.inputs.is_empty()));
    }
}

#[test]
fn what_a_row_needs_is_missed() {
    for kind in ["transition", "reset_sent", "reset_received", "socket", "now", "dump", "loss", "counters", "facts"] {
        let columns: &[(&str, ArrayRef)] = &[("kind", text(kind)), ("origin", text("kernel"))];
        assert!(damage(read_batches(&[batch(columns)])).contains("damaged"), "{kind}");
    }
    let kind_is_null = new_null_array(&DataType::Utf8, 1);
    let schema = schema();
    let fields = schema.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true)));
    let nullable = Schema::new(fields.collect::<Vec<_>>()).with_metadata(metadata().to_schema());
    let mut columns = said("now", "").columns().to_vec();
    columns[0] = kind_is_null;
    let batch = RecordBatch::try_new(Arc::new(nullable.clone()), columns).expect("a batch");
    let read = read(&stream(&nullable, &[batch])).expect("it begins as a recording");
    assert!(read.inputs.is_empty() && read.end.is_ok(), "a row of no kind says nothing");
}

/// arrow-rs takes it for granted that they do.
#[test]
fn offsets_of_texts_come_in_whole_numbers() {
    let file = stream(&schema(), &[said("dump_begins", "")]);
    let at = messages(&file)[1].clone();
    let length = u32::from_le_bytes(file[at.start + 4..][..4].try_into().expect("four bytes")) as usize;
    let head = &file[at.start + 8..][..length];
    let body = &file[at.start + 8 + length..at.end];
    let message = arrow_ipc::root_as_message(head).expect("a message");
    let batch = message.header_as_record_batch().expect("a batch");
    let nodes: Vec<FieldNode> = batch.nodes().expect("nodes").iter().copied().collect();
    let mut buffers: Vec<Buffer> = batch.buffers().expect("buffers").iter().copied().collect();
    buffers[1] = Buffer::new(buffers[1].offset(), 9);
    let mut forged = beginning();
    forged.extend(self::message(1, &nodes, &buffers, None, body.len() as i64));
    forged.extend(body);
    assert!(damage(read(&forged).expect("it begins as a recording")).contains("offsets"));
}

#[test]
fn text_that_is_none_is_damage() {
    let mut file = stream(&schema(), &[said("dump_begins", "dump_begins")]);
    let at = file.windows(11).rposition(|bytes| bytes == b"dump_begins").expect("it is not compressed");
    file[at] = 0xff;
    assert!(damage(read(&file).expect("it begins as a recording")).contains("damaged"));
}

#[test]
fn details_that_make_no_sense_are_damage() {
    let deep = "[".repeat(1_000_000);
    let nested = format!("{{\"namespaces\":{}", "{\"1\":".repeat(500_000));
    let details = ["", "{", "null", "[]", "{\"started_ns\":-1}", "\u{1b}[31m", "1e999", &deep, &nested];
    for kind in ["dump", "mini_sockets", "loss", "counters", "facts"] {
        for detail in details {
            let damage = damage(read_batches(&[said(kind, detail)]));
            assert!(damage.contains("damaged") && !damage.contains('\u{1b}'), "{damage}");
            assert!(damage.len() < 300, "{damage}");
        }
    }
}

#[test]
fn ends_and_states_that_are_none_are_damage() {
    let transition = [("kind", text("transition")), ("origin", text("kernel")), ("mono_ns", number(1))];
    let ends = |bytes: &[u8]| -> ArrayRef { Arc::new(BinaryArray::from(vec![bytes])) };
    let (ends, short, long) = (("ends", ends(&[0; 40])), ("ends", ends(&[0; 39])), ("ends", ends(&[0; 41])));
    let states = [("old_state", text("CLOSE")), ("new_state", text("SYN_SENT"))];
    let no_state = [("old_state", text("CLOSE")), ("new_state", text("UNKNOWN_300"))];
    let address = [("local_addr", text("10.0.0.1%eth0")), ("remote_addr", text("::"))];
    let of = |parts: &[&[(&'static str, ArrayRef)]]| read_batches(&[batch(&parts.concat())]);
    assert_eq!(of(&[&transition, &states, std::slice::from_ref(&ends)]).inputs.len(), 1, "this one is fine");
    for parts in [[&states[..], &[short]], [&states, &[long]], [&no_state, &[ends]], [&states, &address]] {
        assert!(damage(of(&[&transition, parts[0], parts[1]])).contains("damaged"));
    }
}

#[test]
fn a_dump_has_an_end() {
    let rows = MAX_SOCKETS + 1;
    let texts = |text: &'static str| -> ArrayRef { Arc::new(StringArray::from_iter_values((0..rows).map(|_| text))) };
    let socket = batch(&[
        ("kind", texts("socket")),
        ("new_state", texts("LISTEN")),
        ("local_addr", texts("::")),
        ("remote_addr", texts("::")),
        ("socket_kind", Arc::new(UInt8Array::from_iter_values((0..rows).map(|_| 0)))),
    ]);
    assert!(damage(read_batches(&[socket])).contains("a dump of more than"));
}

#[test]
fn absurd_facts_are_refused_or_cost_little() {
    let began = Instant::now();
    let facts = |ranges: usize| {
        let mut namespace = NamespaceFacts::default();
        (namespace.ports.range.first, namespace.ports.range.last) = (u16::MAX, 0);
        namespace.ports.reserved = vec![namespace.ports.range; ranges];
        let facts = Facts { namespaces: [(1, namespace)].into_iter().collect(), ..Facts::default() };
        read_batches(&[said("facts", &serde_json::to_string(&facts).expect("JSON"))])
    };
    let read = facts(MAX_RESERVED);
    let [Input::Facts(read)] = read.inputs()[..] else { panic!("facts") };
    assert_eq!((0..100).map(|_| read.namespaces[&1].ports.available()).sum::<u64>(), 0);
    assert!(damage(facts(MAX_RESERVED + 1)).contains("more reserved ports than there are"));
    let netns = vec!["0"; 100_000].join(",");
    let detail = format!(r#"{{"started_ns":0,"ended_ns":0,"complete_netns":[{netns}],"holders":{{}}}}"#);
    assert!(damage(read_batches(&[said("dump", &detail)])).contains("namespaces"));
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn names_have_an_end() {
    let name = "n".repeat(1 << 20);
    let file = stream(&schema(), &vec![said("cgroup", &name); 70]);
    assert!(damage(read(&file).expect("it begins as a recording")).contains("names of more than 64 MiB"));
}

#[test]
fn nothing_that_is_read_carries_control_characters() {
    const ESCAPE: &str = "\u{1b}]0;x\u{7}\u{9b}2J\r\n";
    let texts = [ESCAPE; 6].map(str::to_owned);
    let [host, kernel, version, boot_id, run, filters] = texts;
    let metadata = Metadata { host, kernel, version, boot_id, run, filters, ..metadata() };
    let schema = RecordingColumns::schema().with_metadata(metadata.to_schema());
    let facts = Facts { cgroups: [(1, Arc::from(ESCAPE))].into_iter().collect(), ..Facts::default() };
    let facts = said("facts", &serde_json::to_string(&facts).expect("JSON"));
    let cgroup = said("cgroup", ESCAPE);
    let file = stream(&schema, &[cgroup, facts]);
    let mut reader = Reader::new(&file[..]).expect("a recording");
    let Metadata { host, kernel, version, boot_id, run, filters, .. } = reader.metadata().clone();
    let Ok(Some(Recorded::Cgroup { path, .. })) = reader.read() else { panic!("a name") };
    let Ok(Some(Recorded::Input(Input::Facts(facts)))) = reader.read() else { panic!("facts") };
    for text in [&host, &kernel, &version, &boot_id, &run, &filters, &path.to_string(), &facts.cgroups[&1].to_string()]
    {
        assert!(text.contains("2J") && !text.contains(char::is_control), "{text:?}");
    }
}
