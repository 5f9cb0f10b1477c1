//! Processes of the same machine: tensors are passed as memory, not sent (docs/wire.md, "The same host").
//!
//! One connection is one account: what its client maps or creates is reserved in the ledger and charged to it until the client releases it, or the
//! connection ends. Requests of a connection are answered one after another.

mod account;
mod line;

use std::future::{Future, poll_fn};
use std::sync::Arc;

use sira_shm::{Region, Sealed};
use sira_store::ledger::Reservation;
use sira_store::{Demands, Operation, StorageClient, WriteOptions};
use sira_tensor::TensorSpec;
use sira_wire::same_host::{Committed, Created, Handle, Hello, INLINE, Kind, Mapped, Welcome};
use sira_wire::{Code, Key, PutOptions, Ticket, VERSION};
use tokio::net::UnixStream;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

use crate::auth::Tokens;
use crate::seats::{Calls, Running, Seat};
use crate::status::{of_store, of_wire, outcome, refuse};
use account::{Account, Charge, Held, Purse};
use line::{Answer, Line};

/// A connection whose client wants memory, and has a seat.
pub(crate) struct Neighbour {
    pub stream: std::os::unix::net::UnixStream,
    pub seat: Seat,
}

/// What all connections share.
pub(crate) struct Neighbours {
    store: StorageClient,
    tokens: Option<Arc<Tokens>>,
    calls: Calls,
    /// What all of them may hold together.
    purse: Arc<Purse>,
    /// What each may hold.
    limit: u64,
}

impl Neighbours {
    pub fn new(store: StorageClient, tokens: Option<Arc<Tokens>>, calls: Calls) -> Arc<Neighbours> {
        let memory = store.ledger().limit();
        Arc::new(Neighbours { store, tokens, calls, purse: Purse::new(memory / 2), limit: memory / 4 })
    }

    /// Serves connections until `stop`, then lets running requests end.
    pub async fn serve(self: Arc<Neighbours>, mut arrivals: Receiver<Neighbour>, stop: impl Future<Output = ()>) {
        let (stopping, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                arrival = arrivals.recv() => match arrival {
                    Some(neighbour) => {
                        connections.spawn(self.clone().connection(neighbour, stopped.clone()));
                    }
                    None => break,
                },
                Some(_) = connections.join_next() => {}
                () = &mut stop => break,
            }
        }
        let _ = stopping.send(true);
        while connections.join_next().await.is_some() {}
    }

    /// Serves one connection to its end.
    pub async fn one(self: Arc<Neighbours>, neighbour: Neighbour) {
        let (_stopping, stopped) = watch::channel(false);
        self.connection(neighbour, stopped).await;
    }

    async fn connection(self: Arc<Neighbours>, neighbour: Neighbour, stopped: watch::Receiver<bool>) {
        let stream = match UnixStream::from_std(neighbour.stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, "a connection of this machine"),
        };
        let account = Account::new(self.purse.clone(), self.limit);
        let mut client =
            Client { all: self, line: Line::new(stream), account, seat: neighbour.seat, running: None, token: None, greeted: false };
        let ended = client.run(stopped).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection of this machine");
        }
    }
}

/// A connection.
struct Client {
    all: Arc<Neighbours>,
    line: Line,
    account: Account,
    seat: Seat,
    /// Keeps the connection from being closed for others while it holds memory.
    running: Option<Running>,
    token: Option<String>,
    greeted: bool,
}

/// What is being put.
pub(super) struct Filling {
    region: Region,
    key: Key,
    spec: TensorSpec,
    options: WriteOptions,
    reservation: Reservation,
}

impl Client {
    async fn run(&mut self, mut stopped: watch::Receiver<bool>) -> std::io::Result<()> {
        loop {
            let guest = self.seat.guest.clone();
            let message = tokio::select! {
                message = self.line.read() => message?,
                _ = stopped.wait_for(|stop| *stop) => None,
                () = poll_fn(|context| if guest.is_leaving(context) { ().into() } else { std::task::Poll::Pending }) => None,
            };
            let Some((kind, body)) = message else { return Ok(()) };
            match self.answer(kind, &body).await {
                Ok(Some(answer)) => self.line.send(&answer).await?,
                Ok(None) => {}
                Err(status) => {
                    self.line.send(&Answer::refusal(&status)).await?;
                    if !self.greeted {
                        return Ok(());
                    }
                }
            }
            self.running = match (self.account.is_empty(), self.running.take()) {
                (true, _) => None,
                (false, running) => running.or_else(|| Some(self.seat.guest.clone().begin())),
            };
        }
    }

