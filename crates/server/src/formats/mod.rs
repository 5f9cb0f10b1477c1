//! Tensor files: `.npy` and `.safetensors`, read and written in pieces.

pub mod avro;
pub mod npy;
pub mod safetensors;

use std::io::{self, SeekFrom};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use sira_client::read_pieces;
use sira_tensor::TensorSpec;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::Failure;

/// A kind of file, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// numpy's own.
    Npy,
    /// Hugging Face's.
    Safetensors,
}

impl Format {
    /// The format that the file's name says.
    pub fn of(path: &Path) -> Result<Format, Failure> {
        match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("npy") => Ok(Format::Npy),
            Some("safetensors") => Ok(Format::Safetensors),
            _ => Err(Failure::Usage(format!("{}: the name must end in .npy or .safetensors", path.display()))),
        }
    }
}

/// A tensor in a file.
pub struct Source {
    /// What it is.
    pub spec: TensorSpec,
    /// Its bytes, row-major and little-endian.
    pub pieces: BoxStream<'static, io::Result<Bytes>>,
}

/// What a format's header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What it is.
    pub spec: TensorSpec,
    /// Where its bytes begin in the file.
    pub start: u64,
    /// Whether the file must end where the tensor does.
    pub last: bool,
    /// Whether the first axis is the one that runs fastest.
    pub fortran: bool,
    /// Bytes of the numbers whose byte order must be turned; 1 for none.
    pub swap: usize,
}

/// Opens a file's tensor; `name` chooses one of several.
pub async fn open(path: &Path, name: Option<&str>) -> Result<Source, Failure> {
    let format = Format::of(path)?;
    let failed = |error: io::Error| Failure::with(path.display(), error);
    let mut file = File::open(path).await.map_err(failed)?;
    let len = file.metadata().await.map_err(failed)?.len();
    let layout = match format {
        Format::Npy if name.is_some() => {
            Err(Failure::Usage("--tensor chooses in a .safetensors file; a .npy file holds one tensor".into()))
        }
        Format::Npy => npy::read_header(&mut file).await,
        Format::Safetensors => safetensors::read_header(&mut file, name).await,
    };
    let layout = layout.map_err(|failure| match failure {
        Failure::Usage(reason) => Failure::Usage(format!("{}: {reason}", path.display())),
        other => Failure::with(path.display(), other),
    })?;
    let held = len.checked_sub(layout.start);
    let fits = |held: u64| if layout.last { held == layout.spec.nbytes() } else { held >= layout.spec.nbytes() };
    if !held.is_some_and(fits) {
        let reason = format!("the header says {} bytes of tensor, the file holds {}", layout.spec.nbytes(), held.unwrap_or(0));
        return Err(Failure::with(path.display(), reason));
    }
    file.seek(SeekFrom::Start(layout.start)).await.map_err(failed)?;
    let nbytes = layout.spec.nbytes();
    let swap = layout.swap;
    let pieces = if layout.fortran {
        let mut data = Vec::new();
        file.take(nbytes).read_to_end(&mut data).await.map_err(failed)?;
        stream::iter(npy::RowMajor::new(data, &layout.spec).map(Ok)).boxed()
    } else {
        read_pieces(file.take(nbytes)).boxed()
    };
    let pieces = if swap > 1 { pieces.map(move |piece| Ok(swap_bytes(piece?, swap))).boxed() } else { pieces };
    Ok(Source { spec: layout.spec, pieces })
}

/// Turns the byte order of numbers of `size` bytes. Pieces end between numbers: their length is a power of two, but for the last one's.
fn swap_bytes(piece: Bytes, size: usize) -> Bytes {
    let mut piece = BytesMut::from(piece);
    piece.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    piece.freeze()
}

/// The bytes that come before the tensor's in a file; `name` is how a .safetensors file calls it.
pub fn header(format: Format, path: &Path, spec: &TensorSpec, name: &str) -> Result<Vec<u8>, Failure> {
    match format {
        Format::Npy => npy::header(spec).ok_or_else(|| {
            let advice = path.with_extension("safetensors");
            Failure::Usage(format!("numpy has no {}: write {} instead", spec.dtype(), advice.display()))
        }),
        Format::Safetensors => safetensors::header(spec, name),
    }
}
