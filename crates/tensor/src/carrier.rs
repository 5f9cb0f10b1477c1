//! The Arrow column that carries a tensor (docs/wire.md, "Carriers").

use std::collections::HashMap;

use arrow_schema::{DataType, Field, Schema};
use serde_json::{Value, json};

use crate::{DType, TensorError, TensorSpec, shape};

/// The name of the column that a server sends; a client may send any.
pub const COLUMN: &str = "tensor";

const EXTENSION_NAME: &str = "ARROW:extension:name";
const EXTENSION_METADATA: &str = "ARROW:extension:metadata";
const FIXED_SHAPE: &str = "arrow.fixed_shape_tensor";
/// Bytes of its metadata: the longest names of all axes fit several times.
const MAX_EXTENSION: usize = 64 << 10;

/// The Arrow type that a tensor's elements travel in, and how many of it an element takes (two for complex; packed types: bytes).
fn storage(dtype: DType) -> DataType {
    match dtype {
        DType::Int8 => DataType::Int8,
        DType::Int16 => DataType::Int16,
        DType::Int32 => DataType::Int32,
        DType::Int64 => DataType::Int64,
        DType::UInt16 | DType::BFloat16 => DataType::UInt16,
        DType::UInt32 => DataType::UInt32,
        DType::UInt64 => DataType::UInt64,
        DType::Float16 => DataType::Float16,
        DType::Float32 | DType::Complex64 => DataType::Float32,
        DType::Float64 => DataType::Float64,
        _ => DataType::UInt8,
    }
}

/// Storage type, its dtype, its bytes; only these travel.
fn plain_dtype(storage: &DataType) -> Option<(DType, u64)> {
    Some(match storage {
        DataType::Int8 => (DType::Int8, 1),
        DataType::Int16 => (DType::Int16, 2),
        DataType::Int32 => (DType::Int32, 4),
        DataType::Int64 => (DType::Int64, 8),
        DataType::UInt8 => (DType::UInt8, 1),
        DataType::UInt16 => (DType::UInt16, 2),
        DataType::UInt32 => (DType::UInt32, 4),
        DataType::UInt64 => (DType::UInt64, 8),
        DataType::Float16 => (DType::Float16, 2),
        DataType::Float32 => (DType::Float32, 4),
        DataType::Float64 => (DType::Float64, 8),
        _ => return None,
    })
}

/// How a tensor goes out: the column's field, and how its bytes fall into rows.
#[derive(Clone, Debug)]
pub struct Carrier {
    /// The column.
    pub field: Field,
    /// Rows in all.
    pub rows: u64,
    /// Bytes of a row; the tensor's bytes are its rows one after another.
    pub row_bytes: u64,
    /// Storage values of a row: 1 for a plain column.
    pub row_values: u64,
    /// Whether rows are fixed-size lists.
    pub lists: bool,
}

impl Carrier {
    /// The carrier of `spec` whose rows have at most `max_row_bytes`: rows are the product of as few leading axes as that allows.
    pub fn of(spec: &TensorSpec, max_row_bytes: u64) -> Carrier {
        let value = storage(spec.dtype());
        let size = plain_dtype(&value).map_or(1, |(_, size)| size);
        let (mut extents, mut names) = (spec.shape().to_vec(), spec.axes().to_vec());
        if spec.dtype() == DType::Complex64 {
            extents.push(2);
            if !names.is_empty() {
                names.push(String::new());
            }
        }
        let packed = spec.dtype().item_size().is_none();
        let inner = |axis: usize| extents[axis..].iter().product::<u64>();
        let fits = |axis: &usize| inner(*axis) * size <= max_row_bytes && i32::try_from(inner(*axis)).is_ok();
        // Of an empty tensor, the other axes may be of any size.
        let axes = if packed || spec.nbytes() == 0 { 1..1 } else { 1..extents.len() };
        let split = axes.into_iter().find(fits);
        let Some(split) = split else {
            let field = Field::new(COLUMN, value, false);
            return Carrier { field, rows: spec.nbytes() / size, row_bytes: size, row_values: 1, lists: false };
        };
        let mut metadata = json!({ "shape": extents[split..] });
        if !names.is_empty() {
            metadata["dim_names"] = json!(names[split..]);
        }
        let list = DataType::FixedSizeList(Field::new("item", value, true).into(), inner(split) as i32);
        let extension = [(EXTENSION_NAME, FIXED_SHAPE.to_string()), (EXTENSION_METADATA, metadata.to_string())];
        let field = Field::new(COLUMN, list, false).with_metadata(HashMap::from(extension.map(|(k, v)| (k.to_string(), v))));
        Carrier { field, rows: extents[..split].iter().product(), row_bytes: inner(split) * size, row_values: inner(split), lists: true }
    }
}

