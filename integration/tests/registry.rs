//! The registry face with the tools that people have: docker with a dockerd of its own, and Debian's skopeo. Images go in and
//! out, pushes are killed and repeated, a second controller is the upstream of a mirror and goes away.

use amphi_integration::alone::Controller;
use amphi_integration::archive::archive as archive_of;
use amphi_integration::dockerd::{Docker, done, output, refused};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_amphi-lab")).parent().expect("the programs' directory")
}

/// A controller on loopback, its registry's address, and the administrator's password.
struct Registry {
    controller: Controller,
    address: String,
    password: String,
}

impl Registry {
    fn start(purpose: &str, settings: &str) -> Self {
        // reqwest wants one; it is there already when another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = programs().with_file_name(format!("{purpose}-{}", std::process::id()));
        let controller = Controller::start_in(programs(), folder, settings).expect("a controller");
        let address = controller.url().trim_start_matches("http://").to_owned();
        let password = controller.read("admin-password").expect("a password");
        Self { controller, address, password }
    }

    fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    fn skopeo(&self, verb: &str) -> Command {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", verb]);
        command
    }

    fn copy_in(&self, from: &str, image: &str) -> Command {
        let mut command = self.skopeo("copy");
        command.args(["--dest-tls-verify=false", &format!("--dest-creds=admin:{}", self.password)]);
        command.args([from.to_owned(), format!("docker://{}", self.name(image))]);
        command
    }

    fn copy_out(&self, image: &str, to: &str) -> Command {
        let mut command = self.skopeo("copy");
        command.args(["--src-tls-verify=false", &format!("--src-creds=admin:{}", self.password)]);
        command.arg(format!("docker://{}", self.name(image))).arg(to);
        command
    }

    /// A verb that looks at one image or repository, or deletes it.
    fn look(&self, verb: &str, image: &str) -> Command {
        let mut command = self.skopeo(verb);
        command.args(["--tls-verify=false", &format!("--creds=admin:{}", self.password)]);
        command.arg(format!("docker://{}", self.name(image)));
        command
    }

    /// An order of the native face, by the controller's own token.
    fn order(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.controller.url());
        let token = self.controller.read("admin-token").expect("a token");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let request = reqwest::Client::new().request(method.parse().expect("a method"), url);
            let request = if body.is_null() { request } else { request.json(&body) };
            let answer = request.bearer_auth(token).send().await.expect("an answer");
            let status = answer.status();
            let text = answer.text().await.expect("a body");
            assert!(status.is_success(), "{method} {path}: {status} {text}");
            serde_json::from_str(&text).unwrap_or_default()
        })
    }

    /// Bytes to the native face: the status, and what was said.
    fn put(&self, path: &str, bytes: Vec<u8>) -> (u16, Value) {
        let url = format!("{}{path}", self.controller.url());
        let token = self.controller.read("admin-token").expect("a token");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let request = reqwest::Client::new().put(url).bearer_auth(token).body(bytes);
            let answer = request.send().await.expect("an answer");
            (answer.status().as_u16(), answer.json().await.unwrap_or_default())
        })
    }

    fn repository(&self, name: &str) -> Value {
        let all = self.order("GET", "/v1/repositories", Value::Null);
        let found = all["repositories"].as_array().and_then(|list| list.iter().find(|r| r["name"] == name));
        found.unwrap_or_else(|| panic!("no repository {name}: {all}")).clone()
    }
}

