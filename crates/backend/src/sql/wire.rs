//! Values on their way to and from a driver, with as few copies as it allows.

use bytes::Bytes;
use sqlx::{ColumnIndex, Decode, Row, Type};
#[cfg(any(feature = "mysql", feature = "postgres"))]
use sqlx::{Database, Encode, encode::IsNull, error::BoxDynError};

#[cfg(any(feature = "mysql", feature = "postgres"))]
use crate::Payload;

/// Bytes from which a value read stays in the buffer that it came in, and from which a connection gives its buffers back
/// afterwards: smaller ones would hold a buffer that is much larger than themselves.
pub const SHRINK: usize = 256 << 10;

/// A value to bind, copied piece by piece into the driver's buffer.
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub struct Pieces<'a>(pub &'a Payload);

#[cfg(any(feature = "mysql", feature = "postgres"))]
impl<DB: Database> Type<DB> for Pieces<'_>
where
    [u8]: Type<DB>,
{
    fn type_info() -> DB::TypeInfo {
        <[u8] as Type<DB>>::type_info()
    }
}

#[cfg(feature = "postgres")]
impl Encode<'_, sqlx::Postgres> for Pieces<'_> {
    fn encode_by_ref(&self, buffer: &mut sqlx::postgres::PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        self.0.pieces().iter().for_each(|piece| buffer.extend_from_slice(piece));
        Ok(IsNull::No)
    }

    fn size_hint(&self) -> usize {
        self.0.len() as usize
    }
}

#[cfg(feature = "mysql")]
impl Encode<'_, sqlx::MySql> for Pieces<'_> {
    fn encode_by_ref(&self, buffer: &mut Vec<u8>) -> Result<IsNull, BoxDynError> {
        // A length of eight bytes after 0xfe is right for every value, if longer than needed for some.
        buffer.push(0xfe);
        buffer.extend_from_slice(&self.0.len().to_le_bytes());
        self.0.pieces().iter().for_each(|piece| buffer.extend_from_slice(piece));
        Ok(IsNull::No)
    }

    fn size_hint(&self) -> usize {
        self.0.len() as usize + 9
    }
}

/// A row, for as long as the bytes of one of its columns are in use.
struct Kept<R> {
    row: R,
    column: usize,
}

impl<R: Row> AsRef<[u8]> for Kept<R>
where
    usize: ColumnIndex<R>,
    for<'r> &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
{
    fn as_ref(&self) -> &[u8] {
        // It was read before, or there would be no `Kept`.
        self.row.try_get(self.column).unwrap_or_default()
    }
}

/// The bytes of a column: a copy of few, the row itself for many.
pub fn kept<R: Row>(row: R, column: usize) -> Result<Bytes, sqlx::Error>
where
    usize: ColumnIndex<R>,
    for<'r> &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
{
    let bytes: &[u8] = row.try_get(column)?;
    if bytes.len() < SHRINK {
        return Ok(Bytes::copy_from_slice(bytes));
    }
    Ok(Bytes::from_owner(Kept { row, column }))
}
