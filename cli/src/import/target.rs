//! Amphi as the target: finds what an import has made, by its mark, and makes what is missing. Networks, images and volumes
//! by its OpenStack face, instances by the native one. Refuses to change anything that it has not made.

use super::cloud::{Cloud, Service, Trouble};
use super::plan::*;
use crate::failure::Failure;
use amphi_api::client::Client;
use amphi_api::instance::{
    BodySpec, Instance, InstanceCreate, InstanceNetwork, InstanceState, InstanceVolume, VmSpec,
};
use amphi_api::{InstanceId, PortId, VolumeId};
use reqwest::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The key of metadata and properties that holds a mark.
pub const KEY: &str = "amphi_import";
/// Longest description: neutron's column, in characters.
const DESCRIPTION_MAX: usize = 255;
/// Between two looks at something that takes its time.
const LOOK: Duration = Duration::from_millis(300);

pub struct Target {
    pub cloud: Cloud,
    /// The native face's URL.
    url: String,
    wait: Duration,
}

/// `import:MARK`, and what stood there.
fn described(mark: &str, text: &str) -> String {
    format!("import:{mark} {text}").trim().chars().take(DESCRIPTION_MAX).collect()
}

fn is_marked(thing: &Value, mark: &str) -> bool {
    let text = thing.get("description").and_then(Value::as_str).unwrap_or_default();
    text.strip_prefix("import:").and_then(|rest| rest.split(' ').next()) == Some(mark)
}

fn id_of(thing: &Value) -> Option<String> {
    thing.get("id").and_then(Value::as_str).map(str::to_owned)
}

impl Target {
    pub fn new(cloud: Cloud, wait: Duration) -> Self {
        let url =
            std::env::var("AMPHI_URL").ok().filter(|u| !u.trim().is_empty()).unwrap_or_else(|| cloud.base());
        Self { cloud, url, wait }
    }

    /// The native face, as the same user.
    fn native(&self) -> Result<Client, Failure> {
        Ok(Client::new(&self.url, &self.cloud.token())?.of_user())
    }

    /// The same, after a new login: a token lasts an hour, an import may last longer.
    async fn fresh(&self) -> Result<Client, Failure> {
        self.cloud.renew().await?;
        self.native()
    }

    /// Things of the network service that bear this mark: the id of the first.
    async fn marked(&self, collection: &str, key: &str, mark: &str) -> Result<Option<String>, Failure> {
        let path = format!("/{collection}?project_id={}", self.cloud.project());
        let all = self.cloud.list(Service::Network, &path, key).await?;
        Ok(all.iter().find(|thing| is_marked(thing, mark)).and_then(id_of))
    }

    /// What an earlier run has made for this item.
    pub async fn find(
        &self,
        item: &Item,
        here: &dyn Fn(&Ref) -> Option<String>,
    ) -> Result<Option<String>, Failure> {
        let mark = item.mark.as_str();
        match &item.make {
            Make::Network { .. } => self.marked("networks", "networks", mark).await,
            Make::Subnet { .. } => self.marked("subnets", "subnets", mark).await,
            Make::SecurityGroup { .. } => self.marked("security-groups", "security_groups", mark).await,
            Make::Router { .. } => self.marked("routers", "routers", mark).await,
            Make::Port(_) => self.marked("ports", "ports", mark).await,
            Make::Image(_) => {
                let id = item.image_id(&self.cloud.place()).to_string();
                let found = self.cloud.find(Service::Image, &format!("/images/{id}")).await?;
                let active = found.filter(|i| i.get("status").and_then(Value::as_str) == Some("active"));
                Ok(active.map(|_| id))
            }
            Make::KeyPair { public_key } => {
                let path = format!("/os-keypairs/{}", escaped(&item.name));
                let found = self.cloud.find(Service::Compute, &path).await?;
                let same = |k: &Value| {
                    k.pointer("/keypair/public_key").and_then(Value::as_str).map(str::trim)
                        == Some(public_key)
                };
                Ok(found.filter(same).map(|_| item.name.clone()))
            }
            Make::Volume { .. } => {
                let all = self.cloud.list(Service::Volume, "/volumes/detail", "volumes").await?;
                let ours =
                    |v: &&Value| v.pointer(&format!("/metadata/{KEY}")).and_then(Value::as_str) == Some(mark);
                Ok(all.iter().find(ours).and_then(id_of))
            }
            Make::Instance(_) => {
                let all = self.fresh().await?.instances().await?;
                Ok(all
                    .into_iter()
                    .find(|i| i.metadata.get(KEY).map(String::as_str) == Some(mark))
                    .map(|i| i.id.to_string()))
            }
            Make::Attach { instance, volume, .. } => {
                let (Some(instance), Some(volume)) = (here(instance), here(volume)) else { return Ok(None) };
                let path = format!("/servers/{instance}/os-volume_attachments");
                let all = self.cloud.list(Service::Compute, &path, "volumeAttachments").await?;
                let there = all.iter().any(|a| a.get("volumeId").and_then(Value::as_str) == Some(&volume));
                Ok(there.then_some(volume))
            }
            Make::RouterLeg { router, subnet } => {
                let (Some(router), Some(subnet)) = (here(router), here(subnet)) else { return Ok(None) };
                let path = format!("/ports?device_id={router}");
                let all = self.cloud.list(Service::Network, &path, "ports").await?;
                let on = |port: &&Value| {
                    let ips = port.get("fixed_ips").and_then(Value::as_array);
                    ips.into_iter()
                        .flatten()
                        .any(|ip| ip.get("subnet_id").and_then(Value::as_str) == Some(&subnet))
                };
                Ok(all.iter().find(on).and_then(id_of))
            }
            // Made again they come to the same.
            Make::Rules { .. } | Make::Remove { .. } => Ok(None),
        }
    }

