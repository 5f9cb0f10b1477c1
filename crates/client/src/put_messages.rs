//! The messages of a `put_many`: announcements and bytes, small tensors together, large ones uncopied.

use std::collections::VecDeque;

use arrow_flight::FlightData;
use bytes::{Bytes, BytesMut};
use sira_wire::many::PutItem;
use sira_wire::{Code, WireError};

use crate::message;

/// Bytes of tensors in a message: half of what gRPC libraries accept by default.
const BODY: usize = 2 << 20;

/// A tensor of this many bytes goes in messages of its own, since a body is one buffer: to share one it would have to be copied.
const LARGE: usize = 1 << 20;

/// Bytes of announcements in a message, at most: what a server reads.
const METADATA: usize = 1 << 20;

const OPEN: &[u8] = br#"{"items":["#;
const CLOSE: &[u8] = b"]}";

/// What is left of [`METADATA`] for the announcements themselves.
const ROOM: usize = METADATA - OPEN.len() - CLOSE.len();

/// The JSON of one key's announcement, of no more than a message takes.
fn description(item: &PutItem) -> Result<Vec<u8>, WireError> {
    let refuse = |reason: String| WireError::new(Code::BadRequest, format!("{}: {reason}", item.key));
    let json = serde_json::to_vec(item).map_err(|e| refuse(e.to_string()))?;
    if json.len() > ROOM {
        return Err(refuse(format!("its description has {} bytes, attributes included; a message takes at most {ROOM}", json.len())));
    }
    Ok(json)
}

/// What a message says that announces one key.
pub(crate) fn announcement(item: &PutItem) -> Result<Bytes, WireError> {
    Ok([OPEN, &description(item)?, CLOSE].concat().into())
}

/// Builds messages from keys and their bytes.
#[derive(Default)]
pub(crate) struct Messages {
    ready: VecDeque<FlightData>,
    /// Announcements that no message has yet, as JSON between commas.
    items: Vec<u8>,
    /// Bytes that no message has yet.
    small: BytesMut,
}

impl Messages {
    /// A message that is full.
    pub(crate) fn pop(&mut self) -> Option<FlightData> {
        self.ready.pop_front()
    }