    async fn answer(&mut self, kind: Kind, body: &[u8]) -> Result<Option<Answer>, Status> {
        if kind == Kind::Hello {
            return self.hello(body).map(Some);
        }
        if !self.greeted {
            return Err(refuse(Code::BadRequest, "the first message is a hello"));
        }
        if kind == Kind::Release {
            let handle = Handle::parse(body).map_err(|e| of_wire(&e))?;
            self.account.release(handle.id);
            return Ok(None);
        }
        self.check()?;
        let _call = self.all.calls.begin(Some(self.seat.guest.clone()))?;
        match kind {
            Kind::Map => self.counted(Operation::Get, async |client| client.map(body).await).await,
            Kind::Create => self.create(body).await,
            Kind::Commit => self.counted(Operation::Put, async |client| client.commit(body).await).await,
            _ => Err(refuse(Code::BadRequest, "a client does not send answers")),
        }
        .map(Some)
    }

    async fn counted(
        &mut self,
        operation: Operation,
        answer: impl AsyncFnOnce(&mut Client) -> Result<Answer, Status>,
    ) -> Result<Answer, Status> {
        let mut counted = self.all.store.request(operation);
        let answer = answer(self).await;
        counted.end(outcome(&answer));
        answer
    }

    /// Whether the token is (still) one that counts.
    fn check(&self) -> Result<(), Status> {
        match &self.all.tokens {
            Some(tokens) => tokens.accept(self.token.as_deref()),
            None => Ok(()),
        }
    }

    fn hello(&mut self, body: &[u8]) -> Result<Answer, Status> {
        self.token = Hello::parse(body).map_err(|e| of_wire(&e))?.token;
        self.check()?;
        self.greeted = true;
        Answer::of(&Welcome { v: VERSION, limit: self.all.limit, inline: INLINE })
    }

    async fn map(&mut self, body: &[u8]) -> Result<Answer, Status> {
        let (key, ticket) = Ticket::parse(body).map_err(|e| of_wire(&e))?;
        if !ticket.slice.is_empty() || ticket.encoded.is_some() {
            return Err(refuse(Code::BadRequest, "a whole part is mapped, as it is; a slice of one, or encoded chunks, are got"));
        }
        let demands = Demands { version: ticket.version, kv_spec: ticket.kv_spec, exact: ticket.exact };
        let snapshot = self.all.store.snapshot(&key, &demands).map_err(of_store)?;
        let index = snapshot.part(ticket.part.as_deref()).map_err(of_store)?;
        let (_, spec) = snapshot.parts().nth(index).ok_or_else(|| refuse(Code::Internal, format!("part {index} is none of {key}")))?;
        if spec.nbytes() <= INLINE {
            let mut reader = snapshot.read(index, &Default::default()).await.map_err(of_store)?;
            let mut pieces = Vec::new();
            while let Some(piece) = reader.next().await.map_err(of_store)? {
                pieces.push(piece);
            }
            return Ok(Answer::of(&Mapped::of(spec, snapshot.version(), 0))?.before(pieces));
        }
        let shared = match snapshot.shared(index) {
            Some(shared) => shared,
            None => {
                drop(self.account.charge(spec.nbytes())?); // before memory is taken for it
                snapshot.share(index).await.map_err(of_store)?
            }
        };
        let id = self.account.hold_shared(shared.clone())?;
        let answer = Answer::of(&Mapped::of(spec, snapshot.version(), id))?;
        let passed = shared.region().descriptor().try_clone_to_owned().map_err(|error| self.lost(id, &error))?;
        Ok(answer.passing(passed))
    }

    /// Gives up what could not be passed.
    fn lost(&mut self, id: u64, error: &std::io::Error) -> Status {
        self.account.release(id);
        refuse(Code::Busy, format!("memory that cannot be passed: {error}"))
    }