    /// Makes it; images' bytes are another's.
    pub async fn make(&self, item: &Item, here: &dyn Fn(&Ref) -> Option<String>) -> Result<String, Failure> {
        let named = |mut body: Map<String, Value>, text: &str| {
            body.insert("name".into(), json!(item.name));
            body.insert("description".into(), json!(described(&item.mark, text)));
            body
        };
        let need = |of: &Ref| here(of).ok_or_else(|| lost(item, of));
        match &item.make {
            Make::Network { body } => self.network("network", "networks", named(body.clone(), "")).await,
            Make::Subnet { network, body } => {
                let mut body = named(body.clone(), "");
                body.insert("network_id".into(), json!(need(network)?));
                self.network("subnet", "subnets", body).await
            }
            Make::SecurityGroup { description } => {
                self.network("security_group", "security-groups", named(Map::new(), description)).await
            }
            Make::Rules { group, rules } => self.rules(&need(group)?, rules, &need).await,
            Make::Router { body, outside } => {
                let mut body = named(body.clone(), "");
                if let Some(outside) = outside {
                    body.insert("external_gateway_info".into(), json!({ "network_id": need(outside)? }));
                }
                self.network("router", "routers", body).await
            }
            Make::RouterLeg { router, subnet } => {
                let path = format!("/routers/{}/add_router_interface", need(router)?);
                let leg =
                    self.cloud.put(Service::Network, &path, &json!({ "subnet_id": need(subnet)? })).await?;
                Ok(leg.get("port_id").and_then(Value::as_str).unwrap_or_default().to_owned())
            }
            Make::Port(port) => {
                let mut body = named(port.body.clone(), "");
                body.insert("network_id".into(), json!(need(&port.network)?));
                if let Some(mac) = &port.mac {
                    body.insert("mac_address".into(), json!(mac));
                }
                let mut ips = Vec::new();
                for fixed in &port.addresses {
                    ips.push(match &fixed.subnet {
                        Some(subnet) => json!({ "ip_address": fixed.address, "subnet_id": need(subnet)? }),
                        None => json!({ "ip_address": fixed.address }),
                    });
                }
                if !ips.is_empty() {
                    body.insert("fixed_ips".into(), json!(ips));
                }
                if let Some(groups) = &port.groups {
                    let groups: Vec<_> = groups.iter().map(&need).collect::<Result<_, _>>()?;
                    body.insert("security_groups".into(), json!(groups));
                }
                let made = self.network("port", "ports", body).await;
                made.map_err(|e| {
                    e.next("or take `mac` and `addresses` out of this port in the plan, and run it again")
                })
            }
            Make::KeyPair { public_key } => {
                let body = json!({ "keypair": { "name": item.name, "public_key": public_key } });
                match self.cloud.post(Service::Compute, "/os-keypairs", &body).await {
                    Err(trouble) if trouble.is(StatusCode::CONFLICT) => {
                        let what = format!("key pair {}: there is another one of this name", item.name);
                        Err(Failure::new(4, what)
                            .next("rename or delete one of the two, and run the plan again"))
                    }
                    done => done.map(|_| item.name.clone()).map_err(Failure::from),
                }
            }
            Make::Volume { size_gib, description, image, .. } => {
                let mut body = json!({
                    "name": item.name, "description": description, "size": size_gib, "metadata": { KEY: item.mark },
                });
                if let Some(image) = image {
                    body["imageRef"] = json!(need(image)?);
                }
                let made = self.cloud.post(Service::Volume, "/volumes", &json!({ "volume": body })).await?;
                made.get("volume").and_then(id_of).ok_or_else(|| no_id(item))
            }
            Make::Instance(one) => self.instance(item, one, &need).await,
            Make::Attach { instance, volume, device } => {
                let mut body = json!({ "volumeId": need(volume)? });
                if let Some(device) = device {
                    body["device"] = json!(device);
                }
                let path = format!("/servers/{}/os-volume_attachments", need(instance)?);
                self.cloud.post(Service::Compute, &path, &json!({ "volumeAttachment": body })).await?;
                need(volume)
            }
            Make::Remove { image } => {
                let id = need(image)?;
                self.cloud.delete(Service::Image, &format!("/images/{id}")).await?;
                Ok(id)
            }
            Make::Image(_) => {
                Err(Failure::new(1, format!("{}: an image's bytes are not made here", item.key)))
            }
        }
    }

