//! A chunk as the matrices that attention sees: tokens by dimensions, one for each layer, K or V, and head.

use std::cell::OnceCell;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use sira_tensor::DType;
use sira_tensor::kv::{KvField, Rope};

use super::rope::Rotation;
use crate::{ChunkContext, CodecError, KvFacts};

/// Where the matrices of a chunk lie in its bytes.
///
/// Axes are found by their names: `layer`, `kv` (extent 2: K, then V), `head`, `token`, `dim`, in any order; one that is missing counts as
/// of extent 1. Where no axis is named `dim`, the last one takes its place unless it has another of these names. Every other axis
/// (`block`, `batch`) makes more matrices. A part named `k` or `v` is K or V as a whole, and fields named so are where they lie on `dim`
/// or `kv`.
#[derive(Clone, Debug)]
pub(crate) struct Layout<'a> {
    /// Type of the elements.
    pub(crate) float: Float,
    /// Tokens of the chunk, which are the rows of every matrix.
    pub(crate) tokens: usize,
    /// The first of them, among the tensor's.
    pub(crate) first_token: u64,
    /// Tokens of the tensor, or of the chunk where no more is known.
    pub(crate) all_tokens: u64,
    /// Whether an axis is named `token`.
    pub(crate) has_tokens: bool,
    /// Row-major over axes in the order layer, K or V, head, others; the axes that are not rows or columns.
    outer: Vec<Axis<'a>>,
    token_stride: usize,
    dim_stride: usize,
    columns: Vec<Columns>,
    facts: Option<&'a KvFacts>,
    rope: Option<&'a Rope>,
    rotation: OnceCell<Option<Rotation>>,
}

/// A matrix of the chunk: all its tokens, in the dimensions of one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    /// What the rows are.
    pub(crate) kind: Kind,
    /// Index of the layer among the tensor's.
    pub(crate) layer: u64,
    /// Index of the head among the tensor's.
    pub(crate) head: u64,
    /// Columns.
    pub(crate) dim: usize,
    /// The first column, counted from the beginning of the head (of the field, where K and V share an axis).
    pub(crate) first_dim: u64,
    /// Whether all columns of the head are here, and belong to a named axis.
    whole: bool,
    /// First element.
    start: usize,
}

/// What the vectors of a matrix are to attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Keys.
    K,
    /// Values.
    V,
    /// Something else, or not known.
    Other,
}

/// An element type that codecs can calculate with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    Bf16,
    F16,
    F32,
}

/// An axis of the chunk.
#[derive(Clone, Copy, Debug)]
struct Axis<'a> {
    role: Role,
    name: &'a str,
    extent: usize,
    /// In elements.
    stride: usize,
    origin: u64,
    /// The tensor's extent, or where the chunk ends if that is not known.
    all: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Layer,
    Kv,
    Head,
    Other,
    Token,
    Dim,
}

/// Columns that belong together: a field, or all of them.
#[derive(Clone, Debug)]
struct Columns {
    /// As a field says.
    kind: Option<Kind>,
    /// Among the chunk's.
    range: Range<usize>,
    first_dim: u64,
    whole: bool,
}

