//! Servers that say what they should not, to a client that reads HTTP/2 by itself: every word of theirs ends in an error or in a whole tensor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sira_client::{ClientError, ConnectOptions, blocking};

const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

fn headers() -> Vec<u8> {
    frame(1, 4, 1, &[&[0x88][..], &literal("content-type", "application/grpc")].concat())
}

fn trailers(status: &str, message: &str) -> Vec<u8> {
    frame(1, 5, 1, &[literal("grpc-status", status), literal("grpc-message", message)].concat())
}

/// What a client makes of these bytes after the server's settings; the server then closes.
fn get(words: &[u8]) -> Result<Vec<u8>, ClientError> {
    get_after(SETTINGS, words)
}

fn get_after(greeting: &[u8], words: &[u8]) -> Result<Vec<u8>, ClientError> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    let said = [greeting, words].concat();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        say(&mut socket, &said);
    });
    let client = blocking::Client::new(&url, &ConnectOptions::default(), || true).unwrap();
    let end = Some(Instant::now() + Duration::from_secs(20));
    let got = client.get(br#"{"v":1,"key":"ns/a"}"#, end).and_then(|tensor| {
        let mut out = vec![0; 16];
        tensor.read_into(&mut out).map(|()| out)
    });
    drop(client);
    server.join().unwrap();
    got
}

/// Says it, and closes once the client has had time to read it or has closed.
fn say(socket: &mut TcpStream, words: &[u8]) {
    let _ = socket.write_all(words);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let _ = socket.set_read_timeout(Some(Duration::from_secs(20)));
    let mut sink = [0; 4096];
    while matches!(socket.read(&mut sink), Ok(1..)) {}
}

