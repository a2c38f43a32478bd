//! Recordings that are given to the program: one of each version of the format, which must be read for ever as it was, and
//! some that want too much memory.
//!
//! `data/v1.arrows` was recorded in a network namespace with programs that open, close, reset, refuse and forget
//! connections, some of them before the recording began, and one that has an escape sequence for a name.

use std::{
    fs::{self, File},
    io::BufReader,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use arrow_array::{ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow_ipc::{
    CompressionType,
    reader::StreamReader,
    writer::{IpcWriteOptions, StreamWriter},
};
use arrow_schema::Schema;
use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;

/// A little more than a reader takes for the largest batch, packed and unpacked.
const MEMORY: u64 = 1 << 30;

fn witness() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1.arrows")
}

fn tracer(args: &[&str], from: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tracer"));
    command.args(args).arg("--from").arg(from);
    // SAFETY: setrlimit is a system call that may be made between fork and exec.
    unsafe { command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?)) };
    command.output().expect("the program runs")
}

fn json(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    serde_json::Deserializer::from_slice(&output.stdout).into_iter().map(|value| value.expect("JSON")).collect()
}

fn lines(values: &[Value]) -> String {
    values.iter().map(|value| format!("{value}\n")).collect()
}

#[test]
fn connections_in_a_recording_of_version_1_stay_what_they_were() {
    let connections = json(&tracer(&["connections", "--open", "--format", "jsonl"], &witness()));
    insta::assert_snapshot!(lines(&connections));
}

#[test]
fn transitions_in_a_recording_of_version_1_stay_what_they_were() {
    let transitions = json(&tracer(&["log", "--format", "jsonl"], &witness()));
    let told = transitions.iter().map(|transition| {
        let of = |field: &str| transition[field].to_string().replace('"', "");
        let fields = ["mono_ns", "cookie", "old_state", "new_state", "in_state_ns", "pid", "error", "origin"];
        fields.map(of).join(" ")
    });
    insta::assert_snapshot!(told.collect::<Vec<_>>().join("\n"));
}

/// Without what is said of them in words, which may be said better.
#[test]
fn findings_in_a_recording_of_version_1_stay_what_they_were() {
    let mut report = json(&tracer(&["diagnose", "--close-wait-age", "1s", "--format", "json"], &witness()));
    let mut findings = report[0]["findings"].as_array().expect("findings").clone();
    for finding in findings.iter_mut().filter_map(Value::as_object_mut) {
        for words in ["title", "evidence", "remedy"] {
            assert!(finding.remove(words).is_some());
        }
    }
    report[0]["findings"].take();
    insta::assert_snapshot!(lines(&[report, findings].concat()));
}

/// As the witness has it, but without a checksum, which would not be right.
fn schema() -> Schema {
    let witness = BufReader::new(File::open(witness()).expect("the witness"));
    let mut schema = StreamReader::try_new(witness, None).expect("a plain Arrow stream").schema().as_ref().clone();
    schema.metadata.remove("tracer.crc32");
    schema
}

/// A file of batches, each column null that is not given.
fn hostile(name: &str, batches: usize, columns: &[(&str, ArrayRef)]) -> PathBuf {
    let schema = Arc::new(schema());
    let rows = columns[0].1.len();
    let fields = schema.fields().iter();
    let arrays = fields.map(|field| match columns.iter().find(|(name, _)| name == field.name()) {
        Some((_, column)) => Arc::clone(column),
        None => new_null_array(field.data_type(), rows),
    });
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays.collect()).expect("a batch");
    write(name, &schema, &vec![batch; batches])
}

fn write(name: &str, schema: &Schema, batches: &[RecordBatch]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD)).expect("zstd");
    let file = File::create(&path).expect("a file");
    let mut writer = StreamWriter::try_new_with_options(file, schema, options).expect("it is written");
    for batch in batches {
        writer.write(batch).expect("it is written");
    }
    writer.finish().expect("it is written");
    path
}

fn texts(text: &str, rows: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..rows).map(|_| text)))
}

/// What is said of a file that is not read to its end.
fn refused(path: &Path) -> String {
    let length = fs::metadata(path).expect("a file").len();
    assert!(length < 4 << 20, "{} is small, which is the point: {length} bytes", path.display());
    let output = tracer(&["log", "--format", "jsonl"], path);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!told.trim_end_matches('\n').contains(|c: char| c.is_control() && c != '\n'), "{told:?}");
    told
}

/// A file of the witness's run that claims to be another part of it.
fn part(number: u64, started_ns: u64) -> PathBuf {
    let mut schema = schema();
    schema.metadata.insert("tracer.part".to_owned(), number.to_string());
    schema.metadata.insert("tracer.started_ns".to_owned(), started_ns.to_string());
    write(&format!("part-{number}.arrows"), &schema, &[])
}

#[test]
fn parts_of_a_run_may_be_numbered_in_any_way() {
    let parts = [(u64::MAX, 1), (3, 2), (7, 3)].map(|(number, started_ns)| part(number, started_ns));
    let output = Command::new(env!("CARGO_BIN_EXE_tracer")).arg("log").arg("--from").args(parts).output();
    let output = output.expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(told.contains("part-7.arrows: 3 file(s) before it are missing"), "{told}");
    assert!(told.contains("18446744073709551607 file(s) before it are missing"), "{told}");
}

#[test]
fn a_small_file_that_unpacks_to_much_is_refused() {
    let much =
        hostile("much.arrows", 1, &[("kind", texts("cgroup", 300)), ("detail", texts(&"n".repeat(1 << 20), 300))]);
    assert!(refused(&much).contains("more than 256 MiB"));
    let names = texts(&"n".repeat(1000), 10_000);
    let names = hostile("names.arrows", 40, &[("kind", texts("cgroup", 10_000)), ("detail", names)]);
    assert!(refused(&names).contains("names of more than"));
    let facts = format!("{{\"holders\":{{{}", "\"1\":[],".repeat(20 << 20));
    let facts = hostile("facts.arrows", 1, &[("kind", texts("facts", 1)), ("detail", texts(&facts, 1))]);
    assert!(refused(&facts).contains("facts of more than 128 MiB"));
}
