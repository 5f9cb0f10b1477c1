//! Messages over a Unix socket, descriptors beside them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use sira_wire::Code;
use sira_wire::same_host::{HEAD, Kind, MAX_MESSAGE};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Status;

use crate::status::refuse;

/// A message must be whole this long after its first byte, and an answer be read.
const WHOLE_WITHIN: Duration = Duration::from_secs(10);

/// What is answered.
pub(super) struct Answer {
    kind: Kind,
    body: Vec<u8>,
    /// The bytes of a small tensor.
    inline: Vec<Bytes>,
    /// Memory that is passed.
    passed: Option<OwnedFd>,
}

impl Answer {
    pub fn of(json: &impl Serialize) -> Result<Answer, Status> {
        let body = serde_json::to_vec(json).map_err(|error| refuse(Code::Internal, error.to_string()))?;
        Ok(Answer { kind: Kind::Answer, body, inline: Vec::new(), passed: None })
    }

    /// Followed by the bytes of a tensor.
    pub fn before(self, inline: Vec<Bytes>) -> Answer {
        Answer { inline, ..self }
    }

    /// With memory beside it.
    pub fn passing(self, passed: OwnedFd) -> Answer {
        Answer { passed: Some(passed), ..self }
    }

    pub fn refusal(status: &Status) -> Answer {
        Answer { kind: Kind::Refusal, body: status.message().into(), inline: Vec::new(), passed: None }
    }
}

/// A connection.
pub(super) struct Line {
    stream: UnixStream,
}

impl Line {
    pub fn new(stream: UnixStream) -> Line {
        Line { stream }
    }

    /// The next message; `None` where the client has ended the connection. Descriptors that a client sends are closed by the kernel: none is
    /// asked for.
    pub async fn read(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        let mut head = [0; HEAD];
        let Ok(first) = self.stream.read_u8().await else { return Ok(None) };
        head[0] = first;
        timeout(WHOLE_WITHIN, async {
            self.stream.read_exact(&mut head[1..]).await?;
            let (kind, len) = Kind::of_head(head).filter(|(_, len)| *len <= MAX_MESSAGE).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "no message: a letter and a length of at most 1 MiB come first")
            })?;
            // Grows with what comes.
            let mut body = Vec::new();
            (&mut self.stream).take(len as u64).read_to_end(&mut body).await?;
            if body.len() < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Some((kind, body)))
        })
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Sends an answer. A client that does not read it loses the connection.
    pub async fn send(&mut self, answer: &Answer) -> io::Result<()> {
        let len = u32::try_from(answer.body.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut message = Vec::with_capacity(HEAD + answer.body.len() + answer.inline.iter().map(Bytes::len).sum::<usize>());
        message.extend_from_slice(&answer.kind.head(len));
        message.extend_from_slice(&answer.body);
        answer.inline.iter().for_each(|piece| message.extend_from_slice(piece));
        let stream = &mut self.stream;
        let sent = timeout(WHOLE_WITHIN, async {
            let first = stream.async_io(Interest::WRITABLE, || sira_shm::send(&*stream, &message, answer.passed.as_ref().map(AsFd::as_fd)));
            let first = first.await?;
            stream.write_all(&message[first..]).await
        });
        sent.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
