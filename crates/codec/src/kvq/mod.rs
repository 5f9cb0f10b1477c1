//! `kvq`: keys before their rotary embedding and values, without the channels' means, in whole steps, and rANS with shared tables.
//!
//! One step holds for all channels of a layer's keys, another for its values, which by rate-distortion theory leaves no bit where it would do
//! more elsewhere (reverse water-filling). It follows the root mean square of what is quantised, layer by layer, since layers
//! differ in size by orders of magnitude. How many bits a channel takes is then its own standard deviation's affair.
//!
//! `docs/format.md` describes the bytes.

mod bits;
mod decode;
mod encode;
mod options;
mod tables;

use crate::chain::{Arguments, Built};
use crate::kv::{Exact, Layout, Matrix};
use crate::{ChunkContext, Codec, CodecError};
use options::Options;
pub(crate) use options::{FORM, PRESETS};

const NAME: &str = "kvq";

/// The first byte of a chunk.
const FORMAT: u8 = 1;

/// Bits of the second byte: keys are without their rotary embedding; classes are even; the rest is how fine means are.
const UNROTATED: u8 = 1;
const COARSE: u8 = 2;
const MEANS_SHIFT: u32 = 4;

/// What stands for "no means" where it is said how fine they are.
const NO_MEANS: u8 = 15;

#[derive(Debug)]
pub(crate) struct Kvq {
    options: Options,
}

/// Builds the stage from its arguments.
pub(crate) fn build(arguments: &Arguments<'_>) -> Result<Built, CodecError> {
    let bad = |found: &str| CodecError::BadLevel { codec: NAME, expected: FORM.to_owned(), found: found.chars().take(64).collect() };
    if let Some(hash) = arguments.calibration {
        return Err(bad(hash));
    }
    let options = Options::parse(&arguments.texts).map_err(bad)?;
    Ok(Built { text: options.to_string(), codec: Box::new(Kvq { options }) })
}

impl Codec for Kvq {
    fn name(&self) -> &'static str {
        NAME
    }

    fn lossless(&self) -> bool {
        false
    }

    fn encode(&self, input: &[u8], context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let layout = layout(context, input.len())?;
        let sinks = u64::from(self.options.sinks).saturating_sub(layout.first_position());
        let window = layout.all_tokens.saturating_sub(u64::from(self.options.window)).saturating_sub(layout.first_token);
        let exact = Exact::of(&layout, input, |token| (token as u64) < sinks || token as u64 >= window);
        encode::encode(&self.options, &layout, &exact, input)
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let layout = layout(context, decoded_len)?;
        let mut out = vec![0; decoded_len];
        decode::decode(&layout, input, &mut out)?;
        Ok(out)
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }
}

/// The layout of a chunk with tokens.
fn layout(context: ChunkContext<'_>, len: usize) -> Result<Layout<'_>, CodecError> {
    let layout = Layout::of(NAME, context, len)?;
    if !layout.has_tokens {
        let axes = context.tensor.axes;
        return Err(CodecError::encode(
            NAME,
            format!("axes {axes:?}; it needs one named `token`, and finds K and V by `kv`, `layer`, `head`, `dim`"),
        ));
    }
    Ok(layout)
}

/// Which matrices share a step: those of one layer and kind, which follow each other. The index of each one's step.
fn planes<'a>(matrices: impl IntoIterator<Item = &'a Matrix>) -> Vec<usize> {
    let mut planes: Vec<usize> = Vec::new();
    let mut before = None;
    for matrix in matrices {
        let plane = (matrix.layer, matrix.kind);
        let index = planes.last().map_or(0, |last| last + usize::from(before != Some(plane)));
        planes.push(index);
        before = Some(plane);
    }
    planes
}

fn corrupt(expected: impl Into<String>, found: impl ToString) -> CodecError {
    CodecError::corrupt(NAME, expected, found)
}
