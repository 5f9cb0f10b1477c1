//! The Python extension `sira_native`: gets and puts of [`sira_client::blocking`], the interpreter free while they run.
//!
//! The package `sira_store` uses it where it is installed. What it takes and gives is that package's affair, and no interface for users.

mod buffer;
mod client;

use pyo3::prelude::*;

pyo3::create_exception!(sira_native, NativeError, pyo3::exceptions::PyException, "What went wrong, as (code, message).");

#[pymodule]
fn sira_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("stages", sira_client::blocking::stages())?;
    module.add_class::<client::Client>()?;
    module.add_class::<client::Tensor>()?;
    module.add_class::<client::Many>()
}
