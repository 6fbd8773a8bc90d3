//! The catalogue by the programs that people run: what is there is not sent again, counted in bytes on the line; images that
//! everybody may start from are found by those who look for them.

use amphi_integration::alone::Controller;
use amphi_integration::counting::counting;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const LAYER: usize = 6 << 20;

fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_amphi-lab")).parent().expect("the programs' directory")
}

struct Cli {
    url: String,
    token: String,
}

impl Cli {
    async fn call(&self, words: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(programs().join("amphi"));
        command.args(words).env("AMPHI_URL", &self.url).env("AMPHI_TOKEN", &self.token);
        command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
    }

    async fn run(&self, words: &[&str]) -> String {
        let out = self.call(words).await;
        let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "amphi {words:?}: {}\n{said}{wrong}", out.status);
        said.into_owned()
    }

    async fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[words, &["--json"]].concat()).await).unwrap()
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// A layer that nothing can be spared of: one file of noise.
fn layer(seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut noise = Vec::with_capacity(LAYER);
    while noise.len() < LAYER {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&(state >> 24).to_le_bytes()[..5]);
    }
    noise.truncate(LAYER);
    tar(&[(&format!("noise-{seed}"), &noise)])
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// An image of these layers as `docker save` writes it.
fn docker_archive(folder: &Path, name: &str, layers: &[Vec<u8>]) -> PathBuf {
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"], "Labels": {"name": name}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = serde_json::to_vec(&config).unwrap();
    let config_name = format!("{}.json", sha256(&config));
    let names: Vec<_> = layers.iter().map(|layer| format!("{}/layer.tar", sha256(layer))).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": [format!("{name}:latest")], "Layers": names}]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut files: Vec<(&str, &[u8])> = vec![(&config_name, &config)];
    files.extend(names.iter().zip(layers).map(|(name, layer)| (name.as_str(), layer.as_slice())));
    files.push(("manifest.json", &manifest));
    let path = folder.join(format!("{name}.tar"));
    std::fs::write(&path, tar(&files)).unwrap();
    path
}

