//! Values of a result as JSON.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType, UInt64Type},
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use estoppel_model::Timestamp;
use serde_json::Value;

/// A column of a batch, in a type that has few forms.
pub(super) struct Cells {
    array: ArrayRef,
    shape: Shape,
}

enum Shape {
    Null,
    Boolean,
    Signed,
    Unsigned,
    Real,
    Text,
    Instant,
    Other,
}

/// What the type of a column is called.
pub(super) fn type_name(of: &DataType) -> String {
    match of {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Boolean => "boolean",
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "double",
        DataType::Timestamp(..) => "timestamp",
        DataType::Null => "null",
        of if of.is_integer() => "bigint",
        other => return other.to_string().to_lowercase(),
    }
    .to_owned()
}

/// The columns of a batch.
pub(super) fn columns(batch: &RecordBatch) -> Result<Vec<Cells>, ArrowError> {
    batch.columns().iter().map(Cells::new).collect()
}

/// About how long a value is in JSON.
pub(super) fn bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 3,
        _ => 12,
    }
}

impl Cells {
    fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        let (shape, to) = match array.data_type() {
            DataType::Null => (Shape::Null, DataType::Null),
            DataType::Boolean => (Shape::Boolean, DataType::Boolean),
            of if of.is_signed_integer() => (Shape::Signed, DataType::Int64),
            of if of.is_unsigned_integer() => (Shape::Unsigned, DataType::UInt64),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                (Shape::Real, DataType::Float64)
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                (Shape::Text, DataType::Utf8View)
            }
            DataType::Timestamp(_, zone @ Some(_)) => {
                (Shape::Instant, DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))
            }
            other => (Shape::Other, other.clone()),
        };
        Ok(Self { array: cast(array, &to)?, shape })
    }

    /// The value in a row. An instant is a text in RFC 3339; a number that JSON has not is a text.
    pub(super) fn value(&self, row: usize) -> Value {
        if self.array.is_null(row) {
            return Value::Null;
        }
        let array = &self.array;
        match self.shape {
            Shape::Null => Value::Null,
            Shape::Boolean => array.as_boolean().value(row).into(),
            Shape::Signed => array.as_primitive::<Int64Type>().value(row).into(),
            Shape::Unsigned => array.as_primitive::<UInt64Type>().value(row).into(),
            Shape::Real => {
                let real = array.as_primitive::<Float64Type>().value(row);
                serde_json::Number::from_f64(real)
                    .map_or_else(|| real.to_string().into(), Value::Number)
            }
            Shape::Text => array.as_string_view().value(row).into(),
            Shape::Instant => {
                let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
                Timestamp::from_micros(micros).to_string().into()
            }
            Shape::Other => ArrayFormatter::try_new(array, &FormatOptions::default())
                .map_or(Value::Null, |format| format.value(row).to_string().into()),
        }
    }
}
