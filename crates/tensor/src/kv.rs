//! What a block of a KV cache is: enough for whoever reads it to know that it fits, and for a codec to know its axes.
//!
//! A [`KvSpec`] is registered once and named by its hash in every record that follows it. Its identity is the SHA-256 of its
//! canonical text ([`KvSpec::canonical`]), so that two engines that mean the same say the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{DType, MAX_NAME, TensorError, TensorSpec};

/// Bytes of a spec's text, at most.
pub const MAX_KV_SPEC: usize = 64 << 10;

/// Parts, and fields of a part, at most.
const MAX_PARTS: usize = 64;

/// The layout of the blocks of one engine: one model, one set of ranks, one physical order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvSpec {
    /// The model, as its publisher names it.
    pub model: String,
    /// Its revision: a commit, a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The adapter (LoRA) that was active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// How keys of blocks are made from tokens, in the engine's words: `sha256_cbor`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_hash: Option<String>,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// What kind of state it is.
    #[serde(default)]
    pub state: StateKind,
    /// Tokens of a sliding window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Layers of the model that are here, half-open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<[u32; 2]>,
    /// KV heads of the model that are here, half-open: a tensor-parallel rank has some of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<[u32; 2]>,
    /// The rotary embedding that K was multiplied with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<Rope>,
    /// The parts of a block, each with its layout.
    pub parts: Vec<KvPart>,
}

/// What a block holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateKind {
    /// Keys and values of full attention.
    #[default]
    Attention,
    /// Of a sliding window.
    Window,
    /// A recurrent state, which has no axis of tokens.
    Recurrent,
}

/// A rotary position embedding (arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions of a head that are rotated.
    pub dim: u32,
    /// Which dimensions are pairs.
    #[serde(default)]
    pub style: RopeStyle,
    /// Position of a block's first token; a tensor's attribute `kv.first_position` says otherwise for one block.
    #[serde(default)]
    pub first_position: u64,
    /// Scaling of the frequencies, as the model's configuration has it: numbers, texts and lists of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scaling: BTreeMap<String, Value>,
}

/// Which dimensions a rotary embedding pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeStyle {
    /// `i` and `i + dim/2`, as GPT-NeoX and Llama in transformers.
    #[default]
    Half,
    /// `2i` and `2i + 1`, as GPT-J.
    Interleaved,
}

/// The layout of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvPart {
    /// The part's name.
    #[serde(default = "data")]
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Names of the axes in physical order, the one that runs fastest last: `token, head, dim` is NHD, `head, token, dim` HND.
    pub axes: Vec<String>,
    /// Extents that never vary; `null` for those that do, such as the number of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<Option<u64>>>,
    /// What lies where on one axis: K and V packed on the last one, or the records of a latent cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<KvField>,
}

/// A range of an axis that has a meaning of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvField {
    /// `k`, `v`, `latent`, `rope`, `scale`, ...
    pub name: String,
    /// The axis.
    pub axis: String,
    /// Where it begins, in elements of the axis.
    pub offset: u64,
    /// How long it is, in elements of the axis.
    pub extent: u64,
    /// For a part of bytes (`uint8`): the element type of what lies there. Opaque where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
}

fn data() -> String {
    "data".to_owned()
}

impl KvSpec {
    /// Reads a spec from JSON and checks it; element types are brought to their names.
    pub fn from_json(text: &[u8]) -> Result<KvSpec, TensorError> {
        if text.len() > MAX_KV_SPEC {
            return Err(bad(format!("{} bytes; at most {MAX_KV_SPEC} are read", text.len())));
        }
        let mut spec: KvSpec = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
        spec.check()?;
        for part in &mut spec.parts {
            part.dtype = dtype(&part.dtype)?.name().to_owned();
            for field in &mut part.fields {
                if let Some(text) = &mut field.dtype {
                    *text = dtype(text)?.name().to_owned();
                }
            }
        }
        Ok(spec)
    }

    /// The one text of this spec: JSON without spaces, fields in the order of this type, what is absent left out.
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// SHA-256 of [`KvSpec::canonical`], 64 hexadecimal digits: the name that records carry.
    pub fn hash(&self) -> String {
        hash(self.canonical().as_bytes())
    }

