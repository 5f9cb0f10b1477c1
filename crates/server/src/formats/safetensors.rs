//! `.safetensors`: eight bytes of length, a JSON header, the tensors one after another.

use safetensors::tensor::Metadata;
use serde_json::json;
use sira_tensor::{DType, TensorSpec};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Layout;
use crate::Failure;

/// Bytes of the largest header read: the format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// Names listed in an error.
const NAMES_SHOWN: usize = 20;

/// Reads the header and finds the tensor: the one named, or the only one.
pub async fn read_header(file: &mut (impl AsyncRead + Unpin), name: Option<&str>) -> Result<Layout, Failure> {
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
    let names = header.offset_keys();
    let name = match (name, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, []) => return Err(Failure::Failed("the file holds no tensor".into())),
        (None, several) => return Err(Failure::Usage(format!("the file holds {}; choose one with --tensor", shown(several)))),
    };
    let Some(info) = header.info(name) else {
        return Err(Failure::Usage(format!("no tensor {name:?}; the file holds {}", shown(&names))));
    };
    let dtype: DType = info.dtype.to_string().parse().map_err(|error| Failure::with(format!("tensor {name:?}"), error))?;
    let spec = TensorSpec::new(dtype, info.shape.iter().map(|&extent| extent as u64).collect());
    let spec = spec.map_err(|error| Failure::with(format!("tensor {name:?}"), error))?;
    let (start, end) = info.data_offsets;
    if (end - start) as u64 != spec.nbytes() {
        return Err(Failure::Failed(format!("tensor {name:?}: {} bytes for {dtype} of shape {:?}", end - start, spec.shape())));
    }
    Ok(Layout { spec, start: 8 + len + start as u64, last: end == header.data_len(), fortran: false, swap: 1 })
}

fn shown(names: &[String]) -> String {
    let mut text = names.iter().take(NAMES_SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN {
        text.push_str(&format!(" and {} more", names.len() - NAMES_SHOWN));
    }
    format!("{} tensors: {text}", names.len())
}

/// The bytes before the tensor in a file that holds only it.
pub fn header(spec: &TensorSpec, name: &str) -> Result<Vec<u8>, Failure> {
    if name.is_empty() || name == "__metadata__" {
        return Err(Failure::Usage(format!("a tensor in a .safetensors file cannot be called {name:?}")));
    }
    let mut text = json!({
        name: { "dtype": spec.dtype().safetensors_name(), "shape": spec.shape(), "data_offsets": [0, spec.nbytes()] }
    })
    .to_string();
    // Spaces up to a multiple of 8, so that the tensor is aligned for whoever maps the file.
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(text.as_bytes());
    Ok(header)
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
                assert_eq!(layout, Layout { spec: spec.clone(), start: file.len() as u64, last: true, fortran: false, swap: 1 });
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
        assert_eq!(error, Failure::Usage("the file holds 2 tensors: \"a\", \"b\"; choose one with --tensor".into()));
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
        for file in files {
            assert!(read_header(&mut file.as_slice(), None).await.is_err(), "{}", String::from_utf8_lossy(&file));
        }
        assert!(header(&TensorSpec::new(DType::UInt8, vec![1]).unwrap(), "").is_err());
    }
}
