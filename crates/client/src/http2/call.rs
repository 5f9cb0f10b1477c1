//! One call on a connection: what is sent, what comes, and how it ended.

use tonic::{Code, Status};

use super::block::{self, Head};
use super::connection::{Connection, END_STREAM, Frame, PADDED, broken};
use crate::ClientError;

/// The stream of the call that runs, or ran last.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub id: u32,
    /// How much may be sent before the server takes more.
    pub window: i64,
    /// Bytes that came since its window was widened.
    pub used: u32,
    /// What is left of the frame of data that is being read, and of the padding behind it.
    left: usize,
    padding: usize,
    /// Whether all was sent.
    sent: bool,
    /// Whether the answer has begun, and whether it has ended.
    answered: bool,
    ended: bool,
    /// What the server said last.
    trailers: Option<Head>,
}

impl Stream {
    pub fn new(id: u32, window: i64) -> Stream {
        Stream { id, window, ..Stream::default() }
    }

    /// Whether nothing more goes or comes. So it is before the first call, too.
    pub fn is_over(&self) -> bool {
        self.id == 0 || (self.sent && self.ended && self.left == 0 && self.padding == 0)
    }
}

impl Connection {
    /// Begins a call; its headers go out with the first data.
    pub fn call(&mut self, shared: &[u8], path: &str) -> Result<(), ClientError> {
        self.begin(&block::with_path(shared, path))
    }

    /// Whether anything of an answer has come.
    pub fn is_answered(&self) -> bool {
        self.stream.answered
    }

    /// Sends these bytes, one part after another, in frames that the server takes; with `end` they are the last. False where it answered before it
    /// had them all: then it wants no more.
    pub async fn send(&mut self, mut parts: [&[u8]; 3], end: bool) -> Result<bool, ClientError> {
        let mut missing: usize = parts.iter().map(|part| part.len()).sum();
        while missing > 0 {
            let room = self.room().min(missing);
            if room == 0 {
                self.advance().await?;
                if self.stream.answered {
                    return Ok(false);
                }
                continue;
            }
            let frame = cut(&mut parts, room);
            missing -= room;
            let last = end && missing == 0;
            if let Err(error) = self.send_frame(frame, room, last).await {
                // It may have said why before it closed.
                while !self.stream.ended {
                    if self.advance().await.is_err() || self.stream.left > 0 {
                        return Err(broken(error));
                    }
                }
                return Ok(false);
            }
            self.stream.sent = last;
        }
        Ok(true)
    }

    /// Waits for bytes of the answer; false at its end, when all that came before is well.
    pub async fn has_data(&mut self) -> Result<bool, ClientError> {
        while self.stream.left == 0 {
            if self.stream.padding > 0 {
                let mut padding = [0; 255];
                let some = self.stream.padding.min(padding.len());
                self.stream.padding -= self.read_some(&mut padding[..some]).await?;
            } else if self.stream.ended {
                return self.status().map(|()| false);
            } else {
                self.advance().await?;
            }
        }
        Ok(true)
    }

    /// Bytes of the answer, as many as have come of those that fit. There must be some: see [`Connection::has_data`].
    async fn data(&mut self, into: &mut [u8]) -> Result<usize, ClientError> {
        let most = self.stream.left.min(into.len());
        let count = self.read_some(&mut into[..most]).await?;
        self.stream.left -= count;
        Ok(count)
    }

    /// Fills `into` with bytes of the answer; false where it ends before.
    pub async fn read(&mut self, into: &mut [u8]) -> Result<bool, ClientError> {
        let mut filled = 0;
        while filled < into.len() {
            if !self.has_data().await? {
                return Ok(false);
            }
            filled += self.data(&mut into[filled..]).await?;
        }
        Ok(true)
    }

    /// A frame of data begins.
    pub(super) async fn begin_data(&mut self, frame: Frame) -> Result<(), ClientError> {
        if frame.stream != self.stream.id || !self.stream.answered || self.stream.ended {
            return Err(ClientError::protocol("data of no call that runs"));
        }
        self.count(frame.len);
        let mut padding = [0; 1];
        let mut head = 0;
        if frame.has(PADDED) && frame.len > 0 {
            while head == 0 {
                head = self.read_some(&mut padding).await?;
            }
        }
        let padding = usize::from(padding[0]);
        let left = frame.len.checked_sub(head + padding).ok_or_else(|| ClientError::protocol("a frame all of padding"))?;
        (self.stream.left, self.stream.padding, self.stream.ended) = (left, padding, frame.has(END_STREAM));
        Ok(())
    }

    /// The headers of the answer, or its trailers.
    pub(super) fn headers(&mut self, frame: Frame, block: &[u8]) -> Result<(), ClientError> {
        let head = block::read(&mut self.decoder, block)?;
        let end = frame.has(END_STREAM);
        if frame.stream != self.stream.id || self.stream.ended {
            return Err(ClientError::protocol("headers of no call that runs"));
        }
        if self.stream.answered {
            if !end {
                return Err(ClientError::protocol("headers within an answer"));
            }
        } else if !end && head.http.as_deref().is_some_and(|status| status.starts_with(b"1")) {
            return Ok(()); // the answer is yet to come
        } else {
            answer_of_grpc(&head)?;
        }
        (self.stream.answered, self.stream.ended) = (true, end);
        self.stream.trailers = end.then_some(head);
        Ok(())
    }

    /// The server ends a stream before its time.
    pub(super) fn reset(&mut self, stream: u32, code: u32) -> Result<(), ClientError> {
        if stream != self.stream.id || self.stream.is_over() {
            return Ok(());
        }
        if self.stream.ended {
            self.stream.sent = true; // it wants no more of the request
            return Ok(());
        }
        Err(broken(std::io::Error::other(format!("the server ended the call with error {code} of HTTP/2"))))
    }

    /// What the server says of the whole call.
    fn status(&self) -> Result<(), ClientError> {
        let trailers = self.stream.trailers.as_ref().ok_or_else(|| ClientError::protocol("an answer that ends without a status"))?;
        match trailers.status.as_deref() {
            Some(b"0") => Ok(()),
            Some(status) => {
                let code = std::str::from_utf8(status).ok().and_then(|code| code.parse().ok()).map_or(Code::Unknown, Code::from_i32);
                let message = percent_encoding::percent_decode(trailers.message.as_deref().unwrap_or_default()).decode_utf8_lossy();
                Err(Status::new(code, message).into())
            }
            None => Err(ClientError::protocol("an answer that ends without a status")),
        }
    }
}

/// Whether these are the headers of a server of gRPC.
fn answer_of_grpc(head: &Head) -> Result<(), ClientError> {
    let content = head.content.as_deref().unwrap_or_default();
    match head.http.as_deref() {
        Some(b"200") if content.starts_with(b"application/grpc") => Ok(()),
        status => {
            let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (status, content) = (show(status.unwrap_or_default()), show(content));
            Err(ClientError::protocol(format!("HTTP status {status:?} with content {content:?}: is it a Sira server?")))
        }
    }
}

/// The first `count` bytes of the parts, which are shortened by them.
fn cut<'a>(parts: &mut [&'a [u8]; 3], mut count: usize) -> [&'a [u8]; 3] {
    std::array::from_fn(|i| {
        let (first, rest) = parts[i].split_at(count.min(parts[i].len()));
        count -= first.len();
        parts[i] = rest;
        first
    })
}
