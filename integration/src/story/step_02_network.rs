//! Step 2: a network with a subnet and DHCP, a group that lets ping and TCP 80 in, and the images that bodies start
//! from; each is looked up where the engines keep it.

use amphi_api::image::{Image, ImageState};
use amphi_api::network::{Network, SecurityGroup};
use anyhow::{Context, Result, ensure};

use super::cli::REFUSED;
use super::stage::{CONTROLLER, GROUP, NETWORK, SOON, Stage, same};
use crate::wait::{seen, until};

pub fn play(stage: &Stage) -> Result<()> {
    stage.check("`amphi network create`: a logical switch with DHCP", || {
        let network: Network = stage.amphi.json(&["network", "create", NETWORK, "--cidr", "10.7.0.0/24"])?;
        let subnet = network.subnet.as_ref().context("no subnet")?;
        same("subnet", &"10.7.0.0/24".to_owned(), &subnet.cidr.to_string())?;
        ensure!(subnet.dhcp, "DHCP should be on: {network:?}");
        northbound(
            stage,
            "a logical switch of this network",
            &["ovn-nbctl", "ls-list"],
            &network.id.to_string(),
        )?;
        northbound(stage, "DHCP options of the subnet", &["ovn-nbctl", "list", "DHCP_Options"], "10.7.0.0/24")
    })?;
    stage.check("`amphi security-group create`: ping and TCP 80 get in", || {
        let words = ["security-group", "create", GROUP, "--allow", "icmp", "--allow", "tcp:80"];
        let group: SecurityGroup = stage.amphi.json(&words)?;
        same("rules", &2, &group.rules.len())?;
        northbound(stage, "a rule for TCP 80", &["ovn-nbctl", "list", "ACL"], "80")
    })?;
    stage.check("a wrong subnet is refused, the field is named, nothing is made", || {
        let words = ["network", "create", "wrong", "--cidr", "10.7.0.1/24"];
        let complaint = stage.amphi.fails(&words, REFUSED)?;
        ensure!(complaint.contains("cidr"), "the complaint should name the field `cidr`: {complaint}");
        let networks = stage.ask(stage.client.networks())?;
        same("networks", &1, &networks.len())
    })?;
    let file = |name: &str| stage.lab.layout().images().join(name).to_string_lossy().into_owned();
    stage.check(
        "`amphi image create`: two container images, a VM's kernel and initramfs, a VM's disk",
        || {
            let (busybox, web) = (file("busybox.tar"), file("web.tar"));
            let (kernel, initramfs) = (file("vm-kernel"), file("vm-initramfs"));
            let disk = file("vm-disk.qcow2");
            let orders: [&[&str]; 4] = [
                &["image", "create", "busybox", &busybox],
                &["image", "create", "web", &web],
                &["image", "create", "vm", "--kernel", &kernel, "--initramfs", &initramfs],
                &["image", "create", "vm-disk", &disk],
            ];
            for words in orders {
                let image: Image = stage.amphi.json(words)?;
                same(&format!("state of image {}", image.name), &ImageState::Active, &image.state)?;
            }
            Ok(())
        },
    )
}

fn northbound(stage: &Stage, what: &str, argv: &[&str], word: &str) -> Result<()> {
    let argv = [&argv[..1], &["--timeout=10", "--no-leader-only"], &argv[1..]].concat();
    until(&format!("OVN's northbound database has {what}"), SOON, || {
        let text = stage.lab.run(CONTROLLER, &argv).context("ask OVN")?;
        Ok(seen(text.contains(word), || text.clone()))
    })
}
