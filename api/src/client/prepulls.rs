//! Images on hosts before anything starts from them.

use super::{Client, ClientError};
use crate::ImageId;
use crate::prepull::{ImageOnHosts, PrepullCreate, PrepullPolicy};
use reqwest::Method;

type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    /// Which hosts have the image, or are getting it.
    pub async fn image_on_hosts(&self, id: ImageId) -> Result<ImageOnHosts> {
        self.get("image", &format!("/images/{id}/hosts")).await
    }

    /// Has hosts fetch it, once.
    pub async fn prepull_image(&self, id: ImageId, order: &PrepullCreate) -> Result<ImageOnHosts> {
        self.post(format!("have image {id} fetched"), &format!("/images/{id}/hosts"), order).await
    }

    /// Calls off what is not over.
    pub async fn cancel_prepull(&self, id: ImageId) -> Result<()> {
        self.delete(format!("call off the fetching of image {id}"), &format!("/images/{id}/hosts")).await
    }

    /// Has hosts keep it, now and from now on.
    pub async fn set_prepull_policy(&self, id: ImageId, policy: &PrepullPolicy) -> Result<ImageOnHosts> {
        let path = format!("/images/{id}/hosts/policy");
        self.call(format!("have image {id} kept on hosts"), Method::PUT, &path).json(policy).read().await
    }

    pub async fn end_prepull_policy(&self, id: ImageId) -> Result<()> {
        self.delete(format!("end the policy of image {id}"), &format!("/images/{id}/hosts/policy")).await
    }
}
