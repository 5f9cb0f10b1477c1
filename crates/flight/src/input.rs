//! The body of a `DoPut`: gRPC messages of FlightData, read field by field as frames come.
//!
//! Everything but `data_body` is small and has a limit; `data_body` is handed on frame by frame, whatever its size.

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use sira_wire::Code;
use tonic::Status;
use tonic::body::Body;

use crate::stall::{LOOK, Patience};
use crate::status::refuse;

/// Bytes of a FlightData field other than its body.
const MAX_FIELD: u64 = 1 << 20;

/// Bytes of a field for which room is made before they have come.
const EARLY_FIELD: usize = 64 << 10;

/// Fields of FlightData (Flight.proto).
const DESCRIPTOR: u64 = 1;
const HEADER: u64 = 2;
const METADATA: u64 = 3;
const BODY: u64 = 1000;

/// What comes before the body in a FlightData message.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// A FlightDescriptor, still encoded.
    pub descriptor: Option<Vec<u8>>,
    /// An Arrow IPC Message, still encoded.
    pub header: Vec<u8>,
    /// The application's metadata.
    pub metadata: Vec<u8>,
    /// Bytes of body that follow: read them with [`Input::body`].
    pub body: u64,
}

/// The messages of a request.
pub(crate) struct Input {
    frames: Body,
    /// What is left of the frame that came last.
    frame: Bytes,
    /// What is left of the message.
    message: u64,
    /// What is left of the message's body.
    body: u64,
    /// Whether others wait for memory.
    pressed: Box<dyn Fn() -> bool + Send + Sync>,
    patience: Patience,
}

impl Input {
    /// Reads `frames`; a client that stalls is cut off, sooner while `pressed` says that others wait for memory.
    pub fn new(frames: Body, pressed: impl Fn() -> bool + Send + Sync + 'static) -> Input {
        Input { frames, frame: Bytes::new(), message: 0, body: 0, pressed: Box::new(pressed), patience: Patience::default() }
    }

    /// The next message up to its body, or `None` at the end of the stream. What is left of the one before is skipped.
    pub async fn next(&mut self) -> Result<Option<Head>, Status> {
        while self.body > 0 {
            self.body(u64::MAX).await?;
        }
        while self.message > 0 {
            let (field, _) = self.field().await?;
            if field == BODY {
                return Err(malformed("a message with two bodies"));
            }
        }
        if !self.fill().await? {
            return Ok(None);
        }
        self.message = 5;
        let prefix = self.bytes(5).await?;
        if prefix[0] != 0 {
            return Err(refuse(Code::Unsupported, "compressed gRPC messages are not read; tensors are compressed by sira.codec"));
        }
        self.message = u64::from(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]));
        let mut head = Head::default();
        while self.message > 0 {
            match self.field().await? {
                (DESCRIPTOR, value) => head.descriptor = value,
                (HEADER, value) => head.header = value.unwrap_or_default(),
                (METADATA, value) => head.metadata = value.unwrap_or_default(),
                (BODY, _) => break,
                _ => {}
            }
        }
        head.body = self.body;
        Ok(Some(head))
    }

    /// Up to `max` bytes of the current message's body, as many as have come; empty when there are no more.
    pub async fn body(&mut self, max: u64) -> Result<Bytes, Status> {
        let max = max.min(self.body);
        if max == 0 {
            return Ok(Bytes::new());
        }
        if !self.fill().await? {
            return Err(cut_off());
        }
        let piece = self.frame.split_to(self.frame.len().min(usize::try_from(max).unwrap_or(usize::MAX)));
        self.body -= piece.len() as u64;
        self.message -= piece.len() as u64;
        Ok(piece)
    }

    /// Reads one protobuf field: its number, and its value where it is one that is kept. Of the body, only the length is read.
    async fn field(&mut self) -> Result<(u64, Option<Vec<u8>>), Status> {
        let tag = self.varint().await?;
        let (number, wire_type) = (tag >> 3, tag & 7);
        match wire_type {
            0 => self.varint().await.map(drop)?,
            1 => self.bytes(8).await.map(drop)?,
            5 => self.bytes(4).await.map(drop)?,
            2 => {
                let len = self.varint().await?;
                if len > self.message {
                    return Err(malformed("a field that is longer than its message"));
                }
                if number == BODY {
                    self.body = len;
                } else if len > MAX_FIELD {
                    return Err(malformed(&format!("field {number} of FlightData has {len} bytes; at most {MAX_FIELD} are read")));
                } else {
                    return Ok((number, Some(self.bytes(len as usize).await?)));
                }
            }
            other => return Err(malformed(&format!("protobuf wire type {other}"))),
        }
        Ok((number, None))
    }

    async fn varint(&mut self) -> Result<u64, Status> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte().await?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number of more than ten bytes"))
    }

    /// The next byte of the message.
    async fn byte(&mut self) -> Result<u8, Status> {
        if self.message == 0 {
            return Err(malformed("a message that ends inside a field"));
        }
        if !self.fill().await? {
            return Err(cut_off());
        }
        self.message -= 1;
        Ok(self.frame.get_u8())
    }

    /// Exactly `len` bytes of the message.
    async fn bytes(&mut self, len: usize) -> Result<Vec<u8>, Status> {
        if len as u64 > self.message {
            return Err(malformed("a message that ends inside a field"));
        }
        let mut bytes: Vec<u8> = Vec::new();
        while bytes.len() < len {
            if !self.fill().await? {
                return Err(cut_off());
            }
            if bytes.len() == bytes.capacity() {
                // As bytes come, a quarter of them ahead: what a field says of its length is a promise.
                bytes.reserve_exact((bytes.len() / 4).max(EARLY_FIELD).min(len - bytes.len()));
            }
            let room = bytes.capacity().min(len) - bytes.len();
            bytes.extend_from_slice(&self.frame.split_to(self.frame.len().min(room)));
        }
        self.message -= len as u64;
        Ok(bytes)
    }

    /// Waits for bytes; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool, Status> {
        while self.frame.is_empty() {
            let Ok(next) = tokio::time::timeout(LOOK, self.frames.frame()).await else {
                match self.patience.waited(LOOK, (self.pressed)()) {
                    Some(reason) => return Err(refuse(Code::Busy, format!("{reason}; nothing was stored"))),
                    None => continue,
                }
            };
            match next {
                None => return Ok(false),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.patience.moved(data.len() as u64);
                        self.frame = data;
                    }
                }
            }
        }
        Ok(true)
    }
}

