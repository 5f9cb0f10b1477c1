//! Frames of one connection: reading them, writing them, and the ones that steer it.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use loona_hpack::Decoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::call::Stream;
use super::link::{Link, Patience};
use super::{FRAME, WINDOW};
use crate::ClientError;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Windows, and bytes of a frame, where nobody said otherwise.
const DEFAULT_WINDOW: i64 = 65_535;
/// Bytes of the table of headers.
const HEADER_TABLE: usize = 4096;
const DEFAULT_FRAME: usize = 16 << 10;
/// Bytes of a frame's head.
const HEAD: usize = 9;
/// Bytes read ahead: headers, and what is around the bytes of tensors. Those of a small one may all come with them.
const INPUT: usize = 16 << 10;
/// Bytes of a frame that is not one of data, and of the headers of an answer.
const MAX_STEERING: usize = 64 << 10;
/// A window is widened again when this much of it was used.
const USED: u32 = 1 << 30;
/// Identifiers of streams end here.
const MAX_STREAM: u32 = (1 << 31) - 1;
/// Bytes of data sent in a frame, at most, whatever the server would take: it hands them on frame by frame.
const SENT_FRAME: usize = 256 << 10;

/// A frame's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub len: usize,
}

impl Frame {
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// One connection, and the call on it.
pub(crate) struct Connection {
    link: Box<dyn Link>,
    patience: Option<Arc<Patience>>,
    input: Box<[u8]>,
    /// What of the input has come and was not taken yet.
    ready: std::ops::Range<usize>,
    /// Frames to send before anything else.
    output: Vec<u8>,
    pub(super) decoder: Decoder<'static>,
    /// What the server said of the frames and windows it takes.
    peer_frame: usize,
    pub(super) peer_window: i64,
    /// How much of the connection's window is left to send in.
    pub(super) window: i64,
    /// Bytes that came since the connection's window was widened.
    used: u32,
    pub(super) next_stream: u32,
    /// Whether a call after this one can be made.
    usable: bool,
    pub(super) stream: Stream,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("stream", &self.stream).field("usable", &self.usable).finish_non_exhaustive()
    }
}

impl Connection {
    /// Greets the server, and waits for its greeting.
    pub async fn greet(link: Box<dyn Link>, patience: Option<Arc<Patience>>) -> Result<Connection, ClientError> {
        let mut decoder = Decoder::new();
        // HTTP/2's own size, of which no setting of ours allows more: a server cannot make the table grow.
        decoder.set_max_allowed_table_size(HEADER_TABLE);
        let mut connection = Connection {
            link,
            patience,
            input: vec![0; INPUT].into(),
            ready: 0..0,
            output: greeting(),
            decoder,
            peer_frame: DEFAULT_FRAME,
            peer_window: DEFAULT_WINDOW,
            window: DEFAULT_WINDOW,
            used: 0,
            next_stream: 1,
            usable: true,
            stream: Stream::default(),
        };
        let first = connection.head().await?;
        if first.kind != SETTINGS || first.has(ACK) {
            return Err(ClientError::protocol("whoever listens there does not speak HTTP/2"));
        }
        connection.steer(first).await?;
        Ok(connection)
    }

    /// Whether another call can be made: the one before is over on both sides.
    pub fn is_reusable(&self) -> bool {
        self.usable && self.stream.is_over()
    }

    /// From when on the calls of a blocking connection wait no more.
    pub fn set_end(&self, end: Option<Instant>) {
        self.patience.iter().for_each(|patience| patience.set_end(end));
    }

    /// Whether that time has come.
    pub fn is_out_of_time(&self) -> bool {
        self.patience.as_ref().is_some_and(|patience| patience.left().is_err())
    }

