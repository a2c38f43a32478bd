//! Parquet and Arrow files: written whole however a run ends, with the same records as the JSON lines.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use arrow_array::{Array, RecordBatch, StringArray, UInt64Array};
use arrow_ipc::reader::StreamReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::{
    harness::{PATIENCE, Tracer, in_new_namespace, own_netns, run, scratch},
    net::{self, close_in_order, pair},
    record::{await_closed, record, replayed},
};

const FORMATS: [&str; 2] = ["arrow", "parquet"];

/// All batches of a file, which has to have its end.
fn batches(format: &str, path: &Path) -> Vec<RecordBatch> {
    let file = File::open(path).expect("the file");
    if format == "arrow" {
        let length = file.metadata().expect("its length").len();
        let mut reader = StreamReader::try_new(&file, None).expect("an Arrow stream");
        let batches = reader.by_ref().collect::<Result<_, _>>().expect("batches");
        assert!(reader.is_finished() && length > 8);
        batches
    } else {
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("a Parquet file").build().expect("a reader");
        reader.collect::<Result<_, _>>().expect("batches")
    }
}

/// What identifies each record: the cookie, and the text of a column.
fn rows(format: &str, path: &Path, column: &str) -> Vec<(u64, String)> {
    let rows = |batch: &RecordBatch| -> Vec<(u64, String)> {
        let cookies = batch.column_by_name("cookie").expect("cookies").as_any();
        let cookies: &UInt64Array = cookies.downcast_ref().expect("numbers");
        let texts = batch.column_by_name(column).expect("a column").as_any();
        let texts: &StringArray = texts.downcast_ref().expect("texts");
        (0..batch.num_rows()).map(|row| (cookies.value(row), texts.value(row).to_owned())).collect()
    };
    batches(format, path).iter().flat_map(rows).collect()
}

fn expected(records: &[Value], column: &str) -> Vec<(u64, String)> {
    let text = |record: &Value| record[column].as_str().unwrap_or_default().to_owned();
    records.iter().map(|record| (record["cookie"].as_u64().expect("a cookie"), text(record))).collect()
}

/// The commands and a column that tells their records apart.
const COMMANDS: [(&str, &str); 2] = [("log", "new_state"), ("connections --open", "close")];

#[test]
fn a_recording_as_columns_is_what_it_is_as_lines() {
    in_new_namespace(|| {
        let folder = scratch(None);
        let file = folder.join("recording.arrows");
        let listener = net::listen();
        let _open = pair(&listener);
        let recorder = record("", &file);
        (0..20).for_each(|_| close_in_order(pair(&listener)));
        recorder.interrupt().in_order();
        for (command, column) in COMMANDS {
            let lines = expected(&replayed(command, &file), column);
            assert!(lines.len() > 40);
            for format in FORMATS {
                let to = folder.join(format);
                let args = format!("{command} --format {format} --force -o {} --from {}", to.display(), file.display());
                assert!(run(&args).in_order().stdout.is_empty());
                assert_eq!(rows(format, &to, column), lines, "{args}");
            }
        }
    });
}

/// What a reader of any program finds in the schema.
#[test]
fn a_recording_says_where_it_comes_from() {
    in_new_namespace(|| {
        let file = scratch(None).join("recording.arrows");
        record("--port 80 -4 --count 1", &file).interrupt().in_order();
        let reader = StreamReader::try_new(File::open(&file).expect("the file"), None).expect("an Arrow stream");
        let schema = reader.schema();
        let said = |key: &str| schema.metadata().get(&format!("tracer.{key}")).expect("a key").clone();
        let system = |path: &str| fs::read_to_string(path).expect("a file").trim().to_owned();
        assert_eq!(said("format"), "1");
        assert_eq!(said("version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(said("host"), system("/proc/sys/kernel/hostname"));
        assert_eq!(said("kernel"), system("/proc/sys/kernel/osrelease"));
        assert_eq!(said("boot_id"), system("/proc/sys/kernel/random/boot_id"));
        assert_eq!(said("filters"), format!("--port 80 --netns {} --ipv4", own_netns()));
        let began = Duration::from_nanos(
            ["clock_offset_ns", "started_ns"].map(|key| said(key).parse::<u64>().expect("ns")).iter().sum(),
        );
        let ago = UNIX_EPOCH.elapsed().expect("after 1970").saturating_sub(began);
        assert!(ago < PATIENCE, "{ago:?}");
    });
}

#[test]
fn columns_are_whole_however_a_run_ends() {
    in_new_namespace(|| {
        let folder = scratch(None);
        let start = |command: &str, format: &str, end: &str| -> (Tracer, PathBuf) {
            let to = folder.join(format!("{}-{format}{}", &command[..3], end.replace(' ', "")));
            (Tracer::start(&format!("{command} --format {format} {end} -o {}", to.display())), to)
        };
        let listener = net::listen();
        for (command, count) in [("log", 30), ("connections", 6)] {
            let json = Tracer::start(&format!("{command} --format jsonl"));
            let interrupted = FORMATS.map(|format| start(command, format, ""));
            let counted = FORMATS.map(|format| start(command, format, "--count 4"));
            (0..3).for_each(|_| close_in_order(pair(&listener)));
            await_closed();
            let column = if command == "log" { "new_state" } else { "close" };
            let lines = expected(&json.interrupt().in_order().records(), column);
            assert_eq!(lines.len(), count);
            for (format, (tracer, to)) in FORMATS.iter().zip(interrupted) {
                tracer.interrupt().in_order();
                assert_eq!(rows(format, &to, column), lines);
            }
            for (format, (tracer, to)) in FORMATS.iter().zip(counted) {
                tracer.ended().in_order();
                assert_eq!(rows(format, &to, column), lines[..4]);
            }
            for format in FORMATS {
                let to = folder.join("empty");
                let args = format!("{command} --format {format} --duration 0s --force --netns self --buffer 64K");
                run(&format!("{args} -o {}", to.display())).in_order();
                assert_eq!(rows(format, &to, column), []);
            }
        }
    });
}
