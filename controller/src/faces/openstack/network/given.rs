//! A request's attributes, taken one by one: each with its type, unknown ones refused, nulls told apart from absence.

use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::query::boolean;
use crate::faces::openstack::words;
use crate::ops::identity::Caller;
use amphi_api::ProjectId;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::net::IpAddr;
use uuid::Uuid;

/// Longest text of an attribute, in characters: neutron's columns.
pub const TEXT_MAX: usize = 255;
/// Most things of one bulk request.
pub const BULK_MAX: usize = 200;

/// What is left of the attributes.
#[derive(Debug)]
pub struct Given(Map<String, Value>);

/// The things of a request, and whether they came as a list.
pub fn bodies(one: &'static str, many: &'static str, body: Value) -> Result<(Vec<Given>, bool), Refusal> {
    let Value::Object(mut map) = body else {
        return Err(Refusal::bad(format!("Invalid input: the body must have '{one}'")));
    };
    let object = |value: Value| match value {
        Value::Object(map) => Ok(Given(map)),
        _ => Err(Refusal::bad(format!("Invalid input: '{one}' must be an object"))),
    };
    match (map.remove(one), map.remove(many)) {
        (Some(value), _) => Ok((vec![object(value)?], false)),
        (None, Some(Value::Array(list))) if list.len() > BULK_MAX => {
            Err(Refusal::bad(format!("At most {BULK_MAX} {many} at once")))
        }
        (None, Some(Value::Array(list))) if !list.is_empty() => {
            Ok((list.into_iter().map(object).collect::<Result<_, _>>()?, true))
        }
        _ => Err(Refusal::bad(format!("Unable to find '{one}' in request body"))),
    }
}

/// The one thing of a request.
pub fn body(one: &'static str, body: Value) -> Result<Given, Refusal> {
    match body {
        Value::Object(mut map) => match map.remove(one) {
            Some(Value::Object(map)) => Ok(Given(map)),
            _ => Err(Refusal::bad(format!("Unable to find '{one}' in request body"))),
        },
        _ => Err(Refusal::bad(format!("Unable to find '{one}' in request body"))),
    }
}

pub fn invalid(key: &str, value: &Value, reason: &str) -> Refusal {
    Refusal::bad(format!("Invalid input for {key}. Reason: '{}' {reason}.", plain(value)))
        .kind("HTTPBadRequest")
}

fn plain(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(80).collect()
}

impl Given {
    pub fn of(map: Map<String, Value>) -> Self {
        Self(map)
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !value.is_null())
    }

    /// A text; null is the empty one.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(String::new())),
            Some(Value::String(text)) if text.chars().count() > TEXT_MAX => {
                Err(invalid(key, &Value::String(text), &format!("exceeds maximum length of {TEXT_MAX}")))
            }
            Some(Value::String(text)) if text.chars().any(char::is_control) => {
                Err(invalid(key, &Value::String(text), "has control characters"))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(invalid(key, &other, "is not a valid string")),
        }
    }

    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => boolean(&plain(&other))
                .map(Some)
                .ok_or_else(|| invalid(key, &other, "cannot be converted to boolean")),
        }
    }

    pub fn integer(&mut self, key: &str) -> Result<Option<i64>, Refusal> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(other) => {
                let number = other.as_i64().or_else(|| other.as_str()?.trim().parse().ok());
                number.map(Some).ok_or_else(|| invalid(key, &other, "is not an integer"))
            }
        }
    }

    /// Outer none: not given; inner none: null.
    pub fn id(&mut self, key: &str) -> Result<Option<Option<Uuid>>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => {
                let id = value.as_str().and_then(words::id);
                id.map(|id| Some(Some(id))).ok_or_else(|| invalid(key, &value, "is not a valid UUID"))
            }
        }
    }

    pub fn address(&mut self, key: &str) -> Result<Option<Option<IpAddr>>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => address(key, &value).map(|address| Some(Some(address))),
        }
    }

    /// A list; null is the empty one.
    pub fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(Vec::new())),
            Some(Value::Array(list)) if list.len() <= 1000 => Ok(Some(list)),
            Some(other) => Err(invalid(key, &other, "is not a list")),
        }
    }

    /// A list of objects.
    pub fn objects(&mut self, key: &str) -> Result<Option<Vec<Given>>, Refusal> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let objects = list.into_iter().map(|value| match value {
            Value::Object(map) => Ok(Given(map)),
            other => Err(invalid(key, &other, "is not a dictionary")),
        });
        objects.collect::<Result<_, _>>().map(Some)
    }

    pub fn ids(&mut self, key: &str) -> Result<Option<Vec<Uuid>>, Refusal> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let ids = list.iter().map(|value| {
            value.as_str().and_then(words::id).ok_or_else(|| invalid(key, value, "is not a valid UUID"))
        });
        ids.collect::<Result<_, _>>().map(Some)
    }

    /// The project that the new thing is for: the caller's own, or, for an admin, any.
    pub fn project(&mut self, caller: &Caller) -> Result<ProjectId, Refusal> {
        let wanted = [self.take("tenant_id"), self.take("project_id")];
        match wanted.into_iter().flatten().find(|value| !value.is_null()) {
            None => Ok(caller.project()?),
            Some(value) => {
                let id = value.as_str().and_then(words::id).map(ProjectId);
                let id = id.ok_or_else(|| invalid("project_id", &value, "is not a valid project id"))?;
                if caller.may_see(id) {
                    return Ok(id);
                }
                Err(super::sight::not_yours("to make something for another project"))
            }
        }
    }

    /// Refuses what nobody took.
    pub fn end(self) -> Result<(), Refusal> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(_) => {
                let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
                Err(Refusal::bad(format!("Unrecognized attribute(s) '{}'", names.join(", ")))
                    .kind("HTTPBadRequest"))
            }
        }
    }

    /// Refuses an attribute that only an admin may set, where it is given and says something else than `usual`.
    pub fn admin_only(&self, caller: &Caller, key: &str, usual: &Value) -> Result<(), Refusal> {
        match self.0.get(key) {
            Some(value) if value != usual && !caller.is_admin() => {
                Err(super::sight::not_yours(&format!("attribute {key} to be set")))
            }
            _ => Ok(()),
        }
    }
}

pub fn address(key: &str, value: &Value) -> Result<IpAddr, Refusal> {
    let address = value.as_str().and_then(|text| text.trim().parse().ok());
    address.ok_or_else(|| invalid(key, value, "is not a valid IP address"))
}

/// A network in CIDR form; a bare address is a network of one.
pub fn cidr(key: &str, value: &Value) -> Result<IpNet, Refusal> {
    let text = value.as_str().unwrap_or_default().trim();
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| invalid(key, value, "is not a valid CIDR"))
}