    /// Takes in what came while nobody waited; false where the connection is of no more use.
    pub fn settle(&mut self) -> bool {
        let patience = self.patience.clone();
        let wait = |waits| patience.iter().for_each(|patience| patience.set_waits(waits));
        wait(false);
        let settled = loop {
            match self.fill().now_or_never() {
                None => break true,
                Some(Ok(())) if self.take_whole_frames() => {}
                Some(_) => break false,
            }
        };
        wait(true);
        settled && self.usable
    }

    /// Handles the frames that have come whole; false where one has not, or is wrong.
    fn take_whole_frames(&mut self) -> bool {
        while let Some(head) = self.input[self.ready.clone()].first_chunk::<HEAD>() {
            let whole = self.ready.len() >= HEAD + parse(head).len;
            if !whole || !matches!(self.advance().now_or_never(), Some(Ok(()))) {
                return false;
            }
        }
        self.ready.is_empty()
    }

    /// Reads one frame: all of it, or of data the head.
    pub(super) async fn advance(&mut self) -> Result<(), ClientError> {
        let frame = self.head().await?;
        match frame.kind {
            DATA => self.begin_data(frame).await,
            HEADERS => {
                let block = self.header_block(frame).await?;
                self.headers(frame, &block)
            }
            _ => self.steer(frame).await,
        }
    }

    /// The next frame's head. What is to be sent goes out first, since the server may wait for it.
    async fn head(&mut self) -> Result<Frame, ClientError> {
        if !self.output.is_empty() {
            self.write(&mut []).await.map_err(broken)?;
        }
        while self.ready.len() < HEAD {
            self.fill().await.map_err(broken)?;
        }
        let head = self.input[self.ready.clone()].first_chunk().map(parse);
        let frame = head.ok_or_else(|| ClientError::protocol("a frame without a head"))?;
        self.ready.start += HEAD;
        if frame.len > FRAME as usize {
            return Err(ClientError::protocol(format!("a frame of {} bytes; at most {FRAME} are read", frame.len)));
        }
        Ok(frame)
    }

    /// Reads what has come, and waits until something has.
    async fn fill(&mut self) -> io::Result<()> {
        if self.ready.is_empty() {
            self.ready = 0..0;
        } else if self.ready.end == self.input.len() {
            self.input.copy_within(self.ready.clone(), 0);
            self.ready = 0..self.ready.len();
        }
        match self.link.read(&mut self.input[self.ready.end..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.ready.end += count;
                Ok(())
            }
        }
    }

    /// Some bytes of the frame: those read ahead first, then the socket's, which nothing copies again.
    pub(super) async fn read_some(&mut self, into: &mut [u8]) -> Result<usize, ClientError> {
        let ahead = self.ready.len().min(into.len());
        if ahead > 0 {
            into[..ahead].copy_from_slice(&self.input[self.ready.start..self.ready.start + ahead]);
            self.ready.start += ahead;
            return Ok(ahead);
        }
        // Few bytes are worth reading what lies behind them too.
        if into.len() < INPUT / 4 {
            self.fill().await.map_err(broken)?;
            return Ok(0);
        }
        match self.link.read(into).await.map_err(broken)? {
            0 => Err(broken(io::ErrorKind::UnexpectedEof.into())),
            count => Ok(count),
        }
    }

    /// A frame's payload, of those that are small.
    async fn payload(&mut self, frame: Frame) -> Result<Vec<u8>, ClientError> {
        if frame.len > MAX_STEERING {
            return Err(ClientError::protocol(format!("a frame of kind {} with {} bytes", frame.kind, frame.len)));
        }
        let mut payload = vec![0; frame.len];
        let mut read = 0;
        while read < payload.len() {
            read += self.read_some(&mut payload[read..]).await?;
        }
        Ok(payload)
    }

