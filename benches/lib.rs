//! What the benchmarks share: a real KV cache.

use std::path::Path;

/// The bytes of the sample KV cache (bfloat16, `[30, 2, 80, 3, 64]`), repeated to at least `bytes`.
///
/// # Errors
/// When the sample is not in the checkout, or is no safetensors file.
pub fn kv_cache(bytes: usize) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let file = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/sample/smollm2-kv.safetensors"))?;
    let tensors = safetensors::SafeTensors::deserialize(&file)?;
    let (_, kv) = tensors.iter().next().ok_or("the sample has no tensor")?;
    let mut data = Vec::with_capacity(bytes + kv.data().len());
    while data.len() < bytes {
        data.extend_from_slice(kv.data());
    }
    data.truncate(bytes);
    Ok(data)
}
