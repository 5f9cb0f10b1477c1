//! What comes of many keys: segments in, events out. Everything a server says is held against what was asked for and what has come.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use sira_tensor::{TensorSpec, kv};
use sira_wire::WireError;
use sira_wire::many::{GetMessage, MAX_PARTS, PartHeader, Segment};

use crate::ClientError;
use crate::client::parse;
use crate::error::refusal;
use crate::http2::MAX_METADATA;

/// One thing that came of many keys. Of each key come `Key`, of each of its parts `Part` and its `Data`, then `End`; or, instead of any of these,
/// `Failed`. Keys come in the order of the request; `index` is the key's position there.
///
/// `B` is how bytes are given: themselves, or where they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManyEvent<B = Bytes> {
    /// The key is there, and begins.
    Key {
        /// The key's position in the request.
        index: usize,
        /// Its version.
        version: u64,
        /// How many parts come.
        parts: usize,
        /// Hash of the kv spec that it follows.
        kv_spec: Option<String>,
    },
    /// A part of it begins.
    Part {
        /// The key's position in the request.
        index: usize,
        /// The part's name; `data` for a key that is one tensor.
        name: String,
        /// What it is: as many bytes come as this says.
        spec: TensorSpec,
    },
    /// The next bytes of the part: a slice of the message that brought them, never empty. An empty part has none.
    Data {
        /// The key's position in the request.
        index: usize,
        /// The bytes.
        bytes: B,
    },
    /// All bytes of all parts of the key have come.
    End {
        /// The key's position in the request.
        index: usize,
    },
    /// There is no such key, or something is wrong with it: what has come of it is void.
    Failed {
        /// The key's position in the request.
        index: usize,
        /// Why.
        error: WireError,
    },
}

/// Reads the messages of one answer.
#[derive(Debug)]
pub(crate) struct Segments {
    /// Keys that were asked for.
    keys: usize,
    /// Parts that were asked for, of each.
    wanted: Option<Vec<String>>,
    /// The key that comes now, or next.
    index: usize,
    current: Option<Current>,
}

/// A key that has begun.
#[derive(Debug)]
struct Current {
    /// Parts that come of it.
    parts: usize,
    /// Those that have begun.
    names: Vec<String>,
    /// Bytes of the last of them that are still to come.
    missing: u64,
}

/// The bytes of a message.
struct Body<F> {
    len: u64,
    /// Where the segments read so far end.
    end: u64,
    cut: F,
}

impl Segments {
    pub(crate) fn new(keys: usize, wanted: Option<Vec<String>>) -> Segments {
        Segments { keys, wanted, index: 0, current: None }
    }

    /// Reads one message, whose rows are `len` bytes; `cut` gives some of them.
    pub(crate) fn read<B>(
        &mut self,
        metadata: &[u8],
        len: usize,
        cut: impl Fn(Range<usize>) -> B,
        events: &mut VecDeque<ManyEvent<B>>,
    ) -> Result<(), ClientError> {
        if metadata.is_empty() && len == 0 {
            return Ok(());
        }
        if metadata.len() as u64 > MAX_METADATA {
            return Err(ClientError::protocol(format!("{} bytes about a message; at most {MAX_METADATA} are read", metadata.len())));
        }
        let message: GetMessage = parse(metadata)?;
        let mut body = Body { len: len as u64, end: 0, cut };
        for segment in message.segments {
            self.segment(segment, &mut body, events)?;
        }
        Ok(())
    }

    /// Says whether all keys have been answered, once nothing more comes.
    pub(crate) fn finish(&self) -> Result<(), ClientError> {
        match self.index == self.keys {
            true => Ok(()),
            false => Err(ClientError::protocol(format!("the stream ended before key {} of {} was whole", self.index, self.keys))),
        }
    }

    fn segment<B>(
        &mut self,
        mut segment: Segment,
        body: &mut Body<impl Fn(Range<usize>) -> B>,
        events: &mut VecDeque<ManyEvent<B>>,
    ) -> Result<(), ClientError> {
        let index = self.index;
        if segment.index != index || index >= self.keys {
            return Err(ClientError::protocol(format!("bytes of key {} where key {index} of {} is due", segment.index, self.keys)));
        }
        if let Some(error) = segment.error {
            events.push_back(ManyEvent::Failed { index, error: refusal(&error) });
            self.done();
            return Ok(());
        }
        self.begin_key(&mut segment, events)?;
        let Some(current) = &mut self.current else { return Ok(()) };
        if let Some(header) = &segment.part {
            let spec = current.begin_part(index, header, self.wanted.as_deref())?;
            events.push_back(ManyEvent::Part { index, name: header.name.clone(), spec });
        }
        if segment.bytes > 0 {
            let bytes = current.bytes(&segment, body)?;
            events.push_back(ManyEvent::Data { index, bytes: (body.cut)(bytes) });
        }
        if current.missing == 0 && current.names.len() == current.parts {
            events.push_back(ManyEvent::End { index });
            self.done();
        }
        Ok(())
    }