    async fn create(&mut self, body: &[u8]) -> Result<Answer, Status> {
        let (key, options) = PutOptions::from_command(body).map_err(|e| of_wire(&e))?;
        let (spec, options) = put_of(options)?;
        let len = usize::try_from(spec.nbytes()).ok().filter(|&len| len as u64 > INLINE);
        // A descriptor is worth more than so few bytes.
        let len = len.ok_or_else(|| refuse(Code::BadRequest, format!("a tensor of {INLINE} bytes or fewer is put, not created")))?;
        // Refuses what a put would be refused, before the client has done its work.
        drop(self.all.store.begin(key.clone(), spec.clone(), options.clone()).await.map_err(of_store)?);
        let charge = self.account.charge(spec.nbytes())?;
        let reservation = self.all.store.reserve_now(spec.nbytes()).map_err(of_store)?;
        let region = Region::create(len).map_err(|error| no_memory(&error))?;
        let passed = region.descriptor().try_clone_to_owned().map_err(|error| no_memory(&error))?;
        let nbytes = spec.nbytes();
        let id = self.account.hold(Held::Filling(Box::new(Filling { region, key, spec, options, reservation })), charge);
        let answer = Answer::of(&Created { id, nbytes })?;
        Ok(answer.passing(passed))
    }

    async fn commit(&mut self, body: &[u8]) -> Result<Answer, Status> {
        let id = Handle::parse(body).map_err(|e| of_wire(&e))?.id;
        let (filling, charge) = self.account.take_filling(id)?;
        let Filling { region, key, spec, options, reservation } = filling;
        // Waits for whoever still has pages of it in hand.
        let sealed = tokio::task::spawn_blocking(move || region.seal()).await.map_err(|error| refuse(Code::Internal, error.to_string()))?;
        let (sealed, reservation, copied) = match sealed {
            Ok(sealed) => (sealed, reservation, false),
            Err((region, error)) => {
                tracing::debug!(%error, %key, "what a client filled is copied: it still has it");
                let copy = self.copied(&spec, region, reservation, (id, charge)).await?;
                (copy.0, copy.1, true)
            }
        };
        let writer = self.all.store.begin(key, spec, options).await.map_err(of_store)?;
        let answer = writer.adopt(sealed, reservation).await.map_err(of_store)?;
        Answer::of(&Committed { key: answer.key, version: answer.version, created: answer.created, copied })
    }

    /// Copies a region that its client still has mapped for writing, and which stays charged until it is released.
    async fn copied(
        &mut self,
        spec: &TensorSpec,
        region: Region,
        reservation: Reservation,
        (id, charge): (u64, Charge),
    ) -> Result<(Sealed, Reservation), Status> {
        let region = Arc::new(region);
        self.account.keep(id, Held::Lingering { _region: region.clone(), _reservation: reservation }, charge);
        let more = self.all.store.reserve(spec.nbytes()).await.map_err(of_store)?;
        let copy = tokio::task::spawn_blocking(move || region.sealed_copy()).await;
        let copy = copy.map_err(|error| refuse(Code::Internal, error.to_string()))?;
        Ok((copy.map_err(|error| no_memory(&error))?, more))
    }
}

/// What is put, and how.
fn put_of(options: PutOptions) -> Result<(TensorSpec, WriteOptions), Status> {
    let lacks = |what: &str| refuse(Code::BadRequest, format!("a put into memory needs its {what} before"));
    if options.encoded.is_some() {
        return Err(refuse(Code::BadRequest, "memory is filled raw; encoded chunks are put over gRPC"));
    }
    let (dtype, shape) = (options.dtype.ok_or_else(|| lacks("dtype"))?, options.shape.ok_or_else(|| lacks("shape"))?);
    let spec = TensorSpec::new(dtype, shape).and_then(|spec| spec.with_axes(options.axes.unwrap_or_default()));
    let spec = spec.and_then(|spec| spec.with_attributes(options.attributes)).map_err(|e| of_store(e.into()))?;
    let write = WriteOptions {
        codec: options.codec,
        ttl: options.ttl,
        consistency: options.consistency,
        condition: options.condition,
        kv_spec: options.kv_spec,
        derived_from_lossy: options.derived_from_lossy,
        scratch: 0,
    };
    Ok((spec, write))
}

fn no_memory(error: &std::io::Error) -> Status {
    match error.kind() {
        std::io::ErrorKind::Unsupported => refuse(Code::Unsupported, "this system has no memory that can be sealed and shared"),
        _ => refuse(Code::Busy, format!("no memory that can be shared: {error}")),
    }
}
