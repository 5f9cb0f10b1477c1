//! Header blocks: a request's written as plain literals, an answer's read.

use loona_hpack::Decoder;

use crate::ClientError;

/// Bytes of an answer's headers, as they were before compression.
const MAX_HEADERS: usize = 64 << 10;

// Places in HPACK's static table.
const AUTHORITY: u8 = 1;
const POST: u8 = 3;
const PATH: u8 = 4;
const HTTP: u8 = 6;
const HTTPS: u8 = 7;

/// The headers that all requests of a client share, but for the path: whom they are for, and who sends them.
pub(crate) fn request(authority: &str, secure: bool, authorization: Option<&str>) -> Vec<u8> {
    let mut block = vec![0x80 | POST, 0x80 | if secure { HTTPS } else { HTTP }, AUTHORITY];
    text(&mut block, authority);
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", AGENT)] {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    if let Some(value) = authorization {
        // Never indexed: a secret stays in nobody's table.
        block.push(0x10);
        text(&mut block, "authorization");
        text(&mut block, value);
    }
    block
}

const AGENT: &str = concat!("sira-client/", env!("CARGO_PKG_VERSION"));

/// The headers of one request.
pub(crate) fn with_path(shared: &[u8], path: &str) -> Vec<u8> {
    let mut block = shared.to_vec();
    // Behind the pseudo-headers that `request` begins with: all of them stand before the others.
    let mut header = vec![PATH];
    text(&mut header, path);
    block.splice(2..2, header);
    block
}

/// A string literal, as it is.
fn text(block: &mut Vec<u8>, text: &str) {
    let mut len = text.len();
    if len < 0x7f {
        block.push(len as u8);
    } else {
        block.push(0x7f);
        len -= 0x7f;
        while len >= 0x80 {
            block.push(len as u8 | 0x80);
            len >>= 7;
        }
        block.push(len as u8);
    }
    block.extend_from_slice(text.as_bytes());
}

/// What an answer's headers or trailers say, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// `:status`.
    pub http: Option<Vec<u8>>,
    /// `content-type`.
    pub content: Option<Vec<u8>>,
    /// `grpc-status`.
    pub status: Option<Vec<u8>>,
    /// `grpc-message`, percent-encoded.
    pub message: Option<Vec<u8>>,
}

/// Reads a whole block. Each must go through the decoder, whose table grows with them.
pub(crate) fn read(decoder: &mut Decoder<'static>, block: &[u8]) -> Result<Head, ClientError> {
    let (mut head, mut bytes) = (Head::default(), 0usize);
    let read = decoder.decode_with_cb(block, |name, value| {
        bytes = bytes.saturating_add(name.len() + value.len());
        let field = match &*name {
            b":status" => &mut head.http,
            b"content-type" => &mut head.content,
            b"grpc-status" => &mut head.status,
            b"grpc-message" => &mut head.message,
            _ => return,
        };
        *field = Some(value.into_owned());
    });
    read.map_err(|error| ClientError::protocol(format!("headers that are no HPACK: {error}")))?;
    match bytes <= MAX_HEADERS {
        true => Ok(head),
        false => Err(ClientError::protocol(format!("{bytes} bytes of headers; at most {MAX_HEADERS} are read"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_hpack() {
        let token = format!("Bearer {}", "x".repeat(300));
        let block = with_path(&request("host:1", false, Some(&token)), "/a/b");
        let headers = Decoder::new().decode(&block).unwrap();
        let headers: Vec<_> = headers.iter().map(|(n, v)| (std::str::from_utf8(n).unwrap(), std::str::from_utf8(v).unwrap())).collect();
        let expected = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/a/b"),
            (":authority", "host:1"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", AGENT),
            ("authorization", &token),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn an_answer_is_read_and_garbage_refused() {
        let mut decoder = Decoder::new();
        let block = [&[0x88, 0x40, 11][..], b"grpc-status\x015"].concat();
        let head = read(&mut decoder, &block).unwrap();
        assert_eq!((head.http.as_deref(), head.status.as_deref()), (Some(&b"200"[..]), Some(&b"5"[..])));
        // What was said once stands in the table.
        assert_eq!(read(&mut decoder, &[0xbe]).unwrap().status.as_deref(), Some(&b"5"[..]));
        for garbage in [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x40, 0x7f], &[0xff], &[0x00, 0x81, 0x00]] {
            assert!(read(&mut decoder, garbage).is_err(), "{garbage:?}");
        }
        // Many times the same long header.
        let long = [&[0x40, 1, b'x', 0x7f, 0x80, 0x10][..], &[b'v'; 0x7f + 0x800]].concat();
        let bomb = [&long[..], &[0xbe; 1000]].concat();
        assert!(read(&mut Decoder::new(), &bomb).unwrap_err().to_string().contains("bytes of headers"));
    }
}
