//! What the agent must remember over its own death: the newest desired state, the boot it was confirmed in, which
//! bodies were ever begun here, and which exports are done. Everything else is read from the engines.
//!
//! Refuses a desired state that is older than the one it holds, and says after a reboot of the host that its desired
//! state is not confirmed: a host that was dead does not know what was decided meanwhile.

use crate::lease::clock;
use crate::lease::memo::Files;
use crate::storage::shared;
use amphi_api::conversion::ConversionReport;
use amphi_api::image::Blob;
use amphi_api::instance::BodyKind;
use amphi_api::wire::HostDesired;
use amphi_api::{ImageId, InstanceId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The file's contents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pages {
    /// The boot in which the controller last confirmed `desired`.
    pub confirmed_in: Option<Uuid>,
    pub desired: Option<HostDesired>,
    /// Instances with a body here, or with one begun.
    #[serde(default)]
    pub begun: BTreeMap<InstanceId, Begun>,
    /// Exports that the controller has, as long as they are desired.
    #[serde(default)]
    pub exported: BTreeMap<ImageId, Blob>,
    /// What was found by those of them that are conversions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reports: BTreeMap<ImageId, ConversionReport>,
}

/// What was begun for an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Kinds of body of which something may exist. While an engine is silent, its bodies count as running.
    pub kinds: Vec<BodyKind>,
    /// The ordered restarts that have been carried out.
    pub restarts: u64,
    /// The same of single members, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("desired state {offered} is older than {held}, which this host has seen; refused")]
    Stale { offered: u64, held: u64 },
    #[error("this desired state was sent before the host fenced itself; refused")]
    OtherBoot,
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} is not a ledger: {source}. Move it away to start without memory")]
    Unreadable { path: PathBuf, source: serde_json::Error },
}

/// The pages and their file.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    files: Files,
    boot: Uuid,
    pages: Pages,
    /// The file is behind the pages: the last write failed.
    behind: bool,
}

