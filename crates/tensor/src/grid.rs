//! The n-d chunk grid of a tensor: which cells a region touches, and how bytes move between a cell and row-major order.
//!
//! Everything here is in units of *items*: an item is one element, or for packed dtypes the tensor is taken as a flat
//! array of bytes ([`Grid::shape`] then is `[nbytes]`), since their elements do not start on bytes.

use std::ops::Range;

use crate::{DType, TensorError, TensorSpec};

/// A tensor's shape cut into equal cells; cells at the far edges may be short. Cells are numbered in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    shape: Vec<u64>,
    chunk: Vec<u64>,
    item: u64,
}

/// A box of a tensor: a half-open range an axis.
pub type Region = Vec<Range<u64>>;

impl Grid {
    /// The grid of `spec` with cells of `chunk`; one extent an axis of [`Grid::items`], each at least 1.
    pub fn new(spec: &TensorSpec, chunk: &[u64]) -> Result<Grid, TensorError> {
        let (shape, item) = Grid::items(spec.dtype(), spec.shape(), spec.nbytes());
        if chunk.len() != shape.len() || chunk.contains(&0) {
            return Err(TensorError::BadSpec(format!("chunks of {chunk:?} do not divide a shape of {shape:?}")));
        }
        Ok(Grid { shape, chunk: chunk.to_vec(), item })
    }

    /// The shape that is cut, and the bytes of one of its items: the tensor's own, or flat bytes for a packed dtype.
    pub fn items(dtype: DType, shape: &[u64], nbytes: u64) -> (Vec<u64>, u64) {
        match dtype.item_size() {
            Some(size) => (shape.to_vec(), size as u64),
            None => (vec![nbytes], 1),
        }
    }

    /// The shape that is cut.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Extents of a whole cell.
    pub fn chunk(&self) -> &[u64] {
        &self.chunk
    }

    /// Bytes of one item.
    pub fn item(&self) -> u64 {
        self.item
    }

    /// Cells along each axis; none where the axis is empty.
    fn counts(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + '_ {
        self.shape.iter().zip(&self.chunk).map(|(&extent, &chunk)| extent.div_ceil(chunk))
    }

    /// Cells in all; 1 for a scalar, 0 for an empty tensor. Saturates, so that a limit can be checked against it.
    pub fn cells(&self) -> u64 {
        self.counts().fold(1, u64::saturating_mul)
    }

    /// The box of cell `index`.
    pub fn cell(&self, index: u64) -> Region {
        let mut left = index;
        let mut region: Region = self
            .counts()
            .zip(self.shape.iter().zip(&self.chunk))
            .rev()
            .map(|(count, (&extent, &chunk))| {
                let at = left % count.max(1);
                left /= count.max(1);
                at * chunk..((at + 1) * chunk).min(extent)
            })
            .collect();
        region.reverse();
        region
    }

    /// Bytes of a box.
    pub fn region_bytes(&self, region: &[Range<u64>]) -> u64 {
        region.iter().map(|r| r.end - r.start).product::<u64>() * self.item
    }

    /// How many leading items of axis `slab_axis` make a slab: see [`Grid::slabs`].
    fn slab_axis(&self) -> usize {
        self.chunk.iter().position(|&c| c > 1).unwrap_or(self.chunk.len().saturating_sub(1))
    }

    /// The tensor as consecutive row-major byte ranges, each of which holds whole cells and as few as possible: what a
    /// writer must gather before it can cut cells, and what a reader can emit in order.
    pub fn slabs(&self) -> Slabs {
        let axis = self.slab_axis();
        Slabs {
            grid: self.clone(),
            axis,
            outer: if self.cells() == 0 { 0 } else { self.shape[..axis.min(self.shape.len())].iter().product() },
            next: (0, 0),
        }
    }

    /// Bytes of the largest slab.
    pub fn slab_bytes(&self) -> u64 {
        self.slabs().next().map_or(0, |slab| slab.bytes(self))
    }

