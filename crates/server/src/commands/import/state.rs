//! How far an import is, in a file beside the export's: `FILE.avro.import`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::cli::ImportArgs;
use crate::formats::avro::Place;

/// Version of the state file.
const VERSION: u32 = 1;

/// How far an import is.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    file: Option<FileId>,
    prefix: Option<String>,
    resume: bool,
    /// Behind the last tensor that was imported.
    pub place: Place,
    /// Tensors that were imported.
    pub tensors: u64,
}

/// By what a file is known again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileId {
    marker: String,
    length: u64,
}

/// The state file's JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    v: u32,
    file: FileId,
    prefix: Option<String>,
    block: u64,
    record: u64,
    tensors: u64,
}

impl State {
    /// The state of an import that begins.
    pub fn new(args: &ImportArgs) -> Result<State, Failure> {
        let mut path = args.file.as_os_str().to_owned();
        path.push(".import");
        let (file, prefix) = (None, args.prefix.clone());
        Ok(State { path: path.into(), file, prefix, resume: args.resume, place: Place::default(), tensors: 0 })
    }

    /// Says which file is imported; takes the state that an interrupted import of it left, when it is to go on.
    pub fn belongs_to(&mut self, marker: &[u8], length: u64) -> Result<(), Failure> {
        let id = FileId { marker: marker.iter().map(|byte| format!("{byte:02x}")).collect(), length };
        self.file = Some(id.clone());
        if !self.resume {
            return Ok(());
        }
        let failed = |reason: &str| Failure::with(self.path.display(), reason);
        let text = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| failed(&error.to_string()))?,
        };
        let saved: Saved = serde_json::from_slice(&text).map_err(|error| failed(&format!("not the state of an import: {error}")))?;
        if saved.v != VERSION || saved.file != id {
            return Err(failed("of an import of another file; remove it to begin anew"));
        }
        if saved.prefix != self.prefix {
            return Err(failed("of an import with another --prefix; remove it to begin anew"));
        }
        (self.place, self.tensors) = (Place { block: saved.block, record: saved.record }, saved.tensors);
        Ok(())
    }

    /// Writes the file, whole or not at all; says whether it could be. An import goes on without.
    pub fn save(&self) -> bool {
        let Some(file) = self.file.clone() else { return false };
        let Place { block, record } = self.place;
        let saved = Saved { v: VERSION, file, prefix: self.prefix.clone(), block, record, tensors: self.tensors };
        serde_json::to_vec(&saved).is_ok_and(|text| replace(&self.path, &text).is_ok())
    }

    /// Removes the file: the import is done.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, text)?;
    file.persist(path)?;
    Ok(())
}