/// What a client's schema says of the column it will send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The dtype of the storage type.
    pub storage: DType,
    /// Bytes of a storage value.
    pub value_bytes: u64,
    /// For a fixed-size list: the logical extents of a row. `None` for a plain column.
    pub row_shape: Option<Vec<u64>>,
    /// Whether the column is a list in Arrow's layout.
    pub lists: bool,
    /// Where the extension has one that is not the identity: axis `i` of the logical row is axis `permutation[i]` of the sent one.
    pub permutation: Option<Vec<usize>>,
    /// Names of the logical row axes.
    pub dim_names: Vec<String>,
}

impl Column {
    /// Reads a schema: one column that can carry a tensor, or the reason why not.
    pub fn of(schema: &Schema) -> Result<Column, TensorError> {
        let [field] = schema.fields().as_ref() else {
            return Err(bad(format!("{} columns; a tensor is one column", schema.fields().len())));
        };
        let (value, list) = match field.data_type() {
            DataType::FixedSizeList(item, size) => (item.data_type(), Some(*size)),
            other => (other, None),
        };
        let (storage, value_bytes) = plain_dtype(value).ok_or_else(|| unsuitable(value))?;
        let mut column = Column { storage, value_bytes, row_shape: None, lists: list.is_some(), permutation: None, dim_names: Vec::new() };
        let Some(size) = list else { return Ok(column) };
        let size = u64::try_from(size).map_err(|_| bad(format!("a list of {size} values")))?;
        column.row_shape = Some(vec![size]);
        if field.metadata().get(EXTENSION_NAME).map(String::as_str) == Some(FIXED_SHAPE) {
            column.read_extension(field.metadata().get(EXTENSION_METADATA).map_or("", String::as_str), size)?;
        }
        Ok(column)
    }

