//! Changes to put streams: of bits anywhere, and of what has a meaning: lengths, counts, offsets, numbers in JSON, the order of messages.

use arrow_flight::FlightData;
use prost::Message;

use crate::seeds::{self, Seed};

/// Numbers at which arithmetic goes wrong.
const EDGES: [u64; 22] = [
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

/// Bytes of a stream that grows by what is repeated in it.
const LONGEST: usize = 1 << 20;

/// A sequence of numbers that only depends on its seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// A number below `end`, which is above 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn edge(&mut self) -> u64 {
        let edge = EDGES[self.below(EDGES.len())];
        if self.one_in(4) { edge.wrapping_add(self.next() % 17).wrapping_sub(8) } else { edge }
    }
}

/// One of the seeds, changed in one to four ways.
pub fn stream(seeds: &[Seed], dice: &mut Dice) -> Vec<u8> {
    let mut messages = seeds[dice.below(seeds.len())].messages.clone();
    let changes = 1 + dice.below(4);
    let raw = dice.below(changes + 1);
    for _ in raw..changes {
        match dice.below(8) {
            0 => order(&mut messages, seeds, dice),
            1 => text(&mut messages, dice),
            _ => header(&mut messages, dice),
        }
    }
    let mut stream = Vec::new();
    for message in &messages {
        let mut bytes = message.encode_to_vec();
        if dice.one_in(20) {
            bytes.splice(0..0, field(dice));
        }
        if dice.one_in(40) {
            anywhere(&mut bytes, dice);
        }
        stream.extend_from_slice(&seeds::framed(&bytes));
    }
    for _ in 0..raw {
        anywhere(&mut stream, dice);
    }
    stream
}

/// Messages dropped, sent twice, exchanged, or taken from another stream.
fn order(messages: &mut Vec<FlightData>, seeds: &[Seed], dice: &mut Dice) {
    let at = dice.below(messages.len().max(1));
    if at >= messages.len() {
        return;
    }
    match dice.below(5) {
        0 => drop(messages.remove(at)),
        1 => messages.insert(at, messages[at].clone()),
        2 => messages.swap(0, at),
        3 => {
            let other = &seeds[dice.below(seeds.len())].messages;
            messages[at] = other[dice.below(other.len())].clone();
        }
        _ => {
            // A field of one in the place of another.
            let from = messages[dice.below(messages.len())].clone();
            match dice.below(4) {
                0 => messages[at].data_header = from.data_header,
                1 => messages[at].app_metadata = from.app_metadata,
                2 => messages[at].data_body = from.data_body,
                _ => messages[at].flight_descriptor = from.flight_descriptor,
            }
        }
    }
}

/// Words of a FlatBuffer: offsets, lengths, counts, enumerations.
fn header(messages: &mut [FlightData], dice: &mut Dice) {
    if messages.is_empty() {
        return;
    }
    let at = dice.below(messages.len());
    let mut header = messages[at].data_header.to_vec();
    if header.len() < 16 {
        return;
    }
    if dice.one_in(8) {
        text_in(&mut header, dice, false);
    } else {
        let size = [1, 2, 4, 4, 8][dice.below(5)];
        let word = dice.below(header.len() / size) * size;
        let mut old = [0; 8];
        old[..size].copy_from_slice(&header[word..word + size]);
        let new = match dice.below(4) {
            0 => dice.edge(),
            1 => u64::from_le_bytes(old).wrapping_add(1 + dice.next() % 64),
            2 => u64::from_le_bytes(old).wrapping_sub(1 + dice.next() % 64),
            _ => {
                let other = dice.below(header.len() / size) * size;
                old[..size].copy_from_slice(&header[other..other + size]);
                u64::from_le_bytes(old)
            }
        };
        header[word..word + size].copy_from_slice(&new.to_le_bytes()[..size]);
    }
    messages[at].data_header = header.into();
}

/// JSON: of the command, or of the metadata.
fn text(messages: &mut [FlightData], dice: &mut Dice) {
    if messages.is_empty() {
        return;
    }
    let at = dice.below(messages.len());
    if dice.one_in(2) {
        let mut metadata = messages[at].app_metadata.to_vec();
        text_in(&mut metadata, dice, true);
        messages[at].app_metadata = metadata.into();
    } else if let Some(descriptor) = &mut messages[at].flight_descriptor {
        let mut command = descriptor.cmd.to_vec();
        text_in(&mut command, dice, true);
        descriptor.cmd = command.into();
    }
}

/// Another number where there is one; with `grow`, also something repeated, often.
fn text_in(text: &mut Vec<u8>, dice: &mut Dice, grow: bool) {
    if text.is_empty() {
        return;
    }
    let from = dice.below(text.len());
    let Some(start) = (from..text.len()).find(|&i| text[i].is_ascii_digit()) else { return anywhere(text, dice) };
    let end = (start..text.len()).find(|&i| !text[i].is_ascii_digit()).unwrap_or(text.len());
    match dice.below(if grow { 3 } else { 2 }) {
        0 => text[start..end].fill(b'9' - dice.below(10) as u8),
        1 if grow => drop(text.splice(start..end, dice.edge().to_string().into_bytes())),
        1 => text[start] = b'0' + dice.below(10) as u8,
        _ => repeat(text, dice),
    }
}

/// A piece of the bytes many times over.
fn repeat(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let start = dice.below(bytes.len());
    let piece = bytes[start..].iter().take(1 + dice.below(60)).copied().collect::<Vec<_>>();
    let room = LONGEST.saturating_sub(bytes.len()) / piece.len();
    let times = if dice.one_in(50) { room } else { room.min(1 + dice.below(100)) };
    bytes.splice(start..start, piece.repeat(times));
}

/// A protobuf field that says what it likes.
fn field(dice: &mut Dice) -> Vec<u8> {
    let number = [1, 2, 3, 4, 1000, 1001, 0, 1 << 28][dice.below(8)];
    let mut bytes = Vec::new();
    prost::encoding::encode_varint((number << 3) | (dice.next() % 8), &mut bytes);
    prost::encoding::encode_varint(dice.edge(), &mut bytes);
    bytes.extend(vec![7; dice.below(20)]);
    bytes
}

/// Bytes as bytes: bits, numbers of every width and order, cuts, repetitions.
fn anywhere(bytes: &mut Vec<u8>, dice: &mut Dice) {
    if bytes.is_empty() {
        return;
    }
    // Most of a long stream is values; what can go wrong is near the ends of messages.
    let at = if dice.one_in(2) { dice.below(bytes.len()) } else { dice.below(bytes.len().min(600)) };
    match dice.below(9) {
        0 | 1 => bytes[at] ^= 1 << dice.below(8),
        2 => bytes[at] = dice.next() as u8,
        3 | 4 => {
            let size = [1, 2, 4, 8][dice.below(4)].min(bytes.len() - at);
            let edge = dice.edge();
            let edge =
                if dice.one_in(2) { edge.to_le_bytes() } else { edge.swap_bytes().rotate_right(8 * (8 - size as u32)).to_le_bytes() };
            bytes[at..at + size].copy_from_slice(&edge[..size]);
        }
        5 => bytes.truncate(at),
        6 => repeat(bytes, dice),
        7 => {
            let end = (at + 1 + dice.below(40)).min(bytes.len());
            drop(bytes.drain(at..end));
        }
        _ => {
            let mut varint = Vec::new();
            prost::encoding::encode_varint(dice.edge(), &mut varint);
            let end = (at + varint.len()).min(bytes.len());
            bytes.splice(at..end, varint);
        }
    }
}
