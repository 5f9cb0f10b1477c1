//! `kvtc`: one transform over all layers and heads, calibrated once per model (KVTC, arXiv 2511.01815), with errors weighted by what they cost.
//!
//! Of each token of a chunk all keys, their rotary embedding undone, and all values are two vectors (or a few, by groups of layers). Their
//! mean is taken off, heads are multiplied by the weights of their errors, and the components of the calibration's basis are
//! quantised with one step for all, which is reverse water-filling: components of little variance become zeros by themselves. What
//! remains is written by rANS, with the calibration's tables.
//!
//! The first tokens of a sequence and the last of a tensor, which attention looks at most, are kept exactly.

mod classes;
mod preset;
#[cfg(test)]
mod tests;
mod unit;

use std::ops::Range;

use sira_tensor::TensorSpec;

use crate::calibration::{self, Calibration, Unit};
use crate::chain::{Arguments, Built};
use crate::float::Float;
use crate::kv::{Kind, Layout, Matrix};
use crate::{ChunkContext, Codec, CodecError};
use classes::Costs;
use preset::Options;
pub(crate) use preset::presets;
use unit::Scale;

pub(crate) const NAME: &str = "kvtc";

/// What the stage takes, for messages.
pub(crate) const FORM: &str = ":near-lossless|high|standard|compact|step=S[:sinks=N][:window=N]@CALIBRATION";

/// The first byte of a chunk.
const FORMAT: u8 = 1;

/// Bytes of a chunk, at most, unless it would have fewer than `LEAST_TOKENS`.
const CHUNK_BYTES: u64 = 16 << 20;

/// Tokens of a chunk: as many as that are worth it for the tables, unless they are too many bytes.
const MOST_TOKENS: u64 = 256;

/// Tokens of a chunk, at least.
const LEAST_TOKENS: u64 = 64;

#[derive(Debug)]
pub(crate) struct Kvtc {
    options: Options,
    calibration: String,
}

/// The matrices of a unit, in the order of its vectors' heads.
struct Present<'a> {
    unit: &'a Unit,
    heads: Vec<Matrix>,
}

/// Builds the stage from its arguments.
pub(crate) fn build(arguments: &Arguments<'_>) -> Result<Built, CodecError> {
    let bad = |found: &str| CodecError::BadLevel { codec: NAME, expected: FORM.to_owned(), found: found.chars().take(64).collect() };
    let calibration = arguments.calibration.ok_or_else(|| bad("no calibration"))?;
    let options = Options::parse(&arguments.texts).map_err(bad)?;
    let text = format!("{options}@{calibration}");
    Ok(Built { codec: Box::new(Kvtc { options, calibration: calibration.to_owned() }), text })
}