    fn begin_key<B>(&mut self, segment: &mut Segment, events: &mut VecDeque<ManyEvent<B>>) -> Result<(), ClientError> {
        let index = self.index;
        let header = match (&self.current, segment.key.take()) {
            (None, Some(header)) => header,
            (Some(_), None) => return Ok(()),
            (None, None) => return Err(ClientError::protocol(format!("key {index} comes without its version"))),
            (Some(_), Some(_)) => return Err(ClientError::protocol(format!("key {index} begins twice"))),
        };
        let due = self.wanted.as_ref().map_or(header.parts, Vec::len);
        if header.parts > MAX_PARTS || header.parts != due {
            return Err(ClientError::protocol(format!("key {index} comes in {} parts; {} are due", header.parts, due.min(MAX_PARTS))));
        }
        events.push_back(ManyEvent::Key { index, version: header.version, parts: header.parts, kv_spec: header.kv_spec });
        self.current = Some(Current { parts: header.parts, names: Vec::new(), missing: 0 });
        Ok(())
    }

    fn done(&mut self) {
        self.current = None;
        self.index += 1;
    }
}

impl Current {
    fn begin_part(&mut self, index: usize, header: &PartHeader, wanted: Option<&[String]>) -> Result<TensorSpec, ClientError> {
        let wrong = |reason: String| Err(ClientError::protocol(format!("key {index}, part {:?}: {reason}", header.name)));
        if self.missing > 0 {
            return wrong(format!("it begins {} bytes before the end of the part before it", self.missing));
        }
        if self.names.len() == self.parts {
            return wrong(format!("a part more than the {} that were said to come", self.parts));
        }
        if wanted.is_some_and(|wanted| wanted.get(self.names.len()) != Some(&header.name)) || self.names.contains(&header.name) {
            return wrong("another part is due".to_owned());
        }
        kv::part_name(&header.name).map_err(ClientError::protocol)?;
        let spec = header.spec().map_err(ClientError::protocol)?;
        self.missing = spec.nbytes();
        self.names.push(header.name.clone());
        Ok(spec)
    }

