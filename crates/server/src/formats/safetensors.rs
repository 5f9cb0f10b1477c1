//! `.safetensors`: eight bytes of length, a JSON header, the tensors one after another.

use std::collections::BTreeMap;

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use sira_tensor::{DType, TensorSpec};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Layout;
use crate::Failure;

/// Bytes of the largest header read: the format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// The entry of the header that is no tensor.
const METADATA: &str = "__metadata__";
/// Names listed in an error.
const NAMES_SHOWN: usize = 20;
/// What to do with a file of several tensors.
const ADVICE: &str =
    "choose one with --tensor, or put all: each under a key of its own with a key that ends with /, or as parts of one key with --parts";

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Its tensors, in the order of their bytes.
    pub tensors: Vec<Tensor>,
    /// The texts of `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Bytes of the whole file.
    pub len: u64,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// What the file calls it.
    pub name: String,
    /// What it is.
    pub spec: TensorSpec,
    /// Where its bytes begin in the file.
    pub start: u64,
}

/// Reads the header and finds the tensor: the one named, or the only one.
pub async fn read_header(file: &mut (impl AsyncRead + Unpin), name: Option<&str>) -> Result<Layout, Failure> {
    let (header, data) = read_text(file).await?;
    let names = header.offset_keys();
    let name = match (name, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, []) => return Err(Failure::Failed("the file holds no tensor".into())),
        (None, several) => return Err(Failure::Usage(format!("the file holds {}; {ADVICE}", shown(several)))),
    };
    let Some(info) = header.info(name) else {
        return Err(Failure::Usage(format!("no tensor {name:?}; the file holds {}", shown(&names))));
    };
    let tensor = tensor(name, info, data)?;
    let last = info.data_offsets.1 == header.data_len();
    Ok(Layout { spec: tensor.spec, start: tensor.start, last, fortran: false, swap: 1, metadata: texts(&header) })
}

/// Reads the header: all tensors of the file.
pub async fn read_contents(file: &mut (impl AsyncRead + Unpin)) -> Result<Contents, Failure> {
    let (header, data) = read_text(file).await?;
    let of = |name: &String| header.info(name).map(|info| tensor(name, info, data));
    let tensors = header.offset_keys().iter().filter_map(of).collect::<Result<_, _>>()?;
    Ok(Contents { tensors, metadata: texts(&header), len: data + header.data_len() as u64 })
}

fn texts(header: &Metadata) -> BTreeMap<String, String> {
    header.metadata().clone().unwrap_or_default().into_iter().collect()
}

/// The header, and where the tensors begin.
async fn read_text(file: &mut (impl AsyncRead + Unpin)) -> Result<(Metadata, u64), Failure> {
    let failed = |error: std::io::Error| Failure::with("not a .safetensors file", error);
    let len = file.read_u64_le().await.map_err(failed)?;
    if len > MAX_HEADER {
        return Err(Failure::Failed(format!("not a .safetensors file: a header of {len} bytes; at most {MAX_HEADER} are allowed")));
    }
    let mut text = Vec::new();
    file.take(len).read_to_end(&mut text).await.map_err(failed)?;
    if text.len() as u64 != len {
        return Err(Failure::Failed("not a .safetensors file: it ends within its header".into()));
    }
    // The crate checks that offsets follow one another and fit dtype and shape.
    let header: Metadata = serde_json::from_slice(&text).map_err(|error| Failure::with("not a .safetensors file", error))?;
    // It does not check that they fit in a file: a few tensors can be said to have more bytes than a number can count.
    match i64::try_from(header.data_len()) {
        Ok(_) => Ok((header, 8 + len)),
        Err(_) => Err(Failure::Failed("not a .safetensors file: its tensors are more than a file can hold".into())),
    }
}

fn tensor(name: &str, info: &TensorInfo, data: u64) -> Result<Tensor, Failure> {
    let dtype: DType = info.dtype.to_string().parse().map_err(|error| Failure::with(format!("tensor {name:?}"), error))?;
    let spec = TensorSpec::new(dtype, info.shape.iter().map(|&extent| extent as u64).collect());
    let spec = spec.map_err(|error| Failure::with(format!("tensor {name:?}"), error))?;
    let (start, end) = info.data_offsets;
    if (end - start) as u64 != spec.nbytes() {
        return Err(Failure::Failed(format!("tensor {name:?}: {} bytes for {dtype} of shape {:?}", end - start, spec.shape())));
    }
    Ok(Tensor { name: name.to_owned(), spec, start: data + start as u64 })
}

