//! `.npy`, versions 1 to 3: a magic number, a header that is a Python dict, the bytes of one array.

use std::collections::BTreeMap;

use bytes::Bytes;
use sira_tensor::{DType, TensorSpec};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Layout;
use crate::Failure;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Bytes of the largest header read. numpy itself stops at 10,000 unless told otherwise.
const MAX_HEADER: u32 = 1 << 20;
/// Bytes of a piece of a reordered array.
const PIECE: usize = 2 << 20;

/// numpy's letter and size for the dtypes that it has itself.
const DTYPES: [(DType, &str); 13] = [
    (DType::Bool, "b1"),
    (DType::Int8, "i1"),
    (DType::Int16, "i2"),
    (DType::Int32, "i4"),
    (DType::Int64, "i8"),
    (DType::UInt8, "u1"),
    (DType::UInt16, "u2"),
    (DType::UInt32, "u4"),
    (DType::UInt64, "u8"),
    (DType::Float16, "f2"),
    (DType::Float32, "f4"),
    (DType::Float64, "f8"),
    (DType::Complex64, "c8"),
];

fn wrong(reason: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("not a .npy file that can be read: {reason}"))
}

/// Reads the header.
pub async fn read_header(file: &mut (impl AsyncRead + Unpin)) -> Result<Layout, Failure> {
    let mut start = [0; 8];
    file.read_exact(&mut start).await.map_err(wrong)?;
    let [magic @ .., major, _minor] = &start;
    if magic != MAGIC {
        return Err(wrong("it does not begin with numpy's magic number"));
    }
    let (len, before) = match major {
        1 => (u32::from(file.read_u16_le().await.map_err(wrong)?), 10),
        2 | 3 => (file.read_u32_le().await.map_err(wrong)?, 12),
        other => return Err(wrong(format!("version {other}; 1 to 3 are known"))),
    };
    if len > MAX_HEADER {
        return Err(wrong(format!("a header of {len} bytes; at most {MAX_HEADER} are read")));
    }
    let mut text = vec![0; len as usize];
    file.read_exact(&mut text).await.map_err(wrong)?;
    let text = std::str::from_utf8(&text).map_err(|_| wrong("the header is not text"))?;
    let header = Parser { rest: text }.header()?;
    let (dtype, swap) = dtype(&header.descr)?;
    let spec = TensorSpec::new(dtype, header.shape).map_err(wrong)?;
    // An array with at most one axis longer than 1 lies the same way in both orders.
    let long_axes = spec.shape().iter().filter(|&&extent| extent > 1).count();
    let fortran = header.fortran_order && long_axes > 1 && spec.nbytes() > 0;
    Ok(Layout { spec, start: before + u64::from(len), last: true, fortran, swap, metadata: BTreeMap::new() })
}

/// The dtype of a `descr`, and the size of the numbers whose byte order is to be turned (1 for none).
fn dtype(descr: &str) -> Result<(DType, usize), Failure> {
    let refuse = |advice: &str| Err(wrong(format!("dtype {descr:?} {advice}")));
    let (Some(order), Some(kind)) = (descr.get(..1), descr.get(1..)) else { return refuse("is not one of numpy's") };
    let Some((dtype, _)) = DTYPES.iter().find(|(_, name)| *name == kind) else {
        return match kind.get(..1) {
            Some("V") => refuse("says nothing of its elements (numpy saves bfloat16 and float8 so); save it as .safetensors"),
            _ => refuse("is no tensor's; known are bool, the integers, float16, float32, float64 and complex64"),
        };
    };
    let number = if *dtype == DType::Complex64 { 4 } else { dtype.item_size().unwrap_or(1) };
    match order {
        "<" => Ok((*dtype, 1)),
        ">" => Ok((*dtype, number)),
        "|" if number == 1 => Ok((*dtype, 1)),
        _ => refuse("has no byte order"),
    }
}

struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// Reads the one dict that numpy writes, and nothing else of Python.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn header(mut self) -> Result<Header, Failure> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.expect("{")?;
        while !self.take("}") {
            let key = self.string()?;
            self.expect(":")?;
            let fresh = match key {
                "descr" => descr.replace(self.string()?.to_owned()).is_none(),
                "fortran_order" => fortran_order.replace(self.boolean()?).is_none(),
                "shape" => shape.replace(self.shape()?).is_none(),
                other => return Err(wrong(format!("unknown header entry {other:?}"))),
            };
            if !fresh {
                return Err(wrong(format!("header entry {key:?} is there twice")));
            }
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        if !self.rest.trim().is_empty() {
            return Err(wrong("the header goes on after its dict"));
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Header { descr, fortran_order, shape }),
            _ => Err(wrong("the header lacks descr, fortran_order or shape")),
        }
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start_matches([' ', '\t', '\n']);
        let taken = rest.strip_prefix(token);
        self.rest = taken.unwrap_or(rest);
        taken.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), Failure> {
        if self.take(token) {
            return Ok(());
        }
        let found: String = self.rest.chars().take(20).collect();
        Err(wrong(format!("the header has {found:?} where {token:?} should be")))
    }

    fn string(&mut self) -> Result<&'a str, Failure> {
        let quote = if self.take("\"") { '"' } else { '\'' };
        if quote == '\'' && !self.take("'") {
            let structured = self.rest.starts_with('[');
            return Err(wrong(if structured { "its elements are records; a tensor has one dtype" } else { "the header lacks a text" }));
        }
        let (text, rest) = self.rest.split_once(quote).ok_or_else(|| wrong("a text in the header has no end"))?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, Failure> {
        if self.take("True") {
            return Ok(true);
        }
        self.expect("False").map(|()| false)
    }

    fn shape(&mut self) -> Result<Vec<u64>, Failure> {
        let mut shape = Vec::new();
        self.expect("(")?;
        while !self.take(")") {
            self.take(""); // white space before the digits
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            shape.push(digits.parse().map_err(|_| wrong(format!("the shape has {digits:?} where a length should be")))?);
            self.rest = rest;
            self.take("L"); // as Python 2 wrote long integers
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(shape)
    }
}

/// The bytes before the array's in a file; `None` for a dtype that numpy does not have.
pub fn header(spec: &TensorSpec) -> Option<Vec<u8>> {
    let (_, kind) = DTYPES.iter().find(|(dtype, _)| *dtype == spec.dtype())?;
    let order = if spec.dtype().item_size() == Some(1) { '|' } else { '<' };
    let extents: Vec<String> = spec.shape().iter().map(u64::to_string).collect();
    let comma = if extents.len() == 1 { "," } else { "" };
    let mut text = format!("{{'descr': '{order}{kind}', 'fortran_order': False, 'shape': ({}{comma}), }}", extents.join(", "));
    // The array begins at a multiple of 64, as numpy writes it; a rank of 64 stays far below version 1's 64 KiB.
    let pad = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(64) - (MAGIC.len() + 4 + text.len() + 1);
    text.push_str(&" ".repeat(pad));
    text.push('\n');
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&[1, 0]);
    header.extend_from_slice(&u16::try_from(text.len()).ok()?.to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    Some(header)
}

/// An array in column-major order, given out in row-major order, piece by piece. It lies in memory: its elements are needed from all over it.
pub struct RowMajor {
    data: Vec<u8>,
    item: usize,
    shape: Vec<usize>,
    /// Bytes from an element to the next one along each axis.
    steps: Vec<usize>,
    at: Vec<usize>,
    from: usize,
    left: usize,
}

impl RowMajor {
    /// `data` is the column-major array of `spec`; what it lacks in bytes is left out at the end.
    pub fn new(data: Vec<u8>, spec: &TensorSpec) -> RowMajor {
        let item = spec.dtype().item_size().unwrap_or(1);
        let shape: Vec<usize> = spec.shape().iter().map(|&extent| extent as usize).collect();
        let steps = shape.iter().scan(item, |step, extent| Some(std::mem::replace(step, *step * extent))).collect();
        let left = if data.len() as u64 == spec.nbytes() { data.len() / item } else { 0 };
        RowMajor { at: vec![0; shape.len()], data, item, shape, steps, from: 0, left }
    }
}

