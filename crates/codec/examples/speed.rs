//! measuring, not committed
use sira_codec::{Chain, ChunkContext, Encoded};
use sira_tensor::DType;
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rounds: usize = args[0].parse().unwrap();
    let file = &args[1];
    let raw = std::fs::read(file).unwrap();
    let n = u64::from_le_bytes(raw[..8].try_into().unwrap()) as usize;
    let all = &raw[8 + n..];
    let dims = [30usize, 2, 1536, 3, 64];
    // chunks [10,2,256,3,64]
    let mut chunks = Vec::new();
    for l0 in (0..30).step_by(10) {
        for t0 in (0..1536).step_by(256) {
            let mut c = Vec::new();
            for l in l0..l0 + 10 {
                for k in 0..2 {
                    let at = ((l * 2 + k) * 1536 + t0) * 192 * 2;
                    c.extend_from_slice(&all[at..at + 256 * 192 * 2]);
                }
            }
            chunks.push(c);
        }
    }
    let _ = dims;
    let shape = [10u64, 2, 256, 3, 64];
    let origin = [0u64; 5];
    let ctx = ChunkContext { dtype: DType::BFloat16, shape: &shape, origin: &origin };
    let total: usize = chunks.iter().map(|c| c.len()).sum();
    let mut warm = chunks.clone();
    for w in &mut warm {
        w.fill(1);
    }
    let names: Vec<&str> = args[2..].iter().map(|s| s.as_str()).collect();
    let chains: Vec<Chain> = names.iter().map(|s| s.parse().unwrap()).collect();
    let mut enc = vec![vec![]; chains.len()];
    let mut dec = vec![vec![]; chains.len()];
    let mut outs: Vec<Vec<Encoded>> = vec![vec![]; chains.len()];
    let mut ratio = vec![0.0; chains.len()];
    for r in 0..rounds + 1 {
        for (i, ch) in chains.iter().enumerate() {
            if r == 0 {
                outs[i] = chunks.iter().map(|c| ch.encode(c, ctx).unwrap()).collect();
            }
            let out = &outs[i];
            let t = Instant::now();
            for c in &chunks {
                std::hint::black_box(ch.encode(c, ctx).unwrap());
            }
            let e = t.elapsed().as_secs_f64();
            let stored: Vec<&[u8]> = out
                .iter()
                .zip(&chunks)
                .map(|(o, c)| match o {
                    Encoded::Bytes(b) => &b[..],
                    Encoded::Raw => &c[..],
                })
                .collect();
            ratio[i] = total as f64 / stored.iter().map(|s| s.len()).sum::<usize>() as f64;
            let t = Instant::now();
            let mut d = 0.0;
            for (s, c) in stored.iter().zip(&chunks) {
                let t = Instant::now();
                let x = ch.decode(s, c.len(), ctx).unwrap();
                d += t.elapsed().as_secs_f64();
                if r == 0 {
                    assert!(&x == c);
                }
            }
            let _ = t;
            if r > 0 {
                enc[i].push(total as f64 / e / 1e9);
                dec[i].push(total as f64 / d / 1e9);
            }
        }
    }
    let mut best = f64::MAX;
    for _ in 0..9 {
        let t = Instant::now();
        for (w, c) in warm.iter_mut().zip(&chunks) {
            w.copy_from_slice(c);
        }
        best = best.min(t.elapsed().as_secs_f64());
    }
    println!("memcpy {:.2} GB/s", total as f64 / best / 1e9);
    let med = |v: &mut Vec<f64>| {
        v.sort_by(|a, b| a.total_cmp(b));
        v[v.len() / 2]
    };
    let base = (med(&mut enc[0]), med(&mut dec[0]));
    for i in 0..chains.len() {
        let (e, d) = (med(&mut enc[i]), med(&mut dec[i]));
        println!("{:24} ratio {:.4} enc {:.2} GB/s ({:.2}x) dec {:.2} GB/s ({:.2}x)", names[i], ratio[i], e, e / base.0, d, d / base.1);
    }
}