    /// The cells a box touches, in row-major order.
    pub fn touched(&self, region: &[Range<u64>]) -> Vec<u64> {
        let mut cells = vec![0u64];
        for ((count, &chunk), range) in self.counts().zip(&self.chunk).zip(region) {
            if range.is_empty() {
                return Vec::new();
            }
            let along = range.start / chunk..range.end.div_ceil(chunk);
            cells = cells.iter().flat_map(|&c| along.clone().map(move |i| c * count + i)).collect();
        }
        if self.shape.contains(&0) { Vec::new() } else { cells }
    }

    /// Copies the box `region` between two boxes that hold it: from `source`, laid out row-major over `source_box`, into
    /// `target`, row-major over `target_box`.
    pub fn copy(&self, region: &[Range<u64>], source: &[u8], source_box: &[Range<u64>], target: &mut [u8], target_box: &[Range<u64>]) {
        if region.iter().any(Range::is_empty) {
            return;
        }
        // Trailing axes that the region covers whole in both boxes are one run of bytes.
        let mut split = region.len();
        let mut run = self.item;
        while split > 0 {
            let r = &region[split - 1];
            run *= r.end - r.start;
            split -= 1;
            if *r != source_box[split] || *r != target_box[split] {
                break;
            }
        }
        let (from, to) = (Strides::new(source_box, self.item), Strides::new(target_box, self.item));
        let mut at: Vec<u64> = region.iter().map(|r| r.start).collect();
        loop {
            let (s, t) = (from.offset(&at), to.offset(&at));
            target[t..t + run as usize].copy_from_slice(&source[s..s + run as usize]);
            // Counts up over the axes before the run.
            let Some(axis) = (0..split).rev().find(|&axis| at[axis] + 1 < region[axis].end) else { return };
            at[axis] += 1;
            for later in axis + 1..split {
                at[later] = region[later].start;
            }
        }
    }
}

/// The box `region` of a row-major tensor of `shape`, as runs of consecutive bytes in order: the length of every run, and where
/// each begins.
pub fn runs(shape: &[u64], item: u64, region: &[Range<u64>]) -> (u64, impl Iterator<Item = u64> + use<>) {
    let whole: Region = shape.iter().map(|&extent| 0..extent).collect();
    let mut split = region.len();
    let mut run = item;
    while split > 0 {
        split -= 1;
        run *= region[split].end - region[split].start;
        if region[split] != whole[split] {
            break;
        }
    }
    let mut strides = vec![item; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1];
    }
    let base: u64 = region.iter().zip(&strides).map(|(r, stride)| r.start * stride).sum();
    let outer: Vec<(u64, u64)> = region[..split].iter().zip(&strides).map(|(r, &stride)| (r.end - r.start, stride)).collect();
    let count = if run == 0 { 0 } else { outer.iter().map(|axis| axis.0).product() };
    let begins = (0..count).map(move |index: u64| {
        let mut left = index;
        outer.iter().rev().fold(base, |offset, &(extent, stride)| {
            let at = left % extent;
            left /= extent;
            offset + at * stride
        })
    });
    (run, begins)
}

/// Byte strides of a row-major box.
struct Strides<'a> {
    of: &'a [Range<u64>],
    strides: Vec<u64>,
}

impl<'a> Strides<'a> {
    fn new(of: &'a [Range<u64>], item: u64) -> Strides<'a> {
        let mut strides = vec![item; of.len()];
        for axis in (0..of.len().saturating_sub(1)).rev() {
            strides[axis] = strides[axis + 1] * (of[axis + 1].end - of[axis + 1].start);
        }
        Strides { of, strides }
    }

    fn offset(&self, at: &[u64]) -> usize {
        at.iter().zip(self.of).zip(&self.strides).map(|((&i, r), &stride)| (i - r.start) * stride).sum::<u64>() as usize
    }
}

/// One slab: a box that is contiguous in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slab {
    /// The box.
    pub region: Region,
}

impl Slab {
    /// Bytes of the slab.
    pub fn bytes(&self, grid: &Grid) -> u64 {
        grid.region_bytes(&self.region)
    }
}

/// The slabs of a grid in row-major order; lazily, since a grid may have very many.
pub struct Slabs {
    grid: Grid,
    axis: usize,
    outer: u64,
    next: (u64, u64),
}