    fn check(&self) -> Result<(), TensorError> {
        name("model", &self.model)?;
        for (what, text) in [("revision", &self.revision), ("adapter", &self.adapter), ("block_hash", &self.block_hash)] {
            text.as_ref().map_or(Ok(()), |text| name(what, text))?;
        }
        if self.block_tokens == 0 {
            return Err(bad("block_tokens is 0; a block has at least one token".into()));
        }
        if self.window.is_some() != (self.state == StateKind::Window) {
            return Err(bad("`window` goes with state \"window\", and only with it".into()));
        }
        for (what, range) in [("layers", self.layers), ("heads", self.heads)] {
            if range.is_some_and(|[start, end]| start >= end) {
                return Err(bad(format!("{what} {range:?} is no range: it begins below its end")));
            }
        }
        if self.rope.as_ref().is_some_and(|rope| !rope.theta.is_finite() || rope.theta <= 0.0 || rope.dim == 0 || rope.dim % 2 != 0) {
            return Err(bad("rope: theta is a number above 0, dim is even and above 0".into()));
        }
        // Objects have no order of their own, and the canonical text must have one.
        if let Some((name, _)) = self.rope.iter().flat_map(|rope| &rope.scaling).find(|(_, value)| !plain(value)) {
            return Err(bad(format!("rope.scaling.{name}: a number, a text, true or false, or a list of these")));
        }
        if self.parts.is_empty() || self.parts.len() > MAX_PARTS {
            return Err(bad(format!("{} parts; there are 1 to {MAX_PARTS}", self.parts.len())));
        }
        for (i, part) in self.parts.iter().enumerate() {
            if self.parts[..i].iter().any(|other| other.name == part.name) {
                return Err(bad(format!("two parts are named {:?}", part.name)));
            }
            part.check()?;
        }
        Ok(())
    }

    /// Holds the parts of a put against this spec, and gives axis names to those that have none. `parts`: name and description of each.
    pub fn admit(&self, parts: &mut [(String, TensorSpec)]) -> Result<(), TensorError> {
        for (name, spec) in parts.iter_mut() {
            let layout = self.parts.iter().find(|layout| layout.name == *name).ok_or_else(|| {
                let known: Vec<&str> = self.parts.iter().map(|layout| layout.name.as_str()).collect();
                bad(format!("it has no part {name:?}; it has {}", known.join(", ")))
            })?;
            *spec = layout.admit(spec)?;
        }
        let missing = self.parts.iter().find(|layout| !parts.iter().any(|(name, _)| *name == layout.name));
        missing.map_or(Ok(()), |layout| Err(bad(format!("its part {:?} is missing", layout.name))))
    }
}

impl KvPart {
    fn check(&self) -> Result<(), TensorError> {
        part_name(&self.name)?;
        let context = |e: TensorError| bad(format!("part {:?}: {e}", self.name));
        let dtype = dtype(&self.dtype).map_err(context)?;
        if self.axes.iter().any(String::is_empty) {
            return Err(bad(format!("part {:?}: an axis without a name", self.name)));
        }
        // What no tensor can have, no spec demands.
        TensorSpec::new(DType::UInt8, vec![1; self.axes.len()]).and_then(|spec| spec.with_axes(self.axes.clone())).map_err(context)?;
        if self.shape.as_ref().is_some_and(|shape| shape.len() != self.axes.len()) {
            return Err(bad(format!("part {:?}: a shape with one entry for each of its {} axes", self.name, self.axes.len())));
        }
        if self.fields.len() > MAX_PARTS {
            return Err(bad(format!("part {:?}: {} fields; at most {MAX_PARTS}", self.name, self.fields.len())));
        }
        self.fields.iter().try_for_each(|field| self.check_field(dtype, field))
    }

    fn check_field(&self, of: DType, field: &KvField) -> Result<(), TensorError> {
        let wrong = |reason: String| Err(bad(format!("part {:?}, field {:?}: {reason}", self.name, field.name)));
        name("field", &field.name)?;
        let Some(axis) = self.axes.iter().position(|axis| *axis == field.axis) else {
            return wrong(format!("there is no axis {:?}", field.axis));
        };
        let Some(end) = field.offset.checked_add(field.extent) else { return wrong("it ends nowhere".into()) };
        let axis_extent = self.shape.as_ref().and_then(|shape| shape[axis]);
        if field.extent == 0 || axis_extent.is_some_and(|extent| end > extent) {
            return wrong(format!("{} to {end} does not lie within its axis", field.offset));
        }
        if let Some(text) = &field.dtype {
            let inner = dtype(text)?;
            if of != DType::UInt8 {
                return wrong("only fields of a part of bytes (uint8) have a dtype of their own".into());
            }
            if inner.item_size().is_some_and(|size| !field.extent.is_multiple_of(size as u64)) {
                return wrong(format!("{} bytes are not whole elements of {inner}", field.extent));
            }
        }
        Ok(())
    }

