//! Gets and puts that block their thread and need no runtime: what an extension of another language is made of.
//!
//! Requests are given in the wire's own words (docs/wire.md), and bytes go straight between socket and memory, as with
//! [`Client::get_into`](crate::Client::get_into). A client may be shared by threads, each of whose calls has a connection to itself. In a child process that
//! its process forks, it opens connections of its own.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use futures::FutureExt;
use parking_lot::Mutex;
use prost::Message;
use sira_tensor::TensorSpec;
use sira_wire::PutAnswer;

use crate::bottleneck::Bottleneck;
use crate::calibrations::Calibrations;
use crate::chunks::{self, Arriving, Chunk, Chunked, workers};
use crate::get_into::{Incoming, IncomingMany};
use crate::http2::Pool;
use crate::{ClientError, ConnectOptions, connect, message, put_encoded, put_from};

/// A server, as a thread sees it that waits for each answer.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Pool,
    calibrations: Calibrations,
    bottleneck: Arc<Bottleneck>,
}

/// A tensor on its way: what it is has come, its bytes have not. Dropped, it ends the get.
#[derive(Debug)]
pub struct Tensor {
    incoming: Incoming,
    bottleneck: Arc<Bottleneck>,
}

/// Many keys on their way, message by message. Dropped, they end the get.
#[derive(Debug)]
pub struct Many(IncomingMany);

impl Client {
    /// A client of the server at `url`, which is not asked for anything yet.
    ///
    /// A signal that breaks into a call asks `go_on` whether to wait further; without, the call ends with an error.
    pub fn new(url: &str, options: &ConnectOptions, go_on: fn() -> bool) -> Result<Client, ClientError> {
        let pool = Pool::new(url, options, Some(go_on))?;
        let bottleneck = Bottleneck::new(&connect::authority(url)?.0, workers());
        Ok(Client { pool, calibrations: Calibrations::default(), bottleneck: Arc::new(bottleneck) })
    }

    /// Opens the one tensor that a ticket names, which may ask for encoded chunks of [`stages`]. `end` is when it gives up, here and while the bytes are
    /// read.
    pub fn get(&self, ticket: &[u8], end: Option<Instant>) -> Result<Tensor, ClientError> {
        let incoming = run(Incoming::open(&self.pool, ticket, end, &self.calibrations))?;
        Ok(Tensor { incoming, bottleneck: self.bottleneck.clone() })
    }

    /// Whether a tensor is likely to come sooner in encoded chunks: the connection is slower than half of what this machine decodes, by the gets so far;
    /// before the first one, whether the server is on another machine.
    pub fn prefers_encoded(&self) -> bool {
        self.bottleneck.is_the_connection()
    }

    /// Bytes a second that came over a connection, and raw bytes a second that were decoded, of the gets so far.
    pub fn speeds(&self) -> (Option<f64>, Option<f64>) {
        self.bottleneck.speeds()
    }

    /// Opens the keys that a ticket for many names.
    pub fn get_many(&self, ticket: &[u8], end: Option<Instant>) -> Result<Many, ClientError> {
        run(IncomingMany::open(&self.pool, ticket, end)).map(Many)
    }

    /// Puts `data` under `key`; the metadata says what it is and how to keep it, its shape included.
    pub fn put(&self, key: &str, metadata: HashMap<String, String>, data: &[u8], end: Option<Instant>) -> Result<PutAnswer, ClientError> {
        run(put_from::put_bytes(&self.pool, message::schema(key, metadata).encode_to_vec(), data, end))
    }

    /// As [`Client::put`], in chunks that are encoded here with `codec`. `kv_spec`: the text of the kv spec that the metadata names by its hash.
    pub fn put_encoded(
        &self,
        key: &str,
        metadata: HashMap<String, String>,
        (codec, kv_spec): (&str, Option<&str>),
        data: &[u8],
        end: Option<Instant>,
    ) -> Result<PutAnswer, ClientError> {
        run(put_encoded::put_blocking((&self.pool, &self.calibrations), key, metadata, (codec, kv_spec), data, end))
    }
}

/// Stages of codecs that are decoded here, for the `encoded` of a ticket.
pub fn stages() -> Vec<String> {
    chunks::stages()
}

impl Tensor {
    /// Dtype, shape and axes of what comes.
    pub fn spec(&self) -> &TensorSpec {
        &self.incoming.spec
    }

    /// Whether it comes in encoded chunks.
    pub fn is_encoded(&self) -> bool {
        self.incoming.chunked.is_some()
    }

