//! The artefact, and what is fitted to documents whose covariances are known.

use super::tiny;
use super::*;

fn model() -> Model {
    Model { name: "tiny".into(), revision: "a".into(), layers: 2, heads: 2, dim: 4, rope: None }
}

#[test]
fn artefacts_come_back_and_have_their_hash_for_a_name() {
    for rope in [None, Some(RopeFacts { theta: 5e5, dim: 2, style: RopeStyle::Interleaved })] {
        let calibration = tiny::calibration(Model { rope, ..model() }, 0.01);
        let bytes = calibration.to_bytes().unwrap();
        let read = Calibration::from_bytes(&bytes).unwrap();
        assert!(read == calibration);
        assert_eq!(read.to_bytes().unwrap(), bytes);
        assert!(sira_tensor::kv::is_hash(read.hash()));
    }
    let (a, b) = (tiny::calibration(model(), 0.01), tiny::calibration(model(), 0.02));
    assert_ne!(a.hash(), b.hash());
    assert_eq!(a.hash(), tiny::calibration(model(), 0.01).hash());
}

#[test]
fn heads_have_means_and_weights() {
    let calibration = tiny::calibration(model(), 0.01);
    assert_eq!(calibration.mean(Kind::Value, 1, 1), Some(&[0.0, 1.0, 2.0, -2.0][..]));
    let identity: Vec<f32> = (0..16).map(|at| f32::from(u8::from(at % 5 == 0))).collect();
    assert_eq!(calibration.weights(Kind::Key, 0, 1), Some(&identity[..]));
    assert_eq!(calibration.weights(Kind::Value, 0, 1), None);
    assert_eq!((calibration.mean(Kind::Key, 2, 0), calibration.mean(Kind::Key, 0, 2)), (None, None));
    assert!(calibration.rank(Kind::Key) > 4);
}

#[test]
fn foreign_bytes_are_refused_without_taking_memory() {
    let bytes = tiny::calibration(model(), 0.01).to_bytes().unwrap();
    for cut in 0..bytes.len() {
        assert!(Calibration::from_bytes(&bytes[..cut]).is_err(), "{cut}");
    }
    assert!(Calibration::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    // Not every one: each is read whole, its matrices inverted.
    for bit in (0..bytes.len() * 8).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        // Another calibration, or none: never a panic.
        if let Ok(read) = Calibration::from_bytes(&damaged) {
            assert_ne!(read.hash(), tiny_hash(&bytes));
        }
    }
}

fn tiny_hash(bytes: &[u8]) -> String {
    Calibration::from_bytes(bytes).unwrap().hash().to_owned()
}

#[test]
fn inverses_are_inverses() {
    let matrix = [4.0, 1.0, 0.5, 1.0, 3.0, 0.2, 0.5, 0.2, 2.0];
    let inverse = inverse(&matrix, 3).unwrap();
    for (i, j) in (0..9).map(|at| (at / 3, at % 3)) {
        let product: f32 = (0..3).map(|k| matrix[i * 3 + k] * inverse[k * 3 + j]).sum();
        assert!((product - f32::from(u8::from(i == j))).abs() < 1e-6);
    }
    assert_eq!(super::inverse(&[1.0, 2.0, 2.0, 1.0], 2), None);
    assert_eq!(super::inverse(&[0.0], 1), None);
}

#[cfg(feature = "calibrate")]
mod fitting {
    use super::*;

    /// Keys and values `[token][layer][head][dim]` of the tiny model's covariances.
    fn document(seed: u64) -> [Vec<f32>; 2] {
        let calibration = tiny::calibration(model(), 0.01);
        [0, 1].map(|unit| tiny::vectors(&calibration.units()[unit], 300, seed).concat())
    }

    fn fit(moments: Option<Moments>, max_width: usize) -> Calibration {
        let mut fitter = Fitter::new(model(), moments, FitOptions { finest_step: 0.001, max_width }).unwrap();
        for seed in 0..4 {
            let [keys, values] = document(seed);
            fitter.add(&keys, &values).unwrap();
        }
        let mut steps = Vec::new();
        let calibration = fitter.finish(&mut |done, of| steps.push((done, of))).unwrap();
        assert_eq!(steps.first(), Some(&(0, steps.len() - 1)));
        assert_eq!(calibration.tokens(), 1200);
        calibration
    }

    #[test]
    fn what_documents_have_in_common_is_found() {
        let calibration = fit(None, 8192);
        assert!(calibration == fit(None, 8192), "fitted in two ways");
        let truth = tiny::calibration(model(), 0.001);
        for kind in [Kind::Key, Kind::Value] {
            let found = calibration.mean(kind, 1, 0).unwrap();
            let expected = truth.mean(kind, 1, 0).unwrap();
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.1), "{found:?}");
        }
        // Variances halve from component to component, so levels fall by two.
        let levels = calibration.units()[1].basis.levels();
        assert!(levels.windows(2).take(6).all(|pair| (pair[0] - pair[1] - 2).abs() <= 1), "{levels:?}");
        assert!(Calibration::from_bytes(&calibration.to_bytes().unwrap()).unwrap() == calibration);
    }

    #[test]
    fn wide_models_are_cut_into_groups_of_layers() {
        let calibration = fit(None, 8);
        assert_eq!(calibration.units().len(), 4);
        assert!(calibration.units().iter().all(|unit| unit.basis.width() == 8));
        assert!(Fitter::new(model(), None, FitOptions { max_width: 7, ..FitOptions::default() }).is_err());
    }

    #[test]
    fn moments_weigh_errors() {
        let identity: Vec<f32> = (0..4 * 16).map(|at| f32::from(u8::from(at % 16 % 5 == 0))).collect();
        let moments = |residual: f32| {
            let scaled: Vec<f32> = identity.iter().map(|value| value * 4.0).collect();
            Moments::new([2, 2, 4], identity.clone(), scaled, vec![residual; 2]).unwrap()
        };
        let calibration = fit(Some(moments(16.0)), 8192);
        assert_eq!(calibration.moments(), Some(&moments(16.0).digest()));
        // sqrt(4 / 16).
        let weights = calibration.weights(Kind::Value, 0, 0).unwrap();
        assert!((weights[0] - 0.5).abs() < 1e-4 && weights[1].abs() < 1e-4, "{weights:?}");
        assert!(Moments::new([2, 2, 4], identity.clone(), identity.clone(), vec![1.0]).is_err());
        assert!(Moments::new([2, 2, 4], identity.clone(), identity.clone(), vec![1.0, 0.0]).is_err());
        let other = Moments::new([1, 2, 4], identity[..32].to_vec(), identity[..32].to_vec(), vec![1.0]).unwrap();
        assert!(Fitter::new(model(), Some(other), FitOptions::default()).is_err());
    }

    #[test]
    fn documents_that_do_not_fit_are_refused() {
        let mut fitter = Fitter::new(model(), None, FitOptions::default()).unwrap();
        assert!(fitter.add(&[0.0; 16], &[0.0; 32]).is_err());
        assert!(fitter.add(&[0.0; 15], &[0.0; 15]).is_err());
        assert!(fitter.add(&[f32::NAN; 16], &[0.0; 16]).is_err());
        assert!(fitter.finish(&mut |_, _| ()).is_err());
    }
}
