//! `kvq`: keys before their rotary embedding and values, without the channels' means, in whole steps, and rANS with shared tables.
//!
//! One step holds for all channels of a layer's keys, another for its values, which by rate-distortion theory leaves no bit where it would do
//! more elsewhere (reverse water-filling). It follows the root mean square of what is quantised, layer by layer, since layers
//! differ in size by orders of magnitude. How many bits a channel takes is then its own standard deviation's affair.
//!
//! With a calibration, heads are first turned into components: of their vectors without the mean that the calibration knows, weighted by what errors
//! cost the model, in the directions of their own principal components. One step then holds for all of them, keys and values of all layers.
//!
//! `docs/format.md` describes the bytes.

mod bits;
mod decode;
mod encode;
mod options;
mod tables;
#[cfg(test)]
mod tests;
mod transform;

use crate::calibration::Calibration;
use crate::chain::{Arguments, Built};
use crate::kv::{Layout, Matrix};
use crate::{ChunkContext, Codec, CodecError};
use options::Options;
pub(crate) use options::{FORM, presets};

pub(crate) const NAME: &str = "kvq";

/// The first byte of a chunk.
const FORMAT: u8 = 1;

/// Bits of the second byte: keys are without their rotary embedding; classes are even; channels are components of a calibration's heads; the rest is
/// how fine means are.
const UNROTATED: u8 = 1;
const COARSE: u8 = 2;
const TRANSFORMED: u8 = 4;
const MEANS_SHIFT: u32 = 4;

/// What stands for "no means" where it is said how fine they are.
const NO_MEANS: u8 = 15;

#[derive(Debug)]
pub(crate) struct Kvq {
    options: Options,
    calibration: Option<String>,
}

/// Builds the stage from its arguments.
pub(crate) fn build(arguments: &Arguments<'_>) -> Result<Built, CodecError> {
    let bad = |found: &str| CodecError::BadLevel { codec: NAME, expected: FORM.to_owned(), found: found.chars().take(64).collect() };
    let options = Options::parse(&arguments.texts).map_err(bad)?;
    let calibration = arguments.calibration.map(str::to_owned);
    let text = calibration.as_ref().map_or_else(|| options.to_string(), |hash| format!("{options}@{hash}"));
    Ok(Built { text, codec: Box::new(Kvq { options, calibration }) })
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
        let transforms = transform::transforms(&layout, context, self.known(context)?);
        let transforms =
            transforms.map_err(|wanted| CodecError::encode(NAME, format!("a chunk that its calibration is not for; it takes {wanted}")))?;
        encode::encode(&self.options, &layout, &transforms, input)
    }

    fn decode(&self, input: &[u8], decoded_len: usize, context: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let mut out = vec![0; decoded_len];
        self.decode_into(input, &mut out, context)?;
        Ok(out)
    }

    fn decode_into(&self, input: &[u8], out: &mut [u8], context: ChunkContext<'_>) -> Result<(), CodecError> {
        let layout = layout(context, out.len())?;
        let transforms = transform::transforms(&layout, context, self.known(context)?);
        let transforms = transforms.map_err(|wanted| corrupt(wanted, "a chunk that its calibration is not for"))?;
        decode::decode(&layout, &transforms, input, out)
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }

    fn calibration(&self) -> Option<&str> {
        self.calibration.as_deref()
    }
}

impl Kvq {
    /// The calibration that the stage was named with, if it was.
    fn known<'a>(&self, context: ChunkContext<'a>) -> Result<Option<&'a Calibration>, CodecError> {
        self.calibration.as_deref().map(|hash| Calibration::named(NAME, hash, context)).transpose()
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
