//! The messages of a get, read field by field; the bytes of tensors go where their reader wants them.

use std::time::Instant;

use sira_wire::{Code, WireError};

use super::{Lease, Pool};
use crate::ClientError;

const DO_GET: &str = "/arrow.flight.protocol.FlightService/DoGet";

// Fields of Ticket and of FlightData (Flight.proto).
const TICKET: u8 = 1;
const HEADER: u64 = 2;
const METADATA: u64 = 3;
const BODY: u64 = 1000;

/// Bytes of an Arrow header, at most.
const MAX_HEADER: u64 = 1 << 20;
/// Bytes of JSON in a message, at most. Parsed segments take several times as much.
pub(crate) const MAX_METADATA: u64 = 16 << 20;

/// What comes before the body in a FlightData message.
#[derive(Debug, Default)]
pub(crate) struct Message {
    /// An Arrow IPC message, still encoded.
    pub header: Vec<u8>,
    /// The application's metadata.
    pub metadata: Vec<u8>,
    /// Bytes of body that follow: read them with [`Messages::body`].
    pub body: u64,
}

/// The answer to a get.
#[derive(Debug)]
pub(crate) struct Messages {
    lease: Lease,
    /// What is left of the message, and of its body.
    message: u64,
    body: u64,
}

impl Messages {
    /// Asks for what the ticket names, and waits for the answer to begin.
    pub async fn open(pool: &Pool, ticket: &[u8], end: Option<Instant>) -> Result<Messages, ClientError> {
        let request = request(ticket);
        loop {
            let mut lease = pool.take(end).await?;
            match ask(&mut lease, &request).await {
                Ok(()) => return Ok(Messages::of(lease)),
                Err(error) if lease.may_try_again(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn of(lease: Lease) -> Messages {
        Messages { lease, message: 0, body: 0 }
    }

    /// As [`Messages::open`], over a connection that is there already.
    pub async fn over(mut lease: Lease, ticket: &[u8]) -> Result<Messages, ClientError> {
        ask(&mut lease, &request(ticket)).await?;
        Ok(Messages::of(lease))
    }

    /// The next message up to its body; `None` once all have come and the server has confirmed it. What is left of the one before is skipped.
    pub async fn next(&mut self) -> Result<Option<Message>, ClientError> {
        self.skip(self.body).await?;
        while self.message > 0 {
            if self.field(&mut Message::default()).await? == BODY {
                return Err(malformed("two bodies"));
            }
        }
        if !self.lease.has_data().await? {
            return Ok(None);
        }
        self.message = 5;
        let mut prefix = [0; 5];
        self.exactly(&mut prefix).await?;
        let [compressed, len @ ..] = prefix;
        if compressed != 0 {
            return Err(malformed("compression that nobody asked for"));
        }
        self.message = u32::from_be_bytes(len).into();
        let mut message = Message::default();
        while self.message > 0 && self.field(&mut message).await? != BODY {}
        message.body = self.body;
        Ok(Some(message))
    }

    /// The call is over: its connection may serve another.
    pub fn finish(self) {
        self.lease.give_back();
    }

    /// Fills `into` with the next bytes of the message's body.
    pub async fn body(&mut self, into: &mut [u8]) -> Result<(), ClientError> {
        self.body = self.body.checked_sub(into.len() as u64).ok_or_else(|| malformed("a body shorter than its rows"))?;
        self.exactly(into).await
    }

    /// Passes over the next bytes of the message's body.
    pub async fn skip(&mut self, mut bytes: u64) -> Result<(), ClientError> {
        if bytes == 0 {
            return Ok(());
        }
        let mut scratch = vec![0; bytes.min(64 << 10) as usize];
        while bytes > 0 {
            let some = bytes.min(scratch.len() as u64);
            self.body(&mut scratch[..some as usize]).await?;
            bytes -= some;
        }
        Ok(())
    }

    /// Reads one protobuf field into the message where it is one that is kept. Of the body, only the length is read.
    async fn field(&mut self, message: &mut Message) -> Result<u64, ClientError> {
        let tag = self.varint().await?;
        let (number, wire_type) = (tag >> 3, tag & 7);
        let len = match wire_type {
            0 => return self.varint().await.map(|_| number),
            1 => 8,
            5 => 4,
            2 => self.varint().await?,
            other => return Err(malformed(&format!("protobuf wire type {other}"))),
        };
        if len > self.message {
            return Err(malformed("a field that is longer than its message"));
        }
        let (most, field) = match (number, wire_type) {
            (BODY, 2) => {
                self.body = len;
                return Ok(BODY);
            }
            (HEADER, 2) => (MAX_HEADER, Some(&mut message.header)),
            (METADATA, 2) => (MAX_METADATA, Some(&mut message.metadata)),
            _ => (MAX_HEADER, None),
        };
        if len > most {
            return Err(malformed(&format!("field {number} has {len} bytes; at most {most} are read")));
        }
        let mut bytes = vec![0; len as usize];
        self.exactly(&mut bytes).await?;
        field.into_iter().for_each(|field| *field = std::mem::take(&mut bytes));
        Ok(number)
    }

    async fn varint(&mut self) -> Result<u64, ClientError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.exactly(&mut byte).await?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number of more than ten bytes"))
    }

    /// The next bytes of the message.
    async fn exactly(&mut self, into: &mut [u8]) -> Result<(), ClientError> {
        let len = into.len() as u64;
        self.message = self.message.checked_sub(len).ok_or_else(|| malformed("a message that ends inside a field"))?;
        match self.lease.read(into).await? {
            true => Ok(()),
            false => Err(WireError::new(Code::Incomplete, "the stream ended inside a message").into()),
        }
    }
}

/// Sends the request, and waits until the answer begins or is over.
async fn ask(lease: &mut Lease, request: &[u8]) -> Result<(), ClientError> {
    lease.begin(DO_GET)?;
    lease.send([request, &[], &[]], true).await?;
    lease.has_data().await.map(drop)
}

/// A ticket as a message of gRPC.
fn request(ticket: &[u8]) -> Vec<u8> {
    let mut message = vec![TICKET << 3 | 2];
    put_varint(&mut message, ticket.len() as u64);
    message.extend_from_slice(ticket);
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
}

/// A number as protobuf writes it.
pub(crate) fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn malformed(what: &str) -> ClientError {
    ClientError::protocol(format!("not a stream of FlightData: {what}"))
}
