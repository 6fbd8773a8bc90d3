//! Clears what a crash or a power cut left: rows on the bridge without a device, host ends of veth
//! pairs without a row. Since a port in the making shows the same picture for a moment, a thing is
//! removed only when two sweeps in a row found it; sweep at intervals of seconds.

use std::collections::BTreeSet;

use super::{NetworkError, Wiring, link, ovs::Attached};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Devices that the bridge names and the kernel lacks.
    pub rows: BTreeSet<String>,
    /// Host ends of pairs that the bridge does not name.
    pub devices: BTreeSet<String>,
}

impl Leftovers {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.devices.is_empty()
    }
}

/// Remembers what the last sweep suspected.
#[derive(Debug, Default)]
pub struct Sweep {
    suspects: Leftovers,
}

impl Sweep {
    /// Answers what it removed.
    pub async fn run(&mut self, wiring: &Wiring) -> Result<Leftovers, NetworkError> {
        let attached = wiring.switch.observe().await?;
        let devices = wiring.links.observe().await?;
        let found = leftovers(&attached, &devices, link::exists);
        let removed = confirmed(&self.suspects, &found);
        self.suspects = found;
        for device in &removed.rows {
            wiring.switch.unplug(device).await?;
        }
        for device in &removed.devices {
            wiring.links.remove(device).await?;
        }
        Ok(removed)
    }
}

fn leftovers(attached: &[Attached], devices: &[String], exists: impl Fn(&str) -> bool) -> Leftovers {
    let named: BTreeSet<&str> = attached.iter().map(|port| port.device.as_str()).collect();
    Leftovers {
        rows: named.iter().filter(|device| !exists(device)).map(|&device| device.to_owned()).collect(),
        devices: devices.iter().filter(|device| !named.contains(device.as_str())).cloned().collect(),
    }
}

fn confirmed(before: &Leftovers, now: &Leftovers) -> Leftovers {
    Leftovers { rows: &before.rows & &now.rows, devices: &before.devices & &now.devices }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn names(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn only_what_is_half_there_twice_is_removed() {
        let attached = |device: &str| Attached::new(device, Uuid::nil());
        let rows = [attached("va00000000001"), attached("vnet0"), attached("vnet1")];
        let devices = ["va00000000001".to_owned(), "va00000000002".to_owned()];
        let found = leftovers(&rows, &devices, |device| device != "vnet1");
        assert_eq!(found, Leftovers { rows: names(&["vnet1"]), devices: names(&["va00000000002"]) });
        assert!(confirmed(&Leftovers::default(), &found).is_empty());
        let settled = Leftovers { rows: names(&["vnet1"]), devices: names(&[]) };
        assert_eq!(confirmed(&found, &settled), settled);
    }
}
