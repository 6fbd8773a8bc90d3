//! Two clouds, each a controller's real process with its own store: images go from one to the other by the program that people
//! run, are fetched, and go by themselves. What is on the line is counted; senders and receivers are killed in the middle; a
//! bit flips on the way; the other side has no room.

use amphi_integration::alone::Controller;
use amphi_integration::archive::{archive, noise};
use amphi_integration::counting::{Counted, counting, door};
use amphi_integration::dockerd::done;
use amphi_integration::program::{Amphi, text};
use amphi_integration::wait::{Seen, seen, until};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(90);
/// What telling of an image costs beside its bytes, at most.
const WORDS: u64 = 128 << 10;

fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_amphi-lab")).parent().expect("the programs' directory")
}

struct Cloud {
    controller: Controller,
    cli: Amphi,
}

impl Cloud {
    /// `name` is what it calls itself.
    fn start(purpose: &str, name: &str) -> Self {
        Self::start_in(programs().with_file_name(format!("{purpose}-{name}-{}", std::process::id())), name)
    }

    fn start_in(folder: PathBuf, name: &str) -> Self {
        // reqwest wants one; it is there already when another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let controller =
            Controller::start_in(programs(), folder, &format!("region = \"{name}\"")).expect("a controller");
        let token = controller.read("admin-token").expect("a token");
        let variables =
            vec![("AMPHI_URL".to_owned(), controller.url().to_owned()), ("AMPHI_TOKEN".to_owned(), token)];
        Self { controller, cli: Amphi { program: programs().join("amphi"), variables } }
    }

    fn address(&self) -> SocketAddr {
        self.controller.url().trim_start_matches("http://").parse().expect("an address")
    }

    fn token_file(&self) -> String {
        self.controller.folder().join("state/admin-token").display().to_string()
    }

