//! One tensor over several connections at once.

use std::sync::Arc;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightDescriptor, FlightEndpoint, Ticket as FlightTicket};
use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use parking_lot::Mutex;
use serde::Deserialize;
use sira_tensor::TensorSpec;
use sira_wire::{Code, MAX_ENDPOINTS, Ticket, WireError};
use tokio::task::JoinSet;

use crate::client::{self, json, parse};
use crate::connect::{self, Authorized, ConnectOptions};
use crate::get::read_spec;
use crate::{Client, ClientError, GetOptions, TensorStream};

/// Connections beside a client's own, made when they are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    url: String,
    options: ConnectOptions,
    made: Arc<Mutex<Vec<FlightServiceClient<Authorized>>>>,
}

impl Connections {
    pub fn new(url: &str, options: &ConnectOptions) -> Connections {
        Connections { url: url.to_owned(), options: options.clone(), made: Arc::default() }
    }

    /// So many of them.
    fn take(&self, count: usize) -> Result<Vec<FlightServiceClient<Authorized>>, ClientError> {
        let mut made = self.made.lock();
        while made.len() < count {
            made.push(client::flight(connect::lazy(&self.url, &self.options)?));
        }
        Ok(made[..count].to_vec())
    }
}

/// What the metadata of an endpoint says, as far as it is needed here.
#[derive(Deserialize)]
struct Said {
    offset: u64,
    bytes: u64,
}

/// One stream of several.
struct Portion {
    flight: FlightServiceClient<Authorized>,
    ticket: FlightTicket,
    bytes: u64,
}

impl Portion {
    /// Receives all of it.
    async fn receive(mut self, mut put: impl FnMut(&[u8])) -> Result<(), ClientError> {
        let mut stream = TensorStream::open(self.flight.do_get(self.ticket).await?.into_inner()).await?;
        if stream.spec().nbytes() != self.bytes {
            return Err(ClientError::protocol(format!("a stream of {} bytes where {} are due", stream.spec().nbytes(), self.bytes)));
        }
        while let Some(piece) = stream.next().await? {
            put(&piece);
        }
        Ok(())
    }
}

impl Client {
    /// Gets a tensor, or a slice of it, over up to `streams` connections at once (1 to 64): all of it, or the first error of any of them. A tensor that
    /// the server cannot cut into as many comes in fewer.
    ///
    /// More than one helps where a single connection carries less than the network does, or where one core is busy with one connection. The
    /// connections are kept for the next call. A tensor that is put anew meanwhile is asked for once more, unless `options` names a version.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetOptions;
    ///
    /// let (spec, bytes) = client.get_parallel("demo/large", &GetOptions::default(), 4).await?;
    /// println!("{} {:?}, {} bytes", spec.dtype(), spec.shape(), bytes.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_parallel(&self, key: &str, options: &GetOptions, streams: u32) -> Result<(TensorSpec, Bytes), ClientError> {
        let mut again = options.version.is_none();
        while let Some((spec, portions)) = self.portions(key, options, streams).await? {
            match join(&spec, portions).await {
                Err(error) if is_stale(&error) && std::mem::take(&mut again) => {}
                joined => return Ok((spec, joined?)),
            }
        }
        let stream = self.get(key, options).await?;
        Ok((stream.spec().clone(), stream.into_bytes().await?))
    }

    /// As [`Client::get_parallel`], into `out`, which must be as long as the tensor. When this fails, `out` may be partly filled.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetOptions;
    ///
    /// let mut buffer = vec![0; 64 << 20];
    /// client.get_parallel_into("demo/large", &GetOptions::default(), 4, &mut buffer).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_parallel_into(
        &self,
        key: &str,
        options: &GetOptions,
        streams: u32,
        out: &mut [u8],
    ) -> Result<TensorSpec, ClientError> {
        let mut again = options.version.is_none();
        while let Some((spec, portions)) = self.portions(key, options, streams).await? {
            match fill(&spec, portions, out).await {
                Err(error) if is_stale(&error) && std::mem::take(&mut again) => {}
                filled => return filled.map(|()| spec),
            }
        }
        let mut stream = self.get(key, options).await?;
        check_room(stream.spec(), out)?;
        let mut filled = 0;
        while let Some(piece) = stream.next().await? {
            out[filled..filled + piece.len()].copy_from_slice(&piece);
            filled += piece.len();
        }
        Ok(stream.spec().clone())
    }

    /// The streams in which a tensor comes; `None` where one will do.
    async fn portions(&self, key: &str, options: &GetOptions, streams: u32) -> Result<Option<(TensorSpec, Vec<Portion>)>, ClientError> {
        if !(1..=MAX_ENDPOINTS).contains(&streams) {
            return Err(WireError::new(Code::BadRequest, format!("{streams} streams; there may be 1 to {MAX_ENDPOINTS}")).into());
        }
        if streams == 1 {
            return Ok(None);
        }
        let command = json(&Ticket { endpoints: Some(streams), ..options.ticket(key)? })?;
        let info = self.flight.clone().get_flight_info(FlightDescriptor::new_cmd(command)).await?.into_inner();
        if info.endpoint.len() < 2 {
            return Ok(None);
        }
        if info.endpoint.len() > streams as usize {
            return Err(ClientError::protocol(format!("{} endpoints where {streams} were asked for", info.endpoint.len())));
        }
        let endpoints = info.endpoint.clone();
        let spec = read_spec(&info.try_decode_schema().map_err(ClientError::protocol)?)?;
        let connections = [self.flight.clone()].into_iter().chain(self.connections.take(endpoints.len() - 1)?);
        let mut end = 0;
        let mut portion = |(endpoint, flight): (FlightEndpoint, _)| {
            let said: Said = parse(&endpoint.app_metadata)?;
            let (Some(ticket), true, Some(next)) = (endpoint.ticket, said.offset == end, end.checked_add(said.bytes)) else {
                return Err(ClientError::protocol(format!("an endpoint of {} bytes at {} where {end} is due", said.bytes, said.offset)));
            };
            end = next;
            Ok(Portion { flight, ticket, bytes: said.bytes })
        };
        let portions = endpoints.into_iter().zip(connections).map(&mut portion).collect::<Result<Vec<_>, ClientError>>()?;
        match end == spec.nbytes() {
            true => Ok(Some((spec, portions))),
            false => Err(ClientError::protocol(format!("endpoints of {end} bytes for a tensor of {}", spec.nbytes()))),
        }
    }
}