    /// The bytes of a segment. Segments follow one another in a body, so none is given twice.
    fn bytes<F>(&mut self, segment: &Segment, body: &mut Body<F>) -> Result<Range<usize>, ClientError> {
        let Segment { index, offset, bytes, .. } = *segment;
        self.missing = self.missing.checked_sub(bytes).ok_or_else(|| {
            ClientError::protocol(format!("{bytes} bytes of key {index}, of whose part only {} are to come", self.missing))
        })?;
        let stop = offset.checked_add(bytes).filter(|&stop| offset >= body.end && stop <= body.len);
        let Some(stop) = stop else {
            return Err(ClientError::protocol(format!("{bytes} bytes at {offset}, after {} and within a body of {}", body.end, body.len)));
        };
        body.end = stop;
        Ok(offset as usize..stop as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// What comes of these segments, all in one message with a body of 256 bytes.
    fn read(segments: &mut Segments, said: Value) -> Result<Vec<ManyEvent>, ClientError> {
        let body = Bytes::from((0..=255).collect::<Vec<u8>>());
        let mut events = VecDeque::new();
        segments.read(said.to_string().as_bytes(), body.len(), |range| body.slice(range), &mut events)?;
        Ok(events.into())
    }

    fn fresh(keys: usize) -> Segments {
        Segments::new(keys, None)
    }

    fn u8s(len: u64) -> Value {
        json!({"dtype": "uint8", "shape": [len]})
    }

    fn one(offset: u64, bytes: u64, len: u64) -> Value {
        json!({"index": 0, "offset": offset, "bytes": bytes, "key": {"version": 1, "parts": 1}, "part": u8s(len)})
    }

    #[test]
    fn keys_parts_and_errors_come_as_they_were_sent() {
        let mut segments = Segments::new(4, Some(vec!["k".into(), "s".into()]));
        let part = |name: &str, len: u64| json!({"name": name, "dtype": "uint8", "shape": [len]});
        let key = json!({"version": 7, "parts": 2, "kv_spec": "5f"});
        let mut events = read(
            &mut segments,
            json!({"segments": [
                {"index": 0, "offset": 0, "bytes": 10, "key": key, "part": part("k", 10)},
                {"index": 0, "offset": 64, "bytes": 4, "part": part("s", 4)},
                {"index": 1, "error": "SIRA_NOT_FOUND: no tensor ns/b"},
                {"index": 2, "offset": 128, "bytes": 100, "key": key, "part": part("k", 150)}]}),
        )
        .unwrap();
        events.extend(
            read(&mut segments, json!({"segments": [{"index": 2, "offset": 0, "bytes": 50}, {"index": 2, "part": part("s", 0)}]})).unwrap(),
        );
        assert!(segments.finish().is_err());
        events.extend(
            read(
                &mut segments,
                json!({"segments": [
            {"index": 3, "offset": 0, "bytes": 5, "key": key, "part": part("k", 50)}, {"index": 3, "error": "SIRA_CORRUPT: chunk 1"}]}),
            )
            .unwrap(),
        );
        segments.finish().unwrap();
        let seen: Vec<String> = events
            .iter()
            .map(|event| match event {
                ManyEvent::Key { index, version, .. } => format!("key {index} v{version}"),
                ManyEvent::Part { index, name, spec } => format!("part {index} {name} {}", spec.nbytes()),
                ManyEvent::Data { index, bytes } => format!("data {index} {}+{}", bytes[0], bytes.len()),
                ManyEvent::End { index } => format!("end {index}"),
                ManyEvent::Failed { index, error } => format!("failed {index} {}", error.code),
            })
            .collect();
        let expected = [
            "key 0 v7",
            "part 0 k 10",
            "data 0 0+10",
            "part 0 s 4",
            "data 0 64+4",
            "end 0",
            "failed 1 SIRA_NOT_FOUND",
            "key 2 v7",
            "part 2 k 150",
            "data 2 128+100",
            "data 2 0+50",
            "part 2 s 0",
            "end 2",
            "key 3 v7",
            "part 3 k 50",
            "data 3 0+5",
            "failed 3 SIRA_CORRUPT",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn hostile_segments_are_refused() {
        let header = json!({"version": 1, "parts": 1});
        let segments = |list: Value| json!({"segments": list});
        for (what, said) in [
            ("past the body", segments(json!([one(200, 57, 57)]))),
            ("far past the body", segments(json!([one(u64::MAX, 1, 1)]))),
            ("offset and bytes overflow", segments(json!([one(2, u64::MAX, u64::MAX >> 1)]))),
            ("more bytes than the part has", segments(json!([one(0, 11, 10)]))),
            ("more bytes than the part has, later", segments(json!([one(0, 5, 10), {"index": 0, "offset": 64, "bytes": 6}]))),
            ("the same bytes twice", segments(json!([one(0, 5, 10), {"index": 0, "offset": 0, "bytes": 5}]))),
            ("another key", segments(json!([{"index": 1, "offset": 0, "bytes": 1, "key": header, "part": u8s(1)}]))),
            ("no such key", segments(json!([{"index": 5, "error": "SIRA_NOT_FOUND: x"}]))),
            (
                "a key more",
                segments(json!([one(0, 1, 1), {"index": 1, "error": "SIRA_NOT_FOUND: x"}, {"index": 2, "error": "SIRA_NOT_FOUND: x"}])),
            ),
            ("a key again", segments(json!([one(0, 1, 1), one(0, 1, 1)]))),
            ("a key within a key", segments(json!([one(0, 1, 2), {"index": 1, "key": header}]))),
            ("a header within a key", segments(json!([one(0, 1, 2), {"index": 0, "key": header}]))),
            ("no key header", segments(json!([{"index": 0, "offset": 0, "bytes": 1, "part": u8s(1)}]))),
            ("no part header", segments(json!([{"index": 0, "offset": 0, "bytes": 1, "key": header}]))),
            ("a part too many", segments(json!([one(0, 1, 2), {"index": 0, "part": {"name": "b", "dtype": "uint8", "shape": [1]}}]))),
            ("too many parts", segments(json!([{"index": 0, "key": {"version": 1, "parts": 65}}]))),
            (
                "a part twice",
                segments(json!([{"index": 0, "key": {"version": 1, "parts": 2}, "part": u8s(0)}, {"index": 0, "part": u8s(0)}])),
            ),
            ("no dtype", segments(json!([{"index": 0, "key": header, "part": {"dtype": "float12", "shape": [1]}}]))),
            ("no part's name", segments(json!([{"index": 0, "key": header, "part": {"name": "a/b", "dtype": "uint8", "shape": [1]}}]))),
            (
                "more bytes than there are",
                segments(json!([{"index": 0, "key": header, "part": {"dtype": "uint8", "shape": [u64::MAX, 9]}}])),
            ),
            ("a negative index", segments(json!([{"index": -1, "error": "x"}]))),
            ("no segments", json!({})),
        ] {
            let error = read(&mut fresh(2), said).unwrap_err();
            assert!(matches!(error, ClientError::Protocol(_)), "{what}: {error}");
        }
        let mut wanted = Segments::new(1, Some(vec!["k".into()]));
        assert!(read(&mut wanted, segments(json!([one(0, 1, 1)]))).is_err(), "a part nobody asked for");
        let mut wanted = Segments::new(1, Some(vec!["k".into(), "v".into()]));
        assert!(read(&mut wanted, segments(json!([{"index": 0, "key": header}]))).is_err(), "fewer parts than were asked for");
        assert!(fresh(1).read(b"", 1, |_| Bytes::new(), &mut VecDeque::new()).is_err(), "bytes of nothing");
        assert!(fresh(1).read(&vec![b' '; MAX_METADATA as usize + 1], 0, |_| Bytes::new(), &mut VecDeque::new()).is_err());
    }

    #[test]
    fn a_part_that_never_ends_is_an_error_at_the_end() {
        let mut segments = fresh(1);
        let events = read(&mut segments, json!({"segments": [one(0, 10, u64::MAX >> 1)]})).unwrap();
        assert!(!events.iter().any(|event| matches!(event, ManyEvent::End { .. })));
        assert!(segments.finish().unwrap_err().to_string().contains("key 0 of 1"));
    }

    /// A segment as anyone might make it.
    fn any_segment() -> impl Strategy<Value = Value> {
        let number = prop_oneof![0u64..4, 0u64..300, Just(u64::MAX)];
        let option = prop::option::of((0u64..4, number.clone()));
        (0u64..4, number.clone(), number, option.clone(), option, prop::bool::weighted(0.1)).prop_map(
            |(index, offset, bytes, key, part, error)| {
                let mut segment = json!({"index": index, "offset": offset, "bytes": bytes});
                if let Some((parts, version)) = key {
                    segment["key"] = json!({"version": version, "parts": parts});
                }
                if let Some((name, len)) = part {
                    segment["part"] = json!({"name": name.to_string(), "dtype": "uint8", "shape": [len]});
                }
                if error {
                    segment["error"] = json!("SIRA_BUSY: x");
                }
                segment
            },
        )
    }

    proptest! {
        /// Whatever is said: no panic, and what comes out is whole keys, in order, each part with exactly its bytes.
        #[test]
        fn what_comes_out_is_well_formed(said in prop::collection::vec(any_segment(), 0..12)) {
            let mut segments = fresh(3);
            let body = Bytes::from(vec![0u8; 256]);
            let mut events = VecDeque::new();
            let read = segments.read(json!({"segments": said}).to_string().as_bytes(), body.len(), |range| body.slice(range), &mut events);
            let (mut next, mut missing) = (0, 0);
            for event in events {
                match event {
                    ManyEvent::Key { index, .. } => prop_assert_eq!(index, next),
                    ManyEvent::Part { spec, .. } => {
                        prop_assert_eq!(missing, 0);
                        missing = spec.nbytes();
                    }
                    ManyEvent::Data { bytes, .. } => {
                        prop_assert!(!bytes.is_empty() && bytes.len() as u64 <= missing);
                        missing -= bytes.len() as u64;
                    }
                    ManyEvent::End { index } => {
                        prop_assert_eq!((index, missing), (next, 0));
                        next += 1;
                    }
                    ManyEvent::Failed { index, .. } => {
                        prop_assert_eq!(index, next);
                        (next, missing) = (next + 1, 0);
                    }
                }
            }
            prop_assert!(next <= 3 && (read.is_err() || segments.finish().is_ok() == (next == 3)));
        }
    }
}