fn start(purpose: &str, settings: &str) -> Controller {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = programs().with_file_name(format!("{purpose}-{}", std::process::id()));
    Controller::start_in(programs(), folder, settings).expect("a controller")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_one_new_layer_costs_that_layer() {
    let controller = start("catalogue", "");
    let (front, count) =
        counting(controller.url().trim_start_matches("http://").parse().unwrap()).await.unwrap();
    let (url, mut before) = (format!("http://{front}"), 0);
    // Since it was asked last.
    let mut sent = || {
        let now = count.up();
        now - std::mem::replace(&mut before, now)
    };
    let cli = Cli { url, token: controller.read("admin-token").unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let base = [layer(1), layer(2), layer(3)];
    let next = [base[0].clone(), base[1].clone(), base[2].clone(), layer(4)];
    let (one, two) =
        (docker_archive(folder.path(), "one", &base), docker_archive(folder.path(), "two", &next));

    let before = sent();
    cli.run(&["image", "create", "one", one.to_str().unwrap()]).await;
    let first = sent();
    let made = cli.json(&["image", "create", "two", two.to_str().unwrap()]).await;
    let second = sent();
    println!(
        "{before} bytes before; 3 layers of {LAYER} bytes cost {first}, the same and a new one {second}"
    );
    assert!(first > 3 * LAYER as u64, "{first}");
    let most = (LAYER + (256 << 10)) as u64;
    assert!((LAYER as u64..most).contains(&second), "one layer of {LAYER} bytes cost {second}");
    cli.run(&["image", "create", "again", two.to_str().unwrap()]).await;
    let third = sent();
    assert!(third < 256 << 10, "nothing new cost {third} bytes");

    // It is the same archive, byte for byte, and known by the same id as Docker gives it.
    assert_eq!((made["format"].as_str(), made["state"].as_str()), (Some("docker-archive"), Some("active")));
    assert_eq!(made["blobs"]["archive"]["sha256"], sha256(&std::fs::read(&two).unwrap()));
    let http = reqwest::Client::new();
    let at = format!("{}/v1/blobs/{}", controller.url(), sha256(&base[1]));
    let asked = http.get(&at).bearer_auth(&cli.token).header("range", "bytes=1000-").send().await.unwrap();
    assert_eq!(asked.status(), 206);
    assert!(asked.bytes().await.unwrap() == base[1][1000..], "other bytes");

    // Layers are images with a parent, the same ones of both.
    let ids = async |name: &str| {
        let layers = cli.json(&["image", "layers", name]).await["layers"].as_array().unwrap().clone();
        let mut below = Value::Null;
        for layer in &layers {
            assert_eq!(layer.get("parent").cloned().unwrap_or_default(), below, "{layers:?}");
            below = layer["id"].clone();
        }
        layers.iter().map(|layer| layer["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (of_one, of_two) = (ids("one").await, ids("two").await);
    assert_eq!((of_one.len(), of_two.len()), (3, 4));
    assert_eq!(of_one, of_two[..3]);
    let table = cli.run(&["image", "list", "--layers"]).await;
    assert_eq!(table.lines().count(), 1 + 3 + 4, "{table}");
    let image = table.lines().find(|line| line.starts_with("two")).unwrap();
    assert!(image.ends_with(&of_two[3]), "{table}");

    // What somebody else's recipe names that nobody gave them is refused.
    let foreign = json!({"pieces": [{"blob": {"sha256": "ab".repeat(32), "size": 7}}]});
    let id =
        cli.json(&["image", "create", "x", "--format", "raw", one.to_str().unwrap()]).await["id"].clone();
    let made = http
        .put(format!("{}/v1/images/{}/blobs/disk", controller.url(), id.as_str().unwrap()))
        .bearer_auth(&cli.token)
        .header("content-type", "application/vnd.amphi.recipe+json")
        .body(foreign.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(made.status(), 409);
    let text = made.text().await.unwrap();
    assert!(text.contains("are not here"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_of_other_formats_are_taken_and_what_leads_elsewhere_is_not() {
    let controller = start("formats", "");
    let cli = Cli { url: controller.url().to_owned(), token: controller.read("admin-token").unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    std::fs::write(&raw, layer(9)).unwrap();
    let size = std::fs::metadata(&raw).unwrap().len();
    let disk = |name: &str, format: &str, options: &str| {
        let path = folder.path().join(name);
        let done = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format, "-o", options])
            .args([&raw, &path])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        path.to_str().unwrap().to_owned()
    };
    for (name, format, options, seen) in [
        ("a.vmdk", "vmdk", "subformat=monolithicSparse", "vmdk"),
        ("b.vmdk", "vmdk", "subformat=streamOptimized", "vmdk"),
        ("c.vhd", "vpc", "subformat=dynamic,force_size=on", "vhd"),
        ("d.vhdx", "vhdx", "subformat=dynamic", "vhdx"),
        ("e.qcow2", "qcow2", "compat=1.1", "qcow2"),
    ] {
        let path = disk(name, format, options);
        let made = cli.json(&["image", "create", name, &path]).await;
        assert_eq!((made["format"].as_str(), made["state"].as_str()), (Some(seen), Some("active")), "{name}");
        let listed = cli.run(&["image", "show", name]).await;
        assert!(listed.contains(seen), "{listed}");
    }
    let fixed = disk("f.vhd", "vpc", "subformat=fixed,force_size=on");
    let made = cli.json(&["image", "create", "f", "--format", "vhd", &fixed]).await;
    assert_eq!(made["state"], "active");
    for (path, format, why) in [
        (disk("flat.vmdk", "vmdk", "subformat=monolithicFlat"), "vmdk", "lies in other files"),
        (disk("split.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"), "vmdk", "lies in other files"),
        (raw.to_str().unwrap().to_owned(), "vhd", "is no vhd file"),
        (raw.to_str().unwrap().to_owned(), "vhdx", "is no vhdx file"),
    ] {
        let out = cli.call(&["image", "create", "bad", "--format", format, &path]).await;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(why), "{path}: {said}");
    }
    let names = cli.json(&["image", "list"]).await;
    assert_eq!(
        names["images"].as_array().unwrap().len(),
        6,
        "something of what was refused is left: {names}"
    );
    // In OpenStack's words, too.
    let client = amphi_api::client::Client::new(controller.url(), &cli.token).unwrap();
    let seen = client.images().await.unwrap().iter().map(|i| i.blobs.len()).sum::<usize>();
    assert_eq!((seen, size > 0), (6, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_image_is_found_in_the_market() {
    let controller = start("market", "");
    let cli = Cli { url: controller.url().to_owned(), token: controller.read("admin-token").unwrap() };
    let folder = tempfile::tempdir().unwrap();
    for (name, words) in [
        (
            "web",
            &[
                "--description",
                "An nginx that serves pages\nand more",
                "--image-version",
                "1.27",
                "--visibility",
                "public",
            ][..],
        ),
        ("tool", &["--visibility", "community", "--description", "for a few"]),
        ("own", &["--description", "pages of our own"]),
    ] {
        let archive = docker_archive(folder.path(), name, &[tar(&[("a", name.as_bytes())])]);
        cli.run(&[&["image", "create", name, archive.to_str().unwrap()], words].concat()).await;
    }
    let names = async |words: &[&str]| {
        let found = cli.json(&[&["image", "market"], words].concat()).await;
        let images = found["images"].as_array().unwrap();
        images.iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]).await, ["web"]);
    assert_eq!(names(&["--community"]).await, ["web", "tool"]);
    assert_eq!(names(&["PAGES"]).await, ["web"], "in the description, whatever the case");
    assert_eq!(names(&["--community", "--limit", "1"]).await, ["web"]);
    assert_eq!(names(&["--owner", "admin"]).await, ["web"]);
    assert_eq!(names(&["--owner", "nobody"]).await, [""; 0]);
    let web = cli.json(&["image", "show", "web"]).await;
    assert_eq!(names(&["--community", "--after", web["id"].as_str().unwrap()]).await, ["tool"]);
    let table = cli.run(&["image", "market"]).await;
    assert!(
        table.contains("1.27") && table.contains("admin") && table.contains("An nginx that serves pages"),
        "{table}"
    );

    cli.run(&["image", "set", "web", "--visibility", "private", "--image-version", ""]).await;
    assert_eq!(names(&[]).await, [""; 0]);
    let web = cli.json(&["image", "show", "web"]).await;
    assert_eq!((web.get("version"), web["description"].as_str().unwrap().lines().count()), (None, 2));

    let project = web["project"].as_str().unwrap();
    let usage = cli.json(&["image", "usage"]).await;
    assert_eq!(usage["limit_mib"], -1);
    assert!(usage["used_bytes"].as_u64().unwrap() > 3 * 1024, "{usage}");
    let usage = cli.json(&["image", "usage", "--project", project, "--limit", "1"]).await;
    assert_eq!(usage["limit_mib"], 1);
    let large = docker_archive(folder.path(), "large", &[layer(5)]);
    let out = cli.call(&["image", "create", "large", large.to_str().unwrap()]).await;
    assert!(
        !out.status.success() && String::from_utf8_lossy(&out.stderr).contains("image_size_total"),
        "{out:?}"
    );
}
