//! Exports as a whole: round trips, torn and damaged files, the golden file.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, which fail by panicking")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use bytes::Bytes;
use sira_client::{Consistency, DType, TensorSpec};

use super::*;

/// A tensor in memory: its header, and the bytes of all its parts.
type Tensor = (Header, Vec<u8>);

/// Bytes of a chunk in these tests.
const SMALL_CHUNK: usize = 400;

fn tensor(key: &str, parts: Vec<(&str, TensorSpec)>) -> Tensor {
    let nbytes: u64 = parts.iter().map(|(_, spec)| spec.nbytes()).sum();
    let seed = key.bytes().fold(1u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let data = (0..nbytes as u32).map(|i| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let parts = parts.into_iter().map(|(name, spec)| Part::new(name.into(), &spec, Some("planes+zstd".into()))).collect();
    let (consistency, expires_ms) = (Consistency::Strong, Some(4_102_444_800_000));
    (
        Header {
            key: key.into(),
            version: 7,
            parts,
            created_ms: Some(1_790_000_000_000),
            expires_ms,
            consistency,
            derived_from_lossy: false,
            kv_spec: None,
        },
        data,
    )
}

fn spec(dtype: DType, shape: &[u64]) -> TensorSpec {
    TensorSpec::new(dtype, shape.to_vec()).unwrap()
}

/// Small tensors that share a block, one of several blocks, an empty one, one of several parts.
fn samples() -> Vec<Tensor> {
    let named = spec(DType::BFloat16, &[2, 3]).with_axes(vec!["token".into(), String::new()]).unwrap();
    let named = named.with_attributes(BTreeMap::from([("model".into(), "m \u{1f980}".into()), ("empty".into(), String::new())])).unwrap();
    let axes = |spec: TensorSpec, names: &[&str]| spec.with_axes(names.iter().map(|name| (*name).to_owned()).collect()).unwrap();
    let (k, none) = (axes(spec(DType::Float8E4M3Fn, &[450]), &["token"]), axes(spec(DType::Int8, &[0, 4]), &["token", "dim"]));
    let mut several = tensor("t/parts", vec![("k", k), ("none", none), ("scale", spec(DType::Float32, &[]))]);
    let json = r#"{"model":"m","block_tokens":16,"parts":[{"name":"k","dtype":"float8_e4m3fn","axes":["token"]},
        {"name":"none","dtype":"int8","axes":["token","dim"]},{"name":"scale","dtype":"float32","axes":[]}]}"#;
    let follows = sira_client::KvSpec::from_json(json.as_bytes()).unwrap();
    several.0.kv_spec = Some(KvSpec { hash: follows.hash(), json: follows.canonical() });
    several.0.expires_ms = None;
    vec![
        tensor("t/a", vec![("data", named)]),
        tensor("t/empty", vec![("data", spec(DType::Int64, &[3, 0]))]),
        tensor("t/large", vec![("data", spec(DType::UInt16, &[5, 100]))]),
        several,
        tensor("t/z", vec![("data", spec(DType::Float4E2M1Fn, &[6]))]),
    ]
}

fn write_tensor(writer: &mut Writer, (header, data): &Tensor, piece: usize) {
    writer.header(header.clone()).unwrap();
    for piece in data.chunks(piece) {
        writer.data(Bytes::copy_from_slice(piece)).unwrap();
    }
    writer.end().unwrap();
}

fn write(path: &Path, codec: Codec, tensors: &[Tensor], chunk: usize, piece: usize) -> Vec<u8> {
    let mut writer = Writer::create(path, codec, "t/").unwrap();
    writer.chunk = chunk;
    tensors.iter().for_each(|tensor| write_tensor(&mut writer, tensor, piece));
    let size = writer.finish().unwrap();
    let file = std::fs::read(path).unwrap();
    assert_eq!(file.len() as u64, size);
    file
}

/// The tensors that a file gives before it ends or an error comes.
fn read(file: &[u8]) -> (Vec<Tensor>, Option<ReadError>) {
    let mut reader = match Reader::new(file) {
        Ok(reader) => reader,
        Err(error) => return (vec![], Some(error)),
    };
    let (mut whole, mut open) = (Vec::new(), None);
    loop {
        match reader.read() {
            Ok(Some(Event::Begin(header))) => open = Some((header, Vec::new())),
            Ok(Some(Event::Data(data))) => open.as_mut().unwrap().1.extend_from_slice(&data),
            Ok(Some(Event::End)) => whole.extend(open.take()),
            Ok(None) => return (whole, None),
            Err(error) => return (whole, Some(error)),
        }
    }
}

