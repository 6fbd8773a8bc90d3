//! Owns the question whether VMs run accelerated here, answered by running one: a boot sector that ends its machine
//! through QEMU's debug-exit device. `/dev/kvm` alone proves nothing: a nested or filtered KVM may create a guest
//! that never gets past its firmware. Never asks libvirt, which probes KVM itself and can hang on such a machine for
//! most of a minute: there, hide `/dev/kvm` from libvirtd in its mount namespace. Bind an empty file over it and remount
//! that read-only (a `/dev/null` over it passes libvirt's access check, and makes it probe QEMU again at every
//! definition), with `namespaces = []` in qemu.conf.

use amphi_api::host::Acceleration;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const QEMU: &str = "qemu-system-x86_64";
/// A guest under working KVM is through its firmware in well under a second.
const DEADLINE: Duration = Duration::from_secs(5);
/// The boot sector writes this to the debug port; QEMU's exit status is twice that, plus one.
const WORD: u8 = 0x2a;
const PORT: u8 = 0xf4;

/// Finds out by running a guest, in at most about five seconds. Call it before anything talks to libvirt.
pub async fn acceleration() -> Acceleration {
    match boots(QEMU, "kvm", DEADLINE).await {
        Ok(()) => Acceleration::Kvm,
        Err(reason) => {
            tracing::info!("VMs run without KVM: {reason}");
            Acceleration::Tcg
        }
    }
}

/// 512 bytes: `mov al, WORD; out PORT, al; hlt; jmp $-1`, and the boot signature.
fn boot_sector() -> [u8; 512] {
    let mut sector = [0_u8; 512];
    sector[..7].copy_from_slice(&[0xb0, WORD, 0xe6, PORT, 0xf4, 0xeb, 0xfd]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

async fn boots(qemu: &str, accelerator: &str, deadline: Duration) -> Result<(), String> {
    let text = |e: std::io::Error| format!("{qemu}: {e}");
    let mut disk = tempfile::NamedTempFile::new().map_err(text)?;
    disk.write_all(&boot_sector()).and_then(|()| disk.flush()).map_err(text)?;
    let mut child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16"])
        .args(["-machine", &format!("pc,accel={accelerator}")])
        .args(["-device", &format!("isa-debug-exit,iobase={PORT:#x},iosize=1")])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=ide,readonly=off,snapshot=on", disk.path().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(text)?;
    match tokio::time::timeout(deadline, child.wait()).await {
        Ok(Ok(status)) if status.code() == Some(i32::from(WORD) * 2 + 1) => Ok(()),
        Ok(Ok(status)) => Err(format!("{qemu} with {accelerator} ended with {status}")),
        Ok(Err(error)) => Err(text(error)),
        Err(_) => {
            // Not waited for: a process stuck in the kernel would hold us. The runtime reaps it when it ends.
            let _gone = child.start_kill();
            Err(format!(
                "a guest with {accelerator} did not get through its firmware in {} s",
                deadline.as_secs()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_probe_guest_runs_where_it_can() {
        boots(QEMU, "tcg", Duration::from_secs(60)).await.unwrap();
    }

    #[tokio::test]
    async fn it_ends_at_its_deadline_and_tells_failures() {
        let error = boots(QEMU, "tcg", Duration::from_millis(1)).await.unwrap_err();
        assert!(error.contains("did not get through"), "{error}");
        let error = boots(QEMU, "no-such-accelerator", DEADLINE).await.unwrap_err();
        assert!(error.contains("ended with"), "{error}");
        let error = boots("/nonexistent/qemu", "tcg", DEADLINE).await.unwrap_err();
        assert!(error.contains("/nonexistent/qemu"), "{error}");
    }

    #[tokio::test]
    async fn an_answer_comes_in_time() {
        let limit = DEADLINE + Duration::from_secs(5);
        tokio::time::timeout(limit, acceleration()).await.expect("the probe hangs");
    }
}