    fn read_extension(&mut self, text: &str, size: u64) -> Result<(), TensorError> {
        if text.len() > MAX_EXTENSION {
            return Err(bad(format!("metadata of {FIXED_SHAPE} of {} bytes; at most {MAX_EXTENSION} are read", text.len())));
        }
        let json: Value = serde_json::from_str(text).map_err(|e| bad(format!("metadata of {FIXED_SHAPE} is not JSON: {e}")))?;
        let sent: Vec<u64> = serde_json::from_value(json["shape"].clone()).map_err(|e| bad(format!("shape of {FIXED_SHAPE}: {e}")))?;
        if shape::elements(&sent)? != size {
            return Err(bad(format!("shape {sent:?} of {FIXED_SHAPE} does not have the {size} values of its list")));
        }
        let optional = |name: &str| Some(json[name].clone()).filter(|v| !v.is_null());
        let names: Vec<String> = match optional("dim_names") {
            Some(names) => serde_json::from_value(names).map_err(|e| bad(format!("dim_names of {FIXED_SHAPE}: {e}")))?,
            None => Vec::new(),
        };
        if !names.is_empty() && names.len() != sent.len() {
            return Err(bad(format!("{} dim_names for shape {sent:?}", names.len())));
        }
        let order: Vec<usize> = match optional("permutation") {
            Some(order) => serde_json::from_value(order).map_err(|e| bad(format!("permutation of {FIXED_SHAPE}: {e}")))?,
            None => (0..sent.len()).collect(),
        };
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..sent.len()) {
            return Err(bad(format!("permutation {order:?} is not an order of the {} axes of {sent:?}", sent.len())));
        }
        self.row_shape = Some(order.iter().map(|&axis| sent[axis]).collect());
        self.dim_names = if names.is_empty() { names } else { order.iter().map(|&axis| names[axis].clone()).collect() };
        self.permutation = (!order.iter().copied().eq(0..sent.len())).then_some(order);
        Ok(())
    }

    /// Storage values of a row.
    pub fn row_values(&self) -> u64 {
        self.row_shape.as_ref().map_or(1, |shape| shape.iter().product())
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        self.row_values() * self.value_bytes
    }

    /// Whether this column can carry a tensor of `dtype`, whose shape is declared.
    pub fn carries(&self, dtype: DType) -> Result<(), TensorError> {
        let wanted = storage(dtype);
        match plain_dtype(&wanted) {
            Some((plain, _)) if plain == self.storage || self.storage == DType::UInt8 => Ok(()),
            _ => Err(bad(format!("a column of {} cannot carry {dtype}; send {wanted} or UInt8", self.storage))),
        }
    }

    /// The shape of `rows` rows sent without a declared shape, as a tensor of `dtype` (or of the storage type).
    pub fn shape_of(&self, rows: u64, dtype: Option<DType>) -> Result<(DType, Vec<u64>), TensorError> {
        let dtype = dtype.unwrap_or(self.storage);
        if dtype.item_size() != Some(self.value_bytes as usize) && dtype != DType::Complex64 {
            return Err(bad(format!("{dtype} in a column of {} needs sira.shape", self.storage)));
        }
        self.carries(dtype)?;
        let mut extents = vec![rows];
        extents.extend(self.row_shape.iter().flatten());
        if dtype == DType::Complex64 && (self.storage != DType::Float32 || !self.lists || extents.pop() != Some(2)) {
            return Err(bad("complex64 travels as float32 with an inner axis of 2; otherwise send sira.shape".into()));
        }
        Ok((dtype, extents))
    }

    /// Writes one sent row in logical order.
    pub fn permute_row(&self, sent: &[u8], logical: &mut [u8]) {
        let (Some(order), Some(shape)) = (&self.permutation, &self.row_shape) else {
            logical.copy_from_slice(sent);
            return;
        };
        let item = self.value_bytes as usize;
        // Strides of the sent row, by sent axis; the extent of sent axis order[i] is shape[i].
        let mut strides = vec![item; shape.len()];
        let mut stride = item;
        for axis in (0..shape.len()).rev() {
            strides[axis] = stride;
            let position = order.iter().position(|&a| a == axis).unwrap_or(axis);
            stride *= shape[position] as usize;
        }
        let steps: Vec<usize> = order.iter().map(|&axis| strides[axis]).collect();
        let mut at = vec![0u64; shape.len()];
        let mut from = 0usize;
        for target in logical.chunks_exact_mut(item) {
            target.copy_from_slice(&sent[from..from + item]);
            for axis in (0..shape.len()).rev() {
                at[axis] += 1;
                from += steps[axis];
                if at[axis] < shape[axis] {
                    break;
                }
                from -= steps[axis] * shape[axis] as usize;
                at[axis] = 0;
            }
        }
    }
}

fn bad(reason: String) -> TensorError {
    TensorError::BadCarrier(reason)
}