impl<'a> Layout<'a> {
    /// The layout of a chunk of `len` bytes.
    ///
    /// # Errors
    /// An element type other than bfloat16, float16 and float32; bytes that are not those of the chunk's shape. `codec` names who asks.
    pub(crate) fn of(codec: &'static str, context: ChunkContext<'a>, len: usize) -> Result<Layout<'a>, CodecError> {
        let Some(float) = Float::of(context.dtype) else {
            return Err(CodecError::encode(codec, format!("{}; it takes bfloat16, float16 and float32", context.dtype)));
        };
        let elements = context.shape.iter().try_fold(float.size() as u64, |product, &extent| product.checked_mul(extent));
        if elements != Some(len as u64) || context.origin.len() != context.shape.len() {
            let reason = format!("{len} bytes are not a chunk of shape {:?} in {}", context.shape, context.dtype);
            return Err(CodecError::encode(codec, reason));
        }
        let axes = axes(&context);
        let with = |role| axes.iter().find(|axis| axis.role == role);
        let (token, dim) = (with(Role::Token), with(Role::Dim));
        let mut outer: Vec<Axis<'_>> = axes.iter().filter(|axis| !matches!(axis.role, Role::Token | Role::Dim)).copied().collect();
        outer.sort_by_key(|axis| axis.role);
        // Of the tokens of several blocks only the first block's positions are known.
        let one_sequence = axes.iter().all(|axis| axis.role != Role::Other || axis.all == 1);
        let facts = context.tensor.kv;
        Ok(Layout {
            float,
            tokens: token.map_or(1, |axis| axis.extent),
            first_token: token.map_or(0, |axis| axis.origin),
            all_tokens: token.map_or(1, |axis| axis.all),
            has_tokens: token.is_some(),
            token_stride: token.map_or(0, |axis| axis.stride),
            dim_stride: dim.map_or(1, |axis| axis.stride),
            columns: columns(facts, dim),
            outer,
            facts,
            rope: facts.and_then(|kv| kv.rope.as_ref()).filter(|_| one_sequence && dim.is_some_and(|axis| axis.name == "dim")),
            rotation: OnceCell::new(),
        })
    }

    /// How many matrices there are.
    pub(crate) fn count(&self) -> usize {
        self.outer.iter().map(|axis| axis.extent).product::<usize>() * self.columns.len()
    }

    /// Every matrix, in the order layer, K or V, head, other axes.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = Matrix> + '_ {
        (0..self.count()).map(|index| self.matrix(index))
    }

    /// Matrix `index` of [`Layout::count`].
    fn matrix(&self, index: usize) -> Matrix {
        // K and V as fields of the columns come between layers and heads, as they do on an axis of their own.
        let heads: usize = self.outer.iter().filter(|axis| axis.role > Role::Kv).map(|axis| axis.extent).product();
        let (inner, rest) = (index % heads, index / heads);
        let columns = &self.columns[rest % self.columns.len()];
        let mut left = rest / self.columns.len() * heads + inner;
        let mut matrix = Matrix {
            kind: columns.kind.or_else(|| self.facts.map(|facts| Kind::of(&facts.part))).unwrap_or(Kind::Other),
            layer: 0,
            head: 0,
            dim: columns.range.len(),
            first_dim: columns.first_dim,
            whole: columns.whole,
            start: columns.range.start * self.dim_stride,
        };
        for axis in self.outer.iter().rev() {
            let at = left % axis.extent;
            left /= axis.extent;
            matrix.start += at * axis.stride;
            let of_tensor = axis.origin + at as u64;
            match axis.role {
                Role::Layer => matrix.layer = of_tensor,
                Role::Head => matrix.head = of_tensor,
                Role::Kv if columns.kind.is_none() => matrix.kind = self.of_kv(axis, of_tensor),
                _ => {}
            }
        }
        matrix
    }

    /// What lies at `index` of the axis `kv`.
    fn of_kv(&self, axis: &Axis<'_>, index: u64) -> Kind {
        let fields = self.facts.map_or(&[][..], |facts| &facts.fields);
        match fields.iter().filter(|field| field.axis == axis.name).find(|field| range(field).contains(&index)) {
            Some(field) => Kind::of(&field.name),
            None => [Kind::K, Kind::V].get(index as usize).copied().filter(|_| axis.all == 2).unwrap_or(Kind::Other),
        }
    }

    /// The rotation of the keys in `matrix`, if it is known and can be undone: that of all its tokens, first to last.
    pub(crate) fn rotation(&self, matrix: &Matrix) -> Option<&Rotation> {
        let rope = self.rope.filter(|rope| matrix.kind == Kind::K && matrix.whole && self.has_tokens && rope.dim as usize <= matrix.dim)?;
        self.rotation.get_or_init(|| Rotation::of(rope, self.first_token, self.tokens)).as_ref()
    }

    /// Position in the sequence of the chunk's first token; that in the tensor where no more is known.
    pub(crate) fn first_position(&self) -> u64 {
        self.rope.map_or(0, |rope| rope.first_position).saturating_add(self.first_token)
    }

    /// Reads rows `tokens` of `matrix` out of the chunk's bytes: `tokens.len()` times `dim` values, row-major.
    pub(crate) fn read(&self, chunk: &[u8], matrix: &Matrix, tokens: Range<usize>, values: &mut [f32]) {
        let size = self.float.size();
        for (token, row) in tokens.zip(values.chunks_exact_mut(matrix.dim.max(1))) {
            let start = matrix.start + token * self.token_stride;
            if self.dim_stride == 1 {
                self.float.read(&chunk[start * size..(start + matrix.dim) * size], row);
            } else {
                for (i, value) in row.iter_mut().enumerate() {
                    let at = (start + i * self.dim_stride) * size;
                    self.float.read(&chunk[at..at + size], std::slice::from_mut(value));
                }
            }
        }
    }

    /// Writes what [`Layout::read`] reads: each value as the nearest of the element type, ties to even; beyond its range as the largest
    /// finite one, and NaN as NaN.
    pub(crate) fn write(&self, chunk: &mut [u8], matrix: &Matrix, tokens: Range<usize>, values: &[f32]) {
        let size = self.float.size();
        for (token, row) in tokens.zip(values.chunks_exact(matrix.dim.max(1))) {
            let start = matrix.start + token * self.token_stride;
            if self.dim_stride == 1 {
                self.float.write(row, &mut chunk[start * size..(start + matrix.dim) * size]);
            } else {
                for (i, value) in row.iter().enumerate() {
                    let at = (start + i * self.dim_stride) * size;
                    self.float.write(std::slice::from_ref(value), &mut chunk[at..at + size]);
                }
            }
        }
    }

    /// Copies the bytes of one row out of the chunk, to the end of `out`.
    pub(crate) fn copy_out(&self, chunk: &[u8], matrix: &Matrix, token: usize, out: &mut Vec<u8>) {
        self.row(matrix, token).for_each(|bytes| out.extend_from_slice(&chunk[bytes]));
    }

    /// Copies one row's bytes from the front of `from` into the chunk, and moves `from` on. False where it is too short.
    #[must_use]
    pub(crate) fn copy_in(&self, from: &mut &[u8], matrix: &Matrix, token: usize, chunk: &mut [u8]) -> bool {
        self.row(matrix, token).all(|bytes| match from.split_off(..bytes.len()) {
            Some(row) => {
                chunk[bytes].copy_from_slice(row);
                true
            }
            None => false,
        })
    }

    /// The bytes of a row, as ranges of the chunk.
    fn row(&self, matrix: &Matrix, token: usize) -> impl Iterator<Item = Range<usize>> {
        let size = self.float.size();
        let start = matrix.start + token * self.token_stride;
        let (count, run) = if self.dim_stride == 1 { (1, matrix.dim) } else { (matrix.dim, 1) };
        let stride = self.dim_stride;
        (0..count).map(move |i| (start + i * stride) * size).map(move |at| at..at + run * size)
    }
}