    /// A header block, in as many frames as it comes.
    async fn header_block(&mut self, first: Frame) -> Result<Vec<u8>, ClientError> {
        let mut block = self.payload(first).await?;
        if first.has(PADDED) {
            let padding = block.first().copied().map_or(usize::MAX, usize::from);
            let len = block.len().checked_sub(1).and_then(|len| len.checked_sub(padding));
            block = len.and_then(|len| block.get(1..1 + len)).ok_or_else(|| ClientError::protocol("headers all of padding"))?.to_vec();
        }
        if first.has(WITH_PRIORITY) {
            block = block.get(5..).ok_or_else(|| ClientError::protocol("headers without their priority"))?.to_vec();
        }
        let mut frame = first;
        while !frame.has(END_HEADERS) {
            frame = self.head().await?;
            if frame.kind != CONTINUATION || frame.stream != first.stream || frame.len + block.len() > MAX_STEERING {
                return Err(ClientError::protocol("headers that do not go on, or never end"));
            }
            block.extend(self.payload(frame).await?);
        }
        Ok(block)
    }

    /// A frame that is about the connection, or ends a stream.
    async fn steer(&mut self, frame: Frame) -> Result<(), ClientError> {
        let wrong = |what: &str| Err(ClientError::protocol(format!("a frame of HTTP/2 that is wrong: {what}")));
        if matches!(frame.kind, PUSH_PROMISE | CONTINUATION) {
            return wrong("a push, or headers that continue none");
        }
        let payload = self.payload(frame).await?;
        match (frame.kind, &payload[..]) {
            (SETTINGS, []) if frame.has(ACK) => {}
            (SETTINGS, settings) if !frame.has(ACK) && settings.len().is_multiple_of(6) && frame.stream == 0 => {
                self.apply(settings)?;
                push_frame(&mut self.output, SETTINGS, ACK, 0, &[]);
            }
            (PING, ping) if ping.len() == 8 && frame.stream == 0 && frame.has(ACK) => {}
            (PING, ping) if ping.len() == 8 && frame.stream == 0 => push_frame(&mut self.output, PING, ACK, 0, ping),
            (GOAWAY, [a, b, c, d, _, _, _, _, ..]) if frame.stream == 0 => {
                self.usable = false;
                if u32::from_be_bytes([a & 0x7f, *b, *c, *d]) < self.stream.id && !self.stream.is_over() {
                    return Err(broken(io::Error::new(io::ErrorKind::ConnectionAborted, "the server ends the connection")));
                }
            }
            (WINDOW_UPDATE, &[a, b, c, d]) => return self.widen(frame.stream, u32::from_be_bytes([a & 0x7f, b, c, d])),
            (RST_STREAM, &[a, b, c, d]) => return self.reset(frame.stream, u32::from_be_bytes([a, b, c, d])),
            (SETTINGS | PING | GOAWAY | WINDOW_UPDATE | RST_STREAM, _) => return wrong("its length or its stream"),
            // Priorities, and kinds that are not known, mean nothing here.
            _ => {}
        }
        Ok(())
    }

    fn apply(&mut self, settings: &[u8]) -> Result<(), ClientError> {
        for setting in settings.chunks_exact(6) {
            let &[i, j, a, b, c, d] = setting else { continue };
            let value = u32::from_be_bytes([a, b, c, d]);
            match u16::from_be_bytes([i, j]) {
                4 if value <= WINDOW => {
                    self.stream.window += i64::from(value) - self.peer_window;
                    self.peer_window = value.into();
                }
                5 if (16_384..1 << 24).contains(&value) => self.peer_frame = value as usize,
                4 | 5 => return Err(ClientError::protocol(format!("an HTTP/2 setting of {value}"))),
                _ => {}
            }
        }
        Ok(())
    }

    fn widen(&mut self, stream: u32, by: u32) -> Result<(), ClientError> {
        let window = match stream {
            0 => &mut self.window,
            id if id == self.stream.id => &mut self.stream.window,
            _ => return Ok(()), // of a call that is over
        };
        *window += i64::from(by);
        match by > 0 && *window <= WINDOW.into() {
            true => Ok(()),
            false => Err(ClientError::protocol("an HTTP/2 window of nothing, or of too much")),
        }
    }

