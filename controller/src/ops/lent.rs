//! Tools beside a member: who may bring them, and the image's blobs that a host may fetch for them, for a while, though no
//! body of its is made of them.

use super::identity::Caller;
use super::list::find;
use super::{Ops, OpsError, resolve};
use crate::streams::HostStream;
use amphi_api::instance::BodyKind;
use amphi_api::looking::ToolsSpec;
use amphi_api::streams::{ExecSpec, StreamTarget};
use amphi_api::{HostId, InstanceId};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a host may fetch an image for tools.
const LENT: Duration = Duration::from_secs(600);

/// Digests by the host that may fetch them, and until when.
#[derive(Default)]
pub(super) struct Lent(Mutex<HashMap<(HostId, String), Instant>>);

impl Lent {
    fn lend(&self, host: HostId, digests: impl Iterator<Item = String>, now: Instant) {
        let mut lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lent.retain(|_, until| *until > now);
        lent.extend(digests.map(|digest| ((host, digest), now + LENT)));
    }

    pub(super) fn holds(&self, host: HostId, sha256: &str) -> bool {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lent.get(&(host, sha256.to_owned())).is_some_and(|until| *until > Instant::now())
    }
}

impl Ops {
    /// Runs a command of another image beside a member. Whoever can do that reads and changes all that the member has, past
    /// whatever its own image keeps from it: so an administrator may, and the user who ordered the instance.
    pub async fn open_tools(
        &self,
        caller: &Caller,
        id: InstanceId,
        exec: ExecSpec,
        image: &str,
    ) -> Result<HostStream, OpsError> {
        let scope = caller.project()?;
        let (image, host) = {
            let view = self.world().read();
            let row = find(&view.instances, scope, id)?;
            if !caller.is_admin() && row.server.user != Some(caller.user) {
                let message =
                    "tools are brought by an administrator, or by the user who ordered the instance";
                return Err(OpsError::Forbidden(message.into()));
            }
            (resolve::image(&view, scope, "image", image, BodyKind::Set)?.view(), row.host)
        };
        if let Some(host) = host {
            let blobs = image.blobs.values().map(|blob| blob.sha256.clone());
            let layers = image.layers.iter().map(|layer| layer.sha256.clone());
            self.lent.lend(host, blobs.chain(layers), Instant::now());
        }
        self.open_stream(scope, id, StreamTarget::Tools(Box::new(ToolsSpec { exec, image }))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::identity::UserId;
    use crate::ops::tests::Cloud;
    use amphi_api::ErrorCode;
    use serde_json::json;

    #[tokio::test]
    async fn tools_are_for_administrators_and_come_from_container_images() {
        let (cloud, h1, h2) = Cloud::furnished().await;
        let set = cloud.create(json!({"host": "h1"})).await.unwrap();
        cloud.obey(h1).await;
        let digest = {
            let view = cloud.ops.world().read();
            let image = view.images.iter().find(|image| image.name == "busybox").unwrap();
            image.blobs.values().next().unwrap().sha256.clone()
        };
        let exec = |member: Option<&str>| ExecSpec {
            member: member.map(str::to_owned),
            command: vec!["ps".into()],
            ..ExecSpec::default()
        };
        let operator = Caller::operator();
        let other = Caller {
            user: UserId(uuid::Uuid::new_v4()),
            roles: ["member", "reader"].map(String::from).into(),
            ..operator.clone()
        };
        let cloud = &cloud;
        let ask = async |caller: &Caller, spec, image: &str| {
            cloud.ops.open_tools(caller, set.id, spec, image).await.unwrap_err()
        };
        assert_eq!(ask(&other, exec(None), "busybox").await.code(), ErrorCode::Forbidden);
        assert_eq!(
            ask(&operator, exec(None), "vm").await.code(),
            ErrorCode::InvalidField,
            "no container image"
        );
        assert_eq!(ask(&operator, exec(None), "none").await.code(), ErrorCode::InvalidField);
        assert_eq!(ask(&operator, exec(Some("anchor")), "busybox").await.code(), ErrorCode::InvalidField);
        assert_eq!(ask(&operator, ExecSpec::default(), "busybox").await.code(), ErrorCode::InvalidField);
        assert!(!cloud.ops.lent.holds(h2, &digest), "lent to another host");
        let told = ask(&operator, exec(None), "busybox").await.to_string();
        assert!(told.contains("told to open Tools"), "{told}");
        assert!(cloud.ops.lent.holds(h1, &digest) && cloud.ops.blob_allowed(h1, &digest));
    }
}