    /// Fills `out`, which must be exactly as long as the tensor. Encoded chunks are decoded by threads of their own while others come.
    pub fn read_into(self, out: &mut [u8]) -> Result<(), ClientError> {
        let Tensor { mut incoming, bottleneck } = self;
        incoming.check_room(out)?;
        if let Some(chunked) = incoming.chunked.take() {
            return decode_into(incoming.into_chunks(&chunked), &chunked, out, &bottleneck);
        }
        let (begun, bytes) = (Instant::now(), out.len() as u64);
        run(incoming.read_into(out))?;
        bottleneck.came(bytes, begun.elapsed());
        Ok(())
    }
}

/// Decodes chunks as they come, by threads beside this one; one alone without.
fn decode_into(mut arriving: Arriving, chunked: &Chunked, out: &mut [u8], bottleneck: &Bottleneck) -> Result<(), ClientError> {
    let decoders = workers().min(arriving.missing());
    let (mut came, mut waited) = (0, Duration::ZERO);
    let mut next = || {
        let begun = Instant::now();
        let next = run(arriving.next(chunked))?;
        waited += begun.elapsed();
        came += next.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Ok::<_, ClientError>(next)
    };
    let decoder = Decoder { chunked, nbytes: out.len(), work: Mutex::default(), shared: Mutex::default() };
    let mut rest = out;
    if !chunked.is_tiled() {
        *decoder.shared.lock() = std::mem::take(&mut rest);
    }
    if decoders < 2 {
        while let Some(chunk) = next()? {
            decoder.decode(chunked.place_of(&chunk, &mut rest), chunk)?;
        }
    } else {
        std::thread::scope(|scope| {
            let (sender, coming) = sync_channel(decoders);
            let coming = Arc::new(Mutex::new(coming));
            let start = |_| {
                let (coming, decoder): (Arc<Mutex<Receiver<Work<'_>>>>, _) = (coming.clone(), &decoder);
                scope.spawn(move || {
                    // Taken out under the lock, decoded without it.
                    while let Some((place, chunk)) = { coming.lock().recv().ok() } {
                        decoder.decode(place, chunk)?;
                    }
                    Ok::<_, ClientError>(())
                })
            };
            let threads: Vec<_> = (0..decoders).map(start).collect();
            drop(coming);
            let mut read = || {
                while let Some(chunk) = next()? {
                    if sender.send((chunked.place_of(&chunk, &mut rest), chunk)).is_err() {
                        break; // all of them have failed
                    }
                }
                Ok::<_, ClientError>(())
            };
            let read = read();
            drop(sender);
            // What a thread found wrong comes before what that did to the reading.
            for thread in threads {
                thread.join().map_err(|_| ClientError::protocol("a thread that decodes has died"))??;
            }
            read
        })?;
    }
    arriving.finish();
    bottleneck.came(came, waited);
    bottleneck.decoded(decoder.nbytes as u64, *decoder.work.lock());
    Ok(())
}

/// A chunk, and the memory that is its own where it has some.
type Work<'a> = (Option<&'a mut [u8]>, Chunk);

struct Decoder<'a> {
    chunked: &'a Chunked,
    nbytes: usize,
    /// Time that it took so far.
    work: Mutex<Duration>,
    /// Where chunks lie among each other, so do their places: one is put there at a time, which takes a fraction of the decoding.
    shared: Mutex<&'a mut [u8]>,
}

impl Decoder<'_> {
    fn decode(&self, place: Option<&mut [u8]>, chunk: Chunk) -> Result<(), ClientError> {
        let begun = Instant::now();
        let decoded = match place {
            Some(place) => self.chunked.decode_into(&chunk, place).map(|()| None)?,
            None => Some(self.chunked.decode(chunk)?),
        };
        *self.work.lock() += begun.elapsed();
        if let Some(decoded) = decoded {
            self.chunked.place(&decoded, &mut self.shared.lock());
        }
        Ok(())
    }
}

impl Many {
    /// The next message: the JSON that says what its bytes are, and how many there are. `None` once all have come.
    #[allow(clippy::should_implement_trait, reason = "what it gives borrows nothing, but an error ends it")]
    pub fn next(&mut self) -> Result<Option<(Vec<u8>, usize)>, ClientError> {
        Ok(run(self.0.next())?.map(|message| (message.metadata, message.rows)))
    }

    /// Fills `out` with the message's bytes from `offset` on; those before are passed over, and cannot be read later.
    pub fn read_into(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ClientError> {
        run(async {
            self.0.pass(offset).await?;
            self.0.read(out).await
        })
    }

    /// Ends a get of which all has come, so that its connection can serve another.
    pub fn finish(self) {
        self.0.messages.finish();
    }
}

/// Runs what waits in its socket, and therefore never is pending.
fn run<T>(call: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    call.now_or_never().unwrap_or_else(|| Err(ClientError::protocol("a call over a blocking connection did not block")))
}
