//! The native face under schemathesis: requests made out of the face's own description, right ones and wrong ones, to a
//! controller alone with hosts in memory. Every answer has to be as described, none may be a 5xx, and no refused order may
//! leave a record behind (`integration/clients/fuzz/hooks.py`). Refuses to know the routes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use amphi_api::client::Client;
use amphi_api::image::{BlobRole, ImageCreate};
use amphi_api::network::{NetworkCreate, SecurityGroupCreate};
use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::alone::{self, Controller};
use crate::lab::Background;

/// Hosts in memory, so that orders are carried out too.
const HOSTS: usize = 2;
/// What the description's requests may name: `hooks.py` does.
const NAME: &str = "fuzz";

/// The most for a bound run. Whole descriptions nest in a few orders (a group's template holds an instance's), and every field of
/// each is tried.
const SHORT_SECONDS: u64 = 150;

/// How far a run goes.
pub enum Bound {
    /// Requests of each kind for each route: the same ones in every run of one seed, as far as the time goes.
    Examples(u32),
    /// As many as there is time for.
    Seconds(u64),
}

/// Starts all, asks, ends all. An error says what was found and how to see it again. `programs` holds `amphi-controller`.
pub fn run(programs: &Path, seed: u32, bound: &Bound) -> Result<String> {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no directory")?;
    let venv = workspace.join("target/fuzz");
    let clients = workspace.join("integration/clients/fuzz");
    let status = Command::new(workspace.join("scripts/clients.sh"))
        .args([&venv, &clients.join("requirements.txt")])
        .stdin(Stdio::null())
        .status()
        .context("run scripts/clients.sh")?;
    ensure!(status.success(), "scripts/clients.sh ended with {status}");

    let mut controller = Controller::start(programs, "fuzz")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start a runtime")?;
    let hosts = runtime.block_on(alone::join(&controller, HOSTS))?;
    let token = controller.read("admin-token")?;
    runtime.block_on(furnish(&Client::new(controller.url(), &token)?, controller.folder()))?;

    let mut command = Command::new(venv.join("bin/schemathesis"));
    command.arg("--config-file").arg(clients.join("schemathesis.toml"));
    command.args(["run", &format!("{}/v1/openapi.json", controller.url()), "--seed", &seed.to_string()]);
    let limit = match bound {
        Bound::Examples(count) => {
            command.args(["--max-examples", &count.to_string()]);
            command.args(["--max-time", &SHORT_SECONDS.to_string()]);
            Duration::from_secs(600)
        }
        Bound::Seconds(seconds) => {
            command.args(["--max-time", &seconds.to_string()]);
            Duration::from_secs(seconds * 2 + 300)
        }
    };
    command
        .current_dir(controller.folder())
        .env("SCHEMATHESIS_HOOKS", clients.join("hooks.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("AMPHI_URL", controller.url())
        .env("AMPHI_TOKEN", &token)
        .env("NO_COLOR", "1");
    let output = Background::start(command)?.finish(limit)?;
    let log = controller.log()?;
    ensure!(output.ok(), "seed {seed}: {}{}\nthe controller says:\n{log}", output.stdout, output.stderr);
    ensure!(controller.runs(), "seed {seed}: the controller has ended:\n{log}");
    ensure!(!log.contains(" ERROR "), "seed {seed}: the controller complains:\n{log}");
    let gone = hosts.iter().filter(|host| !host.connected()).count();
    ensure!(gone == 0, "seed {seed}: {gone} of {HOSTS} hosts have lost their link");
    Ok(output.stdout)
}

/// One of each thing that an instance names.
async fn furnish(client: &Client, folder: &Path) -> Result<()> {
    let network: NetworkCreate =
        serde_json::from_value(json!({ "name": NAME, "subnet": { "cidr": "10.9.0.0/16" } }))?;
    client.create_network(&network).await?;
    let group: SecurityGroupCreate = serde_json::from_value(json!({ "name": NAME }))?;
    client.create_security_group(&group).await?;
    let file = folder.join("bytes");
    for (name, format, role, bytes) in [
        (NAME.to_owned(), "raw", BlobRole::Disk, vec![0; 1 << 20]),
        (format!("{NAME}-set"), "docker-archive", BlobRole::Archive, crate::container::archive()?),
    ] {
        std::fs::write(&file, bytes).context("an image's bytes")?;
        let image: ImageCreate = serde_json::from_value(json!({ "name": name, "format": format }))?;
        let image = client.create_image(&image).await?;
        client.upload_file(image.id, role, &file, Box::new(|_, _| {})).await?;
    }
    Ok(())
}
