//! How far a decoded chunk is from what was encoded.

use half::{bf16, f16};
use sira_tensor::DType;

use crate::ChunkContext;

/// Relative errors of what a lossy chain gives back, K and V apart: the root of the mean squared error over the root of the mean square.
///
/// They say how close numbers are, not what a model makes of them: two codecs with the same error may damage a model very differently
/// (docs/codecs.md).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    sums: [Sums; 3],
}

/// Squares of errors and of values, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    error: f64,
    value: f64,
    count: u64,
}

/// What an element belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Keys,
    Values,
    Neither,
}

impl Quality {
    /// Whether errors can be measured in this type: of those that lossy codecs take, all.
    pub fn measures(dtype: DType) -> bool {
        matches!(dtype, DType::BFloat16 | DType::Float16 | DType::Float32)
    }

    /// Counts a chunk: what was encoded, and what decoding gives. Elements that are not finite in what was encoded are left out.
    pub fn add(&mut self, raw: &[u8], decoded: &[u8], context: ChunkContext<'_>) {
        let roles = Roles::of(context);
        match context.dtype {
            DType::BFloat16 => self.sum::<2>(raw, decoded, &roles, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            DType::Float16 => self.sum::<2>(raw, decoded, &roles, |bytes| f16::from_le_bytes(bytes).to_f32()),
            DType::Float32 => self.sum::<4>(raw, decoded, &roles, f32::from_le_bytes),
            _ => {}
        }
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Quality) {
        for (sums, more) in self.sums.iter_mut().zip(&other.sums) {
            sums.error += more.error;
            sums.value += more.value;
            sums.count += more.count;
        }
    }

    /// Of what is known to be K; `None` where nothing is.
    pub fn keys(&self) -> Option<f64> {
        self.sums[0].relative()
    }

    /// Of what is known to be V.
    pub fn values(&self) -> Option<f64> {
        self.sums[1].relative()
    }

    /// Of everything together.
    pub fn all(&self) -> Option<f64> {
        let mut all = Sums::default();
        for sums in &self.sums {
            all.error += sums.error;
            all.value += sums.value;
            all.count += sums.count;
        }
        all.relative()
    }

    fn sum<const N: usize>(&mut self, raw: &[u8], decoded: &[u8], roles: &Roles, read: impl Fn([u8; N]) -> f32) {
        let elements = raw.as_chunks::<N>().0.iter().zip(decoded.as_chunks::<N>().0);
        for (index, (raw, decoded)) in elements.enumerate() {
            let value = f64::from(read(*raw));
            if value.is_finite() {
                let sums = &mut self.sums[roles.role(index as u64) as usize];
                sums.error += (f64::from(read(*decoded)) - value).powi(2);
                sums.value += value * value;
                sums.count += 1;
            }
        }
    }
}

impl Sums {
    fn relative(&self) -> Option<f64> {
        match self.count {
            0 => None,
            _ if self.error == 0.0 => Some(0.0),
            _ => Some((self.error / self.value).sqrt()),
        }
    }
}

/// Which elements of a chunk are K, and which V: by an axis `kv`, by fields of an axis, or by the part's name.
struct Roles {
    /// Elements from one index of the axis to the next, the chunk's extent of it, and its first index in the tensor.
    stride: u64,
    extent: u64,
    first: u64,
    /// Ranges of the axis.
    ranges: Vec<(std::ops::Range<u64>, Role)>,
}

impl Roles {
    fn of(context: ChunkContext<'_>) -> Roles {
        let axis = |name: &str| context.tensor.axes.iter().position(|axis| axis == name).filter(|&axis| axis < context.shape.len());
        let along = |axis: usize, ranges| Roles {
            stride: context.shape[axis + 1..].iter().product::<u64>().max(1),
            extent: context.shape[axis].max(1),
            first: context.origin.get(axis).copied().unwrap_or(0),
            ranges,
        };
        if let Some(axis) = axis("kv") {
            return along(axis, vec![(0..1, Role::Keys), (1..2, Role::Values)]);
        }
        let all = |role| Roles { stride: 1, extent: 1, first: 0, ranges: vec![(0..1, role)] };
        let Some(kv) = context.tensor.kv else { return all(Role::Neither) };
        let role = |name: &str| match name {
            "k" => Some(Role::Keys),
            "v" => Some(Role::Values),
            _ => None,
        };
        let fields = kv.fields.iter().filter_map(|field| Some((field, axis(&field.axis)?, role(&field.name)?)));
        let fields: Vec<_> = fields.collect();
        match fields[..] {
            [] => all(role(&kv.part).unwrap_or(Role::Neither)),
            [(_, first, _), ..] => {
                let same = fields.iter().filter(|(_, axis, _)| *axis == first);
                along(first, same.map(|(field, _, role)| (field.offset..field.offset + field.extent, *role)).collect())
            }
        }
    }

    fn role(&self, index: u64) -> Role {
        let at = self.first + index / self.stride % self.extent;
        self.ranges.iter().find(|(range, _)| range.contains(&at)).map_or(Role::Neither, |(_, role)| *role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvFacts, TensorContext};

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn keys_and_values_are_apart() {
        let axes = ["kv".to_string(), "dim".to_string()];
        let mut context = ChunkContext::new(DType::Float32, &[2, 2], &[0, 0]);
        context.tensor.axes = &axes;
        let mut quality = Quality::default();
        quality.add(&bytes(&[3.0, 4.0, 1.0, f32::NAN]), &bytes(&[3.0, 4.5, 1.0, 0.0]), context);
        assert_eq!((quality.keys(), quality.values()), (Some(0.1), Some(0.0)));
        assert!((quality.all().unwrap() - 0.5 / 26f64.sqrt()).abs() < 1e-12);
        // A chunk that has only V.
        let mut second = Quality::default();
        let tensor = context.tensor;
        second.add(
            &bytes(&[2.0, 0.0]),
            &bytes(&[1.0, 0.0]),
            ChunkContext { tensor, ..ChunkContext::new(DType::Float32, &[1, 2], &[1, 0]) },
        );
        assert_eq!((second.keys(), second.values()), (None, Some(0.5)));
        quality.merge(&second);
        assert_eq!(quality.values(), Some((1f64 / 5.0).sqrt()));
    }

    #[test]
    fn fields_and_parts_say_what_they_are() {
        let field = |name: &str, offset| sira_tensor::kv::KvField { name: name.into(), axis: "dim".into(), offset, extent: 1, dtype: None };
        let axes = ["token".to_string(), "dim".to_string()];
        let packed = KvFacts { fields: vec![field("k", 0), field("v", 1)], ..KvFacts::default() };
        let alone = KvFacts { part: "v".into(), ..KvFacts::default() };
        for (facts, expected) in [(&packed, (Some(1.0), Some(0.0))), (&alone, (None, Some((1f64 / 5.0).sqrt())))] {
            let tensor = TensorContext { shape: &[1, 2], axes: &axes, kv: Some(facts), calibration: None };
            let mut quality = Quality::default();
            quality.add(
                &bytes(&[1.0, 2.0]),
                &bytes(&[2.0, 2.0]),
                ChunkContext { tensor, ..ChunkContext::new(DType::Float32, &[1, 2], &[0, 0]) },
            );
            assert_eq!((quality.keys(), quality.values()), expected);
        }
        let mut flat = Quality::default();
        flat.add(&bytes(&[1.0]), &bytes(&[1.0]), ChunkContext::new(DType::Float32, &[1], &[0]));
        assert_eq!((flat.keys(), flat.values(), flat.all()), (None, None, Some(0.0)));
    }
}
