//! Bytes over TCP and nothing else: one thread and one buffer a connection.
//!
//! A request is one byte (`G` or `P`) and a length in eight, little-endian. The answer to `G` is that many bytes, of what `P` sent before; `P` is
//! followed by its bytes and answered with one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use sira_benches::Failure;

/// A length beyond this is a mistake, not a tensor.
const LARGEST: u64 = 1 << 30;

/// Serves until it is killed. The first line of standard output says where.
pub fn serve() -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || answer(stream));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let (what, length) = read_request(&mut stream)?;
        if length > LARGEST {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let length = length as usize;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        if what == b'P' {
            stream.read_exact(&mut buffer[..length])?;
            stream.write_all(b"K")?;
        } else {
            stream.write_all(&buffer[..length])?;
        }
    }
}

fn read_request(stream: &mut TcpStream) -> std::io::Result<(u8, u64)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let mut length = [0; 8];
    length.copy_from_slice(&head[1..]);
    Ok((head[0], u64::from_le_bytes(length)))
}