/// Receives each portion in a task of its own, into its part of one buffer. The first error ends the others.
async fn join(spec: &TensorSpec, portions: Vec<Portion>) -> Result<Bytes, ClientError> {
    let mut rest = room(spec)?;
    let mut tasks = JoinSet::new();
    let mut start = rest.capacity();
    for (i, portion) in portions.into_iter().enumerate().rev() {
        start -= portion.bytes as usize;
        let mut part = rest.split_off(start);
        tasks.spawn(async move {
            portion.receive(|piece| part.extend_from_slice(piece)).await?;
            Ok::<_, ClientError>((i, part))
        });
    }
    let mut parts = Vec::with_capacity(tasks.len());
    while let Some(ended) = tasks.join_next().await {
        parts.push(ended.map_err(|error| ClientError::protocol(format!("a stream's task ended: {error}")))??);
    }
    parts.sort_unstable_by_key(|(i, _)| *i);
    // They lie one after another: nothing is copied.
    parts.into_iter().for_each(|(_, part)| rest.unsplit(part));
    Ok(rest.freeze())
}

/// An empty buffer that has room for the tensor.
fn room(spec: &TensorSpec) -> Result<BytesMut, ClientError> {
    Ok(BytesMut::with_capacity(memory_for(spec)?))
}

/// Bytes of the tensor, if this machine has as much memory: how much it is was the server's word.
pub(crate) fn memory_for(spec: &TensorSpec) -> Result<usize, ClientError> {
    let bytes = usize::try_from(spec.nbytes()).ok().filter(|bytes| Vec::<u8>::new().try_reserve_exact(*bytes).is_ok());
    bytes.ok_or_else(|| ClientError::protocol(format!("a tensor of {} bytes, for which there is no memory", spec.nbytes())))
}

/// Receives each portion into its part of `out`. The first error ends the others.
async fn fill(spec: &TensorSpec, portions: Vec<Portion>, out: &mut [u8]) -> Result<(), ClientError> {
    check_room(spec, out)?;
    let mut rest = out;
    let mut receiving = Vec::with_capacity(portions.len());
    for portion in portions {
        let (mut part, after) = rest.split_at_mut(portion.bytes as usize);
        rest = after;
        receiving.push(portion.receive(move |piece| {
            let (now, later) = std::mem::take(&mut part).split_at_mut(piece.len());
            now.copy_from_slice(piece);
            part = later;
        }));
    }
    try_join_all(receiving).await.map(drop)
}

fn check_room(spec: &TensorSpec, out: &[u8]) -> Result<(), WireError> {
    match spec.nbytes() == out.len() as u64 {
        true => Ok(()),
        false => Err(WireError::new(Code::BadTensor, format!("the tensor has {} bytes, the buffer {}", spec.nbytes(), out.len()))),
    }
}

fn is_stale(error: &ClientError) -> bool {
    error.code() == Some(Code::Stale)
}
