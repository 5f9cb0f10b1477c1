//! The connection over which a server of the same machine passes memory. Requests are answered one after another.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use sira_wire::same_host::{HEAD, Handle, Hello, Kind, Mapped, PREFACE, Welcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Mutex, oneshot};

use crate::ClientError;
use crate::client::json;
use crate::error::refusal;

/// Bytes of an answer's object, at most.
const MAX_ANSWER: usize = 16 << 20;

/// The connection of a client, made when it is first needed, and again when it broke.
pub(crate) struct Lines {
    path: PathBuf,
    token: Option<String>,
    line: Mutex<Option<Line>>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("path", &self.path).finish_non_exhaustive() // the token is a secret
    }
}

/// A connection; it ends when nobody has it any more.
#[derive(Clone)]
pub(crate) struct Line {
    orders: UnboundedSender<Order>,
    inline: u64,
}

/// What is to be sent, and who waits for the answer, if there is one.
struct Order {
    kind: Kind,
    body: Vec<u8>,
    answer: Option<oneshot::Sender<Result<Reply, ClientError>>>,
}

/// What a server says, with what came beside it.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub json: Vec<u8>,
    pub inline: Vec<u8>,
    pub passed: Option<OwnedFd>,
}

/// Something of the server's, released when dropped.
pub(crate) struct Held {
    line: Line,
    id: u64,
}

impl Held {
    pub fn id(&self) -> u64 {
        self.id
    }

    pub async fn ask(&self, kind: Kind, body: Vec<u8>) -> Result<Reply, ClientError> {
        self.line.ask(kind, body).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Ok(body) = json(&Handle::of(self.id)) {
            // Where the connection has ended, so has everything that was held over it.
            let _ = self.line.orders.send(Order { kind: Kind::Release, body, answer: None });
        }
    }
}

impl Line {
    async fn connect(path: &PathBuf, token: Option<String>) -> Result<Line, ClientError> {
        let mut stream = UnixStream::connect(path).await.map_err(lost)?;
        stream.write_all(PREFACE).await.map_err(lost)?;
        let (orders, taken) = unbounded_channel();
        tokio::spawn(run(stream, taken));
        let line = Line { orders, inline: 0 };
        let reply = line.ask(Kind::Hello, json(&Hello::with(token))?).await?;
        let welcome: Welcome = serde_json::from_slice(&reply.json).map_err(ClientError::protocol)?;
        Ok(Line { inline: welcome.inline, ..line })
    }

    async fn ask(&self, kind: Kind, body: Vec<u8>) -> Result<Reply, ClientError> {
        let (answer, answered) = oneshot::channel();
        let closed = || lost(io::ErrorKind::NotConnected.into());
        self.orders.send(Order { kind, body, answer: Some(answer) }).map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    pub fn hold(&self, id: u64) -> Held {
        Held { line: self.clone(), id }
    }
}

impl Lines {
    pub fn new(path: PathBuf, token: Option<String>) -> Lines {
        Lines { path, token, line: Mutex::default() }
    }

    /// Tensors of at most this many bytes are not worth memory of their own.
    pub async fn inline(&self) -> Result<u64, ClientError> {
        Ok(self.line().await?.0.inline)
    }

    /// Asks what may be asked twice: over a new connection, where the old one turns out closed.
    pub async fn ask(&self, kind: Kind, body: Vec<u8>) -> Result<(Line, Reply), ClientError> {
        let (line, is_new) = self.line().await?;
        let asked = match line.ask(kind, body.clone()).await {
            Err(ClientError::Transport { .. }) if !is_new => None,
            asked => Some(asked),
        };
        match asked {
            Some(reply) => Ok((line, reply?)),
            None => {
                let (line, _) = self.line().await?;
                let reply = line.ask(kind, body).await?;
                Ok((line, reply))
            }
        }
    }

    /// The connection, and whether it is a new one.
    async fn line(&self) -> Result<(Line, bool), ClientError> {
        let mut present = self.line.lock().await;
        if let Some(line) = present.as_ref().filter(|line| !line.orders.is_closed()) {
            return Ok((line.clone(), false));
        }
        let line = Line::connect(&self.path, self.token.clone()).await?;
        *present = Some(line.clone());
        Ok((line, true))
    }
}

/// Under what number the server holds what it passed.
#[derive(serde::Deserialize)]
struct Given {
    id: u64,
}

/// Sends what is ordered, and gives back the answers, until nobody orders any more or the connection breaks.
async fn run(mut stream: UnixStream, mut orders: UnboundedReceiver<Order>) {
    while let Some(Order { kind, body, answer }) = orders.recv().await {
        let replied = exchange(&mut stream, kind, &body, answer.is_some()).await;
        let replied = replied.unwrap_or_else(|error| {
            orders.close();
            Err(lost(error))
        });
        if let Some(answer) = answer {
            // Memory that came for somebody who has gone away is given up: the server would hold it as long as the connection is there.
            if let Err(Ok(reply)) = answer.send(replied)
                && let Ok(handle) = serde_json::from_slice::<Given>(&reply.json)
                && let Ok(body) = json(&Handle::of(handle.id))
                && exchange(&mut stream, Kind::Release, &body, false).await.is_err()
            {
                orders.close();
            }
        }
    }
}

/// Sends a request and reads its answer, where there is one.
pub(crate) async fn exchange(stream: &mut UnixStream, kind: Kind, body: &[u8], answered: bool) -> io::Result<Result<Reply, ClientError>> {
    let len = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&kind.head(len), body].concat()).await?;
    if !answered {
        return Ok(Ok(Reply::default()));
    }
    let mut head = [0; HEAD];
    // A descriptor comes with the first byte of its message.
    let (read, passed) = stream.async_io(Interest::READABLE, || sira_shm::receive(&*stream, &mut head)).await?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut head[read..]).await?;
    let no_answer = || io::Error::new(io::ErrorKind::InvalidData, "what answers there is no Sira server that passes memory");
    let (answer, len) = Kind::of_head(head).filter(|(_, len)| *len <= MAX_ANSWER).ok_or_else(no_answer)?;
    let json = read_bytes(stream, len).await?;
    match answer {
        Kind::Refusal => Ok(Err(refusal(&String::from_utf8_lossy(&json)).into())),
        Kind::Answer if kind == Kind::Map => {
            let said: Mapped = serde_json::from_slice(&json).map_err(|_| no_answer())?;
            let inline = usize::try_from(said.nbytes).ok().filter(|_| said.inline).unwrap_or(0);
            Ok(Ok(Reply { inline: read_bytes(stream, inline).await?, json, passed }))
        }
        Kind::Answer => Ok(Ok(Reply { json, inline: Vec::new(), passed })),
        _ => Err(no_answer()),
    }
}

/// The next bytes; memory grows with what comes.
async fn read_bytes(stream: &mut UnixStream, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(len as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

fn lost(error: io::Error) -> ClientError {
    ClientError::Transport { context: "no answer from the Unix socket".into(), reason: error.to_string() }
}
