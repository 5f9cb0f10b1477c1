//! What a client declares of a part, and its bytes.

use std::collections::BTreeMap;

use flatbuffers::{FlatBufferBuilder, VerifierOptions};

use crate::generated::spec::sira::spec as fb;
use crate::{DType, TensorError, shape};

/// Attributes a spec may have.
pub const MAX_ATTRIBUTES: usize = 64;
/// Bytes of an attribute's name, and of an axis'.
pub const MAX_NAME: usize = 128;
/// Bytes of an attribute's value.
pub const MAX_VALUE: usize = 4096;

/// What a client declares of one part: dtype, shape, axis names, attributes.
///
/// A value of this type is always valid: its size is known and fits, its axes fit its shape, its attributes fit the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    dtype: DType,
    shape: Vec<u64>,
    nbytes: u64,
    axes: Vec<String>,
    attributes: BTreeMap<String, String>,
}

impl TensorSpec {
    /// A spec without names or attributes. Fails where the size overflows or a packed tensor ends inside a byte.
    pub fn new(dtype: DType, shape: Vec<u64>) -> Result<TensorSpec, TensorError> {
        let nbytes = shape::nbytes(dtype, &shape)?;
        Ok(TensorSpec { dtype, shape, nbytes, axes: Vec::new(), attributes: BTreeMap::new() })
    }

    /// Names the axes: one name an axis, `""` for an unnamed one, no name twice; none at all to leave them unnamed.
    pub fn with_axes(mut self, axes: Vec<String>) -> Result<TensorSpec, TensorError> {
        if !axes.is_empty() && axes.len() != self.shape.len() {
            return Err(TensorError::BadAxes(format!("{} names for {} axes of shape {:?}", axes.len(), self.shape.len(), self.shape)));
        }
        for (i, name) in axes.iter().enumerate() {
            if name.len() > MAX_NAME || name.chars().any(char::is_control) {
                return Err(TensorError::BadAxes(format!("axis {i}: a name is up to {MAX_NAME} bytes without control characters")));
            }
            if !name.is_empty() && axes[..i].contains(name) {
                return Err(TensorError::BadAxes(format!("two axes are named {name:?}")));
            }
            if name.parse::<usize>().is_ok_and(|position| position != i) {
                return Err(TensorError::BadAxes(format!("axis {i} is named {name:?}, which means the axis at that position")));
            }
        }
        self.axes = if axes.iter().all(String::is_empty) { Vec::new() } else { axes };
        Ok(self)
    }

    /// Sets the attributes.
    pub fn with_attributes(mut self, attributes: BTreeMap<String, String>) -> Result<TensorSpec, TensorError> {
        if attributes.len() > MAX_ATTRIBUTES {
            return Err(TensorError::BadAttributes(format!("{} of them; at most {MAX_ATTRIBUTES} are kept", attributes.len())));
        }
        for (name, value) in &attributes {
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                return Err(TensorError::BadAttributes(format!(
                    "a name is 1 to {MAX_NAME} bytes without control characters, not {} bytes",
                    name.len()
                )));
            }
            if value.len() > MAX_VALUE {
                return Err(TensorError::BadAttributes(format!("{name:?} has {} bytes; a value has at most {MAX_VALUE}", value.len())));
            }
        }
        self.attributes = attributes;
        Ok(self)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, row-major; empty for a scalar.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Bytes of the whole tensor.
    pub fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// Axis names, one an axis, or none at all.
    pub fn axes(&self) -> &[String] {
        &self.axes
    }

    /// The client's attributes.
    pub fn attributes(&self) -> &BTreeMap<String, String> {
        &self.attributes
    }

    /// The position of the axis that a slice calls `name`: its name, or its position in decimal.
    pub fn axis(&self, name: &str) -> Option<usize> {
        let named = self.axes.iter().position(|axis| axis == name && !name.is_empty());
        named.or_else(|| name.parse().ok().filter(|&position| position < self.shape.len()))
    }

    /// The spec's bytes, as schemas/spec.fbs has them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let shape = builder.create_vector(&self.shape);
        let axes = (!self.axes.is_empty()).then(|| {
            let names: Vec<_> = self.axes.iter().map(|name| builder.create_string(name)).collect();
            builder.create_vector(&names)
        });
        let attributes = (!self.attributes.is_empty()).then(|| {
            let entries: Vec<_> = self
                .attributes
                .iter()
                .map(|(name, value)| {
                    let (name, value) = (builder.create_string(name), builder.create_string(value));
                    fb::Attribute::create(&mut builder, &fb::AttributeArgs { name: Some(name), value: Some(value) })
                })
                .collect();
            builder.create_vector(&entries)
        });
        let args = fb::TensorSpecArgs { dtype: fb::DType(self.dtype as u8), shape: Some(shape), axes, attributes };
        let root = fb::TensorSpec::create(&mut builder, &args);
        fb::finish_tensor_spec_buffer(&mut builder, root);
        builder.finished_data().to_vec()
    }

    /// Reads a spec's bytes: verified as FlatBuffers, then held to every limit of this type.
    pub fn from_bytes(bytes: &[u8]) -> Result<TensorSpec, TensorError> {
        if bytes.len() < 8 || !fb::tensor_spec_buffer_has_identifier(bytes) {
            return Err(TensorError::BadSpec("no SRTS identifier".into()));
        }
        // Nothing in a spec is shared but vtables, so that it is not much larger than its bytes when its offsets are followed.
        let options = VerifierOptions { max_apparent_size: 4 * bytes.len() + 1024, ..VerifierOptions::default() };
        let root = fb::root_as_tensor_spec_with_opts(&options, bytes).map_err(|e| TensorError::BadSpec(e.to_string()))?;
        let number = root.dtype().0;
        let dtype = DType::from_number(number).ok_or_else(|| TensorError::BadSpec(format!("dtype number {number} is unknown")))?;
        let axes = root.axes().map(|axes| axes.iter().map(String::from).collect()).unwrap_or_default();
        let attributes = root.attributes().map(|all| all.iter().map(|a| (a.name().into(), a.value().into())).collect());
        TensorSpec::new(dtype, root.shape().iter().collect())?.with_axes(axes)?.with_attributes(attributes.unwrap_or_default())
    }
}