impl Iterator for RowMajor {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let count = self.left.min(PIECE / self.item);
        if count == 0 {
            return None;
        }
        self.left -= count;
        let mut piece = Vec::with_capacity(count * self.item);
        for _ in 0..count {
            piece.extend_from_slice(&self.data[self.from..self.from + self.item]);
            for axis in (0..self.shape.len()).rev() {
                self.at[axis] += 1;
                self.from += self.steps[axis];
                if self.at[axis] < self.shape[axis] {
                    break;
                }
                self.from -= self.steps[axis] * self.shape[axis];
                self.at[axis] = 0;
            }
        }
        Some(piece.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(major: u8, dict: &str) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&[major, 0]);
        match major {
            1 => file.extend_from_slice(&(dict.len() as u16).to_le_bytes()),
            _ => file.extend_from_slice(&(dict.len() as u32).to_le_bytes()),
        }
        file.extend_from_slice(dict.as_bytes());
        file
    }

    async fn read(file: &[u8]) -> Result<Layout, Failure> {
        let mut file = file;
        read_header(&mut file).await
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        for (dtype, _) in DTYPES {
            for shape in [vec![], vec![7], vec![3, 0], vec![2, 3, 4], vec![1; 64]] {
                let spec = TensorSpec::new(dtype, shape).unwrap();
                let file = header(&spec).unwrap();
                assert!(file.len().is_multiple_of(64) && file.ends_with(b"\n"));
                let layout = read(&file).await.unwrap();
                assert_eq!(
                    layout,
                    Layout { spec, start: file.len() as u64, last: true, fortran: false, swap: 1, metadata: BTreeMap::new() }
                );
            }
        }
        assert_eq!(header(&TensorSpec::new(DType::BFloat16, vec![2]).unwrap()), None);
    }

    #[tokio::test]
    async fn every_version_and_spelling_is_read() {
        let dict = "{'descr': '>c8', 'fortran_order': True, 'shape': (3, 4), }   \n";
        for major in [1, 2, 3] {
            let layout = read(&file(major, dict)).await.unwrap();
            assert_eq!((layout.spec.shape(), layout.fortran, layout.swap), (&[3, 4][..], true, 4));
        }
        for dict in ["{\"shape\":(5,),\"fortran_order\":False,\"descr\":\"|i1\"}", "{'descr':'<i1','fortran_order':True,'shape':(5L,)}"] {
            let layout = read(&file(1, dict)).await.unwrap();
            assert_eq!((layout.spec.shape(), layout.fortran, layout.swap), (&[5][..], false, 1), "{dict}");
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let with = |descr: &str, shape: &str| file(1, &format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"));
        let mut files = vec![vec![], b"PK\x03\x04 zipped".to_vec(), file(4, "{}"), file(1, "{}"), file(1, "")];
        for shape in ["(3, -4)", "(3, 4", "(3 4)", "[3]", "(99999999999999999999,)", "(4611686018427387904, 16)", "(a,)"] {
            files.push(with("'<f4'", shape));
        }
        for descr in ["'<f16'", "'|V2'", "'|O'", "'<U8'", "'|f4'", "'=f4'", "''", "'é4'", "[('a', '<f4')]", "None"] {
            files.push(with(descr, "(3,)"));
        }
        files.push(file(1, "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"));
        files.push(file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'x': 'y'}"));
        files.push(file(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), } __import__('os')"));
        files.push(with("'<f4'", "(3,)")[..40].to_vec());
        for file in files {
            assert!(read(&file).await.is_err(), "{}", String::from_utf8_lossy(&file));
        }
        let reason = |descr: &str| dtype(descr).unwrap_err().to_string();
        assert!(reason("|V2").contains("save it as .safetensors"));
    }

    #[test]
    fn column_major_comes_out_row_major() {
        let spec = TensorSpec::new(DType::UInt16, vec![2, 3, 2]).unwrap();
        // The column-major array in which element (a, b, c) is 100a + 10b + c.
        let mut column = Vec::new();
        for c in 0..2u16 {
            for b in 0..3 {
                for a in 0..2 {
                    column.extend_from_slice(&(100 * a + 10 * b + c).to_le_bytes());
                }
            }
        }
        let row: Vec<u8> = RowMajor::new(column, &spec).flatten().collect();
        let expected = [0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121u16];
        assert_eq!(row, expected.map(u16::to_le_bytes).concat());
        let wide = TensorSpec::new(DType::UInt8, vec![3, 1 << 20]).unwrap();
        let data: Vec<u8> = (0..3 << 20).map(|i| (i / 3 % 251) as u8).collect();
        let pieces: Vec<Bytes> = RowMajor::new(data, &wide).collect();
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE, 1 << 20]);
        assert_eq!(pieces[1][..], pieces[0][..1 << 20]);
    }
}
