//! Cuts a recording into small ones to begin with: neither compressed nor with checksums, so that a mutation of them is
//! still read. `cargo +nightly run --example seeds -- ../tests/data/v1.arrows corpus/recording`

use std::{error::Error, fs::File, path::Path, sync::Arc};

use arrow_ipc::{reader::StreamReader, writer::StreamWriter};

/// Rows of a seed.
const ROWS: usize = 12;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [recording, folder] = &args[..] else { return Err("usage: seeds RECORDING FOLDER".into()) };
    let reader = StreamReader::try_new(File::open(recording)?, None)?;
    let mut schema = reader.schema().as_ref().clone();
    schema.metadata.remove("tracer.crc32");
    let schema = Arc::new(schema);
    for (number, batch) in reader.enumerate() {
        let batch = batch?;
        for from in (0..batch.num_rows()).step_by(ROWS) {
            let rows = batch.slice(from, ROWS.min(batch.num_rows() - from));
            let seed = Path::new(folder).join(format!("seed-{number}-{from}"));
            let mut writer = StreamWriter::try_new(File::create(seed)?, &schema)?;
            writer.write(&rows)?;
            writer.finish()?;
        }
    }
    Ok(())
}