#[test]
fn every_dtype_and_shape_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = samples();
    for dtype in DType::all() {
        for shape in [&[][..], &[8], &[0], &[3, 0, 5], &[2, 4, 8], &[1, 1, 1, 1, 8]] {
            if let Ok(spec) = TensorSpec::new(dtype, shape.to_vec()) {
                tensors.push(tensor(&format!("t/{dtype}/{}", tensors.len()), vec![("data", spec)]));
            }
        }
    }
    tensors.push(tensor("t/chunks", vec![("data", spec(DType::UInt8, &[2 * CHUNK as u64 + 17]))]));
    for codec in [Codec::Null, Codec::Deflate, Codec::Zstandard] {
        for (chunk, piece) in [(CHUNK, CHUNK), (CHUNK, 3 * CHUNK), (CHUNK, 700_001), (4096, 1 << 20)] {
            let file = write(&folder.path().join("x.avro"), codec, &tensors, chunk, piece);
            let (found, error) = read(&file);
            assert!(error.is_none(), "{error:?}");
            assert_eq!(found, tensors, "{codec:?} {chunk} {piece}");
        }
    }
}

#[test]
fn an_export_torn_at_any_byte_goes_on_to_the_same_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.avro");
    let tensors = samples();
    let file = write(&path, Codec::Null, &tensors, SMALL_CHUNK, 333);
    let blocks = Reader::new(file.as_slice()).unwrap().at() as usize;
    let ends = block_ends(&file, &tensors);
    let mut resumed_at = std::collections::BTreeSet::new();
    for cut in (0..blocks).step_by(211).chain(blocks - 1..=file.len()) {
        std::fs::write(partial_path(&path), &file[..cut]).unwrap();
        let mut writer = Writer::resume(&path, None, "t/").unwrap();
        writer.chunk = SMALL_CHUNK;
        let last = writer.resumed().last_key.clone();
        let from = tensors.iter().position(|tensor| Some(&tensor.0.key) == last.as_ref()).map_or(0, |i| i + 1);
        assert_eq!(writer.resumed().tensors, from as u64);
        resumed_at.insert(from);
        tensors[from..].iter().for_each(|tensor| write_tensor(&mut writer, tensor, 100));
        let (found, error) = read(&writer_bytes(writer));
        assert!(error.is_none() && found == tensors, "cut at {cut}: {error:?}");
        let (whole, error) = read(&file[..cut]);
        assert_eq!(whole, tensors[..whole.len()]);
        assert_eq!(error.is_some_and(|error| error.is_torn()), !ends.contains(&(cut as u64)), "cut at {cut}");
    }
    assert!(resumed_at.len() > 3, "tensors in blocks of their own are kept: {resumed_at:?}");
}

/// Where a file may end: behind its header, and behind a block in which a tensor ends.
fn block_ends(file: &[u8], tensors: &[Tensor]) -> Vec<u64> {
    let mut reader = Reader::new(file).unwrap();
    let mut ends = vec![reader.at()];
    for _ in tensors {
        while !matches!(reader.read().unwrap(), Some(Event::End)) {}
        ends.extend(reader.block_end());
    }
    ends
}

#[test]
fn no_flipped_bit_changes_a_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = samples();
    // Steps that have no factor in common with 8 come by every bit of a byte.
    for (codec, step) in [(Codec::Null, 3), (Codec::Deflate, 7)] {
        let mut file = write(&folder.path().join("x.avro"), codec, &tensors, SMALL_CHUNK, 333);
        let blocks = Reader::new(file.as_slice()).unwrap().at() as usize;
        let mut seen = 0;
        for bit in (blocks * 8..file.len() * 8).step_by(step) {
            file[bit / 8] ^= 1 << (bit % 8);
            let (found, error) = read(&file);
            // A few bits mean nothing, as the spare ones at a deflate stream's end; every other one ends the reading.
            assert!(found == tensors[..found.len()], "bit {bit}");
            assert!(error.is_some() || found.len() == tensors.len(), "bit {bit}");
            seen += usize::from(error.is_some());
            file[bit / 8] ^= 1 << (bit % 8);
        }
        let flipped = (file.len() - blocks) * 8 / step;
        assert!(seen * 100 > flipped * 99, "{codec:?}: {seen} of {flipped}");
        // In the file's header a bit may be one of a comment. What is read all the same is right.
        for byte in (0..blocks).step_by(5) {
            file[byte] ^= 1 << (byte % 8);
            let (found, _) = read(&file);
            for (header, data) in found {
                assert!(tensors.iter().any(|(_, original)| *original == data), "byte {byte}: {}", header.key);
            }
            file[byte] ^= 1 << (byte % 8);
        }
    }
}

#[test]
fn a_flipped_bit_of_a_chunk_is_told_with_place_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = write(&folder.path().join("x.avro"), Codec::Null, &samples(), SMALL_CHUNK, 333);
    let large = samples().remove(2).1;
    let at = file.windows(200).position(|window| window == &large[500..700]).unwrap();
    file[at] ^= 0x10;
    let (found, error) = read(&file);
    let error = error.unwrap();
    assert_eq!((found.len(), error.key.as_deref()), (2, Some("t/large")));
    assert!(error.at < at as u64 && error.at + 600 > at as u64 && error.is_damage() && !error.is_torn());
    assert!(error.to_string().contains("the checksum of the chunk at byte 400 of part 0 is wrong: the file is damaged"), "{error}");
}