    /// Counts bytes of data, and widens the windows again before they are used up.
    pub(super) fn count(&mut self, bytes: usize) {
        for (id, used) in [(0, &mut self.used), (self.stream.id, &mut self.stream.used)] {
            *used += bytes as u32;
            if *used >= USED {
                push_frame(&mut self.output, WINDOW_UPDATE, 0, id, &used.to_be_bytes());
                *used = 0;
            }
        }
    }

    /// A stream for the next call, its headers ready to go.
    pub(super) fn begin(&mut self, block: &[u8]) -> Result<(), ClientError> {
        if block.len() > DEFAULT_FRAME {
            return Err(ClientError::BadCredentials(format!("{} bytes of headers, of which a token is the largest", block.len())));
        }
        self.stream = Stream::new(self.next_stream, self.peer_window);
        self.next_stream += 2;
        self.usable = self.next_stream < MAX_STREAM;
        push_frame(&mut self.output, HEADERS, END_HEADERS, self.stream.id, block);
        Ok(())
    }

    /// How many bytes may be sent now in one frame.
    pub(super) fn room(&self) -> usize {
        let window = usize::try_from(self.window.min(self.stream.window)).unwrap_or(0);
        let fair = usize::try_from(self.peer_window / 4).unwrap_or(0).clamp(DEFAULT_FRAME, SENT_FRAME);
        window.min(self.peer_frame).min(fair)
    }

    /// Sends one frame of data, and before it what waits to be sent.
    pub(super) async fn send_frame(&mut self, parts: [&[u8]; 3], len: usize, end: bool) -> io::Result<()> {
        push_head(&mut self.output, DATA, if end { END_STREAM } else { 0 }, self.stream.id, len);
        self.window -= len as i64;
        self.stream.window -= len as i64;
        self.write(&mut parts.map(IoSlice::new)).await
    }

    /// Sends what waits to be sent, and these bytes behind it.
    async fn write(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let output = std::mem::take(&mut self.output);
        let mut all = vec![IoSlice::new(&output)];
        all.extend_from_slice(parts);
        let mut all = &mut all[..];
        // Empty ones first, or nothing written would look like the end.
        IoSlice::advance_slices(&mut all, 0);
        while !all.is_empty() {
            match self.link.write_vectored(all).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => IoSlice::advance_slices(&mut all, count),
            }
        }
        self.link.flush().await?;
        self.output = output;
        self.output.clear();
        Ok(())
    }
}

/// What a client says first: itself, its settings, and the connection's window.
fn greeting() -> Vec<u8> {
    let mut greeting = PREFACE.to_vec();
    let settings = [(2u16, 0u32), (4, WINDOW), (5, FRAME), (6, MAX_STEERING as u32)];
    let settings: Vec<u8> = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    push_frame(&mut greeting, SETTINGS, 0, 0, &settings);
    push_frame(&mut greeting, WINDOW_UPDATE, 0, 0, &(WINDOW - DEFAULT_WINDOW as u32).to_be_bytes());
    greeting
}

fn push_head(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, len: usize) {
    output.extend_from_slice(&(len as u32).to_be_bytes()[1..]);
    output.extend_from_slice(&[kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
}

fn push_frame(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    push_head(output, kind, flags, stream, payload.len());
    output.extend_from_slice(payload);
}

fn parse(head: &[u8; HEAD]) -> Frame {
    let [a, b, c, kind, flags, s0, s1, s2, s3] = *head;
    Frame { kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]), len: u32::from_be_bytes([0, a, b, c]) as usize }
}

/// The connection broke.
pub(super) fn broken(error: io::Error) -> ClientError {
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it was closed".to_owned(),
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => error.to_string(),
    };
    ClientError::Transport { context: "the connection to the server broke".into(), reason }
}
