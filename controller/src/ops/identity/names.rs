//! Names that are unique within something: a key in the store exists while one is taken, so that two who take it at the
//! same time cannot both have it.

use crate::ops::{Draft, OpsError};
use amphi_api::FieldError;
use std::fmt::Display;
use uuid::Uuid;

/// Longest name of a domain, a project or a group, in characters (keystone's).
pub const NAME_MAX: usize = 64;
/// Longest name of anything else.
pub const LONG_NAME_MAX: usize = 255;

/// The key that exists while `name` is taken by a `noun` within `owner`.
pub fn name_key(noun: &str, owner: impl Display, name: &str) -> String {
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{owner}\n{name}").as_bytes());
    format!("/identity-name/{noun}/{}", digest.simple())
}

pub fn taken(noun: &str, name: &str, within: &str) -> OpsError {
    OpsError::taken(
        "name",
        format!(
            "Conflict occurred attempting to store {noun} - it is not permitted to have two {noun}s with the same \
             name in {within}: {name}."
        ),
    )
}

/// A name of 1 to `most` characters that is not only spaces.
pub fn check(name: &str, most: usize) -> Result<(), OpsError> {
    if name.trim().is_empty() || name.chars().count() > most || name.contains(char::is_control) {
        return Err(FieldError::new("name", format!("must have 1 to {most} characters")).into());
    }
    Ok(())
}

/// Moves the reservation of a name.
pub fn rename(draft: &mut Draft, noun: &str, owner: impl Display, old: &str, new: &str, id: impl Display) {
    if old != new {
        draft.release(name_key(noun, &owner, old));
        draft.reserve(name_key(noun, &owner, new), id.to_string());
    }
}

/// Lays changes over what is there; `null` takes an attribute away.
pub fn overlay(present: &mut crate::model::identity::Extra, change: &crate::model::identity::Extra) {
    for (key, value) in change {
        if value.is_null() {
            present.remove(key);
        } else {
            present.insert(key.clone(), value.clone());
        }
    }
}
