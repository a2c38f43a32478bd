//! Parquet and Arrow files: written whole however a run ends, with the same records as the JSON lines.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use arrow_array::{Array, RecordBatch, StringArray, UInt64Array};
use arrow_ipc::reader::StreamReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::{
    harness::{Tracer, in_new_namespace, run, scratch},
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
