//! Where the columns are: in the schema, and in the messages of batches. arrow-rs is handed only what has been found to be
//! of a sane size here.

use anyhow::{Context, Result, bail, ensure};
use arrow_ipc::{FieldNode, RecordBatch};
use arrow_schema::{DataType, Schema};

use super::rows::fields_read;

/// Rows of one batch.
const MAX_ROWS: i64 = 1 << 20;

/// The columns that are read; there may be others.
#[derive(Debug)]
pub(super) struct Layout {
    /// Their places in the schema.
    pub(super) columns: Vec<usize>,
    /// Those of their buffers that say where each row's text begins.
    offsets: Vec<usize>,
}

impl Layout {
    /// Finds them in a file's schema.
    pub(super) fn of(schema: &Schema) -> Result<Self> {
        let (mut columns, mut offsets) = (Vec::new(), Vec::new());
        for wanted in fields_read() {
            let found = schema.column_with_name(wanted.name());
            let found = found.filter(|(_, found)| found.data_type() == wanted.data_type());
            let (column, _) = found.with_context(|| format!("damaged: no column {} of its type", wanted.name()))?;
            columns.push(column);
            if matches!(wanted.data_type(), DataType::Utf8 | DataType::Binary) {
                let before = schema.fields().iter().take(column).map(|field| buffers(field.data_type()));
                let before = before.sum::<Option<usize>>();
                offsets.push(before.with_context(|| format!("its column {} is in an odd place", wanted.name()))? + 1);
            }
        }
        Ok(Self { columns, offsets })
    }

    /// Nothing in the batch takes more room than a batch may, `most` bytes once it is unpacked, and nothing is of a size
    /// that arrow-rs takes for granted.
    pub(super) fn check(&self, batch: &RecordBatch<'_>, body: &[u8], most: u64) -> Result<()> {
        ensure!((0..=MAX_ROWS).contains(&batch.length()), "damaged: a batch of {} rows", batch.length());
        let fits = |node: &FieldNode| {
            (0..=MAX_ROWS).contains(&node.length()) && (0..=node.length()).contains(&node.null_count())
        };
        ensure!(batch.nodes().into_iter().flatten().all(fits), "damaged: a column of an impossible length");
        let mut unpacked = Vec::new();
        let mut sum = 0_u64;
        for buffer in batch.buffers().into_iter().flatten() {
            let length = unpacked_length(buffer, batch.compression().is_some(), body)?;
            unpacked.push(length);
            sum = sum.saturating_add(length);
            ensure!(sum <= most, "damaged: a batch of more than {} MiB", most >> 20);
        }
        let whole = |offsets: &usize| unpacked.get(*offsets).is_some_and(|length| length % 4 == 0);
        ensure!(self.offsets.iter().all(whole), "damaged: texts without whole offsets");
        Ok(())
    }
}

fn unpacked_length(buffer: &arrow_ipc::Buffer, compressed: bool, body: &[u8]) -> Result<u64> {
    let range = usize::try_from(buffer.offset())
        .ok()
        .zip(usize::try_from(buffer.length()).ok())
        .and_then(|(offset, length)| Some(offset..offset.checked_add(length)?));
    let bytes = range.and_then(|range| body.get(range)).context("damaged: a buffer beyond the end of its batch")?;
    Ok(match bytes.first_chunk::<8>() {
        _ if !compressed || bytes.is_empty() => bytes.len() as u64,
        None => bail!("damaged: a buffer without its length"),
        // -1: it is not compressed after all.
        Some(length) if i64::from_le_bytes(*length) == -1 => bytes.len() as u64 - 8,
        Some(length) => u64::from_le_bytes(*length),
    })
}

/// How many buffers a column has; `None` for those that have other columns in them, or a number that varies.
pub(super) fn buffers(column: &DataType) -> Option<usize> {
    match column {
        DataType::Null => Some(0),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => Some(3),
        DataType::Dictionary(..) | DataType::FixedSizeBinary(_) | DataType::Boolean => Some(2),
        column if column.is_primitive() => Some(2),
        _ => None,
    }
}
