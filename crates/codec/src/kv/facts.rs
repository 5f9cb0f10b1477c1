//! What is known of a tensor as a part of a KV cache.

use std::collections::BTreeMap;

use sira_tensor::TensorSpec;
use sira_tensor::kv::{KvField, KvSpec, Rope, RopeStyle};

/// What the names of attributes that a .safetensors file said of itself begin with.
const FILE: &str = "safetensors.";

/// What a codec may know of a part of a KV cache: from the kv spec that its key follows, or from the tensor's own attributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KvFacts {
    /// The model, as its publisher names it.
    pub model: Option<String>,
    /// The rotary embedding that K was multiplied with; `first_position` is the position of the tensor's first token.
    pub rope: Option<Rope>,
    /// The part's name: `k`, `v`, `data`, ...
    pub part: String,
    /// What lies where on one axis of the part.
    pub fields: Vec<KvField>,
}

impl KvFacts {
    /// Facts of the part `name`, described by `spec`. The kv spec's are taken first; what it does not say, or where there is none, comes
    /// from the attributes `model`, `rope` (`half`, `interleaved`), `rope_theta`, `rope_dim`, `first_position`, as text, or from those of
    /// a file that was put, which begin with `safetensors.`. An attribute `kv.first_position` says where one block of a sequence
    /// begins. A part named `k` or `v` is K or V without anything else. `None` where nothing is known.
    pub fn of(name: &str, spec: &TensorSpec, kv: Option<&KvSpec>) -> Option<KvFacts> {
        let attributes = spec.attributes();
        let mut rope = kv.map_or_else(|| rope(attributes), |kv| kv.rope.clone());
        let first = attributes.get("kv.first_position").and_then(|text| text.parse().ok());
        if let (Some(rope), Some(first)) = (&mut rope, first) {
            rope.first_position = first;
        }
        let model = kv.map(|kv| kv.model.clone()).or_else(|| text(attributes, "model").map(str::to_owned));
        let fields = kv.and_then(|kv| kv.parts.iter().find(|part| part.name == name)).map(|part| part.fields.clone());
        if model.is_none() && rope.is_none() && fields.is_none() && !matches!(name, "k" | "v") {
            return None;
        }
        Some(KvFacts { model, rope, part: name.to_owned(), fields: fields.unwrap_or_default() })
    }

    /// The model that a tensor's attributes name: their own `model`, or that of a file that was put.
    pub fn model_of(spec: &TensorSpec) -> Option<&str> {
        text(spec.attributes(), "model")
    }
}

fn text<'a>(attributes: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    attributes.get(name).or_else(|| attributes.get(&format!("{FILE}{name}"))).map(String::as_str)
}

/// The rotary embedding that attributes describe, if they do: all of `rope`, `rope_theta` and `rope_dim`.
fn rope(attributes: &BTreeMap<String, String>) -> Option<Rope> {
    let text = |name| text(attributes, name);
    let style = match text("rope")? {
        "half" => RopeStyle::Half,
        "interleaved" => RopeStyle::Interleaved,
        _ => return None,
    };
    let theta: f64 = text("rope_theta")?.parse().ok()?;
    let dim: u32 = text("rope_dim")?.parse().ok()?;
    let first_position = text("first_position").map_or(Some(0), |text| text.parse().ok())?;
    let sound = theta.is_finite() && theta > 0.0 && dim > 0 && dim.is_multiple_of(2);
    sound.then(|| Rope { theta, dim, style, first_position, scaling: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sira_tensor::DType;

    fn spec(attributes: &[(&str, &str)]) -> TensorSpec {
        let attributes = attributes.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        TensorSpec::new(DType::BFloat16, vec![2, 16, 4]).unwrap().with_attributes(attributes).unwrap()
    }

    #[test]
    fn attributes_tell_the_rotary_embedding() {
        let all = [("rope", "half"), ("rope_theta", "100000"), ("rope_dim", "64"), ("first_position", "7")];
        let facts = KvFacts::of("data", &spec(&all), None).unwrap();
        let rope = facts.rope.unwrap();
        assert_eq!((rope.theta, rope.dim, rope.style, rope.first_position), (100_000.0, 64, RopeStyle::Half, 7));
        let of_file: Vec<_> = all.iter().map(|(name, value)| (format!("safetensors.{name}"), *value)).collect();
        let of_file: Vec<_> = of_file.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(KvFacts::of("data", &spec(&of_file), None), KvFacts::of("data", &spec(&all), None));
        assert_eq!(KvFacts::of("data", &spec(&[]), None), None);
        for (name, value) in [("rope", "quarter"), ("rope_theta", "-1"), ("rope_dim", "63"), ("first_position", "x")] {
            let attributes: Vec<_> = all.iter().map(|&(n, v)| if n == name { (n, value) } else { (n, v) }).collect();
            assert_eq!(KvFacts::of("data", &spec(&attributes), None), None, "{name} {value}");
        }
    }

    #[test]
    fn a_kv_spec_comes_before_attributes_and_a_block_has_its_own_position() {
        let text = br#"{"model":"m","block_tokens":16,"rope":{"theta":10000.0,"dim":4},
            "parts":[{"dtype":"bfloat16","axes":["kv","token","dim"]}]}"#;
        let kv = KvSpec::from_json(text).unwrap();
        let facts = KvFacts::of("data", &spec(&[("rope_theta", "5"), ("kv.first_position", "32")]), Some(&kv)).unwrap();
        let rope = facts.rope.unwrap();
        assert_eq!((facts.model.as_deref(), rope.theta, rope.first_position), (Some("m"), 10_000.0, 32));
    }
}
