//! What later calls do not repeat, one small JSON file each: a network's gateway and MTU below the
//! state directory (Docker's networks outlive a boot), an endpoint's port below the run directory
//! (an endpoint does not). Written whole or not at all.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::options::{EndpointRecord, NetworkRecord};

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("cannot {doing} {path}: {reason}")]
    Io { doing: &'static str, path: PathBuf, reason: String },
    #[error("`{0}` is no Docker id")]
    Id(String),
}

#[derive(Clone, Debug)]
pub struct Records {
    networks: PathBuf,
    endpoints: PathBuf,
}

impl Records {
    pub fn open(state_dir: &Path, run_dir: &Path) -> Result<Records, RecordError> {
        let records = Records {
            networks: state_dir.join("docker/networks"),
            endpoints: run_dir.join("docker/endpoints"),
        };
        for dir in [&records.networks, &records.endpoints] {
            std::fs::create_dir_all(dir).map_err(|error| failed("create", dir, error))?;
        }
        Ok(records)
    }

    pub fn network(&self, id: &str) -> Result<Option<NetworkRecord>, RecordError> {
        read(&file(&self.networks, id)?)
    }

    pub fn put_network(&self, id: &str, record: &NetworkRecord) -> Result<(), RecordError> {
        write(&file(&self.networks, id)?, record)
    }

    pub fn forget_network(&self, id: &str) -> Result<(), RecordError> {
        remove(&file(&self.networks, id)?)
    }

    pub fn endpoint(&self, id: &str) -> Result<Option<EndpointRecord>, RecordError> {
        read(&file(&self.endpoints, id)?)
    }

    pub fn put_endpoint(&self, id: &str, record: &EndpointRecord) -> Result<(), RecordError> {
        write(&file(&self.endpoints, id)?, record)
    }

    pub fn forget_endpoint(&self, id: &str) -> Result<(), RecordError> {
        remove(&file(&self.endpoints, id)?)
    }

    /// Another endpoint that stands for the same port.
    pub fn rival(&self, id: &str, port: Uuid) -> Result<Option<String>, RecordError> {
        let listing =
            std::fs::read_dir(&self.endpoints).map_err(|error| failed("list", &self.endpoints, error))?;
        for entry in listing.flatten() {
            let name = entry.file_name();
            let Some(other) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            if other != id && self.endpoint(other)?.is_some_and(|record| record.spec.port == port) {
                return Ok(Some(other.to_owned()));
            }
        }
        Ok(None)
    }
}

/// Docker's ids are hexadecimal; anything else could name a file elsewhere.
fn file(dir: &Path, id: &str) -> Result<PathBuf, RecordError> {
    if id.is_empty() || id.len() > 128 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(RecordError::Id(id.to_owned()));
    }
    Ok(dir.join(format!("{id}.json")))
}

fn failed(doing: &'static str, path: &Path, reason: impl ToString) -> RecordError {
    RecordError::Io { doing, path: path.to_owned(), reason: reason.to_string() }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed("read", path, error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path, error)),
    }
}

fn write(path: &Path, record: &impl Serialize) -> Result<(), RecordError> {
    let fresh = path.with_extension("new");
    let bytes = serde_json::to_vec(record).map_err(|error| failed("encode", path, error))?;
    let written = std::fs::File::create(&fresh).and_then(|mut file| {
        file.write_all(&bytes)?;
        // Without it a power cut may leave the new name with no bytes behind it.
        file.sync_data()
    });
    written.and_then(|()| std::fs::rename(&fresh, path)).map_err(|error| failed("write", path, error))
}

fn remove(path: &Path) -> Result<(), RecordError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::PortSpec;

    #[test]
    fn records_outlive_their_writer_and_name_rivals() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Records::open(&dir.path().join("state"), &dir.path().join("run")).unwrap();
        let port = Uuid::from_u128(7);
        let spec = PortSpec { port, mac: String::new(), addresses: Vec::new(), gateway: None, mtu: 1442 };
        let record = EndpointRecord { network: "n1".to_owned(), spec, gateway6: None, routes: Vec::new() };
        open().put_endpoint("e1", &record).unwrap();
        assert_eq!(open().endpoint("e1").unwrap(), Some(record));
        assert_eq!(open().rival("e2", port).unwrap().as_deref(), Some("e1"));
        assert_eq!(open().rival("e1", port).unwrap(), None);
        open().forget_endpoint("e1").unwrap();
        open().forget_endpoint("e1").unwrap();
        assert_eq!(open().endpoint("e1").unwrap(), None);
        assert!(matches!(open().endpoint("../../etc/passwd"), Err(RecordError::Id(_))));
    }
}
