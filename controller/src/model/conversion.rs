//! What is known of a conversion: kept with the image that comes out of it, for as long as there is that image.

use super::ImageRecord;
use amphi_api::conversion::{ConversionProgress, ConversionReport, ConversionState, ConvertTo};
use amphi_api::image::ImageState;
use amphi_api::instance::Fault;
use amphi_api::wire::ConversionStatus;
use amphi_api::{HostId, ImageId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The fault that no other try would change.
const FOR_GOOD: &str = "not_convertible";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConversionRecord {
    pub of: ImageId,
    pub of_name: String,
    pub to: ConvertTo,
    pub host: HostId,
    #[serde(default)]
    pub progress: ConversionProgress,
    #[serde(default)]
    pub report: Option<ConversionReport>,
    /// It has ended with this.
    #[serde(default)]
    pub failed: Option<Fault>,
    pub began_at: Timestamp,
}

impl ConversionRecord {
    /// With what its host says.
    pub fn told(&self, status: &ConversionStatus) -> Self {
        let mut next = self.clone();
        next.progress = status.progress;
        next.report = status.report.clone().or(next.report);
        next
    }
}

/// Whether a conversion's host need not try again.
pub fn ends_conversion(fault: &Fault) -> bool {
    fault.code == FOR_GOOD
}

impl ImageRecord {
    /// How the conversion that it comes from stands; none: it comes from none.
    pub fn conversion_state(&self) -> Option<ConversionState> {
        let conversion = self.traits.conversion.as_ref()?;
        Some(match (self.state(), &conversion.failed) {
            (ImageState::Active, _) => ConversionState::Done,
            (ImageState::Queued, Some(_)) => ConversionState::Failed,
            (ImageState::Queued, None) => ConversionState::Running,
        })
    }
}
