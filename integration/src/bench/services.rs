//! `amphi-lab bench-services`: the controller alone, as its own process with its records on disk, and hosts in memory.
//! Measures what OpenStack's clients see; judges nothing: figure, goal and OpenStack's own figure stand side by side.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amphi_api::client::Client;
use amphi_api::instance::InstanceCreate;
use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{load, median};
use crate::alone::{self, Controller};

/// Requests in flight at once.
const FLIGHT: usize = 16;
/// How long the cloud rests before a single create.
const REST: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(120);
/// Logins of each client of the flood.
const LOGINS: usize = 3;

/// Issue 3's reference: OpenStack's own services with their fake driver, on this kind of machine.
mod reference {
    pub const POST_RESTED_MS: f64 = 48.0;
    pub const POST_BACK_TO_BACK_MS: f64 = 143.0;
    pub const POST_IN_FLIGHT_MS: f64 = 1800.0;
    pub const POSTS_PER_SECOND: f64 = 9.0;
    /// The better end of 1.6 to 3.2.
    pub const FINISHED_PER_SECOND: f64 = 3.2;
    pub const LIST_MS: f64 = 1000.0;
    pub const SHOW_MS: f64 = 18.0;
    pub const LOGIN_MS: f64 = 174.0;
    pub const CHECK_MS: f64 = 7.0;
    pub const PLACE_MS: f64 = 59.0;
}

struct Row {
    name: &'static str,
    value: f64,
    goal: &'static str,
    /// OpenStack's figure.
    theirs: Option<f64>,
}

/// Starts all, measures, prints, ends all.
pub fn run(program: &Path, hosts: usize, servers: usize) -> Result<()> {
    let folder = program.parent().context("the program has no directory")?;
    let before = load();
    let mut controller = Controller::start(folder, "bench-services")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")?;
    let measured = runtime.block_on(measure(&controller, hosts, servers));
    let rows = measured.with_context(|| controller.log().unwrap_or_default())?;
    ensure!(controller.runs(), "the controller has ended: {}", controller.log()?);
    println!("\n{:<34} {:>10}   {:<14} {:>10} {:>8}", "FIGURE", "VALUE", "GOAL", "OPENSTACK", "RATIO");
    for row in &rows {
        let theirs = row.theirs.map_or(String::new(), |theirs| theirs.to_string());
        let ratio = row.theirs.map_or(String::new(), |theirs| format!("{:.3}", row.value / theirs));
        println!("{:<34} {:>10.3}   {:<14} {theirs:>10} {ratio:>8}", row.name, row.value, row.goal);
    }
    println!(
        "\n{hosts} hosts in memory, {servers} servers; load average before: {before}; after: {}\n",
        load()
    );
    rows.iter().for_each(|row| println!("{}: {:.3}", row.name, row.value));
    Ok(())
}

async fn measure(controller: &Controller, hosts: usize, servers: usize) -> Result<Vec<Row>> {
    let joined = alone::join(controller, hosts).await?;
    let cloud = Arc::new(Cloud::enter(controller).await?);
    let mut rows = Vec::new();
    let mut row = |name, value, goal, theirs| rows.push(Row { name, value, goal, theirs });

    let rested = cloud.posts("rested", 50, REST).await?;
    row("post_servers_rested_ms_p50", median(&rested), "< 5", Some(reference::POST_RESTED_MS));
    let single = cloud.posts("single", 100, Duration::ZERO).await?;
    row("post_servers_back_to_back_ms_p50", median(&single), "< 5", Some(reference::POST_BACK_TO_BACK_MS));

    let began = Instant::now();
    let times = cloud.many(servers).await?;
    let rate = servers as f64 / began.elapsed().as_secs_f64();
    row("post_servers_per_second", rate, "> 600", Some(reference::POSTS_PER_SECOND));
    row("post_servers_16_ms_p50", median(&times), "", Some(reference::POST_IN_FLIGHT_MS));
    cloud.settled(servers + rested.len() + single.len()).await?;
    let rate = servers as f64 / began.elapsed().as_secs_f64();
    row("finished_creates_per_second", rate, "", Some(reference::FINISHED_PER_SECOND));

    let list = cloud.times(30, "/compute/v2.1/servers/detail?limit=1000", StatusCode::OK).await?;
    row("servers_1000_detail_ms_p50", median(&list), "< 20", Some(reference::LIST_MS));
    let show = format!("/compute/v2.1/servers/{}", cloud.post("shown").await?);
    let shows = cloud.times(500, &show, StatusCode::OK).await?;
    row("show_server_ms_p50", median(&shows), "< 1", Some(reference::SHOW_MS));

    let check = cloud.check(1000).await?;
    row("token_check_ms", check, "< 0.2", None);
    let request = cloud.times(500, "/identity/v3/auth/tokens", StatusCode::OK).await?;
    row("token_validate_request_ms_p50", median(&request), "", Some(reference::CHECK_MS));
    let candidates = "/placement/allocation_candidates?resources=VCPU:1,MEMORY_MB:64,DISK_GB:1";
    let candidates = cloud.times(100, candidates, StatusCode::OK).await?;
    row("placement_candidates_ms_p50", median(&candidates), "", None);
    let placed = cloud.placed(controller, 50).await?;
    row("place_and_claim_ms_p50", median(&placed), "", Some(reference::PLACE_MS));

    let mut logins = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        cloud.login().await?;
        logins.push(milliseconds(began));
    }
    row("password_login_ms_p50", median(&logins), "argon2 alone", Some(reference::LOGIN_MS));
    let (during, rate) = cloud.flood(&show).await?;
    row("logins_16_per_second", rate, "", None);
    row("show_during_16_logins_ms_p50", median(&during), "not starved", None);
    row("show_during_16_logins_ms_p99", percentile(&during, 99), "not starved", None);
    row("controller_mib_in_the_end", controller.resident_mib()?, "", None);
    let gone = joined.iter().filter(|host| !host.connected()).count();
    ensure!(gone == 0, "{gone} of {hosts} hosts lost their link while measured");
    Ok(rows)
}