/// The axes of a chunk, with what their names say.
fn axes<'a>(context: &ChunkContext<'a>) -> Vec<Axis<'a>> {
    let rank = context.shape.len();
    let names = if context.tensor.axes.len() == rank { context.tensor.axes } else { &[] };
    let all = if context.tensor.shape.len() == rank { context.tensor.shape } else { &[] };
    let mut stride = 1;
    let mut axes: Vec<Axis<'a>> = (0..rank)
        .rev()
        .map(|index| {
            let (extent, origin) = (context.shape[index] as usize, context.origin[index]);
            let name = names.get(index).map_or("", String::as_str);
            let role = match name {
                "layer" => Role::Layer,
                "kv" => Role::Kv,
                "head" => Role::Head,
                "token" => Role::Token,
                "dim" => Role::Dim,
                _ => Role::Other,
            };
            let end = origin.saturating_add(extent as u64);
            let axis = Axis { role, name, extent, stride, origin, all: all.get(index).map_or(end, |&all| all.max(end)) };
            stride = stride.saturating_mul(extent);
            axis
        })
        .collect();
    axes.reverse();
    if !axes.iter().any(|axis| axis.role == Role::Dim)
        && let Some(last) = axes.last_mut().filter(|axis| axis.role == Role::Other)
    {
        last.role = Role::Dim;
    }
    axes
}

