//! Tensors as a fitter takes them: keys without their rotary embedding and values, token by token.

use sira_tensor::{DType, TensorSpec};

use super::{Fitter, Kind, Model, RopeFacts};
use crate::kv::{self, Layout};
use crate::{ChunkContext, CodecError, KvFacts, TensorContext};

const WHO: &str = "calibration";

/// Some tokens of a KV cache, to be filled from the chunks that hold them: one, or one for each part.
#[derive(Debug)]
pub struct Document<'a> {
    model: &'a Model,
    tokens: usize,
    /// Keys and values, `[token][layer][head][dim]`.
    values: [Vec<f32>; 2],
    /// Head vectors that were read of each.
    read: [usize; 2],
}

impl Model {
    /// The model whose KV cache `parts` are, each with what is known of it; axes are found by their names: `layer`, `kv`, `token`, `head`, `dim`.
    ///
    /// # Errors
    /// Parts that are not all layers and heads of keys and values; heads of several sizes.
    pub fn of(parts: &[(&TensorSpec, Option<&KvFacts>)]) -> Result<Model, CodecError> {
        let mut model: Option<Model> = None;
        let mut kinds = Vec::new();
        for (spec, facts) in parts {
            let origin = vec![0; spec.shape().len()];
            // One token says as much as all of them.
            let shape: Vec<u64> =
                spec.shape().iter().zip(spec.axes()).map(|(&extent, axis)| if axis == "token" { 1 } else { extent }).collect();
            if shape.len() != origin.len() {
                return Err(CodecError::encode(WHO, "a tensor whose axes have no names; layer, kv, token, head and dim are looked for"));
            }
            let context = of_tensor(spec, *facts, &shape, &origin);
            let layout = Layout::of(WHO, context, bytes(spec.dtype(), &shape)?)?;
            for matrix in layout.matrices().filter(|matrix| matrix.kind != kv::Kind::Other) {
                kinds.push(matrix.kind);
                let rope = facts.and_then(|facts| facts.rope.as_ref()).filter(|_| layout.rotation(&matrix).is_some());
                let rope = rope.map(|rope| RopeFacts { theta: rope.theta, dim: rope.dim, style: rope.style });
                let known = model.get_or_insert_with(|| Model {
                    name: facts.and_then(|facts| facts.model.clone()).unwrap_or_default(),
                    revision: String::new(),
                    layers: 0,
                    heads: 0,
                    dim: matrix.dim as u32,
                    rope: None,
                });
                if known.dim != matrix.dim as u32 {
                    return Err(CodecError::encode(WHO, format!("heads of {} and of {} values", known.dim, matrix.dim)));
                }
                known.layers = known.layers.max(matrix.layer as u32 + 1);
                known.heads = known.heads.max(matrix.head as u32 + 1);
                known.rope = known.rope.or(rope);
            }
        }
        match model {
            Some(model) if kinds.contains(&kv::Kind::K) && kinds.contains(&kv::Kind::V) => Ok(model),
            _ => Err(CodecError::encode(WHO, "no keys and values: an axis kv of 2, parts named k and v, or a kv spec with such fields")),
        }
    }
}

