//! Tickets, criteria, commands and the bodies of actions: everything that a client says in JSON, and keys.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira_wire::many::{KeysRequest, ManyCommand, ManyTicket, PrefixRequest, PutMessage};
use sira_wire::namespace::{KvSpecRequest, NamespaceRequest, RouteRequest};
use sira_wire::{DeleteRequest, EmptyRequest, KeyRequest, ListRequest, PutOptions, Ticket};

fuzz_target!(|bytes: &[u8]| {
    sira_fuzz::bounded(bytes.len(), || {
        if let Ok((key, ticket)) = Ticket::parse(bytes) {
            assert_eq!(ticket.key, key.as_str());
            assert_eq!(format!("{}/{}", key.namespace(), key.rest()), key.as_str());
            assert!(sira_backend::name::escape(key.rest().as_bytes()).len() <= 3 * key.rest().len());
        }
        let _ = (KeyRequest::parse(bytes), DeleteRequest::parse(bytes), ListRequest::parse(bytes), EmptyRequest::parse(bytes));
        let _ = (KeysRequest::parse(bytes), PrefixRequest::parse(bytes), ManyTicket::parse(bytes), ManyCommand::is(bytes));
        let _ = (NamespaceRequest::parse(bytes), RouteRequest::parse(bytes), KvSpecRequest::parse_get(bytes));
        if let Ok(spec) = KvSpecRequest::parse_put(bytes) {
            assert_eq!(sira_tensor::kv::KvSpec::from_json(spec.canonical().as_bytes()).as_ref(), Ok(&spec));
        }
        let _ = PutOptions::from_command(bytes);
        for item in serde_json::from_slice::<PutMessage>(bytes).unwrap_or_default().items {
            let _ = (item.specs(), item.nbytes(), item.condition());
        }
    });
});
