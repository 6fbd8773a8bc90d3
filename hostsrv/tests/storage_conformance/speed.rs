//! How long the steps take that an instance's creation waits for.

use std::time::{Duration, Instant};

use amphi_hostsrv::storage::{Activation, Attach, BinOrder, VolumeDriver};
use uuid::Uuid;

use crate::rig::{Rig, xfs};

pub async fn a_volume_of_a_gibibyte_is_there_at_once(rig: &mut Rig) {
    let mut totals = Vec::new();
    for _ in 0..if rig.activation == Activation::Loop { 5 } else { 1 } {
        let id = Uuid::new_v4();
        let start = Instant::now();
        rig.driver.ensure(&xfs(id, 1024)).await.expect("made");
        let made = start.elapsed();
        rig.driver.attach(id, Attach::Mounted).await.expect("attached");
        let total = start.elapsed();
        let start = Instant::now();
        rig.driver.detach(id).await.expect("detached");
        let detached = start.elapsed();
        rig.driver.set_bin(id, BinOrder::Purge).await.expect("purged");
        let purged = start.elapsed() - detached;
        eprintln!("ensure {made:?}, attach {:?}, detach {detached:?}, purge {purged:?}", total - made);
        totals.push(total);
    }
    totals.sort();
    eprintln!("ensure and attach of 1 GiB, median: {:?}", totals[totals.len() / 2]);
    if rig.activation == Activation::Loop {
        // Meant to stay under 150 ms; the bound leaves room for a machine that has other things to do.
        assert!(totals[0] < Duration::from_millis(300), "{totals:?}");
    }
}
