//! Carries a plan out: each item once, in order, found again where an earlier run was cut off. Owns the way of bytes from
//! the source to the target's images and the proof that they arrived. Refuses a plan of another target, and blocked ones.

use super::bytes::{Flow, Meter, metered};
use super::cloud::{Cloud, Service};
use super::disk;
use super::libvirt::Virsh;
use super::openstack;
use super::plan::*;
use super::state::State;
use super::target::{KEY, Target};
use crate::failure::Failure;
use crate::session::Session;
use crate::table::clean;
use futures_util::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

/// How long an order may still be carried out after the one who sent it was killed.
const SETTLE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(300);
/// An upload's bytes that do not move for so long are given up; at its end the target proves them.
const STALL: Duration = Duration::from_secs(300);
/// For an image of the source to be made.
const MAKE_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// Where the bytes are.
#[allow(clippy::large_enum_variant)] // Few of them are held at a time.
pub enum Origin {
    Files,
    Libvirt(Virsh),
    Openstack(Cloud),
}

pub struct Run<'a> {
    pub session: &'a Session,
    pub plan: &'a Plan,
    pub target: Target,
    pub origin: Origin,
    /// Beside it lie the state and what is converted.
    pub file: PathBuf,
}

impl Run<'_> {
    pub async fn go(&self) -> Result<(), Failure> {
        self.plan.check().map_err(|why| Failure::new(4, format!("{}: {why}", self.file.display())))?;
        if let Some(blocked) = self.plan.blocked().next() {
            let what = format!("{} {}: {}", blocked.what, blocked.name, blocked.why);
            return Err(Failure::new(4, what).next("mend it at the source, and plan anew"));
        }
        let here = self.target.cloud.place();
        if here.project != self.plan.target.project {
            let what =
                format!("the plan is for project {}, and this is {}", self.plan.target.project, here.project);
            return Err(Failure::new(4, what).next("log in to that project, or plan anew"));
        }
        let mut state = State::open(&self.file, self.plan)?;
        let (count, began) = (self.plan.items.len(), Instant::now());
        for (at, item) in self.plan.items.iter().enumerate() {
            if state.done(&item.key).is_some() {
                continue;
            }
            let told = format!("[{}/{count}] {} {}", at + 1, item.make.noun(), clean(&item.name));
            let id = self.item(item, &mut state, &told).await?;
            state.finish(&item.key, &id)?;
        }
        let _ = std::fs::remove_dir_all(self.work());
        let done: serde_json::Map<String, Value> = self
            .plan
            .items
            .iter()
            .filter_map(|i| Some((i.key.clone(), json!(state.done(&i.key)?))))
            .collect();
        self.session.show(&json!({ "done": done }), |_| {
            format!("{count} items are there, after {:.1} s\n", began.elapsed().as_secs_f32())
        })
    }

    /// Beside the plan, for disks that are converted.
    fn work(&self) -> PathBuf {
        let mut name = self.file.as_os_str().to_owned();
        name.push(".work");
        PathBuf::from(name)
    }

    async fn item(&self, item: &Item, state: &mut State, told: &str) -> Result<String, Failure> {
        let waiting = self.session.waiting(told);
        let begun = state.was_begun(&item.key);
        if begun {
            tokio::time::sleep(SETTLE).await;
        }
        state.begin(&item.key)?;
        let here = |of: &Ref| match of {
            Ref::Id(id) => Some(id.clone()),
            Ref::Item(key) => state.done(key).map(str::to_owned),
        };
        // An image that was only on the way is gone when the volume that needed it is there: it is not made again.
        if let Some(id) = self.passed_by(item).await? {
            waiting.state("not needed any more");
            return Ok(id);
        }
        let id = match self.target.find(item, &here).await? {
            Some(id) => {
                waiting.state("is there");
                id
            }
            None => match &item.make {
                Make::Image(image) => {
                    waiting.state("bytes");
                    self.image(item, image, &|text| waiting.state(text)).await?
                }
                _ => {
                    waiting.state("ordered");
                    self.target.make(item, &here).await?
                }
            },
        };
        if let (Make::Image(image), Origin::Openstack(cloud)) = (&item.make, &self.origin) {
            clear(cloud, &image.bytes, item).await?;
        }
        self.target.settle(item, &id, &|text| waiting.state(text)).await?;
        waiting.state("done");
        Ok(id)
    }

    /// For an image that only a volume needs: its id, where an earlier import has made that volume.
    async fn passed_by(&self, item: &Item) -> Result<Option<String>, Failure> {
        if !matches!(item.make, Make::Image(_)) {
            return Ok(None);
        }
        let own = Ref::Item(item.key.clone());
        let user = self
            .plan
            .items
            .iter()
            .find(|i| matches!(&i.make, Make::Volume { image: Some(of), .. } if *of == own));
        let Some(user) = user else { return Ok(None) };
        let there = self.target.find(user, &|_| None).await?;
        Ok(there.map(|_| item.image_id(&self.target.cloud.place()).to_string()))
    }

    /// An image of the target, made of the source's bytes; returns when the target has proven that it has them.
    async fn image(&self, item: &Item, image: &ImageMake, say: &dyn Fn(&str)) -> Result<String, Failure> {
        let cloud = &self.target.cloud;
        let id = item.image_id(&cloud.place()).to_string();
        let mut body = json!({
            "id": id, "name": item.name, "visibility": "private",
            "disk_format": image.disk_format, "container_format": image.container_format,
            "min_disk": image.min_disk, "min_ram": image.min_ram, KEY: item.mark,
        });
        if let Value::Object(body) = &mut body {
            body.extend(image.properties.iter().map(|(k, v)| (k.clone(), json!(v))));
        }
        let work = self.work();
        let flow = self.flow(item, &image.bytes, &work, say).await?;
        let (expected, length) = (flow.expected.clone(), flow.length);
        let meter = Meter::new(expected.as_ref());
        let pieces = metered(&clean(&item.name), &image.disk_format, flow, &meter).await?;
        // Not before the bytes are at hand, and look as they should.
        match cloud.post(Service::Image, "/images", &body).await {
            // The record of an earlier run: its bytes are missing.
            Err(trouble) if !trouble.is(StatusCode::CONFLICT) => return Err(trouble.into()),
            _ => {}
        }
        self.send(&id, reqwest::Body::wrap_stream(pieces), &meter).await?;
        let passed = meter.passed();
        let wrong = length
            .filter(|l| *l != passed.length)
            .map(|l| format!("{} bytes came, and {l} were told", passed.length));
        let wrong = wrong.or_else(|| expected.and_then(|told| passed.check(&told).err()));
        let wrong = match wrong {
            Some(wrong) => Some(wrong),
            None => arrived(cloud, &id, &passed).await?,
        };
        if let Some(wrong) = wrong {
            cloud.delete(Service::Image, &format!("/images/{id}")).await?;
            return Err(Failure::new(1, format!("{}: {wrong}", item.key)).next("run the same plan again"));
        }
        let _ = std::fs::remove_dir_all(&work);
        Ok(id)
    }

    async fn send(&self, id: &str, body: reqwest::Body, meter: &Meter) -> Result<(), Failure> {
        let mut sending = pin!(self.target.cloud.upload(id, body));
        let mut seen = meter.so_far();
        loop {
            match tokio::time::timeout(STALL, &mut sending).await {
                Ok(done) => return Ok(done?),
                Err(_) if meter.so_far() == seen => {
                    let what = format!("upload image {id}: nothing moves, {seen} bytes were sent");
                    return Err(Failure::new(5, what).next("run the same plan again"));
                }
                Err(_) => seen = meter.so_far(),
            }
        }
    }

    async fn flow(
        &self,
        item: &Item,
        bytes: &Bytes,
        work: &Path,
        say: &dyn Fn(&str),
    ) -> Result<Flow, Failure> {
        match (bytes, &self.origin) {
            (Bytes::File { .. } | Bytes::Member { .. }, _) => disk::flow(bytes, work).await,
            (Bytes::LibvirtVolume { pool, volume, domain, .. }, Origin::Libvirt(virsh)) => {
                virsh.hold_still(domain, self.plan.shutdown).await?;
                virsh.flow(pool, volume).await
            }
            (Bytes::Image { id }, Origin::Openstack(cloud)) => of_image(cloud, id).await,
            (Bytes::ServerDisk { server }, Origin::Openstack(cloud)) => {
                self.hold_still(cloud, server, say).await?;
                let order =
                    json!({ "createImage": { "name": passing(item), "metadata": { KEY: item.mark } } });
                let path = format!("/servers/{server}/action");
                let id =
                    made_on_the_way(cloud, item, say, || cloud.post(Service::Compute, &path, &order)).await?;
                of_image(cloud, &id).await
            }
            (Bytes::Volume { id, server }, Origin::Openstack(cloud)) => {
                if let Some(server) = server {
                    self.hold_still(cloud, server, say).await?;
                }
                // An attached one needs it; cinder lets it pass for one that is not, too.
                let order = json!({ "os-volume_upload_image": {
                    "image_name": passing(item), "disk_format": "qcow2", "container_format": "bare", "force": server.is_some(),
                } });
                let path = format!("/volumes/{id}/action");
                let id =
                    made_on_the_way(cloud, item, say, || cloud.post(Service::Volume, &path, &order)).await?;
                of_image(cloud, &id).await
            }
            (other, _) => Err(Failure::new(4, format!("{}: {other:?} is not of this source", item.key))),
        }
    }

    /// Stops a server of the source where it runs and that was wished for.
    async fn hold_still(&self, cloud: &Cloud, server: &str, say: &dyn Fn(&str)) -> Result<(), Failure> {
        let (path, end) = (format!("/servers/{server}"), Instant::now() + Duration::from_secs(300));
        let mut ordered = false;
        loop {
            let shown = cloud.get(Service::Compute, &path).await?;
            let status =
                shown.pointer("/server/status").and_then(Value::as_str).unwrap_or_default().to_owned();
            if status == "SHUTOFF" {
                return Ok(());
            }
            if !self.plan.shutdown || !matches!(status.as_str(), "ACTIVE") {
                let what =
                    format!("server {server} is {status}: its disks hold still only when it is shut off");
                return Err(Failure::new(4, what).next("stop it at the source, or plan anew with --shutdown"));
            }
            if !ordered {
                cloud.post(Service::Compute, &format!("{path}/action"), &json!({ "os-stop": null })).await?;
                ordered = true;
            }
            if Instant::now() > end {
                return Err(Failure::new(5, format!("server {server} is not off within 300 s of the order")));
            }
            say("the server is being stopped at the source");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The name of what is made at the source for a while; by it the next run finds it again.
fn passing(item: &Item) -> String {
    format!("{}{}", openstack::PASSING, item.mark)
}

async fn passing_images(cloud: &Cloud, item: &Item) -> Result<Vec<Value>, Failure> {
    let name = passing(item);
    let all =
        cloud.list(Service::Image, &format!("/images?owner={}&limit=200", cloud.project()), "images").await?;
    let ours = |image: &Value| image.get("name").and_then(Value::as_str) == Some(&name);
    Ok(all.into_iter().filter(ours).collect())
}

/// Has the source make an image, unless an earlier run has, and waits until it has its bytes.
async fn made_on_the_way<F>(
    cloud: &Cloud,
    item: &Item,
    say: &dyn Fn(&str),
    order: impl Fn() -> F,
) -> Result<String, Failure>
where
    F: Future<Output = Result<Value, super::cloud::Trouble>>,
{
    let (end, mut ordered) = (Instant::now() + MAKE_LIMIT, false);
    loop {
        let found = passing_images(cloud, item).await?.into_iter().next();
        let text =
            |key: &str| found.as_ref().and_then(|i| i.get(key)?.as_str()).unwrap_or_default().to_owned();
        match text("status").as_str() {
            "active" => return Ok(text("id")),
            "" if !ordered => {
                order().await?;
                ordered = true;
            }
            "" | "queued" | "saving" | "importing" | "uploading" => {}
            other => {
                let what = format!("{}: the source's image of it is {other}", item.key);
                return Err(Failure::new(1, what).next("delete it at the source, and run the plan again"));
            }
        }
        if Instant::now() > end {
            return Err(Failure::new(5, format!("{}: the source makes no image of it", item.key)));
        }
        say(&format!("the source makes an image of it: {}", text("status")));
        tokio::time::sleep(LOOK).await;
    }
}

/// What was made at the source for this item's sake goes.
async fn clear(cloud: &Cloud, bytes: &Bytes, item: &Item) -> Result<(), Failure> {
    if !matches!(bytes, Bytes::ServerDisk { .. } | Bytes::Volume { .. }) {
        return Ok(());
    }
    for image in passing_images(cloud, item).await? {
        let id = image.get("id").and_then(Value::as_str).unwrap_or_default();
        cloud.delete(Service::Image, &format!("/images/{id}")).await?;
    }
    Ok(())
}

/// An image's bytes and what the source says of them.
async fn of_image(cloud: &Cloud, id: &str) -> Result<Flow, Failure> {
    let shown = cloud.get(Service::Image, &format!("/images/{id}")).await?;
    let text = |key: &str| shown.get(key).and_then(Value::as_str).map(str::to_owned);
    let known = |algorithm: &String| matches!(algorithm.as_str(), "sha256" | "sha512");
    let expected = text("os_hash_algo").filter(known).zip(text("os_hash_value"));
    let answer = cloud.download(id).await?;
    let length = answer.content_length().or_else(|| shown.get("size").and_then(Value::as_u64));
    let pieces = answer.bytes_stream().map(|piece| piece.map_err(std::io::Error::other));
    let expected = expected.map(|(algorithm, value)| Digest { algorithm, value });
    Ok(Flow { pieces: Box::pin(pieces), length, expected })
}

/// Waits until the target has taken the bytes in; what is wrong with them, if anything is.
async fn arrived(cloud: &Cloud, id: &str, passed: &super::bytes::Passed) -> Result<Option<String>, Failure> {
    let end = Instant::now() + STALL;
    loop {
        let shown = cloud.get(Service::Image, &format!("/images/{id}")).await?;
        let text = |key: &str| shown.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let status = text("status");
        if status == "active" {
            let size = shown.get("size").and_then(Value::as_u64).unwrap_or_default();
            if size != passed.length {
                return Ok(Some(format!("the target has {size} bytes of {}", passed.length)));
            }
            let told = Digest { algorithm: text("os_hash_algo"), value: text("os_hash_value") };
            return Ok(passed.check(&told).err());
        }
        if Instant::now() > end || status == "killed" {
            return Ok(Some(format!("the target's image is {status}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}
