//! What the targets share: a parser takes memory in proportion to its bytes.

#[path = "../../crates/flight/tests/mutations/memory.rs"]
pub mod memory;
#[path = "../../crates/flight/tests/mutations/seeds.rs"]
pub mod seeds;
#[path = "../../crates/flight/tests/mutations/store.rs"]
pub mod store;

use arrow_schema::{DataType, Field, Schema};
use sira_tensor::carrier::Column;

/// Bytes of memory for each byte that is parsed: a list of empty texts in JSON takes 8, twice that while it grows.
const PER_BYTE: usize = 32;
/// Bytes of memory besides.
const BESIDES: usize = 1 << 20;

/// Runs a parser over `bytes`, and fails where it takes more memory than those allow.
pub fn bounded<T>(bytes: usize, parse: impl FnOnce() -> T) -> T {
    let mark = memory::mark();
    let parsed = parse();
    let peak = memory::peak_since(mark);
    assert!(peak <= PER_BYTE * bytes + BESIDES, "{peak} bytes of memory for {bytes} bytes of input");
    parsed
}

/// The columns that carry tensors, as the receiver of a batch has them.
pub fn columns() -> Vec<Column> {
    let of = |field: Field| Column::of(&Schema::new(vec![field])).unwrap();
    let list = DataType::FixedSizeList(Field::new("item", DataType::Float32, true).into(), 3);
    vec![of(Field::new("x", DataType::UInt8, false)), of(Field::new("x", DataType::Float64, false)), of(Field::new("x", list, false))]
}
