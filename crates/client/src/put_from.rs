//! Puts from memory that stays the caller's: it is sent from where it lies.

use std::borrow::Cow;
use std::time::Instant;

use arrow_flight::PutResult;
use prost::Message;
use sira_tensor::TensorSpec;
use sira_wire::{Code, Key, PutAnswer, PutOptions, WireError};

use crate::client::parse;
use crate::http2::{Lease, Pool, put_varint};
use crate::{Client, ClientError, message, put};

const DO_PUT: &str = "/arrow.flight.protocol.FlightService/DoPut";

/// Tags of FlightData (Flight.proto): a number and the type of what has a length.
const HEADER: u64 = 2 << 3 | 2;
const METADATA: u64 = 3 << 3 | 2;
const BODY: u64 = 1000 << 3 | 2;

/// Bytes of tensor in a message. A server reads it as it comes.
const PIECE: usize = 16 << 20;

/// Bytes of the answer, at most: it is about one key.
const MAX_ANSWER: usize = 64 << 10;

impl Client {
    /// Puts a tensor from the caller's memory, which is sent from where it lies; [`Client::put`] says more.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client, pinned: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    /// use sira_client::{DType, PutOptions, TensorSpec};
    ///
    /// let spec = TensorSpec::new(DType::UInt8, vec![pinned.len() as u64])?;
    /// client.put_from("demo/pinned", &spec, pinned, PutOptions::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_from(&self, key: &str, spec: &TensorSpec, data: &[u8], options: PutOptions) -> Result<PutAnswer, ClientError> {
        let key: Key = key.parse()?;
        if data.len() as u64 != spec.nbytes() {
            let reason = format!("the tensor has {} bytes, its source has {}", spec.nbytes(), data.len());
            return Err(ClientError::Source(std::io::Error::new(std::io::ErrorKind::InvalidData, reason)));
        }
        let options = put::describing(options, spec);
        put_bytes(&self.pool, message::schema(key.as_str(), options.to_metadata()).encode_to_vec(), data, None).await
    }
}

/// A message of a put: metadata and rows.
pub(crate) type Piece<'a> = (Vec<u8>, Cow<'a, [u8]>);

/// What follows the first message of a put.
pub(crate) trait Parts<'a> {
    /// The next one; `None` after the last.
    fn next(&mut self) -> Result<Option<Piece<'a>>, ClientError>;
}

/// Bytes in pieces, of which nothing is said.
struct Whole<'a>(&'a [u8]);

impl<'a> Parts<'a> for Whole<'a> {
    fn next(&mut self) -> Result<Option<Piece<'a>>, ClientError> {
        let (piece, rest) = self.0.split_at(self.0.len().min(PIECE));
        self.0 = rest;
        Ok((!piece.is_empty()).then_some((Vec::new(), Cow::Borrowed(piece))))
    }
}

/// Puts the bytes behind the first message of a put, which describes them.
pub(crate) async fn put_bytes(pool: &Pool, first: Vec<u8>, data: &[u8], end: Option<Instant>) -> Result<PutAnswer, ClientError> {
    put_parts(pool, first, Whole(data), end).await
}

/// Puts the messages behind the first one.
pub(crate) async fn put_parts<'a>(
    pool: &Pool,
    first: Vec<u8>,
    parts: impl Parts<'a>,
    end: Option<Instant>,
) -> Result<PutAnswer, ClientError> {
    let mut lease = pool.take(end).await?;
    lease.begin(DO_PUT)?;
    let whole = send(&mut lease, first, parts).await?;
    let mut prefix = [0; 5];
    if !lease.read(&mut prefix).await? {
        return Err(WireError::new(Code::Incomplete, "the server ended the put without an answer").into());
    }
    let [compressed, len @ ..] = prefix;
    let len = u32::from_be_bytes(len) as usize;
    if compressed != 0 || len > MAX_ANSWER || !whole {
        return Err(ClientError::protocol(format!("an answer to a put that is compressed, early or of {len} bytes")));
    }
    let mut result = vec![0; len];
    lease.read(&mut result).await?;
    let answer = PutResult::decode(&result[..]).map_err(ClientError::protocol)?;
    if lease.has_data().await? {
        return Err(ClientError::protocol("a second answer to a put"));
    }
    lease.give_back();
    parse(&answer.app_metadata)
}

/// Sends the first message and the batches; false where the server answered before it had all.
async fn send<'a>(lease: &mut Lease, first: Vec<u8>, mut parts: impl Parts<'a>) -> Result<bool, ClientError> {
    let prefix = prefix(first.len());
    // With the first piece behind it, so that a small tensor is one write.
    let mut head = [&prefix[..], &first].concat();
    let mut next = parts.next()?;
    loop {
        let Some((metadata, piece)) = next else { return lease.send([&head, &[], &[]], true).await };
        let padding = piece.len().next_multiple_of(8) - piece.len();
        head.extend(batch(&metadata, piece.len(), padding));
        next = parts.next()?;
        if !lease.send([&head, &piece, &[0; 8][..padding]], next.is_none()).await? {
            return Ok(false);
        }
        if next.is_none() {
            return Ok(true);
        }
        head.clear();
    }
}

/// A message of gRPC up to its body, which follows and is the end of it.
fn batch(metadata: &[u8], rows: usize, padding: usize) -> Vec<u8> {
    let header = message::batch_header(rows, rows + padding);
    let mut fields = Vec::with_capacity(header.len() + metadata.len() + 32);
    for (tag, field) in [(HEADER, &header[..]), (METADATA, metadata)].into_iter().filter(|(_, field)| !field.is_empty()) {
        put_varint(&mut fields, tag);
        put_varint(&mut fields, field.len() as u64);
        fields.extend_from_slice(field);
    }
    put_varint(&mut fields, BODY);
    put_varint(&mut fields, (rows + padding) as u64);
    [&prefix(fields.len() + rows + padding)[..], &fields].concat()
}

/// What gRPC writes before a message.
fn prefix(len: usize) -> [u8; 5] {
    let [a, b, c, d] = (len as u32).to_be_bytes();
    [0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use arrow_flight::FlightData;

    use super::*;
    use crate::message::tests::column;

    #[test]
    fn messages_are_those_that_prost_reads() {
        for len in [1usize, 8, 13, 5000] {
            let (rows, padding) = (vec![7u8; len], len.next_multiple_of(8) - len);
            let wire = [&batch(b"said", len, padding)[..], &rows, &vec![0; padding]].concat();
            assert_eq!(u32::from_be_bytes(wire[1..5].try_into().unwrap()) as usize, wire.len() - 5);
            let data = FlightData::decode(&wire[5..]).unwrap();
            assert_eq!(message::rows(&data, &column()).unwrap(), rows);
            assert_eq!(&data.app_metadata[..], b"said");
        }
    }
}