impl Codec for Kvtc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn lossless(&self) -> bool {
        false
    }

    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let calibration = Calibration::named(NAME, &self.calibration, context)?;
        let layout = Layout::of(NAME, context, input.len())?;
        let present = present(&layout, context, calibration).map_err(|reason| CodecError::encode(NAME, reason))?;
        let dim = calibration.model().dim as usize;
        let scale = Scale { shapes: calibration.shapes(), step: self.options.step, level: (4.0 * self.options.step.log2()).round() as i16 };
        let costs = Costs::new(calibration.shapes());
        let mut body = self.body(&layout);
        let mut coded = Vec::new();
        for unit in &present {
            let vectors = gather(&layout, unit, input, body.clone(), calibration);
            let finite = vectors.iter().all(|value| value.is_finite());
            if body.is_empty() || !finite || !unit::encode(unit.unit, dim, scale, &costs, vectors, &mut coded)? {
                // Kept exactly, all of it.
                (body, coded) = (0..0, Vec::new());
                break;
            }
        }
        let mut out = vec![FORMAT];
        out.extend(scale.step.to_le_bytes());
        out.extend(scale.level.to_le_bytes());
        out.extend([body.start, body.end].map(|token| (token as u32).to_le_bytes()).concat());
        write_exempt(&layout, context, input, &body, &mut out)?;
        out.extend(coded);
        Ok(out)
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let mut out = vec![0; decoded_len];
        self.decode_into(input, &mut out, context)?;
        Ok(out)
    }

    fn decode_into(&self, input: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        let calibration = Calibration::named(NAME, &self.calibration, context)?;
        let layout = Layout::of(NAME, context, out.len())?;
        let present = present(&layout, context, calibration).map_err(|reason| corrupt("a chunk of the calibration's model", reason))?;
        let (head, mut input) = input.split_first_chunk::<15>().ok_or_else(|| corrupt("15 bytes or more", input.len()))?;
        let [format, step @ .., b0, b1, b2, b3, e0, e1, e2, e3] = *head;
        let [s0, s1, s2, s3, l0, l1] = step;
        let step = f32::from_le_bytes([s0, s1, s2, s3]);
        let (start, end) = (u32::from_le_bytes([b0, b1, b2, b3]) as usize, u32::from_le_bytes([e0, e1, e2, e3]) as usize);
        if format != FORMAT || !preset::STEPS.contains(&step) || start > end || end > layout.tokens {
            return Err(corrupt(
                format!("format {FORMAT}, a step, some of {} tokens", layout.tokens),
                format!("{format}, {step}, {start}..{end}"),
            ));
        }
        let scale = Scale { shapes: calibration.shapes(), step, level: i16::from_le_bytes([l0, l1]) };
        read_exempt(&layout, context, &mut input, &(start..end), out)?;
        if start < end {
            for present in &present {
                let vectors = unit::decode(present.unit, calibration.model().dim as usize, scale, &mut input, end - start)?;
                scatter(&layout, present, &vectors, start..end, calibration, out);
            }
        }
        match input.len() {
            0 => Ok(()),
            more => Err(corrupt("the end", format!("{more} more bytes"))),
        }
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }

    fn calibration(&self) -> Option<&str> {
        Some(&self.calibration)
    }

    fn chunk_shape(&self, spec: &TensorSpec) -> Option<Vec<u64>> {
        let token = spec.axes().iter().position(|axis| axis == "token")?;
        let mut shape = spec.shape().to_vec();
        let tokens = shape[token];
        let bytes = shape.iter().enumerate().filter(|(axis, _)| *axis != token).map(|(_, extent)| *extent);
        let bytes = bytes.fold(u64::from(spec.dtype().bits()).div_ceil(8), u64::saturating_mul);
        let fit = (CHUNK_BYTES / bytes.max(1)).max(1);
        // A power of two, so that runs of symbols are whole turns of the coder's states.
        let fit = (fit + 1).next_power_of_two() / 2;
        shape[token] = tokens.min(fit.clamp(LEAST_TOKENS, MOST_TOKENS));
        Some(shape)
    }
}

impl Kvtc {
    /// The tokens of a chunk that are not kept exactly.
    fn body(&self, layout: &Layout<'_>) -> Range<usize> {
        let sinks = u64::from(self.options.sinks).saturating_sub(layout.first_position());
        let last = layout.all_tokens.saturating_sub(u64::from(self.options.window)).saturating_sub(layout.first_token);
        let end = last.min(layout.tokens as u64) as usize;
        (sinks.min(end as u64) as usize)..end
    }
}

/// The units of the calibration that lie in the chunk, or why it is not one of its model.
fn present<'a>(layout: &Layout<'_>, context: ChunkContext<'_>, calibration: &'a Calibration) -> Result<Vec<Present<'a>>, String> {
    let model = calibration.model();
    let mut left: Vec<Option<Matrix>> = layout.matrices().map(Some).collect();
    let mut present = Vec::new();
    for unit in calibration.units() {
        let kind = if unit.kind == calibration::Kind::Key { Kind::K } else { Kind::V };
        let places = unit.layers.clone().flat_map(|layer| (0..model.heads).map(move |head| (u64::from(layer), u64::from(head))));
        let mut find = |(layer, head): (u64, u64)| {
            let fits = |matrix: &Matrix| {
                (matrix.kind, matrix.layer, matrix.head, matrix.dim as u32, matrix.first_dim) == (kind, layer, head, model.dim, 0)
            };
            left.iter_mut().find(|matrix| matrix.as_ref().is_some_and(fits)).and_then(Option::take)
        };
        let heads: Vec<Matrix> = places.clone().map_while(&mut find).collect();
        if heads.is_empty() {
            continue;
        }
        if heads.len() < places.count() {
            return Err(format!("a chunk with all heads of layers {:?}; it has some of them", unit.layers));
        }
        let rotated = layout.rotation(&heads[0]).is_some();
        if kind == Kind::K && rotated != model.rope.is_some() || !calibration.rope_fits(context) {
            return Err("the rotary embedding of the calibration's keys; that of the chunk is another, or not known".to_owned());
        }
        present.push(Present { unit, heads });
    }
    if present.is_empty() || left.iter().any(Option::is_some) {
        let [layers, heads, dim] = [model.layers, model.heads, model.dim];
        return Err(format!(
            "keys and values of {layers} layers, {heads} heads of {dim} values, whole, by named axes; the chunk has others"
        ));
    }
    Ok(present)
}