/// The cloud as a client in a project sees it.
struct Cloud {
    http: reqwest::Client,
    url: String,
    password: String,
    token: String,
    server: Value,
}

impl Cloud {
    /// Logs in; makes an image and, for the servers' ports, a network.
    async fn enter(controller: &Controller) -> Result<Self> {
        let mut cloud = Self {
            http: reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?,
            url: controller.url().to_owned(),
            password: controller.read("admin-password")?,
            token: String::new(),
            server: Value::Null,
        };
        cloud.token = cloud.login().await?;
        let image = json!({ "name": "bench", "disk_format": "raw", "container_format": "bare" });
        let image = cloud.json(Method::POST, "/image/v2/images", image).await?;
        let image = image["id"].as_str().context("the image's id")?;
        let upload = cloud.request(Method::PUT, &format!("/image/v2/images/{image}/file"));
        let upload =
            upload.header("Content-Type", "application/octet-stream").body(vec![0; 4096]).send().await?;
        ensure!(upload.status().is_success(), "upload: {}: {}", upload.status(), upload.text().await?);
        let network = json!({ "network": { "name": "bench" } });
        let network = cloud.json(Method::POST, "/network/v2.0/networks", network).await?;
        let network = &network["network"]["id"];
        let subnet = json!({ "subnet": { "network_id": network, "ip_version": 4, "cidr": "10.0.0.0/16" } });
        cloud.json(Method::POST, "/network/v2.0/subnets", subnet).await?;
        let flavor = json!({ "flavor": { "name": "bench", "ram": 64, "vcpus": 1, "disk": 1 } });
        let flavor = cloud.json(Method::POST, "/compute/v2.1/flavors", flavor).await?;
        // A new project may have ten instances.
        let quota = json!({ "quota_set": { "instances": -1, "cores": -1, "ram": -1 } });
        let project = cloud.json(Method::GET, "/identity/v3/auth/projects", Value::Null).await?;
        let project = project["projects"][0]["id"].as_str().context("no project")?;
        cloud.json(Method::PUT, &format!("/compute/v2.1/os-quota-sets/{project}"), quota).await?;
        let quota = json!({ "quota": { "port": -1 } });
        cloud.json(Method::PUT, &format!("/network/v2.0/quotas/{project}"), quota).await?;
        cloud.server = json!({
            "imageRef": image, "flavorRef": flavor["flavor"]["id"], "networks": [{ "uuid": network }],
        });
        Ok(cloud)
    }

    /// The same without a token.
    fn bare(&self) -> Self {
        Self {
            http: self.http.clone(),
            url: self.url.clone(),
            password: String::new(),
            token: String::new(),
            server: Value::Null,
        }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        if self.token.is_empty() {
            return request;
        }
        // The subject is read by the request that asks who a token's user is, the version by placement, and by no other.
        request
            .header("X-Auth-Token", &self.token)
            .header("X-Subject-Token", &self.token)
            .header("OpenStack-API-Version", "placement 1.36")
    }

    async fn json(&self, method: Method, path: &str, body: Value) -> Result<Value> {
        let request = self.request(method, path);
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{path}: {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
    }

    /// By password; the token.
    async fn login(&self) -> Result<String> {
        let domain = json!({ "id": "default" });
        let user = json!({ "name": "admin", "domain": domain, "password": self.password });
        let identity = json!({ "methods": ["password"], "password": { "user": user } });
        let scope = json!({ "project": { "name": "admin", "domain": domain } });
        let answer = self
            .http
            .post(format!("{}/identity/v3/auth/tokens", self.url))
            .json(&json!({ "auth": { "identity": identity, "scope": scope } }))
            .send()
            .await?;
        ensure!(answer.status() == StatusCode::CREATED, "log in: {}", answer.status());
        let token = answer.headers().get("X-Subject-Token").context("no token")?.to_str()?.to_owned();
        answer.bytes().await?;
        Ok(token)
    }

    /// Creates a server, which is durable when this returns; its id.
    async fn post(&self, name: &str) -> Result<String> {
        let mut server = self.server.clone();
        server["name"] = json!(name);
        let answer = self.json(Method::POST, "/compute/v2.1/servers", json!({ "server": server })).await?;
        Ok(answer["server"]["id"].as_str().context("the server's id")?.to_owned())
    }

    /// Milliseconds of each of so many creates, one after another, each after this pause.
    async fn posts(&self, name: &str, count: usize, pause: Duration) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(count);
        for n in 0..count {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            self.post(&format!("{name}-{n}")).await?;
            times.push(milliseconds(began));
        }
        Ok(times)
    }