#[test]
fn a_tensor_is_taken_back_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = samples();
    for at in 0..tensors.len() {
        let path = folder.path().join(format!("{at}.avro"));
        let mut writer = Writer::create(&path, Codec::Null, "t/").unwrap();
        writer.chunk = SMALL_CHUNK;
        for (i, tensor) in tensors.iter().enumerate() {
            if i == at {
                let (header, data) = &samples()[(at + 2) % tensors.len()];
                writer.header(header.clone()).unwrap();
                writer.data(Bytes::copy_from_slice(&data[..data.len() * 2 / 3])).unwrap();
                assert!(data.is_empty() || writer.end().is_err());
                writer.roll_back().unwrap();
            }
            write_tensor(&mut writer, tensor, 50);
        }
        writer.finish().unwrap();
        assert_eq!(read(&std::fs::read(&path).unwrap()).0, tensors);
    }
}

#[test]
fn reading_goes_on_at_any_place_behind_a_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = samples();
    let file = write(&folder.path().join("x.avro"), Codec::Zstandard, &tensors, SMALL_CHUNK, 333);
    let mut reader = Reader::new(Cursor::new(&file)).unwrap();
    for (i, _) in tensors.iter().enumerate() {
        while !matches!(reader.read().unwrap(), Some(Event::End)) {}
        let mut other = Reader::new(Cursor::new(&file)).unwrap();
        other.go_to(reader.place()).unwrap();
        match other.read().unwrap() {
            Some(Event::Begin(header)) => assert_eq!(header, tensors[i + 1].0),
            event => assert!(event.is_none() && i + 1 == tensors.len()),
        }
    }
}

#[test]
fn an_interrupted_export_is_neither_overwritten_nor_mixed_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.avro");
    let reason = |error: Option<std::io::Error>| error.unwrap().to_string();
    let writer = Writer::create(&path, Codec::Deflate, "t/").unwrap();
    assert!(reason(Writer::create(&path, Codec::Null, "t/").err()).contains("go on with --resume, or remove it"));
    assert!(reason(Writer::resume(&path, None, "t/").err()).contains("another export is writing it"));
    drop(writer);
    assert!(reason(Writer::resume(&path, None, "u/").err()).contains("an export of \"t/\", not of \"u/\""));
    assert!(reason(Writer::resume(&path, Some(Codec::Null), "t/").err()).contains("its codec is deflate"));
    assert!(Writer::resume(&path, Some(Codec::Deflate), "t/").is_ok());
    std::fs::write(partial_path(&path), b"not an export at all, but somebody's file").unwrap();
    assert!(Writer::resume(&path, None, "t/").is_err());
}

#[test]
fn headers_that_no_tensor_has_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = tensor("t/x", vec![("data", spec(DType::UInt8, &[4]))]);
    type Change = fn(&mut Header);
    let changes: [(Change, &str); 11] = [
        (|header| header.key = "t/x\u{1b}[2J".into(), "SIRA_BAD_KEY"),
        (|header| header.key = "t".repeat(9000) + "t/x", "SIRA_BAD_KEY"),
        (|header| header.parts[0].nbytes = 5, "has 4 bytes, the header says 5"),
        (|header| header.parts[0].nbytes = -1, "the header says -1"),
        (|header| header.parts[0].shape = vec![-4], "an extent of -4"),
        (|header| header.parts[0].shape = vec![i64::MAX, i64::MAX], "overflows"),
        (|header| header.parts[0].shape = vec![1; 65], "65 axes"),
        (|header| header.parts[0].dtype = "float12".into(), "unknown dtype"),
        (|header| header.parts[0].axes = vec!["a".into(), "b".into()], "2 names for 1 axes"),
        (|header| header.parts.clear(), "0 parts; a key has 1 to 64"),
        (|header| header.parts.push(header.parts[0].clone()), "two parts are called \"data\""),
    ];
    for (i, (change, reason)) in changes.into_iter().enumerate() {
        let mut header = good.0.clone();
        change(&mut header);
        let mut writer = Writer::create(&folder.path().join(i.to_string()), Codec::Null, "t/").unwrap();
        writer.header(header).unwrap();
        let file = writer_bytes(writer);
        let error = read(&file).1.unwrap().to_string();
        assert!(error.contains(reason) && error.contains("tensor \"t") && error.len() < 900, "{error}");
        assert!(!error.contains(char::is_control), "{error}");
    }
}

/// What a writer has written so far.
fn writer_bytes(mut writer: Writer) -> Vec<u8> {
    writer.flush().unwrap();
    std::fs::read(partial_path(&writer.path)).unwrap()
}

#[test]
fn the_golden_file_stays_readable() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/export-1.avro");
    if std::env::var_os("SIRA_WRITE_GOLDEN").is_some() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(&path, write(&folder.path().join("x.avro"), Codec::Deflate, &samples(), SMALL_CHUNK, 333)).unwrap();
    }
    let (found, error) = read(&std::fs::read(&path).unwrap());
    assert!(error.is_none(), "{error:?}");
    assert_eq!(found, samples());
}