fn unsuitable(value: &DataType) -> TensorError {
    bad(match value {
        DataType::Boolean => "Arrow's bool packs eight in a byte; send uint8 (0 or 1) with sira.dtype = bool".into(),
        DataType::Dictionary(_, _) => "a dictionary column carries no tensor; decode it first".into(),
        DataType::FixedSizeBinary(_) | DataType::Binary => "send bytes as uint8 with sira.shape and sira.dtype".into(),
        other => format!("{other} carries no tensor; send integers or floats, alone or as {FIXED_SHAPE}"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn carrier(dtype: DType, shape: &[u64], max: u64) -> (TensorSpec, Carrier) {
        let spec = TensorSpec::new(dtype, shape.to_vec()).unwrap();
        let carrier = Carrier::of(&spec, max);
        assert_eq!(carrier.rows * carrier.row_bytes, spec.nbytes());
        (spec, carrier)
    }

    #[test]
    fn every_tensor_has_one_carrier_and_it_reads_back() {
        for dtype in DType::all() {
            for shape in [vec![], vec![0], vec![8], vec![2, 4], vec![2, 0, 4], vec![4, 1, 8]] {
                if TensorSpec::new(dtype, shape.clone()).is_err() {
                    continue; // a packed type that ends inside a byte
                }
                let (spec, carrier) = carrier(dtype, &shape, 1 << 20);
                let column = Column::of(&Schema::new(vec![carrier.field.clone()])).unwrap();
                column.carries(dtype).unwrap();
                assert_eq!(column.row_bytes(), carrier.row_bytes, "{dtype} {shape:?}");
                assert_eq!(column.row_values(), carrier.row_values);
                if carrier.lists {
                    assert_eq!(column.shape_of(carrier.rows, Some(dtype)), Ok((dtype, spec.shape().to_vec())));
                }
            }
        }
    }

    #[test]
    fn wide_rows_split_along_inner_axes() {
        let rows = |max| carrier(DType::BFloat16, &[30, 2, 1536, 3, 64], max).1;
        assert_eq!((rows(4 << 20).rows, rows(1 << 20).rows, rows(1 << 10).rows), (30, 60, 30 * 2 * 1536));
        let narrow = rows(64);
        assert_eq!((narrow.lists, narrow.row_bytes), (false, 2));
    }

    fn extension(shape: &str) -> Result<Column, TensorError> {
        let list = DataType::FixedSizeList(Field::new("item", DataType::UInt8, true).into(), 6);
        let metadata = [(EXTENSION_NAME.to_string(), FIXED_SHAPE.to_string()), (EXTENSION_METADATA.to_string(), shape.to_string())];
        Column::of(&Schema::new(vec![Field::new("x", list, false).with_metadata(HashMap::from(metadata))]))
    }

    #[test]
    fn a_permutation_reorders_shape_names_and_bytes() {
        let column = extension(r#"{"shape":[2,3],"dim_names":["a","b"],"permutation":[1,0]}"#).unwrap();
        assert_eq!(column.row_shape, Some(vec![3, 2]));
        assert_eq!(column.dim_names, ["b", "a"]);
        let mut logical = [0; 6];
        column.permute_row(&[0, 1, 2, 3, 4, 5], &mut logical);
        assert_eq!(logical, [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn unsuitable_columns_say_why() {
        let long = format!(r#"{{"shape":[2,3],"more":[{}0]}}"#, "0,".repeat(MAX_EXTENSION / 2));
        for text in
            [&long, "", "{}", r#"{"shape":[2,2]}"#, r#"{"shape":[2,3],"permutation":[0,0]}"#, r#"{"shape":[2,3],"dim_names":["a"]}"#]
        {
            assert!(extension(text).is_err(), "{text}");
        }
        let of = |t: DataType| Column::of(&Schema::new(vec![Field::new("x", t, true)])).unwrap_err().to_string();
        assert!(of(DataType::Boolean).contains("uint8"));
        assert!(of(DataType::Utf8).contains("carries no tensor"));
        assert!(Column::of(&Schema::empty()).is_err());
    }

    proptest! {
        #[test]
        fn permuting_equals_indexing(dims in prop::collection::vec(1u64..5, 1..5), seed in any::<u64>()) {
            let mut order: Vec<usize> = (0..dims.len()).collect();
            order.sort_by_key(|&axis| seed.rotate_left(axis as u32 * 13) % 97);
            let shape: Vec<u64> = order.iter().map(|&axis| dims[axis]).collect();
            let column = Column {
                storage: DType::UInt16, value_bytes: 2, row_shape: Some(shape.clone()), lists: true,
                permutation: Some(order.clone()), dim_names: Vec::new(),
            };
            let n: u64 = dims.iter().product();
            let sent: Vec<u8> = (0..n as u16).flat_map(u16::to_le_bytes).collect();
            let mut got = vec![0; sent.len()];
            column.permute_row(&sent, &mut got);
            for (i, value) in got.chunks_exact(2).enumerate() {
                // Logical index to sent index, the long way.
                let (mut left, mut at) = (i as u64, vec![0u64; dims.len()]);
                for axis in (0..shape.len()).rev() {
                    at[order[axis]] = left % shape[axis];
                    left /= shape[axis];
                }
                let expected = at.iter().zip(&dims).fold(0, |acc, (&a, &d)| acc * d + a);
                prop_assert_eq!(u64::from(u16::from_le_bytes([value[0], value[1]])), expected);
            }
        }
    }
}
