//! Batches for backends that answer calls side by side.

use std::collections::HashSet;

use futures::StreamExt;

use crate::{BackendError, BatchOperation, BatchResult, StorageBackend};

/// Runs a batch, up to `width` operations at a time. Those on one name keep their order: an operation waits for all before it as soon as
/// its name occurred among them, and on different names nobody can tell an order.
pub(crate) async fn by_waves(
    backend: &dyn StorageBackend,
    operations: Vec<BatchOperation>,
    width: usize,
) -> Result<Vec<BatchResult>, BackendError> {
    let mut results = Vec::with_capacity(operations.len());
    let mut operations = operations.into_iter().peekable();
    while operations.peek().is_some() {
        let (mut names, mut wave) = (HashSet::new(), Vec::new());
        while let Some(operation) = operations.next_if(|operation| names.insert(operation.name().to_owned())) {
            wave.push(run(backend, operation));
        }
        results.extend(futures::stream::iter(wave).buffered(width).collect::<Vec<_>>().await);
    }
    Ok(results)
}

async fn run(backend: &dyn StorageBackend, operation: BatchOperation) -> BatchResult {
    match operation {
        BatchOperation::Put { name, value, options } => BatchResult::Put(backend.put(&name, value, options).await),
        BatchOperation::Get { name, range } => BatchResult::Get(backend.get(&name, range).await),
        BatchOperation::Delete { name } => BatchResult::Delete(backend.delete(&name).await),
    }
}