    fn run(&self, words: &[&str]) -> String {
        text(&self.cli.well(words).expect("amphi"))
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[words, &["--json"]].concat())).expect("JSON")
    }

    /// The other cloud is a region of this one, at that address.
    fn knows(&self, name: &str, other: &Cloud, address: SocketAddr, more: &[&str]) {
        let (url, file) = (format!("http://{address}"), other.token_file());
        let words = ["region", "create", name, "--url", &url, "--token-file", &file];
        self.run(&[&words, more].concat());
    }

    fn make(&self, name: &str, words: &[&str]) -> Value {
        self.json(&[&["image", "create", name], words].concat())
    }

    /// The replication of an image to a region, as it is now.
    fn way(&self, image: &str, region: &str) -> Value {
        let all = self.json(&["replication", "list", "--region", region]);
        let all = all["replications"].as_array().expect("a list");
        all.iter().find(|one| one["name"] == image).cloned().unwrap_or_default()
    }

    fn until_state(&self, image: &str, region: &str, state: &str) -> Value {
        until(&format!("{image} is {state}"), PATIENCE, || {
            let now = self.way(image, region);
            Ok(if now["state"] == state { Seen::Enough(now) } else { Seen::Not(now.to_string()) })
        })
        .expect("in time")
    }

    fn image(&self, id: &Value) -> Option<Value> {
        let id = id.as_str().expect("an id");
        let output = self.cli.run(&["image", "show", id, "--json"]).expect("amphi");
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// A blob's bytes as a client of the project gets them.
    fn blob(&self, runtime: &Runtime, sha256: &Value) -> Vec<u8> {
        let url = format!("{}/v1/blobs/{}", self.controller.url(), sha256.as_str().expect("a digest"));
        let token = &self.cli.variables[1].1;
        runtime.block_on(async {
            let answer = reqwest::Client::new().get(url).bearer_auth(token).send().await.expect("an answer");
            assert!(answer.status().is_success(), "{}", answer.status());
            answer.bytes().await.expect("bytes").to_vec()
        })
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn counted(runtime: &Runtime, to: &Cloud) -> (SocketAddr, Arc<Counted>) {
    runtime.block_on(counting(to.address())).expect("a door")
}

/// A door that flips one bit of what goes in, each time that it is told to.
fn flipping(runtime: &Runtime, to: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let armed = Arc::new(AtomicBool::new(false));
    let flip = armed.clone();
    let up = move |bytes: &mut [u8]| {
        // So many at once are an image's, not words.
        if bytes.len() > 32 << 10 && flip.swap(false, Ordering::SeqCst) {
            bytes[bytes.len() / 2] ^= 0x10;
        }
    };
    (runtime.block_on(door(to, up, |_| ())).expect("a door"), armed)
}

/// An application credential of a user who is a replicator in the project `admin` and nothing else: its id and its secret.
async fn replicator(cloud: &Cloud) -> (String, String) {
    let (http, base) = (reqwest::Client::new(), format!("{}/identity/v3", cloud.controller.url()));
    let login = async |user: &str, password: &str| {
        let domain = json!({"id": "default"});
        let user = json!({"name": user, "domain": domain, "password": password});
        let auth = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "admin", "domain": domain}}}});
        let answer = http.post(format!("{base}/auth/tokens")).json(&auth).send().await.expect("an answer");
        let token = answer.headers().get("x-subject-token").cloned().expect("a token");
        (token, answer.json::<Value>().await.expect("JSON"))
    };
    let (admin, about) = login("admin", &cloud.controller.read("admin-password").expect("a password")).await;
    let order = async |method: reqwest::Method, path: &str, token: &HeaderValue, body: Value| {
        let request = http.request(method, format!("{base}{path}")).header("x-auth-token", token).json(&body);
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str::<Value>(&text).unwrap_or_default()
    };
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    use reqwest::Method;
    let role = order(Method::POST, "/roles", &admin, json!({"role": {"name": "replicator"}})).await;
    let role = text(&role["role"]["id"]);
    let user = json!({"user": {"name": "north", "password": "a-password-of-norths", "domain_id": "default"}});
    let user = text(&order(Method::POST, "/users", &admin, user).await["user"]["id"]);
    let project = text(&about["token"]["project"]["id"]);
    let grant = format!("/projects/{project}/users/{user}/roles/{role}");
    order(Method::PUT, &grant, &admin, json!({})).await;
    let (north, _) = login("north", "a-password-of-norths").await;
    // It is good for nothing else.
    let listed = http.get(format!("{}/v1/images", cloud.controller.url())).header("x-auth-token", &north);
    assert_eq!(listed.send().await.expect("an answer").status(), 403);
    let wish = json!({"application_credential": {"name": "north"}});
    let made = order(Method::POST, &format!("/users/{user}/application_credentials"), &north, wish).await;
    (text(&made["application_credential"]["id"]), text(&made["application_credential"]["secret"]))
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("a file");
    path.display().to_string()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[test]
