//! Tensor files: `.npy` and `.safetensors`, read and written in pieces.

pub mod avro;
pub mod npy;
pub mod safetensors;

use std::collections::BTreeMap;
use std::io::{self, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use sira_client::read_pieces;
use sira_tensor::TensorSpec;
use sira_tensor::grid::runs;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use self::safetensors::Contents;
use crate::Failure;

/// Bytes of a piece of a .safetensors file.
const PIECE: u64 = 2 << 20;

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
    /// What the file says of itself.
    pub metadata: BTreeMap<String, String>,
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
    /// What the file says of itself: `__metadata__` of a .safetensors file.
    pub metadata: BTreeMap<String, String>,
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
    Ok(Source { spec: layout.spec, pieces, metadata: layout.metadata })
}

/// A .safetensors file, to be read tensor by tensor.
pub struct TensorFile {
    path: PathBuf,
    file: Arc<std::fs::File>,
}

impl TensorFile {
    /// Opens a file, reads its header, and checks that its length is the one that the header says.
    pub async fn open(path: &Path) -> Result<(TensorFile, Contents), Failure> {
        if Format::of(path)? == Format::Npy {
            return Err(Failure::Usage(format!(
                "{}: a .npy file holds one tensor; give it a key that does not end with /",
                path.display()
            )));
        }
        let failed = |error: io::Error| Failure::with(path.display(), error);
        let mut file = File::open(path).await.map_err(failed)?;
        let len = file.metadata().await.map_err(failed)?.len();
        let contents = safetensors::read_contents(&mut file).await.map_err(|failure| Failure::with(path.display(), failure))?;
        if len != contents.len {
            return Err(Failure::with(path.display(), format!("the header says {} bytes, the file has {len}", contents.len)));
        }
        if contents.tensors.is_empty() {
            return Err(Failure::with(path.display(), "the file holds no tensor"));
        }
        Ok((TensorFile { path: path.to_owned(), file: Arc::new(file.into_std().await) }, contents))
    }

    /// All bytes of a tensor.
    pub async fn read(&self, tensor: &safetensors::Tensor) -> Result<Bytes, Failure> {
        let bytes = read_at(self.file.clone(), tensor.start, tensor.spec.nbytes()).await;
        bytes.map_err(|error| Failure::with(self.path.display(), error))
    }

    /// The bytes of a box of a tensor, row-major.
    pub async fn read_box(&self, tensor: &safetensors::Tensor, region: &[Range<u64>]) -> Result<Vec<u8>, Failure> {
        let item = tensor.spec.dtype().item_size().unwrap_or(1) as u64;
        let (run, begins) = runs(tensor.spec.shape(), item, region);
        let failed = |error: io::Error| Failure::with(self.path.display(), error);
        let (file, start) = (self.file.clone(), tensor.start);
        let read = move || {
            let mut bytes = Vec::new();
            for begin in begins {
                let at = bytes.len();
                bytes.resize(at + run as usize, 0);
                file.read_exact_at(&mut bytes[at..], start + begin)?;
            }
            Ok(bytes)
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
    }

    /// The bytes of a tensor, piece by piece.
    pub fn pieces(&self, tensor: &safetensors::Tensor) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let (file, end) = (self.file.clone(), tensor.start + tensor.spec.nbytes());
        stream::try_unfold(tensor.start, move |at| {
            let file = file.clone();
            async move {
                let piece = read_at(file, at, PIECE.min(end - at)).await?;
                Ok((!piece.is_empty()).then(|| (piece.clone(), at + piece.len() as u64)))
            }
        })
    }
}

/// Reads where nobody else's position in the file matters.
async fn read_at(file: Arc<std::fs::File>, start: u64, len: u64) -> io::Result<Bytes> {
    let read = move || {
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, start)?;
        Ok(Bytes::from(bytes))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Turns the byte order of numbers of `size` bytes. Pieces end between numbers: their length is a power of two, but for the last one's.
fn swap_bytes(piece: Bytes, size: usize) -> Bytes {
    let mut piece = BytesMut::from(piece);
    piece.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    piece.freeze()
}

/// A tensor of a file with the names of its axes: those that are given, else those that the file's metadata says (`axes`, joined by
/// commas) where there is one for each axis.
pub fn named(spec: TensorSpec, axes: &[String], metadata: &BTreeMap<String, String>) -> Result<TensorSpec, sira_tensor::TensorError> {
    let rank = spec.shape().len();
    let of_file = || metadata.get("axes").map(|text| text.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>());
    let axes = if axes.is_empty() { of_file().filter(|axes| axes.len() == rank).unwrap_or_default() } else { axes.to_vec() };
    spec.with_axes(axes)
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