fn shown(names: &[String]) -> String {
    let mut text = names.iter().take(NAMES_SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN {
        text.push_str(&format!(" and {} more", names.len() - NAMES_SHOWN));
    }
    format!("{} tensors: {text}", names.len())
}

/// The header of a file that holds only this tensor.
pub fn header(spec: &TensorSpec, name: &str) -> Result<Vec<u8>, Failure> {
    Ok(lay_out(&[(name, spec)], &BTreeMap::new())?.0)
}

/// The header of a file of several tensors, and where in the file each one begins.
///
/// Larger elements come first, so that every tensor is aligned for whoever maps the file, then names in byte order: the format's usual layout.
pub fn lay_out(tensors: &[(&str, &TensorSpec)], metadata: &BTreeMap<String, String>) -> Result<(Vec<u8>, Vec<u64>), Failure> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(tensors[i].1.dtype().item_size()), tensors[i].0));
    let mut text = Map::new();
    if !metadata.is_empty() {
        text.insert(METADATA.into(), json!(metadata));
    }
    let mut starts = vec![0; tensors.len()];
    let mut end = 0u64;
    for i in order {
        let (name, spec) = tensors[i];
        if name.is_empty() || name == METADATA {
            return Err(Failure::Usage(format!("a tensor in a .safetensors file cannot be called {name:?}")));
        }
        starts[i] = end;
        end = end.checked_add(spec.nbytes()).ok_or_else(|| Failure::Failed("the tensors are more than a file can hold".into()))?;
        let info = json!({ "dtype": spec.dtype().safetensors_name(), "shape": spec.shape(), "data_offsets": [starts[i], end] });
        if text.insert(name.to_owned(), info).is_some() {
            return Err(Failure::Failed(format!("two tensors would be called {name:?} in the file")));
        }
    }
    let mut text = Value::Object(text).to_string();
    // Spaces up to a multiple of 8, for the alignment of what follows.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    if text.len() as u64 > MAX_HEADER {
        return Err(Failure::Failed(format!(
            "{} tensors: a header of {} bytes; the format allows {MAX_HEADER}",
            tensors.len(),
            text.len()
        )));
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(text.as_bytes());
    let data = header.len() as u64;
    starts.iter_mut().for_each(|start| *start += data);
    Ok((header, starts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_by_this_and_by_the_crate() {
        for dtype in DType::all() {
            for shape in [vec![], vec![8], vec![3, 0], vec![2, 4, 8]] {
                let Ok(spec) = TensorSpec::new(dtype, shape) else { continue };
                let mut file = header(&spec, "a/b \"c\"").unwrap();
                assert_eq!(file.len() % 8, 0);
                let layout = read_header(&mut file.as_slice(), None).await.unwrap();
                assert_eq!(
                    layout,
                    Layout { spec: spec.clone(), start: file.len() as u64, last: true, fortran: false, swap: 1, metadata: BTreeMap::new() }
                );
                file.extend(vec![0; spec.nbytes() as usize]);
                let view = safetensors::SafeTensors::deserialize(&file).unwrap();
                assert_eq!(view.tensor("a/b \"c\"").unwrap().shape().len(), spec.shape().len());
            }
        }
    }

    #[tokio::test]
    async fn one_of_several_is_chosen_by_name() {
        let text = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}}"#;
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(text.as_bytes());
        let error = read_header(&mut file.as_slice(), None).await.unwrap_err();
        assert_eq!(
            error,
            Failure::Usage(
                "the file holds 2 tensors: \"a\", \"b\"; choose one with --tensor, or put all: each \
                under a key of its own with a key that ends with /, or as parts of one key with --parts"
                    .into()
            )
        );
        let layout = read_header(&mut file.as_slice(), Some("a")).await.unwrap();
        assert_eq!((layout.start, layout.last, layout.spec.dtype()), (file.len() as u64, false, DType::UInt8));
        let layout = read_header(&mut file.as_slice(), Some("b")).await.unwrap();
        assert_eq!((layout.start, layout.last, layout.spec.dtype()), (file.len() as u64 + 2, true, DType::BFloat16));
        assert!(matches!(read_header(&mut file.as_slice(), Some("c")).await, Err(Failure::Usage(_))));
    }

    #[tokio::test]
    async fn broken_headers_are_refused() {
        let of = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut files = vec![vec![], vec![0; 7], u64::MAX.to_le_bytes().to_vec(), of("{}")[..9].to_vec()];
        files.push(of(r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}"#));
        files.push(of(r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}"#));
        files.push(of(r#"{"a":{"dtype":"F12","shape":[2],"data_offsets":[0,2]}}"#));
        files.push(of(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,16],"data_offsets":[0,2]}}"#));
        // Eight tensors whose bytes, together, are eight less than 2^64.
        let large = (1u64 << 61) - 1;
        let tensors: Vec<String> = (0..8)
            .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[{large}],"data_offsets":[{},{}]}}"#, i * large, (i + 1) * large))
            .collect();
        let file = of(&format!("{{{}}}", tensors.join(",")));
        assert!(read_contents(&mut file.as_slice()).await.unwrap_err().to_string().contains("more than a file can hold"));
        for file in files {
            assert!(read_header(&mut file.as_slice(), None).await.is_err(), "{}", String::from_utf8_lossy(&file));
        }
        assert!(header(&TensorSpec::new(DType::UInt8, vec![1]).unwrap(), "").is_err());
    }

    #[tokio::test]
    async fn several_tensors_are_laid_out_aligned_and_read_back() {
        let spec = |dtype, shape: &[u64]| TensorSpec::new(dtype, shape.to_vec()).unwrap();
        let specs = [spec(DType::UInt8, &[3]), spec(DType::Float64, &[2]), spec(DType::BFloat16, &[0]), spec(DType::Float64, &[])];
        let tensors: Vec<(&str, &TensorSpec)> = ["z", "y", "a/é", "b"].into_iter().zip(&specs).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let (mut file, starts) = lay_out(&tensors, &metadata).unwrap();
        let data = file.len() as u64;
        assert_eq!(starts, [data + 24, data + 8, data + 24, data]);
        let contents = read_contents(&mut file.as_slice()).await.unwrap();
        assert_eq!((contents.len, &contents.metadata), (data + 27, &metadata));
        for tensor in &contents.tensors {
            let i = tensors.iter().position(|(name, _)| *name == tensor.name).unwrap();
            assert_eq!((&tensor.spec, tensor.start), (&specs[i], starts[i]));
        }
        assert_eq!(contents.tensors.len(), 4);
        file.resize(contents.len as usize, 0);
        assert_eq!(safetensors::SafeTensors::deserialize(&file).unwrap().len(), 4);
        assert!(lay_out(&[("a", &specs[0]), ("a", &specs[1])], &metadata).is_err());
        assert!(lay_out(&[("__metadata__", &specs[0])], &metadata).is_err());
    }
}