impl Iterator for Slabs {
    type Item = Slab;

    fn next(&mut self) -> Option<Slab> {
        let (outer, along) = self.next;
        if outer >= self.outer {
            return None;
        }
        let shape = &self.grid.shape;
        let mut region: Region = shape.iter().map(|&extent| 0..extent).collect();
        let mut left = outer;
        for axis in (0..self.axis.min(shape.len())).rev() {
            let at = left % shape[axis];
            left /= shape[axis];
            region[axis] = at..at + 1;
        }
        self.next = (outer + 1, 0);
        if let Some(&extent) = shape.get(self.axis) {
            let end = (along + self.grid.chunk[self.axis]).min(extent);
            region[self.axis] = along..end;
            if end < extent {
                self.next = (outer, end);
            }
        }
        Some(Slab { region })
    }
}

/// Bytes of a chunk that [`chunk_shape`] aims at.
pub const CHUNK_BYTES: u64 = 2 << 20;

/// Bytes of a slab that [`chunk_shape`] never passes, since a writer holds one in memory (a row of one token may).
pub const SLAB_BYTES: u64 = 16 << 20;

/// Tokens of a chunk, where an axis is named `token`.
const CHUNK_TOKENS: u64 = 256;

/// A chunk shape for a part: about [`CHUNK_BYTES`] a cell, grown from the innermost axis outward, so that a cell is one run of
/// row-major bytes. An axis named `token` is cut at 256 where a slab stays within [`SLAB_BYTES`], so that a range of tokens
/// reads little else.
pub fn chunk_shape(spec: &TensorSpec) -> Vec<u64> {
    let (shape, item) = Grid::items(spec.dtype(), spec.shape(), spec.nbytes());
    let token = spec.axes().iter().position(|name| name == "token").filter(|&axis| axis < shape.len());
    let inner = |axis: usize| shape[axis + 1..].iter().product::<u64>() * item;
    let mut chunk = vec![1u64; shape.len()];
    let (mut bytes, mut cut) = (item, false);
    for axis in (0..shape.len()).rev() {
        let extent = shape[axis].max(1);
        let mut want = (CHUNK_BYTES / bytes.max(1)).clamp(1, extent);
        if token == Some(axis) && extent > CHUNK_TOKENS && want > CHUNK_TOKENS.min(extent) - 1 {
            (want, cut) = (CHUNK_TOKENS, true);
        } else if cut {
            // Outside a cut token axis, a slab spans all tokens.
            want = want.min((SLAB_BYTES / inner(axis).max(1)).max(1));
        }
        chunk[axis] = want;
        bytes *= want;
        if want < extent && !(cut && token == Some(axis)) {
            break;
        }
    }
    if let Some(axis) = token.filter(|_| cut) {
        // Few and small tokens: a chunk of several hundred bytes would cost more than it saves.
        let cell = chunk.iter().product::<u64>() * item;
        chunk[axis] = shape[axis].min(CHUNK_TOKENS * (CHUNK_BYTES / 2 / cell.max(1)).max(1));
    }
    chunk
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(shape: &[u64]) -> TensorSpec {
        TensorSpec::new(DType::UInt16, shape.to_vec()).unwrap()
    }

    fn bytes(n: u64) -> Vec<u8> {
        (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn a_scalar_is_one_cell_and_an_empty_tensor_none() {
        let scalar = Grid::new(&spec(&[]), &[]).unwrap();
        assert_eq!((scalar.cells(), scalar.slabs().count(), scalar.slab_bytes()), (1, 1, 2));
        assert_eq!(scalar.touched(&[]), vec![0]);
        let empty = Grid::new(&spec(&[3, 0, 2]), &[1, 1, 1]).unwrap();
        assert_eq!((empty.cells(), empty.slabs().count(), empty.slab_bytes()), (0, 0, 0));
        assert!(empty.touched(&[0..3, 0..0, 0..2]).is_empty());
    }

    #[test]
    fn chunks_of_a_kv_cache_cut_tokens() {
        let kv = TensorSpec::new(DType::BFloat16, vec![30, 2, 1536, 3, 64]).unwrap();
        let named = kv.clone().with_axes(["layer", "kv", "token", "head", "dim"].map(String::from).to_vec()).unwrap();
        assert_eq!(chunk_shape(&kv), vec![1, 2, 1536, 3, 64]);
        assert_eq!(chunk_shape(&named), vec![10, 2, 256, 3, 64]);
        assert!(Grid::new(&named, &chunk_shape(&named)).unwrap().slab_bytes() <= SLAB_BYTES);
    }

    #[test]
    fn small_tokens_make_no_small_chunks() {
        for shape in [vec![16 << 20], vec![1 << 20, 64]] {
            let mut axes = vec![String::new(); shape.len()];
            axes[0] = "token".into();
            let tokens = TensorSpec::new(DType::UInt8, shape).unwrap().with_axes(axes).unwrap();
            let grid = Grid::new(&tokens, &chunk_shape(&tokens)).unwrap();
            assert!(grid.region_bytes(&grid.cell(0)) >= CHUNK_BYTES / 4, "{grid:?}");
            assert!(grid.slab_bytes() <= SLAB_BYTES);
        }
    }

    #[test]
    fn huge_shapes_cost_nothing_to_plan() {
        let huge = spec(&[1 << 20, 1 << 20, 4]);
        let grid = Grid::new(&huge, &chunk_shape(&huge)).unwrap();
        assert!(grid.cells() > 1 << 20);
        assert!(grid.slab_bytes() <= SLAB_BYTES);
    }

    fn shape_and_chunk() -> impl Strategy<Value = (Vec<u64>, Vec<u64>, Vec<(u64, u64)>)> {
        prop::collection::vec((0u64..7, 1u64..5, 0u64..7, 0u64..7), 0..5).prop_map(|axes| {
            (
                axes.iter().map(|a| a.0).collect(),
                axes.iter().map(|a| a.1).collect(),
                axes.iter().map(|a| (a.2.min(a.0), a.3.min(a.0))).collect(),
            )
        })
    }

    proptest! {
        #[test]
        fn cutting_and_reading_any_box_gives_the_bytes_back((shape, chunk, bounds) in shape_and_chunk()) {
            let spec = spec(&shape);
            let grid = Grid::new(&spec, &chunk).unwrap();
            let whole: Region = shape.iter().map(|&n| 0..n).collect();
            let raw = bytes(spec.nbytes());
            // Slabs cover the tensor in order, and every cell lies in one slab.
            let mut stored = vec![None; grid.cells() as usize];
            let mut offset = 0;
            for slab in grid.slabs() {
                let len = slab.bytes(&grid) as usize;
                for cell in grid.touched(&slab.region) {
                    let region = grid.cell(cell);
                    let mut data = vec![0; grid.region_bytes(&region) as usize];
                    grid.copy(&region, &raw[offset..offset + len], &slab.region, &mut data, &region);
                    prop_assert!(stored[cell as usize].replace((region, data)).is_none());
                }
                prop_assert!(len as u64 <= grid.slab_bytes());
                offset += len;
            }
            prop_assert_eq!(offset as u64, spec.nbytes());
            // Any box, from the cells it touches, equals the box copied from the whole.
            let want: Region = bounds.iter().map(|&(a, b)| a.min(b)..a.max(b)).collect();
            let mut expected = vec![0; grid.region_bytes(&want) as usize];
            grid.copy(&want, &raw, &whole, &mut expected, &want);
            let mut got = vec![0; expected.len()];
            for cell in grid.touched(&want) {
                let (region, data) = stored[cell as usize].as_ref().unwrap();
                let common: Region = region.iter().zip(&want).map(|(a, b)| a.start.max(b.start)..a.end.min(b.end)).collect();
                grid.copy(&common, data, region, &mut got, &want);
            }
            prop_assert_eq!(&got, &expected);
            let (run, begins) = runs(&shape, 2, &want);
            let by_runs: Vec<u8> = begins.flat_map(|at| raw[at as usize..(at + run) as usize].to_vec()).collect();
            prop_assert_eq!(by_runs, expected);
        }
    }
}