    fn admit(&self, spec: &TensorSpec) -> Result<TensorSpec, TensorError> {
        let wrong = |reason: String| Err(bad(format!("part {:?}: {reason}", self.name)));
        if spec.dtype().name() != self.dtype {
            return wrong(format!("it is {}, not {}", self.dtype, spec.dtype()));
        }
        let fixed = self.shape.clone().unwrap_or_else(|| vec![None; self.axes.len()]);
        let fits = |(&extent, fixed): (&u64, &Option<u64>)| fixed.is_none_or(|fixed| fixed == extent);
        if spec.shape().len() != self.axes.len() || !spec.shape().iter().zip(&fixed).all(fits) {
            let wanted: Vec<String> = fixed.iter().map(|extent| extent.map_or("any".into(), |extent| extent.to_string())).collect();
            return wrong(format!("its shape is [{}] ({}), not {:?}", wanted.join(", "), self.axes.join(", "), spec.shape()));
        }
        if !spec.axes().is_empty() && spec.axes() != self.axes {
            return wrong(format!("its axes are {:?}, not {:?}", self.axes, spec.axes()));
        }
        spec.clone().with_axes(self.axes.clone())
    }
}

fn plain(value: &Value) -> bool {
    match value {
        Value::Null | Value::Object(_) => false,
        Value::Array(values) => values.iter().all(|value| !value.is_array() && plain(value)),
        _ => true,
    }
}

/// SHA-256 in hexadecimal.
pub fn hash(text: &[u8]) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `text` can be the hash of a spec: 64 hexadecimal digits.
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A part's name: 1 to 64 bytes without control characters and `/`.
pub fn part_name(text: &str) -> Result<(), TensorError> {
    if text.is_empty() || text.len() > 64 || text.contains('/') || text.chars().any(char::is_control) {
        return Err(TensorError::BadPart(format!("{text:?} is no name of a part: 1 to 64 bytes without / and control characters")));
    }
    Ok(())
}

fn name(what: &str, text: &str) -> Result<(), TensorError> {
    if text.is_empty() || text.len() > 4 * MAX_NAME || text.chars().any(char::is_control) {
        return Err(bad(format!("{what}: 1 to {} bytes without control characters", 4 * MAX_NAME)));
    }
    Ok(())
}

fn dtype(name: &str) -> Result<DType, TensorError> {
    name.parse()
}