    async fn network(
        &self,
        one: &str,
        collection: &str,
        body: Map<String, Value>,
    ) -> Result<String, Failure> {
        let made =
            self.cloud.post(Service::Network, &format!("/{collection}"), &json!({ one: body })).await?;
        let id = made.get(one).and_then(id_of);
        id.ok_or_else(|| Failure::new(1, format!("make {one}: the answer has no id")))
    }

    /// The group's rules become these: what a new group lets out by itself goes, unless it is one of them.
    async fn rules(
        &self,
        group: &str,
        rules: &[Rule],
        need: &dyn Fn(&Ref) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let shown = self.cloud.get(Service::Network, &format!("/security-groups/{group}")).await?;
        let there = shown.pointer("/security_group/security_group_rules").and_then(Value::as_array).cloned();
        let mut wanted = Vec::new();
        for rule in rules {
            let mut body = rule.body.clone();
            if let Some(remote) = &rule.remote_group {
                body.insert("remote_group_id".into(), json!(need(remote)?));
            }
            wanted.push(body);
        }
        for rule in there.into_iter().flatten() {
            let known = wanted.iter().position(|w| same_rule(w, &rule));
            match (known, id_of(&rule)) {
                (Some(at), _) => drop(wanted.remove(at)),
                (None, Some(id)) => {
                    self.cloud.delete(Service::Network, &format!("/security-group-rules/{id}")).await?;
                }
                (None, None) => {}
            }
        }
        for mut body in wanted {
            body.insert("security_group_id".into(), json!(group));
            let made = json!({ "security_group_rule": body });
            match self.cloud.post(Service::Network, "/security-group-rules", &made).await {
                Err(trouble) if !trouble.is(StatusCode::CONFLICT) => return Err(trouble.into()),
                _ => {}
            }
        }
        Ok(group.to_owned())
    }

    async fn instance(
        &self,
        item: &Item,
        one: &InstanceMake,
        need: &dyn Fn(&Ref) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let unreadable = |what: &str| Failure::new(4, format!("{}: {what} is no id", item.key));
        let mut networks = Vec::new();
        for connection in &one.ports {
            let port: PortId = need(&connection.port)?.parse().map_err(|_| unreadable("a port's"))?;
            networks.push(InstanceNetwork {
                network: need(&connection.network)?,
                address: None,
                port: Some(port),
                bandwidth: Default::default(),
            });
        }
        let volume = match &one.volume {
            None => None,
            Some(volume) => {
                let id: VolumeId = need(volume)?.parse().map_err(|_| unreadable("a volume's"))?;
                Some(InstanceVolume { size_gib: None, name: None, id: Some(id) })
            }
        };
        let image = one.image.as_ref().map(need).transpose()?;
        let vm = image.map(|image| BodySpec::Vm(VmSpec::new(image, one.root_gib)));
        let mut metadata: BTreeMap<String, String> = one.metadata.clone();
        metadata.insert(KEY.into(), item.mark.clone());
        let request = InstanceCreate {
            name: item.name.clone(),
            vcpus: one.vcpus,
            memory_mib: one.memory_mib,
            bodies: vm.into_iter().chain(one.set.clone().map(BodySpec::Set)).collect(),
            networks,
            volume,
            user_data: one.user_data.clone(),
            ssh_keys: one.ssh_keys.clone(),
            metadata,
            ..InstanceCreate::default()
        };
        request.check()?;
        Ok(self.fresh().await?.create_instance(&request).await?.id.to_string())
    }