/// A whole answer: a tensor of 16 bytes, in the messages that arrow-flight writes.
fn answer() -> Vec<u8> {
    use arrow_flight::utils::batches_to_flight_data;
    use prost::Message;

    let metadata = [("sira.shape", "[16]"), ("sira.dtype", "uint8")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let field = arrow_schema::Field::new("tensor", arrow_schema::DataType::UInt8, false);
    let schema = std::sync::Arc::new(arrow_schema::Schema::new(vec![field]).with_metadata(std::collections::HashMap::from(metadata)));
    let column = std::sync::Arc::new(arrow_array::UInt8Array::from_iter_values(0..16));
    let batch = arrow_array::RecordBatch::try_new(schema.clone(), vec![column]).unwrap();
    let messages = batches_to_flight_data(&schema, &[batch]).unwrap();
    let body: Vec<u8> = messages
        .iter()
        .flat_map(|message| {
            let message = message.encode_to_vec();
            [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
        })
        .collect();
    body
}

fn whole() -> Vec<u8> {
    [headers(), frame(0, 0, 1, &answer()), trailers("0", "")].concat()
}

#[test]
fn a_whole_answer_in_any_frames_is_a_tensor() {
    let expected: Vec<u8> = (0..16).collect();
    assert_eq!(get(&whole()).unwrap(), expected);
    let body = answer();
    // Cut anywhere, padded, with frames between that mean nothing or ask for an answer, and ended by the last data's trailers.
    let padded = |part: &[u8]| frame(0, 8, 1, &[&[7][..], part, &[0; 7]].concat());
    let between = [frame(6, 0, 0, &[1; 8]), frame(0x77, 0, 9, b"?"), frame(2, 0, 1, &[0; 5]), frame(8, 0, 0, &[0, 0, 1, 0])].concat();
    for cut in [1, 4, 5, 6, 100, body.len() - 20, body.len() - 1] {
        let parts = [headers(), padded(&body[..cut]), between.clone(), frame(0, 0, 1, &[]), padded(&body[cut..]), trailers("0", "")];
        assert_eq!(get(&parts.concat()).unwrap(), expected, "{cut}");
    }
    let split = headers();
    let (first, second) = split[9..].split_at(3);
    let continued = [frame(1, 0, 1, first), frame(9, 4, 1, second), frame(0, 0, 1, &body), trailers("0", "")].concat();
    assert_eq!(get(&continued).unwrap(), expected);
}

#[test]
fn what_is_wrong_is_an_error_that_says_so() {
    let body = answer();
    let data = |bytes: &[u8]| frame(0, 0, 1, bytes);
    let after = |frames: &[u8]| [&headers()[..], frames].concat();
    let message = |prefix: &[u8]| after(&[data(prefix), trailers("0", "")].concat());
    for (what, words, said) in [
        ("nothing", vec![], "it was closed"),
        ("a refusal", trailers("5", "x"), "HTTP status"),
        ("an answer cut off", whole()[..200].to_vec(), "it was closed"),
        ("no trailers", after(&data(&body)), "it was closed"),
        ("an end without a status", after(&frame(0, 1, 1, &body)), "without a status"),
        ("a bad status", after(&[data(&body), trailers("14", "busy")].concat()), "busy"),
        ("fewer bytes", after(&[data(&body[..body.len() - 30]), trailers("0", "")].concat()), "ended inside a message"),
        ("no messages", after(&trailers("0", "")), "without a schema"),
        ("data before headers", data(&body), "data of no call"),
        ("data of another stream", after(&frame(0, 0, 3, &body)), "data of no call"),
        ("headers of another stream", frame(1, 4, 3, &[0x88]), "headers of no call"),
        ("a frame too long", after(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]), "at most"),
        ("headers too long", frame(1, 4, 1, &[0; 70_000]), "70000 bytes"),
        ("all of padding", after(&frame(0, 8, 1, &[9, 0, 0])), "padding"),
        ("headers all of padding", frame(1, 0xc, 1, &[9, 0, 0]), "padding"),
        ("a push", frame(5, 4, 1, &[0; 8]), "a push"),
        ("a lone continuation", frame(9, 4, 1, &[0x88]), "a push, or headers that continue none"),
        ("endless headers", [frame(1, 0, 1, &[0x88]), frame(9, 0, 1, &[0; 60_000]), frame(9, 0, 1, &[0; 60_000])].concat(), "never end"),
        ("a reset", after(&frame(3, 0, 1, &[0, 0, 0, 8])), "error 8"),
        ("a short reset", after(&frame(3, 0, 1, &[0])), "length"),
        ("settings of a stream", frame(4, 0, 1, &[]), "length or its stream"),
        ("half a setting", frame(4, 0, 0, &[0; 5]), "length or its stream"),
        ("a wrong setting", frame(4, 0, 0, &[0, 5, 0, 0, 0, 1]), "setting of 1"),
        ("a window of nothing", frame(8, 0, 0, &[0; 4]), "window"),
        ("a window too wide", [frame(8, 0, 0, &[0x7f, 255, 255, 255])].concat(), "window"),
        ("a farewell", frame(7, 0, 0, &[0; 8]), "ends the connection"),
        ("another content", frame(1, 4, 1, &[&[0x88][..], &literal("content-type", "text/html")].concat()), "is it a Sira server"),
        ("a page that is not there", frame(1, 5, 1, &[0x8d]), "404"),
        ("compression", message(&[1, 0, 0, 0, 1, 0]), "compression"),
        ("a field beyond its message", message(&[0, 0, 0, 0, 2, 0x12, 50]), "longer than its message"),
        ("a header too large", message(&[0, 0x7f, 0xff, 0xff, 0xff, 0x12, 0x80, 0x80, 0x80, 0x01]), "at most"),
        ("a number without end", message(&[[0, 0, 0, 0, 40].as_slice(), &[0xff; 40]].concat()), "ten bytes"),
        ("a group", message(&[0, 0, 0, 0, 1, 0x0b]), "wire type 3"),
        ("a schema that is none", message(&[0, 0, 0, 0, 4, 0x12, 2, 1, 2]), "is this a Sira server"),
    ] {
        let error = get(&words).expect_err(what).to_string();
        assert!(error.contains(said), "{what}: {error}");
    }
}

#[test]
fn whoever_does_not_speak_http2_is_told_apart() {
    for greeting in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"+PONG\r\n+PONG\r\n+PONG\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", &[0; 40]] {
        let error = get_after(greeting, b"").unwrap_err().to_string();
        assert!(error.contains("HTTP/2") || error.contains("at most") || error.contains("closed"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever byte is another one: no panic, and no wait beyond the end of what comes.
    #[test]
    fn a_mutated_answer_ends(at in 0usize..1000, value in any::<u8>()) {
        let mut words = whole();
        let at = at % words.len();
        words[at] = value;
        if let Ok(bytes) = get(&words) {
            prop_assert_eq!(bytes.len(), 16);
        }
    }
}