fn malformed(what: &str) -> Status {
    refuse(Code::BadRequest, format!("not a stream of FlightData: {what}"))
}

fn cut_off() -> Status {
    refuse(Code::Incomplete, "the stream ended inside a message; nothing was stored")
}

#[cfg(test)]
mod tests {
    use arrow_flight::{FlightData, FlightDescriptor};
    use futures::{StreamExt, stream};
    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    /// A body that comes in frames of `size`.
    fn input(bytes: &[u8], size: usize) -> Input {
        let frames: Vec<_> = bytes.chunks(size).map(|c| Ok::<_, Status>(http_body::Frame::data(Bytes::copy_from_slice(c)))).collect();
        Input::new(Body::new(StreamBody::new(stream::iter(frames))), || false)
    }

    fn message(data: &FlightData) -> Vec<u8> {
        let body = data.encode_to_vec();
        [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat()
    }

    async fn read(mut input: Input) -> Result<Vec<(Head, Vec<u8>)>, Status> {
        let mut messages = Vec::new();
        while let Some(head) = input.next().await? {
            let mut body = Vec::new();
            loop {
                let piece = input.body(1000).await?;
                if piece.is_empty() {
                    break;
                }
                body.extend_from_slice(&piece);
            }
            messages.push((head, body));
        }
        Ok(messages)
    }

    fn two() -> (FlightData, FlightData, Vec<u8>) {
        let descriptor = FlightDescriptor::new_path(vec!["ns".into(), "k".into()]);
        let first = FlightData::new().with_descriptor(descriptor).with_data_header(vec![1u8; 300]);
        let second = FlightData::new().with_data_header(vec![2u8; 200]).with_app_metadata(vec![3u8; 9]).with_data_body(vec![4u8; 5000]);
        let wire = [message(&first), message(&second)].concat();
        (first, second, wire)
    }

    #[tokio::test]
    async fn reads_what_prost_writes_in_frames_of_any_size() {
        let (first, second, wire) = two();
        for size in [1, 7, 100, 1 << 20] {
            let messages = read(input(&wire, size)).await.unwrap();
            assert_eq!(messages.len(), 2);
            assert_eq!(messages[0].0.descriptor.as_deref(), Some(&first.flight_descriptor.as_ref().unwrap().encode_to_vec()[..]));
            assert_eq!(messages[0].0.header, first.data_header);
            assert_eq!((&messages[1].0.header[..], &messages[1].1[..]), (&second.data_header[..], &second.data_body[..]));
        }
    }

    #[tokio::test]
    async fn bodies_are_handed_on_where_they_came() {
        let wire = Bytes::from(message(&FlightData::new().with_data_body(vec![4u8; 50_000])));
        let frames: Vec<Bytes> = (0..wire.len()).step_by(16_384).map(|at| wire.slice(at..wire.len().min(at + 16_384))).collect();
        let frames = stream::iter(frames).map(|frame| Ok::<_, Status>(http_body::Frame::data(frame)));
        let mut input = Input::new(Body::new(StreamBody::new(frames)), || false);
        let mut at = wire.len() - input.next().await.unwrap().unwrap().body as usize;
        while at < wire.len() {
            let piece = input.body(u64::MAX).await.unwrap();
            assert_eq!(piece.as_ptr(), wire[at..].as_ptr(), "no copy on the way");
            at += piece.len();
        }
    }

    #[tokio::test]
    async fn a_stream_cut_anywhere_but_between_messages_is_an_error() {
        let (first, _, wire) = two();
        for cut in 1..wire.len() {
            let result = read(input(&wire[..cut], 64)).await;
            assert_eq!(result.is_ok(), cut == message(&first).len(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn mutated_streams_end_in_an_error_or_in_messages(at in 0usize..5500, value in any::<u8>(), size in 1usize..600) {
            let (_, _, mut wire) = two();
            let at = at % wire.len();
            wire[at] = value;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            if let Ok(messages) = runtime.block_on(read(input(&wire, size))) {
                prop_assert!(messages.iter().map(|(head, body)| head.header.len() + body.len()).sum::<usize>() <= wire.len());
            }
        }
    }
}