    /// Waits until what was made can be used by what comes after it.
    pub async fn settle(&self, item: &Item, id: &str, say: &dyn Fn(&str)) -> Result<(), Failure> {
        match &item.make {
            Make::Volume { .. } => {
                let path = format!("/volumes/{id}");
                self.until(item, say, "available", || async {
                    let shown = self.cloud.get(Service::Volume, &path).await?;
                    Ok(shown.pointer("/volume/status").and_then(Value::as_str).unwrap_or_default().to_owned())
                })
                .await
            }
            Make::Instance(one) => self.settle_instance(id, one.stopped, say).await,
            Make::Attach { volume: _, .. } => {
                let path = format!("/volumes/{id}");
                self.until(item, say, "in-use", || async {
                    let shown = self.cloud.get(Service::Volume, &path).await?;
                    Ok(shown.pointer("/volume/status").and_then(Value::as_str).unwrap_or_default().to_owned())
                })
                .await
            }
            _ => Ok(()),
        }
    }

    async fn until<F: Future<Output = Result<String, Trouble>>>(
        &self,
        item: &Item,
        say: &dyn Fn(&str),
        wanted: &str,
        look: impl Fn() -> F,
    ) -> Result<(), Failure> {
        let end = Instant::now() + self.wait;
        loop {
            let seen = look().await?;
            say(&seen);
            // A volume in use was available before.
            if seen == wanted || (wanted == "available" && seen == "in-use") {
                return Ok(());
            }
            if seen.starts_with("error") {
                return Err(Failure::new(1, format!("{}: is {seen}", item.key))
                    .next("openstack volume show says more"));
            }
            if Instant::now() > end {
                let what =
                    format!("{}: not {wanted} within {} s; last seen: {seen}", item.key, self.wait.as_secs());
                return Err(Failure::new(5, what).next("run the same plan again, with a longer --timeout"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn settle_instance(&self, id: &str, stopped: bool, say: &dyn Fn(&str)) -> Result<(), Failure> {
        let id: InstanceId =
            id.parse().map_err(|_| Failure::new(1, format!("'{id}' is no instance's id")))?;
        let client = self.fresh().await?;
        let on_change = |i: &Instance| say(&crate::table::word(i.state));
        let there = |i: &Instance| {
            matches!(
                i.state,
                InstanceState::Running
                    | InstanceState::Stopped
                    | InstanceState::Stopping
                    | InstanceState::Error
            )
        };
        let seen = client.wait_instance(id, there, self.wait, on_change).await?;
        if seen.state == InstanceState::Error {
            let why = seen.fault.map(|f| f.message).unwrap_or_default();
            return Err(Failure::new(1, format!("instance {}: {why}", seen.name)));
        }
        if stopped {
            if seen.state == InstanceState::Running {
                client.stop_instance(id).await?;
            }
            client.wait_instance(id, |i| i.state == InstanceState::Stopped, self.wait, on_change).await?;
        }
        Ok(())
    }
}

fn lost(item: &Item, of: &Ref) -> Failure {
    Failure::new(1, format!("{}: what it needs is not there: {of:?}", item.key))
}

fn no_id(item: &Item) -> Failure {
    Failure::new(1, format!("{}: the answer has no id", item.key))
}

/// A name in a path.
fn escaped(name: &str) -> String {
    name.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn same_rule(wanted: &Map<String, Value>, there: &Value) -> bool {
    RULE_FIELDS.iter().chain(&["remote_group_id"]).all(|key| {
        let one = wanted.get(*key).filter(|v| !v.is_null());
        one == there.get(*key).filter(|v| !v.is_null())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_in_descriptions() {
        let text = described("openstack:0af1", "the shop's network");
        assert_eq!(text, "import:openstack:0af1 the shop's network");
        let thing = json!({ "description": text });
        assert!(is_marked(&thing, "openstack:0af1") && !is_marked(&thing, "openstack:0af"));
        assert!(is_marked(&json!({ "description": described("m", "") }), "m"));
        assert!(!is_marked(&json!({}), "m"));
        assert_eq!(described("m", &"ä".repeat(400)).chars().count(), 255);
        assert_eq!(escaped("a b/ä"), "a%20b%2F%C3%A4");
    }

    #[test]
    fn rules_are_compared_by_what_they_say() {
        let body = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let there = json!({"id": "x", "direction": "egress", "ethertype": "IPv4", "protocol": null, "description": ""});
        assert!(same_rule(&body(r#"{"direction": "egress", "ethertype": "IPv4"}"#), &there));
        assert!(!same_rule(&body(r#"{"direction": "ingress", "ethertype": "IPv4"}"#), &there));
    }
}
