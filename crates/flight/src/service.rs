//! The Flight service: everything but `DoPut` and `DoGet`.

use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use arrow_ipc::writer::IpcWriteOptions;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use sira_store::{Demands, Operation, Snapshot, StorageClient};
use sira_tensor::{TensorSpec, region};
use sira_wire::many::ManyTicket;
use sira_wire::{Code, Entry, Key, ListRequest, Ticket as Wanted};
use tonic::{Request, Response, Status, Streaming};

use crate::get_many;
use crate::status::{of_store, of_wire, outcome, refuse, unsupported};
use crate::{actions, auth, get};

/// Keys of a page of `list_flights`; its stream is as long as the listing.
const PAGE: usize = 100;

/// The service of one store.
#[derive(Clone)]
pub struct Flight {
    store: StorageClient,
    /// Whether calls need a token; a handshake then answers the one it was given.
    tokens: bool,
}

impl Flight {
    pub(crate) fn new(store: StorageClient, tokens: bool) -> Flight {
        Flight { store, tokens }
    }
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

impl Flight {
    /// What a descriptor asks for: the key, and the ticket.
    fn wanted(descriptor: &FlightDescriptor) -> Result<(Key, Wanted), Status> {
        if descriptor.r#type == DescriptorType::Cmd as i32 {
            return Wanted::parse(&descriptor.cmd).map_err(|e| of_wire(&e));
        }
        let key = Key::from_path(&descriptor.path).map_err(|e| of_wire(&e))?;
        let ticket = Wanted::whole(&key);
        Ok((key, ticket))
    }

    /// The version that a ticket asks for, held still.
    fn snapshot(&self, key: &Key, ticket: &Wanted) -> Result<Snapshot, Status> {
        let demands = Demands { version: ticket.version, kv_spec: ticket.kv_spec.clone(), exact: ticket.exact };
        self.store.snapshot(key, &demands).map_err(of_store)
    }

    /// The FlightInfo that a descriptor asks for.
    fn info(&self, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let (key, ticket) = Self::wanted(&descriptor)?;
        let (snapshot, entry) = loop {
            let snapshot = self.snapshot(&key, &ticket)?;
            let entry = self.store.info(&key).map_err(of_store)?;
            // Another version may have been put between the two.
            if entry.version == snapshot.version() {
                break (snapshot, entry);
            }
        };
        if !entry.parts.is_empty() && ticket.part.is_none() {
            if !ticket.slice.is_empty() {
                return Err(refuse(Code::HasParts, format!("{key} has several parts; a slice is of one, which `part` names")));
            }
            let ticket = ManyTicket { kv_spec: ticket.kv_spec, exact: ticket.exact, ..ManyTicket::of(vec![entry.key.clone()]) };
            return parts_info(&entry, &ticket, descriptor);
        }
        flight_info(&entry, &sliced(&snapshot, &ticket)?, ticket, descriptor)
    }

    /// The schema of what a descriptor asks for.
    fn schema(&self, descriptor: &FlightDescriptor) -> Result<SchemaResult, Status> {
        let (key, ticket) = Self::wanted(descriptor)?;
        let (_, schema) = get::carrier(&sliced(&self.snapshot(&key, &ticket)?, &ticket)?);
        let result = SchemaResult::try_from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default()));
        result.map_err(|e| refuse(Code::Internal, e.to_string()))
    }
}

/// What a get of `ticket` will send.
fn sliced(snapshot: &Snapshot, ticket: &Wanted) -> Result<TensorSpec, Status> {
    let part = snapshot.part(ticket.part.as_deref()).map_err(of_store)?;
    let (_, spec) = snapshot.parts().nth(part).ok_or_else(|| refuse(Code::Internal, format!("part {part} is none of its key")))?;
    let wanted = region(spec, ticket.slice.iter().map(|(name, range)| (name.as_str(), *range))).map_err(|e| of_store(e.into()))?;
    let shape = wanted.iter().map(|range| range.end - range.start).collect();
    let sliced = TensorSpec::new(spec.dtype(), shape).and_then(|sliced| sliced.with_axes(spec.axes().to_vec()));
    sliced.and_then(|sliced| sliced.with_attributes(spec.attributes().clone())).map_err(|e| of_store(e.into()))
}

/// The FlightInfo of `entry`: one endpoint, its ticket pinned to the version seen.
fn flight_info(entry: &Entry, spec: &TensorSpec, ticket: Wanted, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
    let (carrier, schema) = get::carrier(spec);
    let internal = |e: String| refuse(Code::Internal, e);
    let ticket = serde_json::to_vec(&Wanted { version: Some(entry.version), ..ticket }).map_err(|e| internal(e.to_string()))?;
    let info = FlightInfo::new()
        .try_with_schema(&schema)
        .map_err(|e| internal(e.to_string()))?
        .with_descriptor(descriptor)
        .with_endpoint(FlightEndpoint::new().with_ticket(Ticket::new(ticket)))
        .with_total_records(i64::try_from(carrier.rows).unwrap_or(-1))
        .with_total_bytes(i64::try_from(spec.nbytes()).unwrap_or(-1))
        .with_ordered(true)
        .with_app_metadata(serde_json::to_vec(entry).map_err(|e| internal(e.to_string()))?);
    Ok(info)
}

