//! What a record is made of, said once: from a list of fields with their types come the columns of the binary formats, the
//! members of a JSON object and the fields of a CSV line. How a value is written is its type's business ([`Value`]).

use std::sync::Arc;

use arrow_array::{
    ArrayRef, RecordBatch,
    builder::{BinaryBuilder, BooleanBuilder, PrimitiveBuilder, StringBuilder},
    types::{UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::{ArrowError, Field, Schema};

use super::{
    columns::{Column, ListColumn, StructColumn, TimeColumn},
    records::Time,
    text::Text,
};
use crate::core::{
    endpoint::Address,
    state::State,
    transition::{Comm, Errno, Origin},
};

/// A record that is stored in columns; made by `columnar!`.
pub trait Columnar: Sized {
    /// Its fields, gathered column by column.
    type Columns: Default + Send;

    /// The fields' names: in JSON, in the CSV header, and of the columns.
    const NAMES: &'static [&'static str];

    /// Which of them are null where something is not known; the others never are.
    const NULLABLE: &'static [bool];

    /// Takes the record in.
    fn append(&self, columns: &mut Self::Columns);

    /// Takes nothing in, in the place of a record.
    fn append_null(columns: &mut Self::Columns);

    /// Gives out the columns in the order of the fields, and begins anew.
    fn arrays(columns: &mut Self::Columns) -> Result<Vec<ArrayRef>, ArrowError>;

    /// Names and types of the columns.
    fn fields() -> arrow_schema::Fields {
        let arrays = Self::arrays(&mut Self::Columns::default()).unwrap_or_default();
        let fields = Self::NAMES.iter().zip(&arrays).zip(Self::NULLABLE);
        fields.map(|((name, array), nullable)| Field::new(*name, array.data_type().clone(), *nullable)).collect()
    }

    /// What was gathered, as a batch.
    fn batch(columns: &mut Self::Columns, schema: Arc<Schema>) -> Result<RecordBatch, ArrowError> {
        RecordBatch::try_new(schema, Self::arrays(columns)?)
    }
}

/// A record that is written as text too; made by `record!`.
pub trait Fields: Columnar {
    /// Writes a JSON object.
    fn json(&self, to: &mut Text);

    /// Hands out the text of each field in order, nothing for what is not known.
    fn each_text<E>(&self, text: &mut Text, then: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E>;
}

/// Defines a record and its columns.
macro_rules! columnar {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $record:ident in $columns:ident {
            $($(#[$field_meta:meta])* $field_visibility:vis $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$meta])*
        $visibility struct $record {
            $($(#[$field_meta])* $field_visibility $field: $type,)+
        }

        #[doc = concat!("Columns of [`", stringify!($record), "`].")]
        $visibility struct $columns {
            $(pub(crate) $field: <$type as $crate::output::fields::Cell>::Column,)+
        }

        impl Default for $columns {
            fn default() -> Self {
                Self { $($field: $crate::output::columns::Column::new(),)+ }
            }
        }

        impl $crate::output::fields::Columnar for $record {
            type Columns = $columns;

            const NAMES: &'static [&'static str] = &[$(stringify!($field)),+];
            const NULLABLE: &'static [bool] = &[$(<$type as $crate::output::fields::Cell>::NULLABLE),+];

            fn append(&self, columns: &mut $columns) {
                $($crate::output::fields::Cell::append(&self.$field, &mut columns.$field);)+
            }

            fn append_null(columns: &mut $columns) {
                $(<$type as $crate::output::fields::Cell>::append_null(&mut columns.$field);)+
            }

            fn arrays(columns: &mut $columns) -> Result<Vec<::arrow_array::ArrayRef>, ::arrow_schema::ArrowError> {
                Ok(vec![$($crate::output::columns::Column::finish(&mut columns.$field)?),+])
            }
        }
    };
}
pub(crate) use columnar;

/// Defines a record, its columns, and how it is written as text.
macro_rules! record {
    (
        $(#[$meta:meta])*
        $visibility:vis struct $record:ident in $columns:ident {
            $($(#[$field_meta:meta])* $field_visibility:vis $field:ident: $type:ty,)+
        }
    ) => {
        $crate::output::fields::columnar! {
            $(#[$meta])*
            $visibility struct $record in $columns {
                $($(#[$field_meta])* $field_visibility $field: $type,)+
            }
        }

        impl $crate::output::fields::Fields for $record {
            fn json(&self, to: &mut $crate::output::text::Text) {
                let begin = to.bytes().len();
                $(
                    to.push(concat!(",\"", stringify!($field), "\":"));
                    $crate::output::fields::Value::json(&self.$field, to);
                )+
                to.replace(begin, b'{');
                to.push("}");
            }

            fn each_text<E>(
                &self,
                text: &mut $crate::output::text::Text,
                mut then: impl FnMut(&[u8]) -> Result<(), E>,
            ) -> Result<(), E> {
                $(
                    text.clear();
                    $crate::output::fields::Value::text(&self.$field, text);
                    then(text.bytes())?;
                )+
                Ok(())
            }
        }
    };
}
pub(crate) use record;

/// A field's type, in a column.
pub trait Cell {
    /// Its column.
    type Column: Column;

    /// Whether it may be unknown.
    const NULLABLE: bool = false;

    /// Appends it.
    fn append(&self, column: &mut Self::Column);

    /// Appends that nothing is known.
    fn append_null(column: &mut Self::Column);
}

/// A field's type, as text.
pub trait Value: Cell {
    /// Writes it as JSON.
    fn json(&self, to: &mut Text);

    /// Writes it as plain text.
    fn text(&self, to: &mut Text);
}

impl<T: Cell> Cell for Option<T> {
    type Column = T::Column;

    const NULLABLE: bool = true;

    fn append(&self, column: &mut T::Column) {
        match self {
            Some(value) => value.append(column),
            None => T::append_null(column),
        }
    }

    fn append_null(column: &mut T::Column) {
        T::append_null(column);
    }
}

impl<T: Value> Value for Option<T> {
    fn json(&self, to: &mut Text) {
        match self {
            Some(value) => value.json(to),
            None => to.push("null"),
        }
    }

    fn text(&self, to: &mut Text) {
        if let Some(value) = self {
            value.text(to);
        }
    }
}

macro_rules! numbers {
    ($($type:ty: $arrow:ty),+) => {
        $(impl Cell for $type {
            type Column = PrimitiveBuilder<$arrow>;

            fn append(&self, column: &mut Self::Column) {
                column.append_value(*self);
            }

            fn append_null(column: &mut Self::Column) {
                column.append_null();
            }
        }

        impl Value for $type {
            fn json(&self, to: &mut Text) {
                to.number(*self);
            }

            fn text(&self, to: &mut Text) {
                to.number(*self);
            }
        })+
    };
}

numbers!(u8: UInt8Type, u16: UInt16Type, u32: UInt32Type, u64: UInt64Type);

impl Cell for bool {
    type Column = BooleanBuilder;

    fn append(&self, column: &mut Self::Column) {
        column.append_value(*self);
    }

    fn append_null(column: &mut Self::Column) {
        column.append_null();
    }
}

impl Value for bool {
    fn json(&self, to: &mut Text) {
        to.push(if *self { "true" } else { "false" });
    }

    fn text(&self, to: &mut Text) {
        self.json(to);
    }
}

impl Cell for Time {
    type Column = TimeColumn;

    fn append(&self, column: &mut TimeColumn) {
        // Times beyond the year 2262 have no place in the column; no clock gives them.
        column.0.append_value(i64::try_from(self.0).unwrap_or(i64::MAX));
    }

    fn append_null(column: &mut TimeColumn) {
        column.0.append_null();
    }
}

impl Value for Time {
    fn json(&self, to: &mut Text) {
        to.push("\"");
        to.time(*self);
        to.push("\"");
    }

    fn text(&self, to: &mut Text) {
        to.time(*self);
    }
}

/// Something that is text in every format.
trait Word {
    /// Hands its text out.
    fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T;
}

impl Word for Address {
    fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        then(Self::text(*self, &mut [0; Self::TEXT_BYTES]))
    }
}

impl Word for State {
    fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        match self.name() {
            Some(name) => then(name),
            None => then(&self.to_string()),
        }
    }
}

impl Word for Origin {
    fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        then(self.name())
    }
}

impl Word for Errno {
    fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        then(&self.to_string())
    }
}

impl Word for &'static str {
    fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        then(self)
    }
}

impl Word for Comm {
    fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        then(&self.name())
    }
}

impl Word for Arc<str> {
    fn with<T>(&self, then: impl FnOnce(&str) -> T) -> T {
        then(self)
    }
}

/// A word of ours in JSON, where nothing has to be escaped.
fn plain(word: &str, to: &mut Text) {
    to.push("\"");
    to.push(word);
    to.push("\"");
}

/// A word of somebody else's.
fn escaped(word: &str, to: &mut Text) {
    to.json_string(word);
}

macro_rules! words {
    ($($type:ty: $json:ident),+) => {
        $(impl Cell for $type {
            type Column = StringBuilder;

            fn append(&self, column: &mut StringBuilder) {
                self.with(|word| column.append_value(word));
            }

            fn append_null(column: &mut StringBuilder) {
                column.append_null();
            }
        }

        impl Value for $type {
            fn json(&self, to: &mut Text) {
                self.with(|word| $json(word, to));
            }

            fn text(&self, to: &mut Text) {
                self.with(|word| to.push(word));
            }
        })+
    };
}

words!(Address: plain, State: plain, Origin: plain, Errno: plain, &'static str: plain, Comm: escaped, Arc<str>: escaped);

/// Bytes; in the binary formats alone.
impl<const N: usize> Cell for [u8; N] {
    type Column = BinaryBuilder;

    fn append(&self, column: &mut BinaryBuilder) {
        column.append_value(self);
    }

    fn append_null(column: &mut BinaryBuilder) {
        column.append_null();
    }
}

/// A record within another, as [`Value`]s of it are.
pub trait Part: Fields {}

impl<R: Part> Cell for R {
    type Column = StructColumn<R>;

    fn append(&self, column: &mut StructColumn<R>) {
        column.append(Some(self));
    }

    fn append_null(column: &mut StructColumn<R>) {
        column.append(None);
    }
}

impl<R: Part> Value for R {
    fn json(&self, to: &mut Text) {
        Fields::json(self, to);
    }

    fn text(&self, to: &mut Text) {
        Fields::json(self, to);
    }
}

impl<R: Part> Cell for Vec<R> {
    type Column = ListColumn<R>;

    fn append(&self, column: &mut ListColumn<R>) {
        column.append(self);
    }

    fn append_null(column: &mut ListColumn<R>) {
        column.append(&[]);
    }
}

impl<R: Part> Value for Vec<R> {
    fn json(&self, to: &mut Text) {
        to.push("[");
        for (number, record) in self.iter().enumerate() {
            if number > 0 {
                to.push(",");
            }
            Fields::json(record, to);
        }
        to.push("]");
    }

    fn text(&self, to: &mut Text) {
        self.json(to);
    }
}
