//! The suite over chains: together, stages must keep what each one keeps.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use sira_codec::conformance::check_chain;

#[cfg(feature = "calibrate")]
mod calibrated {
    //! Stages with a calibration that is fitted to values like the suite's, with moments and without.

    use std::sync::LazyLock;

    use sira_codec::Calibration;
    use sira_codec::calibration::{FitOptions, Fitter, Model, Moments, RopeFacts};
    use sira_codec::conformance::check_calibrated;
    use sira_tensor::kv::RopeStyle;

    const LAYERS: usize = 2;
    const HEADS: usize = 3;
    const DIM: usize = 16;

    static WEIGHTED: LazyLock<Calibration> = LazyLock::new(|| fitted(Some(moments())));
    static PLAIN: LazyLock<Calibration> = LazyLock::new(|| fitted(None));

    /// Heads of nearly independent channels, of sizes and means of their own.
    fn fitted(moments: Option<Moments>) -> Calibration {
        let rope = Some(RopeFacts { theta: 10_000.0, dim: DIM as u32, style: RopeStyle::Half });
        let (layers, heads, dim) = (LAYERS as u32, HEADS as u32, DIM as u32);
        let model = Model { name: "of a test".into(), revision: String::new(), layers, heads, dim, rope };
        let mut fitter = Fitter::new(model, moments, FitOptions { finest_step: 1e-4, ..FitOptions::default() }).unwrap();
        let mut state = 1u64;
        let mut value = |channel: usize| {
            let mut uniform = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (state >> 40) as f32 / 16_777_216.0 - 0.5
            };
            let normal: f32 = (0..12).map(|_| uniform()).sum();
            normal * (1.0 + channel as f32) + (channel * channel % 17) as f32 - 5.0
        };
        let [keys, values] = [0, 1].map(|_| (0..800 * LAYERS * HEADS * DIM).map(|at| value(at % DIM)).collect::<Vec<f32>>());
        fitter.add(&keys, &values).unwrap();
        fitter.finish(&mut |_, _| ()).unwrap()
    }

    /// Queries and outputs that look at the first channels more than at the last.
    fn moments() -> Moments {
        let entry = |at: usize| {
            let (row, column) = (at / DIM % DIM, at % DIM);
            if row == column { 1.0 / (1.0 + row as f32) } else { 0.01 }
        };
        let metric: Vec<f32> = (0..LAYERS * HEADS * DIM * DIM).map(entry).collect();
        Moments::new([LAYERS as u32, HEADS as u32, DIM as u32], metric.clone(), metric, vec![300.0; LAYERS]).unwrap()
    }

    #[test]
    fn kvtc() {
        check_calibrated("kvtc:step=0.01:window=3", &WEIGHTED);
    }

    #[test]
    fn kvtc_without_moments() {
        check_calibrated("kvtc:high:sinks=0:window=0", &PLAIN);
    }

    #[test]
    fn kvq() {
        check_calibrated("kvq:step=0.05", &WEIGHTED);
        check_calibrated("kvq:rate=5:window=3", &WEIGHTED);
    }

    #[test]
    fn kvq_without_moments() {
        check_calibrated("kvq:high:sinks=0", &PLAIN);
    }
}

#[test]
fn none() {
    check_chain("none");
}

#[test]
fn planes() {
    check_chain("planes");
}

#[test]
fn planes_and_lz4() {
    check_chain("planes+lz4");
}

#[test]
fn planes_and_zstd() {
    check_chain("planes+zstd");
}

#[test]
fn planes_and_gzip() {
    check_chain("planes+planes+gzip:1");
}

#[test]
fn quantised() {
    check_chain("int8:group=16");
    check_chain("int4");
    check_chain("fp8");
}

#[test]
fn kvq() {
    check_chain("kvq:near-lossless:sinks=0");
    check_chain("kvq:rate=3:window=5");
}

#[test]
fn planes_and_float_rans() {
    check_chain("planes+float-rans");
}