fn images_go_to_another_region_and_each_layer_goes_once() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().expect("a folder"));
    let (north, south) = (Cloud::start("replication", "north"), Cloud::start("replication", "south"));
    let (front, count) = counted(&runtime, &south);
    north.knows("south", &south, front, &[]);
    let shown = north.run(&["region", "show", "south", "--json"]);
    let secret = south.controller.read("admin-token").expect("a token");
    assert!(!shown.contains(&secret) && shown.contains("south"), "{shown}");

    // A container image of three layers, and a second one with a layer more.
    let (one, _) = archive(folder.path(), "seed", &[5, 4]).expect("an archive");
    let bytes = std::fs::read(&one).expect("the archive");
    let made = north.make("one", &["--description", "first", one.to_str().expect("a path")]);
    let (two, _) = archive(folder.path(), "seed", &[5, 4, 3]).expect("an archive");
    let next = north.make("two", &[two.to_str().expect("a path")]);
    let before = count.up();
    let went = north.json(&["image", "replicate", "one", "--to", "south"]);
    let first = count.up() - before;
    assert_eq!(
        (went["state"].as_str(), &went["bytes_arrived"]),
        (Some("done"), &went["bytes_total"]),
        "{went}"
    );
    let size = bytes.len() as u64;
    assert!((size - WORDS..size + WORDS).contains(&first), "{size} bytes cost {first}");
    let there = south.image(&made["id"]).expect("the replica");
    for same in ["id", "name", "format", "blobs", "layers", "description"] {
        assert_eq!(there[same], made[same], "{same}");
    }
    assert_eq!((there["state"].as_str(), there["origin"].as_str()), (Some("active"), Some("north")));
    assert_eq!(made.get("origin"), None, "the origin is no replica");
    let same = south.blob(&runtime, &there["blobs"]["archive"]["sha256"]) == bytes;
    assert!(same, "the archive is another one there");

    let before = count.up();
    let went = north.json(&["image", "replicate", "two", "--to", "south"]);
    let (second, layer) = (count.up() - before, 3 << 20);
    assert!((layer..layer + WORDS).contains(&second), "one layer of {layer} bytes cost {second}");
    println!(
        "an image of {size} bytes cost {first} on the line; one with a new layer of {layer} bytes {second}"
    );
    assert!(went["bytes_sent"].as_u64().expect("bytes") < went["bytes_total"].as_u64().expect("bytes") / 2);
    assert_eq!(south.image(&next["id"]).expect("the replica")["layers"], next["layers"]);
    let before = count.up();
    north.run(&["image", "replicate", "two", "--to", "south"]);
    assert!(count.up() - before < WORDS / 4, "told again, it costs {}", count.up() - before);

    // Disks, and what has two parts.
    let disk = file(folder.path(), "disk", &noise("disk", 6 << 20));
    let kernel = (file(folder.path(), "k", b"a kernel"), file(folder.path(), "i", b"an initramfs"));
    let disk = north.make("disk", &["--disk", &disk]);
    let pair = north.make("pair", &["--kernel", &kernel.0, "--initramfs", &kernel.1, "--cmdline", "quiet"]);
    for image in [&disk, &pair] {
        north.run(&["image", "replicate", image["id"].as_str().expect("an id"), "--to", "south"]);
        let there = south.image(&image["id"]).expect("the replica");
        assert_eq!((&there["blobs"], &there["cmdline"]), (&image["blobs"], &image["cmdline"]));
    }
    let table = north.run(&["replication", "list"]);
    assert!(table.lines().count() == 5 && table.contains("to south") && table.contains("done"), "{table}");

    // The other way: what is from here is not taken back, what is from there is fetched.
    south.knows("north", &north, north.address(), &[]);
    let back = south.json(&["image", "replicate", "one", "--to", "north"]);
    assert_eq!((back["state"].as_str(), back["bytes_sent"].as_u64()), (Some("done"), Some(0)), "{back}");
    assert_eq!(north.image(&made["id"]), Some(made.clone()), "the origin is as it was");
    let other = south.make("other", &["--disk", &file(folder.path(), "other", &noise("other", 2 << 20))]);
    let fetched = north.json(&["image", "fetch", "other", "--from", "south"]);
    assert_eq!((fetched["state"].as_str(), &fetched["image"]), (Some("done"), &other["id"]), "{fetched}");
    let here = north.image(&other["id"]).expect("the image");
    assert_eq!((&here["blobs"], here["origin"].as_str()), (&other["blobs"], Some("south")));

    // What cannot be is said with its field.
    let refused =
        |words: &[&str], code: i32, says: &str| north.cli.refused(words, code, says).expect("a refusal");
    refused(&["image", "replicate", "one", "--to", "west"], 4, "field: region");
    refused(&["image", "fetch", "nothing", "--from", "south"], 4, "field: image");
    refused(&["image", "fetch", "one", "--from", "west"], 4, "no region 'west'");
    refused(&["region", "delete", "west"], 3, "no region 'west'");
    let small = file(folder.path(), "small", &noise("small", 4096));
    let taken = south.make("taken", &["--disk", &small]);
    north.make("taken", &["--disk", &file(folder.path(), "small2", &noise("small2", 4096))]);
    refused(&["image", "replicate", "taken", "--to", "south"], 1, "the name 'taken' is taken by image");
    assert_eq!(south.json(&["image", "list"])["images"].as_array().expect("images").len(), 6, "{taken}");
    let bad = file(folder.path(), "bad", b"not-the-token-of-the-south");
    north.run(&["region", "set", "south", "--token-file", &bad]);
    let next = "region 'south' refuses the token";
    refused(&["image", "replicate", "pair", "--to", "south"], 1, next);
    refused(&["image", "replicate", "pair", "--to", "south"], 1, "amphi region set south --token-file FILE");
    north.run(&["region", "set", "south", "--token-file", &south.token_file()]);
    north.run(&["image", "replicate", "pair", "--to", "south"]);
    // A service that may do this and nothing else.
    let (credential, password) = runtime.block_on(replicator(&south));
    let held = file(folder.path(), "secret", password.as_bytes());
    north.run(&["region", "set", "south", "--credential", &credential, "--secret-file", &held]);
    let before = north.way("pair", "south")["updated_at"].clone();
    let went = north.json(&["image", "replicate", "pair", "--to", "south"]);
    assert!(went["state"] == "done" && went["updated_at"] != before, "{went}");
    north.run(&["image", "fetch", "taken", "--from", "south", "--no-wait"]);
    north.run(&["replication", "cancel", "taken"]);
    let wrong = file(folder.path(), "wrong", b"wrong-secret");
    north.run(&["region", "set", "south", "--credential", &credential, "--secret-file", &wrong]);
    refused(&["image", "replicate", "pair", "--to", "south"], 1, next);
    for cloud in [&north, &south] {
        let log = cloud.controller.log().expect("a log");
        let secrets = [secret.as_str(), &password, "not-the-token", "wrong-secret"];
        assert!(!secrets.iter().any(|secret| log.contains(secret)), "{log}");
    }
    north.run(&["region", "delete", "south"]);
    assert_eq!(north.run(&["replication", "list"]).lines().count(), 1, "they went with their region");
    assert!(south.image(&disk["id"]).is_some(), "what has gone there stays there");
}