/// The columns of a chunk, cut where fields begin and end on their axis.
fn columns(facts: Option<&KvFacts>, dim: Option<&Axis<'_>>) -> Vec<Columns> {
    let Some(dim) = dim else { return vec![Columns { kind: None, range: 0..1, first_dim: 0, whole: false }] };
    let mut fields: Vec<&KvField> = facts.map_or(&[][..], |facts| &facts.fields).iter().filter(|field| field.axis == dim.name).collect();
    fields.sort_by_key(|field| field.offset);
    let mut cuts: Vec<(Option<Kind>, Range<u64>)> = Vec::new();
    let mut done = 0;
    for field in &fields {
        // Of fields that overlap the first has the columns.
        if field.offset >= done {
            cuts.push((Some(Kind::Other), done..field.offset));
            cuts.push((Some(Kind::of(&field.name)), range(field)));
            done = range(field).end;
        }
    }
    cuts.push((Some(Kind::Other).filter(|_| !fields.is_empty()), done..dim.all));
    let chunk = dim.origin..dim.origin.saturating_add(dim.extent as u64);
    let here = |(kind, of): (Option<Kind>, Range<u64>)| {
        let part = of.start.max(chunk.start)..of.end.min(chunk.end);
        let range = part.start.saturating_sub(chunk.start) as usize..part.end.saturating_sub(chunk.start) as usize;
        (part.start < part.end).then(|| Columns { kind, range, first_dim: part.start - of.start, whole: part == of })
    };
    cuts.into_iter().filter_map(here).collect()
}

fn range(field: &KvField) -> Range<u64> {
    field.offset..field.offset.saturating_add(field.extent)
}

impl Kind {
    fn of(name: &str) -> Kind {
        match name {
            "k" => Kind::K,
            "v" => Kind::V,
            _ => Kind::Other,
        }
    }
}

impl Float {
    /// The type of that name, if it is one of these.
    pub(crate) fn of(dtype: DType) -> Option<Float> {
        match dtype {
            DType::BFloat16 => Some(Float::Bf16),
            DType::Float16 => Some(Float::F16),
            DType::Float32 => Some(Float::F32),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub(crate) fn size(self) -> usize {
        match self {
            Float::Bf16 | Float::F16 => 2,
            Float::F32 => 4,
        }
    }

    /// The values of little-endian elements; as many as both hold.
    pub(crate) fn read(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Float::Bf16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Float::F16 => {
                for (values, bytes) in values.chunks_mut(8).zip(bytes.chunks(16)) {
                    let mut halves = [f16::ZERO; 8];
                    for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *half = f16::from_le_bytes(*bytes);
                    }
                    halves[..values.len()].convert_to_f32_slice(values);
                }
            }
            Float::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
    }

    /// The nearest elements to values, as [`Layout::write`] says.
    pub(crate) fn write(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            Float::Bf16 => {
                for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *bytes = to_bf16(*value).to_le_bytes();
                }
            }
            Float::F16 => {
                for (bytes, values) in bytes.chunks_mut(16).zip(values.chunks(8)) {
                    let mut clamped = [0.0; 8];
                    for (clamped, value) in clamped.iter_mut().zip(values) {
                        *clamped = value.clamp(-F16_MAX, F16_MAX);
                    }
                    let mut halves = [f16::ZERO; 8];
                    halves.convert_from_f32_slice(&clamped);
                    for (bytes, half) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
                        *bytes = half.to_le_bytes();
                    }
                }
            }
            Float::F32 => {
                for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *bytes = value.clamp(f32::MIN, f32::MAX).to_le_bytes();
                }
            }
        }
    }
}

/// The largest finite float16.
const F16_MAX: f32 = 65504.0;

/// The bits of the largest finite bfloat16.
const BF16_MAX: u32 = 0x7f7f_0000;

