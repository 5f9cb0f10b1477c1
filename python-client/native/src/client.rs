//! The classes that Python sees.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use sira_client::{ClientError, ConnectOptions, blocking};

use crate::NativeError;
use crate::buffer::Buffer;

thread_local! {
    /// What a signal's handler raised while this thread waited for a socket.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Lets Python's handlers of signals run; whether to wait further.
fn go_on() -> bool {
    let raised = Python::attach(|py| py.check_signals().err());
    let on = raised.is_none();
    RAISED.set(raised);
    on
}

/// The exception for an error of a call that had until `end`.
fn exception(error: &ClientError, end: Option<Instant>) -> PyErr {
    if let Some(raised) = RAISED.take() {
        return raised;
    }
    let code = match (error, error.code()) {
        (_, Some(code)) => code.as_str(),
        (ClientError::Transport { .. }, None) if end.is_some_and(|end| end <= Instant::now()) => "SIRA_TIMED_OUT",
        (ClientError::Transport { .. }, None) => "SIRA_UNAVAILABLE",
        (ClientError::BadUrl { .. } | ClientError::BadCredentials(_), None) => "SIRA_BAD_REQUEST",
        _ => "SIRA_INTERNAL",
    };
    NativeError::new_err((code, error.to_string()))
}

/// When a call ends that begins now and has so many seconds.
fn end(timeout: Option<f64>) -> Option<Instant> {
    let timeout = Duration::try_from_secs_f64(timeout?.max(0.0)).unwrap_or(Duration::MAX);
    Instant::now().checked_add(timeout)
}

/// A server.
#[pyclass(frozen)]
pub(crate) struct Client(blocking::Client);

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (url, token=None, ca=None, cert=None, key=None))]
    fn new(
        py: Python<'_>,
        url: &str,
        token: Option<String>,
        ca: Option<Vec<u8>>,
        cert: Option<Vec<u8>>,
        key: Option<Vec<u8>>,
    ) -> PyResult<Client> {
        let options = ConnectOptions { token, ca_pem: ca, cert_pem: cert, key_pem: key, ..ConnectOptions::default() };
        let client = py.detach(|| blocking::Client::new(url, &options, go_on));
        client.map(Client).map_err(|error| exception(&error, None))
    }

    /// Opens the tensor that a ticket names.
    #[pyo3(signature = (ticket, timeout=None))]
    fn get(&self, py: Python<'_>, ticket: &[u8], timeout: Option<f64>) -> PyResult<Tensor> {
        let end = end(timeout);
        let opened = py.detach(|| self.0.get(ticket, end)).map_err(|error| exception(&error, end))?;
        let (dtype, shape) = (opened.spec().dtype().to_string(), opened.spec().shape().to_vec());
        Ok(Tensor { dtype, shape, encoded: opened.is_encoded(), end, rest: Mutex::new(Some(opened)) })
    }

    /// Whether a tensor is likely to come sooner in encoded chunks.
    fn prefers_encoded(&self) -> bool {
        self.0.prefers_encoded()
    }

    /// Bytes a second of connections, and of decoders, as far as they were seen.
    fn speeds(&self) -> (Option<f64>, Option<f64>) {
        self.0.speeds()
    }

    /// Opens the keys that a ticket names.
    #[pyo3(signature = (ticket, timeout=None))]
    fn get_many(&self, py: Python<'_>, ticket: &[u8], timeout: Option<f64>) -> PyResult<Many> {
        let end = end(timeout);
        let opened = py.detach(|| self.0.get_many(ticket, end)).map_err(|error| exception(&error, end))?;
        Ok(Many { end, rest: Mutex::new(Some(opened)) })
    }

    /// Puts a buffer; the metadata describes it. With `encode`, in chunks that are encoded here with this codec; `kv_spec` is then the text of the kv spec
    /// that the metadata names. Gives key, version, and whether it is new.
    #[pyo3(signature = (key, metadata, data, timeout=None, encode=None, kv_spec=None))]
    fn put(
        &self,
        key: &str,
        metadata: HashMap<String, String>,
        data: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        encode: Option<&str>,
        kv_spec: Option<&str>,
    ) -> PyResult<(String, u64, bool)> {
        let end = end(timeout);
        let mut buffer = Buffer::of(data, false)?;
        let bytes = buffer.bytes();
        let put = move || match encode {
            None => self.0.put(key, metadata, bytes.get(), end),
            Some(codec) => self.0.put_encoded(key, metadata, (codec, kv_spec), bytes.get(), end),
        };
        let answer = data.py().detach(put);
        let answer = answer.map_err(|error| exception(&error, end))?;
        Ok((answer.key, answer.version, answer.created))
    }
}

/// A tensor whose bytes are yet to come. Dropped, it ends the get.
#[pyclass(frozen)]
pub(crate) struct Tensor {
    #[pyo3(get)]
    dtype: String,
    #[pyo3(get)]
    shape: Vec<u64>,
    /// Whether it comes in chunks that are decoded here.
    #[pyo3(get)]
    encoded: bool,
    end: Option<Instant>,
    rest: Mutex<Option<blocking::Tensor>>,
}

#[pymethods]
impl Tensor {
    /// Fills a writable, contiguous buffer of exactly its size. Once.
    fn read_into(&self, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut buffer = Buffer::of(out, true)?;
        let mut bytes = buffer.bytes();
        let tensor = self.rest.lock().take().ok_or_else(used_up)?;
        let read = out.py().detach(move || tensor.read_into(bytes.get_mut()));
        read.map_err(|error| exception(&error, self.end))
    }

    /// Ends a get whose bytes nobody wants.
    fn close(&self) {
        self.rest.lock().take();
    }
}

/// Many keys on their way. Dropped, they end the get.
#[pyclass(frozen)]
pub(crate) struct Many {
    end: Option<Instant>,
    rest: Mutex<Option<blocking::Many>>,
}

#[pymethods]
impl Many {
    /// The next message: what its metadata says, and how many bytes it has. None once all have come.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<(Bound<'py, PyBytes>, usize)>> {
        let message = self.run(py, |many| many.next())?;
        if message.is_none()
            && let Some(many) = self.rest.lock().take()
        {
            many.finish();
        }
        Ok(message.map(|(metadata, len)| (PyBytes::new(py, &metadata), len)))
    }

    /// Fills a buffer with the message's bytes from `offset` on. Those before cannot be read any more.
    fn read_into(&self, offset: u64, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut buffer = Buffer::of(out, true)?;
        let mut bytes = buffer.bytes();
        self.run(out.py(), move |many| many.read_into(offset, bytes.get_mut()))
    }

    /// Ends a get whose bytes nobody wants.
    fn close(&self) {
        self.rest.lock().take();
    }
}

impl Many {
    /// Takes what is left while the call runs, so that no thread waits for a lock with the interpreter held. An error ends it.
    fn run<T: Send>(&self, py: Python<'_>, call: impl FnOnce(&mut blocking::Many) -> Result<T, ClientError> + Send) -> PyResult<T> {
        let mut many = self.rest.lock().take().ok_or_else(used_up)?;
        let (result, many) = py.detach(move || (call(&mut many), many));
        let value = result.map_err(|error| exception(&error, self.end))?;
        *self.rest.lock() = Some(many);
        Ok(value)
    }
}

fn used_up() -> PyErr {
    NativeError::new_err(("SIRA_INTERNAL", "a stream that has ended, or that another thread reads"))
}