/// The FlightInfo of a key with several parts: one endpoint, whose stream has all of them.
fn parts_info(entry: &Entry, ticket: &ManyTicket, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
    let internal = |e: String| refuse(Code::Internal, e);
    let ticket = serde_json::to_vec(ticket).map_err(|e| internal(e.to_string()))?;
    let info = FlightInfo::new()
        .try_with_schema(&get_many::schema())
        .map_err(|e| internal(e.to_string()))?
        .with_descriptor(descriptor)
        .with_endpoint(FlightEndpoint::new().with_ticket(Ticket::new(ticket)))
        .with_total_records(-1)
        .with_total_bytes(i64::try_from(entry.nbytes).unwrap_or(-1))
        .with_ordered(true)
        .with_app_metadata(serde_json::to_vec(entry).map_err(|e| internal(e.to_string()))?);
    Ok(info)
}

/// The spec that an entry of a listing tells of.
fn spec_of(entry: &Entry) -> Result<TensorSpec, Status> {
    let spec = entry.dtype.parse().and_then(|dtype| TensorSpec::new(dtype, entry.shape.clone()));
    let spec = spec.and_then(|spec| spec.with_axes(entry.axes.clone())).and_then(|spec| spec.with_attributes(entry.attributes.clone()));
    spec.map_err(|e| of_store(e.into()))
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;
    type DoExchangeStream = Answers<FlightData>;

    async fn handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        if !self.tokens {
            return Err(unsupported("this server asks for no token"));
        }
        // The token was checked before this; a client that came with name and password is told what to send from now on.
        let given = auth::given(request.metadata().as_ref()).map(|given| format!("Bearer {}", given.token));
        let bearer = given.and_then(|bearer| bearer.parse().ok()).ok_or_else(|| refuse(Code::Unauthenticated, "no token"))?;
        let mut response = Response::new(futures::stream::empty().boxed());
        response.metadata_mut().insert("authorization", bearer);
        Ok(response)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let mut counted = self.store.request(Operation::List);
        let request = ListRequest::parse(&request.into_inner().expression).map_err(|e| of_wire(&e));
        if request.is_err() {
            counted.end(outcome(&request));
        }
        let request = request?;
        let left = request.limit.unwrap_or(usize::MAX);
        let state = (self.store.clone(), counted, request.prefix, Some(request.after), left);
        let pages = futures::stream::try_unfold(state, |(store, mut counted, prefix, after, left)| async move {
            let Some(after) = after.filter(|_| left > 0) else {
                counted.end(Ok(()));
                return Ok(None);
            };
            let page = store.list(&prefix, after.as_deref(), left.min(PAGE)).map_err(of_store);
            counted.first_byte();
            if page.is_err() {
                counted.end(outcome(&page));
            }
            let (entries, next) = page?;
            let left = left - entries.len();
            let infos: Vec<_> = entries
                .iter()
                .map(|entry| {
                    let (key, descriptor) =
                        (entry.key.parse().map_err(|e| of_wire(&e))?, FlightDescriptor::new_path(vec![entry.key.clone()]));
                    match entry.parts.is_empty() {
                        true => flight_info(entry, &spec_of(entry)?, Wanted::whole(&key), descriptor),
                        false => parts_info(entry, &ManyTicket::of(vec![entry.key.clone()]), descriptor),
                    }
                })
                .collect();
            Ok::<_, Status>(Some((futures::stream::iter(infos), (store, counted, prefix, next.map(Some), left))))
        });
        Ok(Response::new(pages.try_flatten().boxed()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let mut counted = self.store.request(Operation::Lookup);
        let info = self.info(request.into_inner());
        counted.end(outcome(&info));
        info.map(Response::new)
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(unsupported("nothing here runs long enough to poll for; use GetFlightInfo"))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let mut counted = self.store.request(Operation::Lookup);
        let schema = self.schema(&request.into_inner());
        counted.end(outcome(&schema));
        schema.map(Response::new)
    }

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        // Taken out by the server before it comes here.
        Err(refuse(Code::Internal, "DoGet reached the generated service"))
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        // Taken out by the server before it comes here.
        Err(refuse(Code::Internal, "DoPut reached the generated service"))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let action = request.into_inner();
        let counted = actions::operation(&action).map(|operation| self.store.request(operation));
        let body = actions::run(&self.store, &action).await;
        if let Some(mut counted) = counted {
            counted.end(outcome(&body));
        }
        let result = arrow_flight::Result { body: body?.into() };
        Ok(Response::new(futures::stream::iter([Ok(result)]).boxed()))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(futures::stream::iter(actions::types()).boxed()))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(unsupported("use DoPut and DoGet"))
    }
}
