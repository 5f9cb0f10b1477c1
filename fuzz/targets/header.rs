//! Headers of Arrow messages: a schema, and whether it can carry a tensor; a batch, and where its values lie.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira_tensor::carrier::Column;
use sira_wire::ipc::{self, Announced};

fuzz_target!(|bytes: &[u8]| {
    sira_fuzz::bounded(bytes.len(), || match ipc::read(bytes) {
        Ok(Announced::Schema(schema)) => {
            if let Ok(column) = Column::of(&schema) {
                let _ = column.shape_of(1 << 40, None);
                let _ = sira_wire::PutOptions::from_metadata(schema.metadata());
            }
        }
        Ok(Announced::Batch(batch)) => {
            for column in sira_fuzz::columns() {
                if let Ok((offset, len)) = batch.check(&column, 4096) {
                    assert!(offset + len <= 4096);
                }
            }
        }
        Err(_) => {}
    });
});