impl Ledger {
    /// Opens `state_dir/ledger.json` and `run_dir/boot`; makes what is missing.
    pub fn open(state_dir: &Path, run_dir: &Path) -> Result<Self, LedgerError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| LedgerError::Io { doing, path, source }
        };
        for dir in [state_dir, run_dir] {
            std::fs::create_dir_all(dir).map_err(io("make", dir))?;
        }
        let boot_path = run_dir.join("boot");
        let boot = match std::fs::read_to_string(&boot_path).ok().and_then(|t| Uuid::parse_str(t.trim()).ok())
        {
            Some(boot) => boot,
            None => {
                let boot = Uuid::new_v4();
                std::fs::write(&boot_path, boot.to_string()).map_err(io("write", &boot_path))?;
                boot
            }
        };
        let path = state_dir.join("ledger.json");
        let pages = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| LedgerError::Unreadable { path: path.clone(), source })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Pages::default(),
            Err(source) => return Err(LedgerError::Io { doing: "read", path, source }),
        };
        Ok(Self { path, files: Files::new(run_dir, state_dir), boot, pages, behind: false })
    }

    /// The mark of this boot. Another when the host has fenced itself since: then it is as if it had been switched off.
    pub fn boot(&self) -> Uuid {
        self.files.boot().unwrap_or(self.boot)
    }

    /// Whether a body may be started now, or why not: by what the controller says of this host, and by the lease, if it
    /// keeps one.
    pub fn may_start(&self) -> Result<(), String> {
        if self.desired().is_some_and(|desired| desired.shut_out) {
            return Err("this host was taken for dead, and is not let in again yet".into());
        }
        self.files.may_start(clock::now())
    }

    /// The desired state that is in force, if any.
    pub fn desired(&self) -> Option<&HostDesired> {
        self.pages.desired.as_ref()
    }

    /// Whether the controller has confirmed the desired state since the host was last switched on. While it has not,
    /// nothing is started; what runs keeps running.
    pub fn confirmed(&self) -> bool {
        self.pages.desired.is_some() && self.pages.confirmed_in == Some(self.boot())
    }

    /// Takes a new desired state, durably, before anything acts on it.
    pub fn accept(&mut self, desired: HostDesired) -> Result<(), LedgerError> {
        self.accept_in(self.boot(), desired)
    }

    /// The same for one that was asked for in this boot. What was said before a fence may be long untrue when it is read.
    pub fn accept_in(&mut self, boot: Uuid, desired: HostDesired) -> Result<(), LedgerError> {
        if boot != self.boot() {
            return Err(LedgerError::OtherBoot);
        }
        if let Some(held) = &self.pages.desired {
            // Another host id means another cloud: its generations do not compare.
            if held.host == desired.host && desired.generation < held.generation {
                return Err(LedgerError::Stale { offered: desired.generation, held: held.generation });
            }
            if *held == desired && self.confirmed() {
                self.permit(boot, &desired)?;
                return Ok(());
            }
        }
        let before = (self.pages.clone(), self.behind);
        self.pages.exported.retain(|image, _| desired.exports.iter().any(|export| export.image == *image));
        self.pages.reports.retain(|image, _| self.pages.exported.contains_key(image));
        // Of what was removed whole, and is not ordered here any more, there is nothing to remember.
        let ordered = |id| desired.instances.iter().chain(&desired.expected).any(|i| i.id == id);
        self.pages.begun.retain(|id, begun| !begun.kinds.is_empty() || ordered(*id));
        // What is taken away is taken away before anybody hears that the order is known.
        self.permit(boot, &desired)?;
        self.pages.desired = Some(desired);
        self.pages.confirmed_in = Some(boot);
        let saved = self.save();
        if saved.is_err() {
            // What is not durable is not followed; and what was is still there, whatever came of the write.
            (self.pages, self.behind) = before;
        }
        saved
    }

    fn permit(&self, boot: Uuid, desired: &HostDesired) -> Result<(), LedgerError> {
        let path = || self.files.run_dir.join("shared");
        let failed = |source| LedgerError::Io { doing: "write", path: path(), source };
        shared::write(&self.files.run_dir, boot, desired).map_err(failed)
    }

    pub fn begun(&self, instance: InstanceId) -> Begun {
        self.pages.begun.get(&instance).cloned().unwrap_or_default()
    }

    /// Instances of which something may be here.
    pub fn all_begun(&self) -> impl Iterator<Item = (InstanceId, &Begun)> {
        self.pages.begun.iter().map(|(id, begun)| (*id, begun))
    }

    /// Notes what is about to be begun or has been done. Written only when it changes anything.
    pub fn note(&mut self, instance: InstanceId, begun: Begun) -> Result<(), LedgerError> {
        let empty = begun == Begun::default();
        let before =
            if empty { self.pages.begun.remove(&instance) } else { self.pages.begun.insert(instance, begun) };
        let same = before.as_ref() == self.pages.begun.get(&instance);
        if same && !self.behind { Ok(()) } else { self.save() }
    }

    /// The blob of an export that the controller has.
    pub fn exported(&self, image: ImageId) -> Option<&Blob> {
        self.pages.exported.get(&image)
    }

    pub fn note_export(&mut self, image: ImageId, blob: Blob) -> Result<(), LedgerError> {
        self.pages.exported.insert(image, blob);
        self.save()
    }

    /// What the conversion to an image has found, once the controller has its bytes.
    pub fn report(&self, image: ImageId) -> Option<&ConversionReport> {
        self.pages.reports.get(&image)
    }

    /// [`Self::note_export`] of a conversion.
    pub fn note_conversion(
        &mut self,
        image: ImageId,
        blob: Blob,
        report: ConversionReport,
    ) -> Result<(), LedgerError> {
        self.pages.reports.insert(image, report);
        self.note_export(image, blob)
    }

    fn save(&mut self) -> Result<(), LedgerError> {
        let saved = self.write();
        self.behind = saved.is_err();
        saved
    }

    fn write(&self) -> Result<(), LedgerError> {
        let io = |doing| {
            let path = self.path.clone();
            move |source| LedgerError::Io { doing, path, source }
        };
        let next = self.path.with_extension("json.next");
        // Serializing our own types to memory cannot fail; an error here would still be reported, not lost.
        let bytes = serde_json::to_vec(&self.pages)
            .map_err(|source| LedgerError::Unreadable { path: self.path.clone(), source })?;
        let mut file = std::fs::File::create(&next).map_err(io("write"))?;
        file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(io("write"))?;
        std::fs::rename(&next, &self.path).map_err(io("replace"))?;
        if let Some(dir) = self.path.parent() {
            std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::HostId;
    use amphi_api::image::ImageFormat;
    use amphi_api::wire::{ExportDesired, ExportSource};

    fn desired(host: HostId, generation: u64) -> HostDesired {
        HostDesired { generation, ..HostDesired::empty(host) }
    }

    #[test]
    fn survives_restart_refuses_stale_and_forgets_confirmation_at_reboot() {
        let state = tempfile::tempdir().unwrap();
        let run = tempfile::tempdir().unwrap();
        let host = HostId::new();
        let id = InstanceId::new();
        let mut ledger = Ledger::open(state.path(), run.path()).unwrap();
        assert!(!ledger.confirmed());
        ledger.accept(desired(host, 7)).unwrap();
        assert!(matches!(ledger.accept(desired(host, 6)), Err(LedgerError::Stale { offered: 6, held: 7 })));
        ledger.note(id, Begun { kinds: vec![BodyKind::Set], restarts: 2, ..Begun::default() }).unwrap();

        let ledger = Ledger::open(state.path(), run.path()).unwrap();
        assert!(ledger.confirmed(), "the agent restarted, the host did not");
        assert_eq!(ledger.desired().unwrap().generation, 7);
        assert_eq!(ledger.begun(id).restarts, 2);

        let next_boot = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(state.path(), next_boot.path()).unwrap();
        assert!(!ledger.confirmed(), "a host that was off does not know what was decided meanwhile");
        assert!(ledger.desired().is_some());
        ledger.accept(desired(host, 7)).unwrap();
        assert!(ledger.confirmed());
        ledger.note(id, Begun::default()).unwrap();
        assert_eq!(ledger.all_begun().count(), 0);
        ledger.note(id, Begun { kinds: vec![], restarts: 2, ..Begun::default() }).unwrap();
        ledger.accept(desired(host, 7)).unwrap();
        assert_eq!(ledger.all_begun().count(), 1, "nothing new was ordered");
        ledger.accept(HostDesired { generation: 8, ..desired(host, 7) }).unwrap();
        assert_eq!(ledger.all_begun().count(), 0, "its restarts are of no interest when it is gone");
        let export = ExportDesired {
            image: ImageId::new(),
            format: ImageFormat::Raw,
            source: ExportSource::Volume(amphi_api::VolumeId::new()),
        };
        let image = export.image;
        ledger.accept(HostDesired { exports: vec![export], ..desired(host, 9) }).unwrap();
        ledger.note_export(image, Blob { sha256: "0".repeat(64), size: 1 }).unwrap();
        let mut ledger = Ledger::open(state.path(), next_boot.path()).unwrap();
        assert!(ledger.exported(image).is_some());
        ledger.accept(desired(host, 10)).unwrap();
        assert!(ledger.exported(image).is_none(), "nobody asks for it any more");
        ledger.accept(desired(HostId::new(), 1)).unwrap();
    }

    #[test]
    fn a_fence_is_a_reboot_for_what_was_ordered_before() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let host = HostId::new();
        let mut ledger = Ledger::open(state.path(), run.path()).unwrap();
        let before = ledger.boot();
        ledger.accept_in(before, desired(host, 7)).unwrap();
        assert!(ledger.confirmed());
        Files::new(run.path(), state.path()).renew_boot().unwrap();
        assert!(!ledger.confirmed(), "the same process sees it");
        assert!(matches!(ledger.accept_in(before, desired(host, 8)), Err(LedgerError::OtherBoot)));
        assert_eq!(ledger.desired().unwrap().generation, 7);
        ledger.accept_in(ledger.boot(), desired(host, 8)).unwrap();
        assert!(ledger.confirmed());
    }

    #[test]
    fn what_cannot_be_written_is_not_followed_and_is_written_when_it_can_be() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (host, id) = (HostId::new(), InstanceId::new());
        let mut ledger = Ledger::open(state.path(), run.path()).unwrap();
        ledger.accept(desired(host, 7)).unwrap();
        // Whoever writes finds a directory in the file's place.
        let obstacle = state.path().join("ledger.json.next");
        std::fs::create_dir(&obstacle).unwrap();
        assert!(matches!(ledger.accept(desired(host, 8)), Err(LedgerError::Io { .. })));
        assert_eq!(ledger.desired().unwrap().generation, 7);
        let begun = Begun { kinds: vec![BodyKind::Set], restarts: 0, ..Begun::default() };
        for _ in 0..2 {
            assert!(ledger.note(id, begun.clone()).is_err(), "it is not noted the second time either");
        }
        std::fs::remove_dir(&obstacle).unwrap();
        ledger.note(id, begun.clone()).unwrap();
        assert_eq!(Ledger::open(state.path(), run.path()).unwrap().begun(id), begun);
        ledger.accept(desired(host, 8)).unwrap();
        assert!(ledger.confirmed());
    }

    #[test]
    fn a_broken_file_is_an_error_not_a_fresh_start() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("ledger.json"), "{").unwrap();
        let error = Ledger::open(state.path(), state.path()).unwrap_err().to_string();
        assert!(error.contains("ledger.json"), "{error}");
    }
}