#[test]
fn a_sender_or_receiver_that_is_killed_costs_no_byte_twice() {
    const SIZE: u64 = 24 << 20;
    let (runtime, folder) = (runtime(), tempfile::tempdir().expect("a folder"));
    let mut north = Cloud::start("replication-killed", "north");
    let mut south = Cloud::start("replication-killed", "south");
    let (front, count) = counted(&runtime, &south);
    north.knows("south", &south, front, &["--rate", "4096"]);
    let disk = file(folder.path(), "disk", &noise("killed", SIZE as usize));
    let made = north.make("disk", &["--disk", &disk]);
    let before = count.up();
    north.run(&["image", "replicate", "disk", "--to", "south", "--no-wait"]);
    let passed = |part: u64| {
        until(&format!("{part} bytes have passed"), PATIENCE, || {
            let now = count.up() - before;
            Ok(seen(now > part, || format!("{now} have")))
        })
        .expect("in time");
    };
    passed(SIZE / 4);
    north.controller.kill().expect("killed");
    let at = count.up() - before;
    assert!(at < SIZE / 2, "{at} bytes: it was too quick to be killed in the middle");
    north.controller.start_again().expect("a controller");
    passed(SIZE / 2);
    south.controller.kill().expect("killed");
    assert!(south.image(&made["id"]).is_none(), "nobody is there");
    south.controller.start_again().expect("a controller");
    north.until_state("disk", "south", "done");
    let cost = count.up() - before;
    println!("{SIZE} bytes, the sender killed at {at} and the receiver after half: {cost} bytes on the line");
    // What was in the sockets and buffers of whoever was killed.
    assert!((SIZE..SIZE + (3 << 20)).contains(&cost), "{SIZE} bytes cost {cost}");
    let there = south.image(&made["id"]).expect("the replica");
    assert_eq!(there["blobs"], made["blobs"]);
    assert_eq!(
        sha256(&south.blob(&runtime, &there["blobs"]["disk"]["sha256"])),
        made["blobs"]["disk"]["sha256"]
    );

    // The same when it is fetched: the one that asks is killed, and goes on.
    south.knows("north", &north, north.address(), &["--rate", "4096"]);
    let made =
        north.make("again", &["--disk", &file(folder.path(), "again", &noise("again", SIZE as usize))]);
    let (front, count) = counted(&runtime, &north);
    south.run(&["region", "set", "north", "--url", &format!("http://{front}")]);
    let before = count.down();
    south.run(&["image", "fetch", "again", "--from", "north", "--no-wait"]);
    until("a quarter has come", PATIENCE, || {
        let now = count.down() - before;
        Ok(seen(now > SIZE / 4, || format!("{now} bytes have")))
    })
    .expect("in time");
    south.controller.kill().expect("killed");
    south.controller.start_again().expect("a controller");
    south.until_state("again", "north", "done");
    let cost = count.down() - before;
    println!("{SIZE} bytes fetched, the one that asked was killed at a quarter: {cost} bytes on the line");
    // What waited in sockets for a limited line is more than what waits for nothing.
    assert!((SIZE..SIZE + (8 << 20)).contains(&cost), "{SIZE} bytes cost {cost}");
    assert_eq!(south.image(&made["id"]).expect("the image")["blobs"], made["blobs"]);
}

