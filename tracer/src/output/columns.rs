//! Arrow columns that grow value by value. Types are those that the tools on the other side know best: times are
//! timestamps, addresses and names are text, what is not known is null.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, ArrowPrimitiveType, ListArray, StructArray,
    builder::{BinaryBuilder, BooleanBuilder, PrimitiveBuilder, StringBuilder, TimestampNanosecondBuilder},
};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer};
use arrow_schema::{ArrowError, DataType, Field};

use super::fields::Columnar;

/// A column under way.
pub trait Column {
    /// An empty one.
    fn new() -> Self;

    /// Gives out what was gathered, and begins anew.
    fn finish(&mut self) -> Result<ArrayRef, ArrowError>;
}

impl<T: ArrowPrimitiveType> Column for PrimitiveBuilder<T> {
    fn new() -> Self {
        Self::new()
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(Self::finish(self)))
    }
}

macro_rules! builders {
    ($($builder:ty),+) => {
        $(impl Column for $builder {
            fn new() -> Self {
                Self::new()
            }

            fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
                Ok(Arc::new(Self::finish(self)))
            }
        })+
    };
}

builders!(BinaryBuilder, BooleanBuilder, StringBuilder);

/// Times in UTC.
#[derive(Debug)]
pub struct TimeColumn(pub(super) TimestampNanosecondBuilder);

impl Column for TimeColumn {
    fn new() -> Self {
        Self(TimestampNanosecondBuilder::new().with_timezone("UTC"))
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(self.0.finish()))
    }
}

/// A record within a record.
pub struct StructColumn<R: Columnar> {
    columns: R::Columns,
    known: NullBufferBuilder,
}

impl<R: Columnar> StructColumn<R> {
    pub(super) fn append(&mut self, record: Option<&R>) {
        match record {
            Some(record) => record.append(&mut self.columns),
            None => R::append_null(&mut self.columns),
        }
        self.known.append(record.is_some());
    }
}

impl<R: Columnar> Column for StructColumn<R> {
    fn new() -> Self {
        Self { columns: R::Columns::default(), known: NullBufferBuilder::new(0) }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let (length, known) = (self.known.len(), self.known.finish());
        let arrays = R::arrays(&mut self.columns)?;
        Ok(Arc::new(StructArray::try_new_with_length(R::fields(), arrays, known, length)?))
    }
}

/// Lists of records within a record.
pub struct ListColumn<R: Columnar> {
    columns: R::Columns,
    lengths: Vec<usize>,
}

impl<R: Columnar> ListColumn<R> {
    pub(super) fn append(&mut self, records: &[R]) {
        for record in records {
            record.append(&mut self.columns);
        }
        self.lengths.push(records.len());
    }
}

impl<R: Columnar> Column for ListColumn<R> {
    fn new() -> Self {
        Self { columns: R::Columns::default(), lengths: Vec::new() }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let lengths = std::mem::take(&mut self.lengths);
        let (fields, length) = (R::fields(), lengths.iter().sum());
        let item = Field::new("item", DataType::Struct(fields.clone()), true);
        let records = StructArray::try_new_with_length(fields, R::arrays(&mut self.columns)?, None, length)?;
        let offsets =
            OffsetBuffer::try_from_lengths(lengths).map_err(|error| ArrowError::ComputeError(error.to_string()))?;
        Ok(Arc::new(ListArray::try_new(item.into(), offsets, Arc::new(records), None)?))
    }
}