/// The vectors of a unit, `[token][head][dim]`, keys without their rotary embedding.
fn gather(layout: &Layout<'_>, unit: &Present<'_>, chunk: &[u8], tokens: Range<usize>, calibration: &Calibration) -> Vec<f32> {
    let (dim, width) = (calibration.model().dim as usize, unit.unit.basis.width());
    let mut vectors = vec![0.0; tokens.len() * width];
    let mut head = vec![0.0; layout.tokens * dim];
    for (matrix, at) in unit.heads.iter().zip((0..).step_by(dim)) {
        layout.read(chunk, matrix, 0..layout.tokens, &mut head);
        if let Some(rotation) = layout.rotation(matrix) {
            rotation.undo(&mut head, dim);
        }
        for (row, vector) in head.chunks_exact(dim).skip(tokens.start).zip(vectors.chunks_exact_mut(width)) {
            vector[at..at + dim].copy_from_slice(row);
        }
    }
    vectors
}

/// The inverse of [`gather`].
fn scatter(layout: &Layout<'_>, unit: &Present<'_>, vectors: &[f32], tokens: Range<usize>, calibration: &Calibration, chunk: &mut [u8]) {
    let (dim, width) = (calibration.model().dim as usize, unit.unit.basis.width());
    let mut head = vec![0.0; layout.tokens * dim];
    for (matrix, at) in unit.heads.iter().zip((0..).step_by(dim)) {
        for (row, vector) in head.chunks_exact_mut(dim).skip(tokens.start).zip(vectors.chunks_exact(width)) {
            row.copy_from_slice(&vector[at..at + dim]);
        }
        if let Some(rotation) = layout.rotation(matrix) {
            rotation.apply(&mut head, dim);
        }
        layout.write(chunk, matrix, tokens.clone(), &head[tokens.start * dim..tokens.end * dim]);
    }
}

/// Appends the tokens that are not in `body`, coded without loss.
fn write_exempt(
    layout: &Layout<'_>,
    context: ChunkContext<'_>,
    chunk: &[u8],
    body: &Range<usize>,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let mut rows = Vec::new();
    for matrix in layout.matrices() {
        let exempt = (0..layout.tokens).filter(|token| !body.contains(token));
        exempt.for_each(|token| layout.copy_out(chunk, &matrix, token, &mut rows));
    }
    let shape = exempt_shape(layout, body);
    let coded = Float::Rans.encode(&rows, ChunkContext::new(context.dtype, &shape, &[0; 3]))?;
    out.extend((coded.len() as u32).to_le_bytes());
    out.extend(coded);
    Ok(())
}

/// The inverse of [`write_exempt`].
fn read_exempt(
    layout: &Layout<'_>,
    context: ChunkContext<'_>,
    input: &mut &[u8],
    body: &Range<usize>,
    chunk: &mut [u8],
) -> Result<(), CodecError> {
    let shape = exempt_shape(layout, body);
    let len = chunk.len() / layout.tokens.max(1) * (layout.tokens - body.len());
    let rows = Float::Rans.decode(unit::take(input)?, len, ChunkContext::new(context.dtype, &shape, &[0; 3]))?;
    let mut rows = &rows[..];
    for matrix in layout.matrices() {
        for token in (0..layout.tokens).filter(|token| !body.contains(token)) {
            if !layout.copy_in(&mut rows, &matrix, token, chunk) {
                return Err(corrupt("all exempt tokens", "some of them"));
            }
        }
    }
    Ok(())
}

/// Matrices, exempt tokens, values.
fn exempt_shape(layout: &Layout<'_>, body: &Range<usize>) -> [u64; 3] {
    let dim = layout.matrices().next().map_or(0, |matrix| matrix.dim);
    [layout.count() as u64, (layout.tokens - body.len()) as u64, dim as u64]
}

fn corrupt(expected: impl Into<String>, found: impl ToString) -> CodecError {
    CodecError::corrupt(NAME, expected, found)
}