#[test]
fn images_go_by_themselves_with_their_tags_and_leave_with_their_origin() {
    let folder = tempfile::tempdir().expect("a folder");
    let (north, south) =
        (Cloud::start("replication-event", "north"), Cloud::start("replication-event", "south"));
    north.knows("south", &south, south.address(), &[]);
    let policy = ["replication", "policy", "create"];
    north.run(&[&policy[..], &["web", "--to", "south", "--name", "web*", "--tags", "--deletes"]].concat());
    north
        .cli
        .refused(&[&policy[..], &["x", "--to", "west"]].concat(), 4, "field: region")
        .expect("a refusal");
    north
        .cli
        .refused(&["region", "delete", "south"], 4, "policy 'web' sends images there")
        .expect("a refusal");

    let (archive, id) = archive(folder.path(), "pushed", &[2, 1]).expect("an archive");
    let push = |tag: &str| {
        let password = north.controller.read("admin-password").expect("a password");
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
        skopeo
            .arg(format!("--dest-creds=admin:{password}"))
            .arg(format!("docker-archive:{}", archive.display()));
        done(skopeo.arg(format!("docker://{}/admin/{tag}", north.address())));
    };
    push("web:1");
    north.make("quiet", &["--disk", &file(folder.path(), "quiet", &noise("quiet", 4096))]);
    let tags = |cloud: &Cloud| -> Vec<(String, String, String)> {
        let output = cloud.cli.run(&["repository", "tags", "web", "--json"]).expect("amphi");
        let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |tag: &Value, key: &str| tag[key].as_str().unwrap_or_default().to_owned();
        let all = all["tags"].as_array().cloned().unwrap_or_default();
        let mut all: Vec<_> =
            all.iter().map(|t| (text(t, "name"), text(t, "digest"), text(t, "image"))).collect();
        all.sort();
        all
    };
    let as_here = |count: usize| {
        until(&format!("{count} tags are there as here"), PATIENCE, || {
            let (here, there) = (tags(&north), tags(&south));
            let ways = || north.run(&["replication", "list"]);
            Ok(seen(here.len() == count && here == there, || format!("{here:?} {there:?} {}", ways())))
        })
        .expect("in time");
    };
    as_here(1);
    let pulled = folder.path().join("pulled");
    let password = south.controller.read("admin-password").expect("a password");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--src-tls-verify=false"]);
    skopeo
        .arg(format!("--src-creds=admin:{password}"))
        .arg(format!("docker://{}/admin/web:1", south.address()));
    done(skopeo.arg(format!("oci:{}:1", pulled.display())));
    let image = tags(&south).remove(0).2;
    let there = south.json(&["image", "show", &image]);
    assert_eq!(format!("sha256:{}", there["blobs"]["config"]["sha256"].as_str().expect("a config")), id);
    assert_eq!(there["origin"], "north");

    // More is said of it, and it gets another tag: both go.
    north.run(&["image", "set", &image, "--description", "said later", "--visibility", "community"]);
    until("the description is there", PATIENCE, || {
        let there = south.json(&["image", "show", &image]);
        let same = there["description"] == "said later" && there["visibility"] == "community";
        Ok(seen(same, || there.to_string()))
    })
    .expect("in time");
    push("web:2");
    as_here(2);
    let policies = north.json(&["replication", "policy", "list"]);
    assert_eq!(policies["policies"][0]["images"], 1, "{policies}");

    // The receiver is away when an image comes, and gets it when it is back.
    let mut south = south;
    south.controller.kill().expect("killed");
    let late = north.make("web-late", &["--disk", &file(folder.path(), "late", &noise("late", 1 << 20))]);
    let waits = north.until_state("web-late", "south", "waiting");
    let why = until("it is said why it waits", PATIENCE, || {
        let now = north.way("web-late", "south");
        Ok(match now["reason"].as_str() {
            Some(reason) => Seen::Enough(reason.to_owned()),
            None => Seen::Not(now.to_string()),
        })
    })
    .expect("in time");
    assert!(why.contains("region 'south'") && why.contains("does not answer"), "{why}: {waits}");
    south.controller.start_again().expect("a controller");
    north.until_state("web-late", "south", "done");
    assert_eq!(south.image(&late["id"]).expect("the replica")["blobs"], late["blobs"]);

    // What is deleted here leaves there by the policy's word, and what no policy means never went.
    north.run(&["image", "delete", "web-late"]);
    until("the replica is gone", PATIENCE, || {
        let there = south.image(&late["id"]);
        Ok(seen(there.is_none(), || format!("{there:?} {}", north.run(&["replication", "list"]))))
    })
    .expect("in time");
    let names = south.json(&["image", "list"])["images"].clone();
    let names: Vec<_> = names.as_array().expect("images").iter().map(|i| i["name"].clone()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    north.run(&["replication", "policy", "delete", "web"]);
    north.run(&["image", "set", &image, "--description", "said last"]);
    north.run(&["region", "delete", "south"]);
    assert_eq!(south.json(&["image", "show", &image])["description"], "said later");
}

#[test]
fn a_flipped_bit_a_quota_and_a_full_disk_are_told_and_got_over() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().expect("a folder"));
    let north = Cloud::start("replication-trouble", "north");
    // The other store has a disk of its own, with little room.
    let place = programs().with_file_name(format!("replication-trouble-south-{}", std::process::id()));
    let small = Small::below(&place, "state/images", 24);
    let south = Cloud::start_in(place, "south");
    let (front, armed) = flipping(&runtime, south.address());
    north.knows("south", &south, front, &[]);

    let made = north.make("disk", &["--disk", &file(folder.path(), "disk", &noise("flip", 4 << 20))]);
    armed.store(true, Ordering::SeqCst);
    let digest = made["blobs"]["disk"]["sha256"].as_str().expect("a digest");
    let refused = |words: &[&str], says: &str| north.cli.refused(words, 1, says).expect("a refusal");
    refused(&["image", "replicate", "disk", "--to", "south"], &format!("not {digest}; nothing was kept"));
    assert!(!armed.load(Ordering::SeqCst), "the bit was flipped");
    // Nobody has to do anything about it.
    let went = north.until_state("disk", "south", "done");
    assert_eq!(went["bytes_sent"].as_u64(), Some(8 << 20), "{went}");
    assert_eq!(sha256(&south.blob(&runtime, &made["blobs"]["disk"]["sha256"])), digest);

    let project = made["project"].as_str().expect("a project");
    south.run(&["image", "usage", "--project", project, "--limit", "5"]);
    let next = north.make("next", &["--disk", &file(folder.path(), "next", &noise("next", 4 << 20))]);
    refused(&["image", "replicate", "next", "--to", "south"], "image_size_total");
    assert!(south.image(&next["id"]).is_none(), "nothing is there of it");
    south.run(&["image", "usage", "--project", project, "--limit", "-1"]);
    north.run(&["image", "replicate", "next", "--to", "south"]);

    // 8 MiB are there, 24 are all: of 20 nothing stays. Then there is room, and it goes by itself.
    let large = north.make("large", &["--disk", &file(folder.path(), "large", &noise("large", 20 << 20))]);
    refused(&["image", "replicate", "large", "--to", "south"], "no space is left");
    assert_eq!(north.way("large", "south")["state"], "failed");
    assert!(south.image(&large["id"]).is_none(), "nothing is there of it");
    small.grow(64);
    let went = north.until_state("large", "south", "done");
    assert!(went["reason"].is_null(), "{went}");
    assert_eq!(south.image(&large["id"]).expect("the replica")["blobs"], large["blobs"]);
}

/// A disk of so many MiB below a cloud's directory, both of which go with the test.
struct Small {
    folder: PathBuf,
    at: PathBuf,
}

impl Small {
    fn below(folder: &Path, place: &str, mib: u32) -> Self {
        let (folder, at) = (folder.to_owned(), folder.join(place));
        std::fs::create_dir_all(&at).expect("a directory");
        done(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "small"]).arg(&at));
        Self { folder, at }
    }

    fn grow(&self, mib: u32) {
        done(Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(&self.at));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Its controller may have files open still: detached, it goes when they are closed.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