/// The nearest bfloat16, ties to even, but never infinite; NaN stays NaN.
fn to_bf16(value: f32) -> u16 {
    let (bits, sign) = (value.to_bits() & 0x7fff_ffff, value.to_bits() & 0x8000_0000);
    let rounded = (bits + 0x7fff + ((bits >> 16) & 1)).min(BF16_MAX);
    let rounded = if bits > 0x7f80_0000 { 0x7fc0_0000 } else { rounded };
    ((rounded | sign) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorContext;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn facts(part: &str, fields: &[(&str, &str, u64, u64)]) -> KvFacts {
        let field = |&(name, axis, offset, extent): &(&str, &str, u64, u64)| KvField {
            name: name.into(),
            axis: axis.into(),
            offset,
            extent,
            dtype: None,
        };
        let rope = Some(Rope { theta: 1e4, dim: 2, style: Default::default(), first_position: 100, scaling: Default::default() });
        KvFacts { model: None, rope, part: part.into(), fields: fields.iter().map(field).collect() }
    }

    /// Chunk whose elements are numbered, of a tensor that is as large.
    fn numbered(shape: &[u64]) -> Vec<u8> {
        (0..shape.iter().product::<u64>()).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    /// Every matrix as (kind, layer, head, first column) and its values.
    fn all(layout: &Layout<'_>, chunk: &[u8]) -> Vec<(Kind, u64, u64, u64, Vec<f32>)> {
        let read = |matrix: Matrix| {
            let mut values = vec![0.0; layout.tokens * matrix.dim];
            layout.read(chunk, &matrix, 0..layout.tokens, &mut values);
            (matrix.kind, matrix.layer, matrix.head, matrix.first_dim, values)
        };
        layout.matrices().map(read).collect()
    }

    #[test]
    fn axes_are_found_by_name_in_any_order() {
        // The same cache in several orders: the value at (layer, kv, head, token, dim) does not depend on it.
        let extents = [("layer", 3), ("kv", 2), ("head", 2), ("token", 4), ("dim", 5)];
        let value = |at: &dyn Fn(&str) -> u64| extents.iter().fold(0, |sum, (name, _)| sum * 10 + at(name)) as f32;
        let mut expected = None;
        for order in ["layer kv token head dim", "layer kv head token dim", "kv layer token dim head", "dim token head kv layer"] {
            let axes = names(order);
            let shape: Vec<u64> = axes.iter().map(|axis| extents.iter().find(|(name, _)| name == axis).unwrap().1).collect();
            let chunk: Vec<u8> = (0..shape.iter().product())
                .flat_map(|index: u64| {
                    let at = |name: &str| {
                        let axis = axes.iter().position(|axis| axis == name).unwrap();
                        index / shape[axis + 1..].iter().product::<u64>() % shape[axis]
                    };
                    value(&at).to_le_bytes()
                })
                .collect();
            let tensor = TensorContext { shape: &shape, axes: &axes, kv: None, calibration: None };
            let context = ChunkContext { dtype: DType::Float32, shape: &shape, origin: &[0; 5], tensor };
            let layout = Layout::of("test", context, chunk.len()).unwrap();
            let matrices = all(&layout, &chunk);
            assert_eq!((layout.count(), matrices.len(), matrices[0].4.len()), (12, 12, 20));
            assert_eq!(matrices[3].0, Kind::V);
            assert_eq!((matrices[3].1, matrices[3].2, matrices[3].4[7]), (0, 1, 1112.0), "{order}");
            assert_eq!(expected.get_or_insert(matrices.clone()), &matrices, "{order}");
            let mut copy = vec![0; chunk.len()];
            for (matrix, values) in layout.matrices().zip(&matrices) {
                layout.write(&mut copy, &matrix, 0..4, &values.4);
            }
            assert_eq!(copy, chunk, "{order}");
        }
    }

    #[test]
    fn missing_axes_are_of_extent_one() {
        for (axes, shape, count, tokens, dim) in [
            ("token dim", &[6, 4][..], 1, 6, 4),
            ("token head", &[6, 4], 4, 6, 1),
            ("token latent", &[6, 4], 1, 6, 4),
            ("head dim", &[6, 4], 6, 1, 4),
            ("token", &[6], 1, 6, 1),
            ("block kv token head dim", &[3, 2, 4, 2, 2], 12, 4, 2),
            ("", &[6, 4], 6, 1, 4),
            ("", &[6], 1, 1, 6),
            ("", &[], 1, 1, 1),
            ("token dim", &[0, 4], 1, 0, 4),
            ("token dim", &[4, 0], 0, 4, 0),
            ("layer token dim", &[0, 4, 2], 0, 4, 0),
        ] {
            let (axes, chunk) = (names(axes), numbered(shape));
            let context = ChunkContext {
                tensor: TensorContext { shape, axes: &axes, kv: None, calibration: None },
                ..ChunkContext::new(DType::Float32, shape, &[0; 5][..shape.len()])
            };
            let layout = Layout::of("test", context, chunk.len()).unwrap();
            assert_eq!((layout.count(), layout.tokens, layout.has_tokens), (count, tokens, axes.contains(&"token".to_owned())), "{axes:?}");
            let matrices = all(&layout, &chunk);
            assert!(layout.matrices().all(|matrix| matrix.dim == dim && layout.rotation(&matrix).is_none()), "{axes:?}");
            assert_eq!(matrices.iter().map(|matrix| matrix.4.len()).sum::<usize>(), chunk.len() / 4, "each element once");
        }
    }

    #[test]
    fn parts_and_fields_say_what_is_k_and_what_is_v() {
        let kinds = |axes: &str, shape: &[u64], facts: &KvFacts| -> Vec<(Kind, u64, usize, bool)> {
            let axes = names(axes);
            let context = ChunkContext {
                tensor: TensorContext { shape, axes: &axes, kv: Some(facts), calibration: None },
                ..ChunkContext::new(DType::Float32, shape, &[0; 5][..shape.len()])
            };
            let layout = Layout::of("test", context, shape.iter().product::<u64>() as usize * 4).unwrap();
            layout.matrices().map(|matrix| (matrix.kind, matrix.first_dim, matrix.dim, layout.rotation(&matrix).is_some())).collect()
        };
        assert_eq!(kinds("token dim", &[3, 4], &facts("k", &[])), [(Kind::K, 0, 4, true)]);
        assert_eq!(kinds("token dim", &[3, 4], &facts("v", &[])), [(Kind::V, 0, 4, false)]);
        assert_eq!(kinds("token dim", &[3, 4], &facts("data", &[])), [(Kind::Other, 0, 4, false)]);
        // Where the names of dimensions or the order of tokens are not known, nothing is turned back.
        assert_eq!(kinds("token other", &[3, 4], &facts("k", &[])), [(Kind::K, 0, 4, false)]);
        assert_eq!(kinds("block token dim", &[1, 3, 4], &facts("k", &[])), [(Kind::K, 0, 4, true)]);
        assert_eq!(kinds("block token dim", &[2, 3, 4], &facts("k", &[])), [(Kind::K, 0, 4, false); 2]);
        let packed = facts("data", &[("v", "dim", 3, 3), ("k", "dim", 0, 3)]);
        assert_eq!(
            kinds("layer token head dim", &[1, 3, 2, 6], &packed),
            [(Kind::K, 0, 3, true), (Kind::K, 0, 3, true), (Kind::V, 0, 3, false), (Kind::V, 0, 3, false)]
        );
        let latent = facts("data", &[("latent", "dim", 0, 5), ("k", "dim", 6, 2)]);
        assert_eq!(
            kinds("token kv dim", &[3, 1, 9], &latent),
            [(Kind::Other, 0, 5, false), (Kind::Other, 0, 1, false), (Kind::K, 0, 2, true), (Kind::Other, 0, 1, false)]
        );
        let swapped = facts("data", &[("v", "kv", 0, 1), ("k", "kv", 1, 1)]);
        assert_eq!(kinds("kv token dim", &[2, 3, 4], &swapped), [(Kind::V, 0, 4, false), (Kind::K, 0, 4, true)]);
        assert_eq!(kinds("kv token dim", &[3, 3, 4], &facts("data", &[])), [(Kind::Other, 0, 4, false); 3]);
    }

    #[test]
    fn a_chunk_knows_its_place() {
        let (axes, facts) = (names("layer kv token dim"), facts("data", &[]));
        let tensor = TensorContext { shape: &[30, 2, 1000, 4], axes: &axes, kv: Some(&facts), calibration: None };
        let context = ChunkContext { dtype: DType::BFloat16, shape: &[2, 1, 10, 4], origin: &[7, 1, 256, 0], tensor };
        let layout = Layout::of("test", context, 160).unwrap();
        assert_eq!((layout.first_token, layout.all_tokens, layout.first_position()), (256, 1000, 356));
        let matrices: Vec<_> = layout.matrices().map(|matrix| (matrix.layer, matrix.kind)).collect();
        assert_eq!(matrices, [(7, Kind::V), (8, Kind::V)]);
        // A piece of a head cannot be turned back.
        let context = ChunkContext { dtype: DType::BFloat16, shape: &[1, 1, 10, 2], origin: &[7, 0, 256, 2], tensor };
        let layout = Layout::of("test", context, 40).unwrap();
        let piece = layout.matrices().next().unwrap();
        assert_eq!((piece.kind, piece.first_dim, layout.rotation(&piece).is_none()), (Kind::K, 2, true));
    }

    #[test]
    fn what_is_no_chunk_of_floats_is_refused() {
        let error = |dtype, shape: &[u64], origin: &[u64], len| {
            Layout::of("kvq", ChunkContext::new(dtype, shape, origin), len).unwrap_err().to_string()
        };
        assert_eq!(error(DType::UInt8, &[4], &[0], 4), "kvq cannot encode: uint8; it takes bfloat16, float16 and float32");
        assert_eq!(error(DType::Float32, &[4], &[0], 4), "kvq cannot encode: 4 bytes are not a chunk of shape [4] in float32");
        error(DType::Float32, &[u64::MAX, 2], &[0, 0], 4);
        error(DType::Float32, &[1], &[], 4);
    }

    #[test]
    fn values_are_rounded_to_the_nearest_even_and_stay_finite() {
        for value in (0..=u32::MAX).step_by(65_521).map(f32::from_bits).chain([f32::MAX, f32::INFINITY, 65_519.9, 65_520.0, 1e-45]) {
            for value in [value, -value] {
                let mut bytes = [0; 2];
                Float::Bf16.write(&[value], &mut bytes);
                let expected = half::bf16::from_f32(value);
                let expected = if expected.is_infinite() { half::bf16::MAX.copysign(expected) } else { expected };
                let found = half::bf16::from_le_bytes(bytes);
                assert!(found == expected || value.is_nan() && found.is_nan(), "{value}");
                Float::F16.write(&[value], &mut bytes);
                let expected = f16::from_f32(value);
                let expected = if expected.is_infinite() { f16::MAX.copysign(expected) } else { expected };
                assert!(f16::from_le_bytes(bytes) == expected || value.is_nan(), "{value}");
            }
        }
        let every: Vec<u8> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).flat_map(u16::to_le_bytes).collect();
        for float in [Float::Bf16, Float::F16] {
            let (mut values, mut again) = (vec![0.0; every.len() / 2], vec![0; every.len()]);
            float.read(&every, &mut values);
            float.write(&values, &mut again);
            assert!(again == every, "{float:?}");
        }
    }

    #[test]
    fn rows_go_out_and_in_byte_for_byte() {
        for order in ["token dim", "dim token"] {
            let (axes, chunk) = (names(order), numbered(&[3, 3]));
            let context = ChunkContext {
                tensor: TensorContext { shape: &[3, 3], axes: &axes, kv: None, calibration: None },
                ..ChunkContext::new(DType::Float32, &[3, 3], &[0, 0])
            };
            let layout = Layout::of("test", context, chunk.len()).unwrap();
            let matrix = layout.matrices().next().unwrap();
            let (mut row, mut copy) = (Vec::new(), vec![0; chunk.len()]);
            layout.copy_out(&chunk, &matrix, 1, &mut row);
            let expected = if order == "token dim" { [3.0f32, 4.0, 5.0] } else { [1.0, 4.0, 7.0] };
            assert_eq!(row, expected.map(f32::to_le_bytes).concat());
            assert!(layout.copy_in(&mut &row[..], &matrix, 1, &mut copy));
            assert_eq!(copy.iter().filter(|byte| **byte != 0).count(), row.iter().filter(|byte| **byte != 0).count());
            assert!(!layout.copy_in(&mut &row[1..], &matrix, 1, &mut copy));
        }
    }
}