    /// Whether something has come that is in no message yet.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.items.is_empty() || !self.small.is_empty()
    }

    /// Takes a key and the bytes of its parts, which must be as many as the item says. A key that cannot be announced is refused, and nothing taken.
    pub(crate) fn add(&mut self, item: &PutItem, parts: impl Iterator<Item = Bytes>) -> Result<(), WireError> {
        let json = description(item)?;
        if self.items.len() + 1 + json.len() > ROOM {
            self.flush();
        }
        if !self.items.is_empty() {
            self.items.push(b',');
        }
        self.items.extend_from_slice(&json);
        parts.for_each(|bytes| self.add_bytes(bytes));
        Ok(())
    }

    fn add_bytes(&mut self, mut bytes: Bytes) {
        if bytes.len() >= LARGE {
            if !self.small.is_empty() {
                self.flush();
            }
            // Arrow pads bodies to 8 bytes, which would be a copy: what is left after the last 8 goes with the small ones.
            while bytes.len() >= 8 {
                let piece = bytes.split_to(bytes.len().min(BODY) / 8 * 8);
                let rows = piece.len();
                self.send(piece, rows);
            }
        }
        if self.small.len() + bytes.len() > BODY {
            self.flush();
        }
        if self.small.is_empty() {
            // Room for more like it, so that the buffer need not move as it grows.
            self.small.reserve((32 * bytes.len()).min(BODY));
        }
        self.small.extend_from_slice(&bytes);
    }

    /// Makes a message of what has come so far, if anything has.
    pub(crate) fn flush(&mut self) {
        if self.is_waiting() {
            let rows = self.small.len();
            self.small.resize(rows.next_multiple_of(8), 0);
            let body = self.small.split().freeze();
            self.send(body, rows);
        }
    }

    fn send(&mut self, body: Bytes, rows: usize) {
        let mut data = message::padded_batch(body, rows);
        if !self.items.is_empty() {
            data.app_metadata = [OPEN, &self.items, CLOSE].concat().into();
            self.items.clear();
        }
        self.ready.push_back(data);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sira_tensor::{DType, TensorSpec};
    use sira_wire::many::{PartHeader, PutMessage};

    use super::*;
    use crate::message::rows;
    use crate::message::tests::column;

    fn item(key: &str, lens: &[usize]) -> PutItem {
        let part =
            |(i, &len): (usize, &usize)| PartHeader::of(&format!("p{i}"), &TensorSpec::new(DType::UInt8, vec![len as u64]).unwrap(), None);
        PutItem { key: key.into(), parts: lens.iter().enumerate().map(part).collect(), ..PutItem::default() }
    }

    /// Bytes that do not repeat within any of the lengths used here.
    fn noise() -> Bytes {
        static NOISE: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
        NOISE.get_or_init(|| (0..2 * BODY as u32 + 1000).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()).clone()
    }

    fn drain(messages: &mut Messages) -> Vec<FlightData> {
        messages.flush();
        std::iter::from_fn(|| messages.pop()).collect()
    }

    /// What the messages announce, and the bytes they carry; each key is announced before its bytes begin.
    fn read(messages: &[FlightData]) -> (Vec<PutItem>, Vec<u8>) {
        let (mut items, mut bytes): (Vec<PutItem>, Vec<u8>) = Default::default();
        for data in messages {
            assert!(data.data_body.len() <= BODY + 8 && data.app_metadata.len() <= METADATA);
            if !data.app_metadata.is_empty() {
                items.extend(serde_json::from_slice::<PutMessage>(&data.app_metadata).unwrap().items);
            }
            bytes.extend_from_slice(&rows(data, &column()).unwrap());
            let announced: u64 = items.iter().flat_map(|item| item.specs().unwrap()).map(|(_, spec)| spec.nbytes()).sum();
            assert!(bytes.len() as u64 <= announced, "bytes of a key that was not announced");
        }
        (items, bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn keys_of_any_lengths_come_out_as_they_went_in(keys in prop::collection::vec(
            prop::collection::vec(prop_oneof![0usize..100, 0usize..20_000, (LARGE - 9)..(LARGE + 9), (2 * BODY)..(2 * BODY + 9)], 1..4), 0..12)) {
            let mut messages = Messages::default();
            let (mut items, mut all) = (Vec::new(), Vec::new());
            let noise = noise();
            for (i, lens) in keys.iter().enumerate() {
                let parts: Vec<Bytes> = lens.iter().enumerate().map(|(j, &len)| noise.slice(7 * i + j..7 * i + j + len)).collect();
                items.push(item(&format!("ns/{i}"), lens));
                all.extend(parts.concat());
                messages.add(&items[i], parts.into_iter()).unwrap();
            }
            let (read_items, read_bytes) = read(&drain(&mut messages));
            prop_assert!(read_items == items && read_bytes == all);
        }
    }

    #[test]
    fn small_tensors_share_a_message_and_large_ones_are_not_copied() {
        let mut messages = Messages::default();
        for i in 0..16 {
            messages.add(&item(&format!("ns/{i}"), &[1000]), [Bytes::from(vec![i; 1000])].into_iter()).unwrap();
        }
        assert_eq!(drain(&mut messages).len(), 1);
        let large = Bytes::from(vec![7u8; BODY + LARGE + 3]);
        messages.add(&item("ns/a", &[5]), [Bytes::from_static(b"small")].into_iter()).unwrap();
        messages.add(&item("ns/b", &[large.len()]), [large.clone()].into_iter()).unwrap();
        let sent = drain(&mut messages);
        assert_eq!(sent.iter().map(|data| data.data_body.len()).collect::<Vec<_>>(), [8, BODY, LARGE, 8]);
        assert_eq!((sent[1].data_body.as_ptr(), sent[2].data_body.as_ptr()), (large.as_ptr(), large[BODY..].as_ptr()));
    }

    #[test]
    fn announcements_stay_within_what_a_server_reads() {
        let mut messages = Messages::default();
        let attributes = |n: usize| (0..n).map(|i| (format!("a{i}"), "x".repeat(4000))).collect();
        let described = |n| {
            let mut item = item("ns/k", &[1; 8]);
            item.parts.iter_mut().for_each(|part| part.attributes = attributes(n));
            item
        };
        let too_much = messages.add(&described(64), std::iter::empty()).unwrap_err();
        assert!(too_much.code == Code::BadRequest && too_much.message.contains("attributes"), "{too_much}");
        assert!(!messages.is_waiting());
        for _ in 0..10 {
            messages.add(&described(10), (0..8).map(|_| Bytes::from_static(b"x"))).unwrap();
        }
        let sent = drain(&mut messages);
        assert!(sent.len() > 1 && read(&sent).0.len() == 10);
    }
}