/// A root file system of busybox, and so many bytes that nothing compresses, as a tar.
fn root(dir: &Path, name: &str, noise_mib: usize) -> PathBuf {
    let root = dir.join(name);
    std::fs::create_dir_all(root.join("bin")).expect("a directory");
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    std::fs::write(root.join("name"), name).expect("a file");
    let mut noise = Vec::with_capacity(noise_mib << 20);
    let mut block: [u8; 32] = Sha256::digest(name).into();
    while noise.len() < noise_mib << 20 {
        noise.extend_from_slice(&block);
        block = Sha256::digest(block).into();
    }
    std::fs::write(root.join("noise"), noise).expect("a file");
    let tar = dir.join(format!("{name}.tar"));
    done(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."));
    tar
}

#[test]
fn docker_and_skopeo_bring_images_and_fetch_them() {
    let (registry, docker) = (Registry::start("registry", ""), Docker::start());
    let dir = tempfile::tempdir().expect("a directory");
    let tar = root(dir.path(), "one", 3);
    let local = "local/web:v1";
    done(docker.run(&["import", "--change", "CMD [\"/bin/busybox\"]"]).arg(&tar).arg(local));
    let id = docker.image_id(local);
    let web = registry.name("admin/web:v1");
    done(&mut docker.run(&["tag", local, &web]));

    let wrong = refused(&mut docker.login(&registry.address, "wrong"));
    assert!(wrong.contains("unauthorized"), "{wrong}");
    let nobody = refused(&mut docker.run(&["push", &web]));
    assert!(
        nobody.contains("unauthorized") || nobody.contains("denied") || nobody.contains("no basic auth"),
        "{nobody}"
    );
    done(&mut docker.login(&registry.address, &registry.password));
    done(&mut docker.run(&["push", &web]));
    let again = done(&mut docker.run(&["push", &web]));
    assert!(again.contains("already exists"), "{again}");
    let other = registry.name("admin/other:v1");
    done(&mut docker.run(&["tag", local, &other]));
    let mounted = done(&mut docker.run(&["push", &other]));
    assert!(mounted.contains("Mounted from") || mounted.contains("already exists"), "{mounted}");
    done(&mut docker.run(&["rmi", "-f", local, &web, &other]));
    assert!(!output(&mut docker.run(&["image", "inspect", &id])).status.success(), "it is gone here");
    done(&mut docker.run(&["pull", &web]));
    assert_eq!(docker.image_id(&web), id, "the image that was pushed");
    let elsewhere = registry.name("nobody/web:v1");
    done(&mut docker.run(&["tag", &web, &elsewhere]));
    let stranger = refused(&mut docker.run(&["push", &elsewhere]));
    assert!(stranger.contains("denied") || stranger.contains("unauthorized"), "{stranger}");

    // The catalogue has it, under Docker's own id.
    let repository = registry.repository("web");
    assert_eq!(repository["tags"], 1);
    let tags = registry.order(
        "GET",
        &format!("/v1/repositories/{}/tags", repository["id"].as_str().expect("an id")),
        Value::Null,
    );
    let image = tags["tags"][0]["image"].as_str().expect("an image").to_owned();
    let shown = registry.order("GET", &format!("/v1/images/{image}"), Value::Null);
    assert_eq!(format!("sha256:{}", shown["blobs"]["config"]["sha256"].as_str().expect("a config")), id);

    // skopeo: an archive in, an OCI layout out, and what lies between.
    let archive = dir.path().join("web.tar").display().to_string();
    done(&mut docker.run(&["save", "-o", &archive, &web]));
    done(&mut registry.copy_in(&format!("docker-archive:{archive}"), "admin/web:v2"));
    let layout = format!("oci:{}:v2", dir.path().join("layout").display());
    done(&mut registry.copy_out("admin/web:v2", &layout));
    let seen: Value =
        serde_json::from_str(&done(&mut registry.look("inspect", "admin/web:v2"))).expect("JSON");
    assert_eq!(seen["Architecture"], "amd64");
    let mut listed = registry.look("list-tags", "admin/web");
    let listed: Value = serde_json::from_str(&done(&mut listed)).expect("JSON");
    assert_eq!(listed["Tags"], json!(["v1", "v2"]));
    done(&mut registry.copy_in(&layout, "admin/web:oci"));
    done(&mut registry.look("delete", "admin/web:oci"));
    assert!(refused(&mut registry.look("inspect", "admin/web:oci")).contains("manifest unknown"));
    done(&mut docker.run(&["pull", &registry.name("admin/web:v2")]));
    assert_eq!(docker.image_id(&registry.name("admin/web:v2")), id, "an archive is the same image");

    // A tag that never changes.
    let path = format!("/v1/repositories/{}", repository["id"].as_str().expect("an id"));
    registry.order("PATCH", &path, json!({"immutable": ["v1"], "visibility": "public"}));
    let tar = root(dir.path(), "two", 1);
    done(docker.run(&["import"]).arg(&tar).arg(&web));
    let fixed = refused(&mut docker.run(&["push", &web]));
    assert!(fixed.contains("never changes"), "{fixed}");
    // Open to everybody: without a login.
    done(&mut docker.run(&["logout", &registry.address]));
    done(&mut docker.run(&["rmi", "-f", &web, &registry.name("admin/web:v2")]));
    done(&mut docker.run(&["pull", &web]));
    assert_eq!(docker.image_id(&web), id);
    let hidden = refused(&mut docker.run(&["pull", &other]));
    assert!(
        hidden.contains("unauthorized") || hidden.contains("denied") || hidden.contains("no basic auth"),
        "{hidden}"
    );
}

/// What `docker save` makes of an image with so much noise.
fn archive(docker: &Docker, dir: &Path, name: &str, mib: usize) -> String {
    let tar = root(dir, name, mib);
    let image = format!("local/{name}:v1");
    done(docker.run(&["import"]).arg(&tar).arg(&image));
    let archive = dir.join(format!("{name}-saved.tar")).display().to_string();
    done(&mut docker.run(&["save", "-o", &archive, &image]));
    archive
}

#[test]
fn pushes_that_die_are_repeated_and_uploads_go_on() {
    let (mut registry, docker) = (Registry::start("registry-deaths", ""), Docker::start());
    let dir = tempfile::tempdir().expect("a directory");
    let archive = format!("docker-archive:{}", archive(&docker, dir.path(), "large", 24));
    // The whole takes so long; deaths are spread over that.
    let began = Instant::now();
    done(&mut registry.copy_in(&archive, "admin/measure:v1"));
    let whole = began.elapsed();
    for nth in 1..=6u32 {
        let tag = format!("admin/dead{nth}:v1");
        let mut push = registry
            .copy_in(&archive, &tag)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("skopeo");
        std::thread::sleep(whole * nth / 7);
        let _ = push.kill();
        let _ = push.wait();
        if nth % 2 == 0 {
            registry.controller.kill().expect("kill the controller");
            registry.controller.start_again().expect("start it again");
        }
        done(&mut registry.copy_in(&archive, &tag));
        let layout = format!("dir:{}", dir.path().join(format!("out{nth}")).display());
        done(&mut registry.copy_out(&tag, &layout));
    }

    // Byte by byte: half an upload, the controller's death, the rest.
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // The controller dies in between: no connection is kept for the next request.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client");
    let (url, password) = (registry.controller.url().to_owned(), registry.password.clone());
    let pass = || {
        let request = client
            .get(format!("{url}/v2/token?service=amphi&scope=repository:admin/parts:pull,push"))
            .basic_auth("admin", Some(&password));
        let answer: Value =
            runtime.block_on(async { request.send().await.expect("an answer").json().await.expect("JSON") });
        answer["token"].as_str().expect("a token").to_owned()
    };
    let token = pass();
    let send = |method: &str, path: &str, body: Vec<u8>, range: Option<String>| {
        let mut request = client.request(method.parse().expect("a method"), format!("{url}{path}"));
        if let Some(range) = range {
            request = request.header("content-range", range);
        }
        runtime.block_on(async {
            let answer = request.bearer_auth(&token).body(body).send().await.expect("an answer");
            let header = |name: &str| {
                answer.headers().get(name).map(|v| v.to_str().expect("text").to_owned()).unwrap_or_default()
            };
            (answer.status().as_u16(), header("location"), header("range"))
        })
    };
    let (status, place, _) = send("POST", "/v2/admin/parts/blobs/uploads/", vec![], None);
    assert_eq!(status, 202);
    let half = bytes.len() / 2;
    let first = send("PATCH", &place, bytes[..half].to_vec(), Some(format!("0-{}", half - 1)));
    assert_eq!((first.0, first.2), (202, format!("0-{}", half - 1)));
    registry.controller.kill().expect("kill the controller");
    registry.controller.start_again().expect("start it again");
    let seen = send("GET", &place, vec![], None);
    assert_eq!((seen.0, seen.2), (204, format!("0-{}", half - 1)), "it goes on where it stopped");
    let wrong = send("PATCH", &place, bytes[half..].to_vec(), Some(format!("7-{}", 6 + bytes.len() - half)));
    assert_eq!(wrong.0, 416);
    let rest = send("PUT", &format!("{place}?digest={digest}"), bytes[half..].to_vec(), None);
    assert_eq!(rest.0, 201);
    let bad =
        send("POST", &format!("/v2/admin/parts/blobs/uploads/?digest={digest}"), b"other".to_vec(), None);
    assert_eq!(bad.0, 400, "wrong bytes");
}

#[test]
fn a_mirror_gives_what_its_upstream_had() {
    let docker = Docker::start();
    let mut upstream = Registry::start("registry-upstream", "");
    let dir = tempfile::tempdir().expect("a directory");
    let archive = format!("docker-archive:{}", archive(&docker, dir.path(), "far", 8));
    done(&mut upstream.copy_in(&archive, "admin/far:v1"));
    let password = dir.path().join("password");
    std::fs::write(&password, &upstream.password).expect("a file");
    let settings = format!(
        "[mirror.up]\nurl = \"{}\"\nuser = \"admin\"\npassword_file = {password:?}\nexpiry_seconds = 0\n",
        upstream.controller.url()
    );
    let near = Registry::start("registry-mirror", &settings);
    done(&mut docker.login(&near.address, &near.password));
    let image = near.name("mirror/up/admin/far:v1");
    let id = docker.image_id("local/far:v1");
    done(&mut docker.run(&["rmi", "-f", "local/far:v1"]));
    done(&mut docker.run(&["pull", &image]));
    assert_eq!(docker.image_id(&image), id);
    upstream.controller.kill().expect("kill the upstream");
    done(&mut docker.run(&["rmi", "-f", &image]));
    done(&mut docker.run(&["pull", &image]));
    assert_eq!(docker.image_id(&image), id, "without the upstream");
    let log = near.controller.log().expect("a log");
    assert!(log.contains("the upstream is not asked; what it had is given"), "{log}");
    done(
        &mut near.copy_out("mirror/up/admin/far:v1", &format!("oci:{}:v1", dir.path().join("out").display())),
    );
    assert_eq!(near.repository("mirror/up/admin/far")["mirror"], "up");
    upstream.controller.start_again().expect("start it again");
    done(&mut upstream.copy_in(&archive, "admin/far:v2"));
    done(&mut docker.run(&["pull", &near.name("mirror/up/admin/far:v2")]));
}

/// Files below the store's directory of this name.
fn files(registry: &Registry, below: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, all: &mut Vec<PathBuf>) {
        for item in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match item.file_type() {
                Ok(kind) if kind.is_dir() => walk(&item.path(), all),
                _ => all.push(item.path()),
            }
        }
    }
    let mut all = Vec::new();
    walk(&registry.controller.folder().join("state/images").join(below), &mut all);
    all
}