impl<'a> Document<'a> {
    /// Room for some tokens of `model`.
    pub fn new(model: &'a Model, tokens: usize) -> Document<'a> {
        let len = tokens * model.vector();
        Document { model, tokens, values: [vec![0.0; len], vec![0.0; len]], read: [0; 2] }
    }

    /// Takes what a chunk has: all layers and heads of the document's tokens, of keys, of values or of both.
    ///
    /// # Errors
    /// A chunk of another shape or of another model.
    pub fn read(&mut self, chunk: &[u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        let layout = Layout::of(WHO, context, chunk.len())?;
        let (dim, width) = (self.model.dim as usize, self.model.vector());
        let fits = |matrix: &kv::Matrix| {
            matrix.layer < self.model.layers.into()
                && matrix.head < self.model.heads.into()
                && matrix.dim == dim
                && layout.tokens == self.tokens
        };
        let mut head = vec![0.0; self.tokens * dim];
        for matrix in layout.matrices().filter(|matrix| matrix.kind != kv::Kind::Other) {
            if !fits(&matrix) {
                let Model { layers, heads, dim, .. } = self.model;
                let reason =
                    format!("{:?} is not {} tokens of {layers} layers and {heads} heads of {dim} values", context.shape, self.tokens);
                return Err(CodecError::encode(WHO, reason));
            }
            layout.read(chunk, &matrix, 0..self.tokens, &mut head);
            if let Some(rotation) = layout.rotation(&matrix) {
                rotation.undo(&mut head, dim);
            }
            let kind = usize::from(matrix.kind == kv::Kind::V);
            let at = (matrix.layer as usize * self.model.heads as usize + matrix.head as usize) * dim;
            for (vector, row) in self.values[kind].chunks_exact_mut(width).zip(head.chunks_exact(dim)) {
                vector[at..at + dim].copy_from_slice(row);
            }
            self.read[kind] += 1;
        }
        Ok(())
    }

    /// Gives the tokens to `fitter`.
    ///
    /// # Errors
    /// Keys or values of some layers or heads did not come, or twice; what [`Fitter::add`] refuses.
    pub fn add_to(&self, fitter: &mut Fitter) -> Result<(), CodecError> {
        let all = self.model.layers as usize * self.model.heads as usize;
        for (kind, read) in [Kind::Key, Kind::Value].into_iter().zip(self.read) {
            if read != all {
                return Err(CodecError::encode(WHO, format!("{kind:?}: {read} heads of all layers came, not {all}")));
            }
        }
        fitter.add(&self.values[0], &self.values[1])
    }
}

impl Model {
    /// Values of a token's keys, and of its values.
    fn vector(&self) -> usize {
        self.layers as usize * self.heads as usize * self.dim as usize
    }
}

fn of_tensor<'a>(spec: &'a TensorSpec, facts: Option<&'a KvFacts>, shape: &'a [u64], origin: &'a [u64]) -> ChunkContext<'a> {
    let tensor = TensorContext { shape: spec.shape(), axes: spec.axes(), kv: facts, calibration: None };
    ChunkContext { tensor, ..ChunkContext::new(spec.dtype(), shape, origin) }
}

fn bytes(dtype: DType, shape: &[u64]) -> Result<usize, CodecError> {
    let bytes = shape.iter().try_fold(u64::from(dtype.bits()).div_ceil(8), |product, &extent| product.checked_mul(extent));
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| CodecError::encode(WHO, format!("a token of {shape:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::FitOptions;

    #[test]
    fn parts_and_one_tensor_say_the_same() {
        let axes = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let spec = |shape: &[u64], names: &[&str]| TensorSpec::new(DType::Float32, shape.to_vec()).unwrap().with_axes(axes(names)).unwrap();
        let one = spec(&[2, 2, 3, 1, 4], &["layer", "kv", "token", "head", "dim"]);
        let part = spec(&[2, 3, 1, 4], &["layer", "token", "head", "dim"]);
        let facts = |name: &str| KvFacts { part: name.into(), ..KvFacts::default() };
        let (k, v) = (facts("k"), facts("v"));
        let model = Model::of(&[(&one, None)]).unwrap();
        assert_eq!((model.layers, model.heads, model.dim), (2, 1, 4));
        assert_eq!(Model::of(&[(&part, Some(&k)), (&part, Some(&v))]).unwrap(), model);
        assert!(Model::of(&[(&part, Some(&k))]).is_err() && Model::of(&[(&part, None)]).is_err());

        let raw: Vec<u8> = (0..48u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let mut whole = Document::new(&model, 3);
        whole.read(&raw, of_tensor(&one, None, one.shape(), &[0; 5])).unwrap();
        let mut parts = Document::new(&model, 3);
        // [layer][kv]: blocks of 12 values.
        let of = |kv: usize| [&raw[kv * 48..kv * 48 + 48], &raw[96 + kv * 48..96 + kv * 48 + 48]].concat();
        parts.read(&of(0), of_tensor(&part, Some(&k), part.shape(), &[0; 4])).unwrap();
        let mut fitter = Fitter::new(model.clone(), None, FitOptions::default()).unwrap();
        assert!(parts.add_to(&mut fitter).unwrap_err().to_string().contains("Value: 0 heads"));
        parts.read(&of(1), of_tensor(&part, Some(&v), part.shape(), &[0; 4])).unwrap();
        assert_eq!(parts.values, whole.values);
        assert_eq!(whole.values[0][..8], [0.0, 1.0, 2.0, 3.0, 24.0, 25.0, 26.0, 27.0]);
        whole.add_to(&mut fitter).unwrap();
        assert_eq!(fitter.tokens(), 3);
    }
}
