//! Files that the program imports: `.npy` and `.safetensors`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira::formats::{npy, safetensors};

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    sira_fuzz::bounded(bytes.len(), || {
        runtime.block_on(async {
            if let Ok(layout) = npy::read_header(&mut &*bytes).await {
                assert!(layout.start <= bytes.len() as u64);
            }
            let _ = safetensors::read_header(&mut &*bytes, None).await;
            if let Ok(contents) = safetensors::read_contents(&mut &*bytes).await {
                for tensor in &contents.tensors {
                    assert!(tensor.start + tensor.spec.nbytes() <= contents.len);
                }
            }
        });
    });
});
