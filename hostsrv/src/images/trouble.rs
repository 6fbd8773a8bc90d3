//! Owns the words for what goes wrong with a blob: one failure is told to all who wait for it.

use crate::instance::DriverError;
use amphi_api::ImageId;
use std::io;

pub(super) const ENGINE: &str = "image store";

/// Why a blob cannot be had.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// Its bytes are not what its digest says, wherever they come from.
    Broken(String),
    /// It does not come, now.
    Down { doing: String, message: String },
    /// Its bytes had changed on this host's disk, or on the way from another host. They are gone: asked for again it comes
    /// anew.
    Changed(String),
    /// This host's disk.
    Io { doing: &'static str, kind: io::ErrorKind, raw: Option<i32>, message: String },
}

impl Trouble {
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io {
            doing,
            kind: error.kind(),
            raw: error.raw_os_error(),
            message: error.to_string(),
        }
    }

    /// What it means for somebody who wanted this image.
    pub fn of(self, image: ImageId) -> DriverError {
        match self {
            Self::Broken(message) => DriverError::ImageBroken { image, message },
            Self::Down { doing, message } => DriverError::EngineDown {
                engine: ENGINE,
                doing: format!("{doing} of image {image}"),
                source: anyhow::Error::msg(message),
            },
            Self::Changed(message) => DriverError::EngineDown {
                engine: ENGINE,
                doing: format!("read image {image}"),
                source: anyhow::Error::msg(message),
            },
            Self::Io { doing, kind, raw, message } => DriverError::Io {
                doing: doing.to_owned(),
                source: raw.map_or_else(|| io::Error::new(kind, message), io::Error::from_raw_os_error),
            },
        }
    }
}