/// A range an axis, from the names and bounds of a slice; axes that are not named are whole.
pub fn region<'a>(spec: &TensorSpec, slice: impl IntoIterator<Item = (&'a str, [u64; 2])>) -> Result<crate::grid::Region, TensorError> {
    let mut region: crate::grid::Region = spec.shape().iter().map(|&extent| 0..extent).collect();
    let mut seen = vec![false; region.len()];
    for (name, [start, end]) in slice {
        let axis = spec.axis(name).ok_or_else(|| {
            TensorError::BadSlice(format!("no axis {name:?}; the tensor has {:?} of shape {:?}", spec.axes(), spec.shape()))
        })?;
        let extent = spec.shape()[axis];
        if start > end || end > extent {
            return Err(TensorError::BadSlice(format!("axis {name:?}: [{start}, {end}] is not a range within 0 to {extent}")));
        }
        if std::mem::replace(&mut seen[axis], true) {
            return Err(TensorError::BadSlice(format!("axis {axis} is named twice")));
        }
        region[axis] = start..end;
    }
    if spec.dtype().item_size().is_none() && region.iter().zip(spec.shape()).any(|(r, &extent)| *r != (0..extent)) {
        return Err(TensorError::BadSlice(format!("{} packs several elements in a byte and is read whole", spec.dtype())));
    }
    Ok(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv() -> TensorSpec {
        TensorSpec::new(DType::BFloat16, vec![30, 2, 1536, 3, 64])
            .unwrap()
            .with_axes(["layer", "kv", "token", "head", "dim"].map(String::from).to_vec())
            .unwrap()
            .with_attributes([("model".to_string(), "SmolLM2".to_string())].into())
            .unwrap()
    }

    #[test]
    fn bytes_come_back() {
        for dtype in DType::all() {
            for shape in [vec![], vec![0], vec![8], vec![2, 0, 4], vec![4, 1, 8]] {
                let Ok(spec) = TensorSpec::new(dtype, shape) else { continue };
                assert_eq!(TensorSpec::from_bytes(&spec.to_bytes()), Ok(spec));
            }
        }
        assert_eq!(TensorSpec::from_bytes(&kv().to_bytes()), Ok(kv()));
    }

    /// Written by format 1 and never changed: what it says must stay readable.
    #[test]
    fn the_golden_spec_reads_as_it_was_written() {
        if std::env::var_os("SIRA_WRITE_GOLDEN").is_some() {
            std::fs::write("golden/spec-1.bin", kv().to_bytes()).unwrap();
        }
        assert_eq!(TensorSpec::from_bytes(&std::fs::read("golden/spec-1.bin").unwrap()), Ok(kv()));
    }

    #[test]
    fn mutated_bytes_never_panic() {
        let good = kv().to_bytes();
        for at in 0..good.len() {
            for change in [1u8, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= change;
                if let Ok(spec) = TensorSpec::from_bytes(&bad) {
                    assert_eq!(shape::nbytes(spec.dtype(), spec.shape()), Ok(spec.nbytes()));
                }
            }
            assert!(TensorSpec::from_bytes(&good[..at]).is_err());
        }
    }

    #[test]
    fn slices_name_axes_or_positions() {
        let spec = kv();
        let r = region(&spec, [("token", [512, 1024]), ("0", [0, 4])]).unwrap();
        assert_eq!(r, vec![0..4, 0..2, 512..1024, 0..3, 0..64]);
        for bad in [("tokens", [0, 1]), ("token", [0, 1537]), ("token", [5, 4]), ("5", [0, 1])] {
            assert!(region(&spec, [bad]).is_err(), "{bad:?}");
        }
        assert!(region(&spec, [("layer", [0, 1]), ("0", [0, 1])]).is_err());
    }

    #[test]
    fn names_and_attributes_have_limits() {
        let two = || TensorSpec::new(DType::Int8, vec![2, 3]).unwrap();
        for bad in [vec!["a"], vec!["a", "a"], vec!["1", "0"], vec!["a\n", "b"]] {
            assert!(two().with_axes(bad.into_iter().map(String::from).collect()).is_err());
        }
        assert_eq!(two().with_axes(vec![String::new(), String::new()]).unwrap().axes(), &[] as &[String]);
        let long = [("a".to_string(), "x".repeat(MAX_VALUE + 1))];
        assert!(two().with_attributes(long.into()).is_err());
    }
}
