//! Repositories and their tags.

use super::{Client, ClientError};
use crate::RepositoryId;
use crate::repository::{Repository, RepositoryChange, Tag};
use reqwest::Method;

type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    pub async fn repositories(&self) -> Result<Vec<Repository>> {
        self.list("repositories", "/repositories").await
    }

    pub async fn repository(&self, id: RepositoryId) -> Result<Repository> {
        self.get("repository", &format!("/repositories/{id}")).await
    }

    /// What is not named stays as it is.
    pub async fn change_repository(&self, id: RepositoryId, change: &RepositoryChange) -> Result<Repository> {
        self.call(format!("change repository {id}"), Method::PATCH, &format!("/repositories/{id}"))
            .json(change)
            .read()
            .await
    }

    /// Forgets a repository that nothing is in.
    pub async fn delete_repository(&self, id: RepositoryId) -> Result<()> {
        self.delete(format!("delete repository {id}"), &format!("/repositories/{id}")).await
    }

    pub async fn tags(&self, id: RepositoryId) -> Result<Vec<Tag>> {
        self.list("tags", &format!("/repositories/{id}/tags")).await
    }

    /// Takes a tag away; the image stays.
    pub async fn untag(&self, id: RepositoryId, tag: &str) -> Result<()> {
        // A tag has no character that a path could not have; what has is none, and unknown to the server.
        if !crate::repository::tag_name(tag) {
            return Err(ClientError::NoSuch { noun: "tag", name: tag.to_owned() });
        }
        self.delete(format!("untag {tag}"), &format!("/repositories/{id}/tags/{tag}")).await
    }
}