fn bad(reason: String) -> TensorError {
    TensorError::BadKvSpec(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<KvSpec, TensorError> {
        KvSpec::from_json(text.as_bytes())
    }

    /// Layouts as engines have them.
    fn layouts() -> Vec<&'static str> {
        vec![
            r#"{"model":"m","block_tokens":16,"parts":[{"dtype":"BF16","axes":["token","head","dim"],"shape":[16,8,128]}]}"#,
            r#"{"model":"m","block_tokens":16,"parts":[{"dtype":"bfloat16","axes":["head","token","dim"]}],"heads":[0,8]}"#,
            r#"{"model":"m","block_tokens":16,"parts":[{"dtype":"bfloat16","axes":["block","kv","token","head","dim"],"shape":[null,2,16,8,128]}]}"#,
            r#"{"model":"m","block_tokens":16,"parts":[{"dtype":"float16","axes":["token","head","dim"],"shape":[null,8,256],
                "fields":[{"name":"k","axis":"dim","offset":0,"extent":128},{"name":"v","axis":"dim","offset":128,"extent":128}]}]}"#,
            r#"{"model":"mla","block_tokens":64,"parts":[{"dtype":"uint8","axes":["token","record"],"shape":[64,656],
                "fields":[{"name":"latent","axis":"record","offset":0,"extent":512,"dtype":"float8_e4m3fn"},
                {"name":"scale","axis":"record","offset":512,"extent":16,"dtype":"float32"},
                {"name":"rope","axis":"record","offset":528,"extent":128,"dtype":"bfloat16"}]}]}"#,
            r#"{"model":"m","block_tokens":16,"rope":{"theta":500000,"dim":128,"scaling":{"type":"llama3","factor":8.0}},
                "parts":[{"name":"k","dtype":"float8_e4m3fn","axes":["token","head","dim"]},{"name":"k_scale","dtype":"float32","axes":["head"]}]}"#,
            r#"{"model":"mamba","block_tokens":1,"state":"recurrent","layers":[0,24],"parts":[{"dtype":"float32","axes":["layer","state"]}]}"#,
        ]
    }

    #[test]
    fn layouts_of_engines_are_taken_and_have_one_text() {
        let mut hashes = Vec::new();
        for text in layouts() {
            let spec = of(text).unwrap();
            assert_eq!(of(&spec.canonical()).unwrap().hash(), spec.hash(), "{text}");
            assert!(is_hash(&spec.hash()));
            hashes.push(spec.hash());
        }
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), layouts().len());
        let spaced = r#"{ "parts": [ {"axes": ["token","head","dim"], "name":"data", "dtype": "bfloat16", "shape":[16,8,128]} ], "block_tokens": 16, "model":"m" }"#;
        assert_eq!(of(spaced).unwrap().hash(), of(layouts()[0]).unwrap().hash());
    }

    /// The hash is in records and in clients: the text that it is made from never changes.
    #[test]
    fn the_canonical_text_stays_as_it_is() {
        let spec = of(layouts()[5]).unwrap();
        let text = r#"{"model":"m","block_tokens":16,"state":"attention","rope":{"theta":500000.0,"dim":128,"style":"half","first_position":0,"scaling":{"factor":8.0,"type":"llama3"}},"parts":[{"name":"k","dtype":"float8_e4m3fn","axes":["token","head","dim"]},{"name":"k_scale","dtype":"float32","axes":["head"]}]}"#;
        assert_eq!(spec.canonical(), text);
        assert_eq!(spec.hash(), "a14ca26eafc82241de51d1fcd258a2c6ef870bf53527bfe374a88fee541977a8");
    }

    #[test]
    fn wrong_specs_are_refused() {
        for text in [
            r#"{"model":"","block_tokens":16,"parts":[{"dtype":"uint8","axes":[]}]}"#,
            r#"{"model":"m","block_tokens":0,"parts":[{"dtype":"uint8","axes":[]}]}"#,
            r#"{"model":"m","block_tokens":1,"parts":[]}"#,
            r#"{"model":"m","block_tokens":1,"parts":[{"dtype":"float12","axes":[]}]}"#,
            r#"{"model":"m","block_tokens":1,"parts":[{"dtype":"uint8","axes":["a","a"]}]}"#,
            r#"{"model":"m","block_tokens":1,"parts":[{"dtype":"uint8","axes":["a"]},{"dtype":"uint8","axes":["a"]}]}"#,
            r#"{"model":"m","block_tokens":1,"parts":[{"dtype":"uint8","axes":["a"],"shape":[1,2]}]}"#,
            r#"{"model":"m","block_tokens":1,"parts":[{"dtype":"uint8","axes":["a"],"shape":[8],"fields":[{"name":"x","axis":"a","offset":4,"extent":5}]}]}"#,
            r#"{"model":"m","block_tokens":1,"parts":[{"dtype":"float32","axes":["a"],"fields":[{"name":"x","axis":"a","offset":0,"extent":4,"dtype":"int8"}]}]}"#,
            r#"{"model":"m","block_tokens":1,"window":5,"parts":[{"dtype":"uint8","axes":[]}]}"#,
            r#"{"model":"m","block_tokens":1,"rope":{"theta":1,"dim":2,"scaling":{"a":{"b":1}}},"parts":[{"dtype":"uint8","axes":[]}]}"#,
            r#"{"model":"m","block_tokens":1,"layers":[3,3],"parts":[{"dtype":"uint8","axes":[]}]}"#,
            r#"{"model":"m","block_tokens":1,"block_token":1,"parts":[{"dtype":"uint8","axes":[]}]}"#,
        ] {
            assert!(matches!(of(text), Err(TensorError::BadKvSpec(_) | TensorError::UnknownDType(_))), "{text}");
        }
    }

    #[test]
    fn parts_are_held_against_the_spec() {
        let spec = of(layouts()[2]).unwrap();
        let part = |dtype, shape: &[u64]| vec![("data".to_owned(), TensorSpec::new(dtype, shape.to_vec()).unwrap())];
        let mut good = part(DType::BFloat16, &[5, 2, 16, 8, 128]);
        spec.admit(&mut good).unwrap();
        assert_eq!(good[0].1.axes(), ["block", "kv", "token", "head", "dim"]);
        assert!(spec.admit(&mut part(DType::Float16, &[5, 2, 16, 8, 128])).is_err());
        assert!(spec.admit(&mut part(DType::BFloat16, &[5, 2, 16, 8, 64])).is_err());
        assert!(spec.admit(&mut part(DType::BFloat16, &[5, 2, 16, 8])).is_err());
        assert!(spec.admit(&mut []).unwrap_err().to_string().contains("is missing"));
        let mut named = part(DType::BFloat16, &[5, 2, 16, 8, 128]);
        named[0].1 = named[0].1.clone().with_axes(["block", "kv", "head", "token", "dim"].map(String::from).to_vec()).unwrap();
        assert!(spec.admit(&mut named).is_err());
        let scaled = of(layouts()[5]).unwrap();
        assert!(scaled.admit(&mut part(DType::UInt8, &[1])).unwrap_err().to_string().contains("k, k_scale"));
    }
}