    /// So many creates, [`FLIGHT`] at once; milliseconds of each.
    async fn many(self: &Arc<Self>, count: usize) -> Result<Vec<f64>> {
        let next = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..FLIGHT)
            .map(|_| {
                let (cloud, next) = (self.clone(), next.clone());
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count {
                            return anyhow::Ok(times);
                        }
                        let began = Instant::now();
                        cloud.post(&format!("many-{n}")).await?;
                        times.push(milliseconds(began));
                    }
                })
            })
            .collect();
        let mut times = Vec::with_capacity(count);
        for task in tasks {
            times.extend(task.await??);
        }
        Ok(times)
    }

    /// Waits until no server is being built any more; then so many must be ACTIVE.
    async fn settled(&self, count: usize) -> Result<()> {
        let began = Instant::now();
        // Looking costs too: one is enough to go on waiting.
        while self.count("BUILD", 1).await? > 0 {
            ensure!(began.elapsed() < LIMIT, "servers are still being built after {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let active = self.count("ACTIVE", usize::MAX).await?;
        ensure!(active == count, "{active} of {count} servers are ACTIVE");
        Ok(())
    }

    /// How many servers have this status, page by page, at most `most`.
    async fn count(&self, status: &str, most: usize) -> Result<usize> {
        let (mut count, mut marker) = (0, String::new());
        let limit = most.min(1000);
        loop {
            let path = format!("/compute/v2.1/servers?status={status}&limit={limit}{marker}");
            let page: Value = serde_json::from_slice(&self.get(&path, StatusCode::OK).await?)?;
            let servers = page["servers"].as_array().context("no list of servers")?;
            count += servers.len();
            match servers.last().and_then(|s| s["id"].as_str()) {
                Some(id) if servers.len() == limit && count < most => marker = format!("&marker={id}"),
                _ => return Ok(count),
            }
        }
    }

    /// What a token's check takes, in milliseconds: the same request, for something that is not there, with a token and
    /// without one, in turns over one connection. The first is checked and answered 404, the second is answered 401
    /// unchecked; the difference of their medians is the check and the little that the handler does.
    async fn check(&self, count: usize) -> Result<f64> {
        let (path, bare) = ("/compute/v2.1/flavors/nothing", self.bare());
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..count {
            with.extend(self.times(1, path, StatusCode::NOT_FOUND).await?);
            without.extend(bare.times(1, path, StatusCode::UNAUTHORIZED).await?);
        }
        Ok(median(&with) - median(&without))
    }

    /// The smallest order that decides and claims, one after another: an instance by the native face, of no network and
    /// no volume. What is beside the decision and the durable claim is in the figure.
    async fn placed(&self, controller: &Controller, count: usize) -> Result<Vec<f64>> {
        let client = Client::new(controller.url(), &controller.read("admin-token")?)?;
        let mut times = Vec::with_capacity(count);
        for n in 0..count {
            let request: InstanceCreate = serde_json::from_value(json!({
                "name": format!("placed-{n}"), "vcpus": 1, "memory_mib": 64,
                "bodies": [{ "vm": { "image": self.server["imageRef"] } }],
            }))?;
            let began = Instant::now();
            client.create_instance(&request).await?;
            times.push(milliseconds(began));
        }
        Ok(times)
    }

    /// Milliseconds of requests for `path`, one after another, while [`FLIGHT`] clients log in by password, and the logins
    /// per second.
    async fn flood(self: &Arc<Self>, path: &str) -> Result<(Vec<f64>, f64)> {
        let began = Instant::now();
        let busy: Vec<_> = (0..FLIGHT)
            .map(|_| {
                let cloud = self.clone();
                tokio::spawn(async move {
                    for _ in 0..LOGINS {
                        cloud.login().await?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let mut during = Vec::new();
        while !busy.iter().all(|b| b.is_finished()) {
            during.extend(self.times(1, path, StatusCode::OK).await?);
        }
        for task in busy {
            task.await??;
        }
        Ok((during, (FLIGHT * LOGINS) as f64 / began.elapsed().as_secs_f64()))
    }

    async fn get(&self, path: &str, expected: StatusCode) -> Result<Vec<u8>> {
        let answer = self.request(Method::GET, path).send().await?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        ensure!(status == expected, "{path}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(body.to_vec())
    }

    /// Milliseconds of each of so many requests, one after another.
    async fn times(&self, count: usize, path: &str, expected: StatusCode) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            self.get(path, expected).await?;
            times.push(milliseconds(began));
        }
        Ok(times)
    }
}

/// The value that so many percent of all do not exceed.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_nine_of_a_hundred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 99), 99.0);
        assert_eq!(percentile(&values[..3], 99), 3.0);
        assert!(percentile(&[], 99).is_nan());
    }
}