/// Waits until it is so; else ends the test with what was seen.
fn wait(what: &str, limit: Duration, mut look: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + limit;
    while let Err(seen) = look() {
        assert!(Instant::now() < end, "{what}: {seen}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Pushes and deletes until the time is over; what it has pushed and not deleted. Every image is deleted and pushed again, so
/// that its bytes are asked for while they are about to go.
fn pushes(
    registry: &Registry,
    repository: &str,
    archives: &[PathBuf],
    end: Instant,
    push: impl Fn(usize, &str) -> Command,
) -> (Vec<String>, usize) {
    let (mut there, mut count) = (Vec::new(), 0);
    while Instant::now() < end || count < archives.len() {
        let nth = count % archives.len();
        let image = format!("admin/{repository}:v{nth}");
        if there.contains(&image) {
            done(&mut registry.look("delete", &image));
            there.retain(|other| *other != image);
        }
        done(&mut push(nth, &image));
        there.push(image);
        count += 1;
        // At most two stay, so that what they share is let go of, too.
        if there.len() > 2 {
            done(&mut registry.look("delete", &there.remove(0)));
        }
    }
    (there, count)
}

/// `AMPHI_COLLECTION=60` is the long form: so many seconds of pushes. What is lent is so for longer than a push takes, and
/// shorter than until an image's turn comes again: some of its bytes are gone by then, some are about to go.
#[test]
fn garbage_collection_takes_nothing_that_is_pushed_and_leaves_nothing() {
    let seconds = std::env::var("AMPHI_COLLECTION").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let settings = "[images]\nsweep_seconds = 1\ngrace_seconds = 1\npush_seconds = 5\n";
    let (registry, docker) = (Registry::start("registry-collection", settings), Docker::start());
    done(&mut docker.login(&registry.address, &registry.password));
    let dir = tempfile::tempdir().expect("a directory");
    let archives = |worker: &str| -> Vec<PathBuf> {
        let one = |n: usize| archive_of(dir.path(), &format!("{worker}-{n}"), &[1]).expect("an archive").0;
        (0..12).map(one).collect()
    };
    let workers: Vec<(String, Vec<PathBuf>)> =
        ["a", "b", "docker"].map(|worker| (worker.to_owned(), archives(worker))).into();
    let ids: Vec<String> = workers[2].1.iter().map(|path| docker.load(path)).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut there, mut count, mut seen) = (Vec::new(), 0, BTreeSet::new());
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (worker, archives) in &workers {
            let (registry, docker, ids) = (&registry, &docker, &ids);
            running.push(scope.spawn(move || {
                pushes(registry, worker, archives, end, |nth, image| {
                    if worker != "docker" {
                        return registry
                            .copy_in(&format!("docker-archive:{}", archives[nth].display()), image);
                    }
                    done(&mut docker.run(&["tag", &ids[nth], &registry.name(image)]));
                    docker.run(&["push", &registry.name(image)])
                })
            }));
        }
        while running.iter().any(|worker| !worker.is_finished()) {
            seen.extend(files(&registry, "blobs"));
            std::thread::sleep(Duration::from_millis(200));
        }
        for worker in running {
            let (left, pushed) = worker.join().expect("no push failed");
            there.extend(left);
            count += pushed;
        }
    });
    // Every one that was pushed and not deleted is there, whole; skopeo checks each digest.
    for (nth, image) in there.iter().enumerate() {
        done(
            &mut registry.copy_out(image, &format!("dir:{}", dir.path().join(format!("out{nth}")).display())),
        );
    }
    let gone = seen.iter().filter(|file| !file.exists()).count();
    println!(
        "{count} pushes in {seconds} s, {} images are left and whole; {gone} blobs were collected",
        there.len()
    );
    there.iter().for_each(|image| drop(done(&mut registry.look("delete", image))));
    wait("nothing is left in the store", Duration::from_secs(60), || {
        let left: Vec<_> = ["blobs", "uploads"].iter().flat_map(|below| files(&registry, below)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert!(gone > 0, "nothing was collected while images were pushed");
}

/// A small file system in a test's directory, both of which go with the test.
struct SmallDisk {
    folder: PathBuf,
    at: PathBuf,
}

impl SmallDisk {
    fn mount(folder: &Path, below: &str, mib: usize) -> Self {
        let (folder, at) = (folder.to_owned(), folder.join(below));
        std::fs::create_dir_all(&at).expect("a directory");
        done(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "small"]).arg(&at));
        Self { folder, at }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_store_whose_disk_is_full_says_so_and_goes_on() {
    let folder = programs().with_file_name(format!("registry-full-{}", std::process::id()));
    let _disk = SmallDisk::mount(&folder, "state/images", 24);
    let settings = "[images]\nsweep_seconds = 1\ngrace_seconds = 1\npush_seconds = 5\n";
    let registry = Registry::start("registry-full", settings);
    let dir = tempfile::tempdir().expect("a directory");
    let archive = |name: &str, mib: usize| {
        let (path, _) = archive_of(dir.path(), name, &[mib]).expect("an archive");
        format!("docker-archive:{}", path.display())
    };
    let (one, two, three) = (archive("one", 9), archive("two", 9), archive("three", 9));
    done(&mut registry.copy_in(&one, "admin/one:v1"));
    done(&mut registry.copy_in(&two, "admin/two:v1"));
    let before = files(&registry, "blobs").len();
    let full = refused(&mut registry.copy_in(&three, "admin/three:v1"));
    assert!(full.contains("507") || full.contains("no room") || full.contains("no space"), "{full}");
    let told =
        full.lines().find(|line| line.contains("507") || line.contains("room") || line.contains("space"));
    println!("the registry's client was told: {}", told.unwrap_or_default());
    // By the native face, too: with the reason as its code.
    let bytes = amphi_integration::archive::noise("disk", 12 << 20);
    let image = registry.order("POST", "/v1/images", json!({"name": "disk", "format": "raw"}));
    let path = format!("/v1/images/{}/blobs/disk", image["id"].as_str().expect("an id"));
    let (status, body) = registry.put(&path, bytes);
    assert_eq!((status, body["error"]["code"].as_str()), (507, Some("storage_full")), "{body}");
    wait("nothing half made is left", Duration::from_secs(30), || {
        let (blobs, uploads) = (files(&registry, "blobs"), files(&registry, "uploads"));
        let small = blobs.len() <= before + 2 && uploads.is_empty();
        if small { Ok(()) } else { Err(format!("{blobs:?} {uploads:?}")) }
    });
    // It goes on: what is there is given, what is small is taken.
    done(&mut registry.copy_out("admin/two:v1", &format!("dir:{}", dir.path().join("two").display())));
    done(&mut registry.copy_in(&archive("small", 1), "admin/small:v1"));
    // Room is made.
    done(&mut registry.look("delete", "admin/one:v1"));
    wait("there is room again", Duration::from_secs(60), || {
        let pushed = output(&mut registry.copy_in(&three, "admin/three:v1"));
        let said = String::from_utf8_lossy(&pushed.stderr).into_owned();
        if pushed.status.success() { Ok(()) } else { Err(said) }
    });
    done(&mut registry.copy_out("admin/three:v1", &format!("dir:{}", dir.path().join("three").display())));
}
