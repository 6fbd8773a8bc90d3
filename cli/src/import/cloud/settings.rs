//! Which cloud, and as whom: an entry of clouds.yaml, or the `OS_*` variables, as OpenStack's own clients read them.
//! Refuses kinds of login that it does not have, by name. Secrets stay in memory and are never printed.

use crate::failure::Failure;
use crate::yaml;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Largest clouds.yaml, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// How to log in somewhere.
#[derive(Clone, PartialEq)]
pub struct Settings {
    /// Ends with `/v3`.
    pub auth_url: String,
    /// Identity v3's `auth` object.
    pub login: Value,
    pub region: Option<String>,
    /// Of endpoints: `public`, `internal` or `admin`.
    pub interface: String,
    /// PEM, to be trusted beside the system's.
    pub cacert: Option<PathBuf>,
}

impl Settings {
    /// The entry `name` of the first clouds.yaml that is found.
    pub fn named(name: &str) -> Result<Self, Failure> {
        let file = files().into_iter().find(|file| file.is_file()).ok_or_else(|| {
            Failure::new(2, format!("no clouds.yaml that could name '{name}'"))
                .next("put it here, into ~/.config/openstack, or name it in OS_CLIENT_CONFIG_FILE")
        })?;
        let unreadable = |e: std::io::Error| Failure::new(2, format!("{}: {e}", file.display()));
        if file.metadata().map_err(unreadable)?.len() > FILE_MAX {
            return Err(Failure::new(2, format!("{}: larger than {FILE_MAX} bytes", file.display())));
        }
        let text = std::fs::read_to_string(&file).map_err(unreadable)?;
        Self::of_text(&text, name).map_err(|why| Failure::new(2, format!("{}: {why}", file.display())))
    }

    fn of_text(text: &str, name: &str) -> Result<Self, String> {
        let all = yaml::read(text)?;
        let cloud = all.pointer("/clouds").and_then(|c| c.get(name)).ok_or_else(|| {
            let known = all.pointer("/clouds").and_then(Value::as_object);
            let known: Vec<_> = known.into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
            format!("no cloud '{name}'; there are: {}", known.join(", "))
        })?;
        if cloud.get("verify").and_then(Value::as_bool) == Some(false) {
            return Err(format!("cloud '{name}': verify: false is not taken; name its CA in cacert"));
        }
        let plain = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let auth = |key: &str| cloud.get("auth").and_then(|a| a.get(key)).and_then(plain);
        let top = |key: &str| cloud.get(key).and_then(plain);
        let kind = top("auth_type");
        Self::of(&|key| match key {
            "region_name" | "interface" | "cacert" => top(key),
            "auth_type" => kind.clone(),
            _ => auth(key),
        })
    }

    /// What the `OS_*` variables say.
    pub fn of_environment() -> Result<Self, Failure> {
        let variable = |key: &str| {
            let name = format!("OS_{}", key.to_uppercase());
            std::env::var(name).ok().filter(|text| !text.is_empty())
        };
        Self::of(&variable).map_err(|why| {
            Failure::new(2, format!("OS_* variables: {why}"))
                .next("set them, or name an entry of clouds.yaml")
        })
    }

    /// By the names that clouds.yaml has; the variables' are the same in capitals.
    fn of(get: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let need = |key: &str| get(key).ok_or_else(|| format!("{key} is missing"));
        let mut auth_url = need("auth_url")?.trim_end_matches('/').to_owned();
        if !auth_url.starts_with("http://") && !auth_url.starts_with("https://") {
            return Err(format!("auth_url '{auth_url}' must begin with http:// or https://"));
        }
        if !auth_url.ends_with("/v3") {
            auth_url += "/v3";
        }
        let domain = |prefix: &str| {
            let id = get(&format!("{prefix}_domain_id"));
            let name = get(&format!("{prefix}_domain_name"));
            match (id, name) {
                (Some(id), _) => json!({ "id": id }),
                (None, Some(name)) => json!({ "name": name }),
                (None, None) => json!({ "id": "default" }),
            }
        };
        let user = |more: Value| -> Result<Value, String> {
            let mut user = match (get("user_id"), get("username")) {
                (Some(id), _) => json!({ "id": id }),
                (None, Some(name)) => json!({ "name": name, "domain": domain("user") }),
                (None, None) => return Err("username is missing".to_owned()),
            };
            if let (Value::Object(user), Value::Object(more)) = (&mut user, more) {
                user.extend(more);
            }
            Ok(user)
        };
        let login = match get("auth_type").as_deref() {
            Some("v3applicationcredential") => {
                let secret = need("application_credential_secret")?;
                let credential = match get("application_credential_id") {
                    Some(id) => json!({ "id": id, "secret": secret }),
                    None => json!({ "name": need("application_credential_name")?, "secret": secret,
                        "user": user(json!({}))? }),
                };
                json!({ "identity": { "methods": ["application_credential"], "application_credential": credential } })
            }
            None | Some("password" | "v3password") => {
                let project = match (get("project_id"), get("project_name")) {
                    (Some(id), _) => json!({ "id": id }),
                    (None, Some(name)) => json!({ "name": name, "domain": domain("project") }),
                    (None, None) => return Err("project_name is missing".to_owned()),
                };
                let password = user(json!({ "password": need("password")? }))?;
                json!({
                    "identity": { "methods": ["password"], "password": { "user": password } },
                    "scope": { "project": project },
                })
            }
            Some(other) => {
                return Err(format!(
                    "auth_type {other} is not known; password and v3applicationcredential are"
                ));
            }
        };
        let interface = get("interface").unwrap_or_else(|| "public".to_owned());
        let interface = interface.trim_end_matches("URL").to_owned();
        Ok(Self {
            auth_url,
            login,
            region: get("region_name"),
            interface,
            cacert: get("cacert").map(PathBuf::from),
        })
    }
}

/// Where clouds.yaml may lie, the first one wins.
fn files() -> Vec<PathBuf> {
    let named = std::env::var_os("OS_CLIENT_CONFIG_FILE").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/openstack/clouds.yaml"));
    let system = Path::new("/etc/openstack/clouds.yaml").to_owned();
    named.into_iter().chain([PathBuf::from("clouds.yaml")]).chain(home).chain([system]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUDS: &str = "\
clouds:
  old:
    region_name: RegionOne
    interface: publicURL
    auth:
      auth_url: https://old.example:5000
      username: ann
      password: secret
      project_name: shop
      user_domain_name: Default
      project_domain_name: Default
  robot:
    auth_type: v3applicationcredential
    auth:
      auth_url: http://old.example:5000/v3/
      application_credential_id: 0af1
      application_credential_secret: s
  open:
    verify: false
    auth: {auth_url: 'https://x', username: a, password: b, project_name: c}
  odd:
    auth_type: v3oidcpassword
    auth: {auth_url: 'https://x'}
";

    #[test]
    fn clouds_by_name() {
        let old = Settings::of_text(CLOUDS, "old").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(old.auth_url, "https://old.example:5000/v3");
        assert_eq!((old.region.as_deref(), old.interface.as_str()), (Some("RegionOne"), "public"));
        assert_eq!(old.login.pointer("/scope/project/name"), Some(&json!("shop")));
        assert_eq!(old.login.pointer("/identity/password/user/domain/name"), Some(&json!("Default")));
        let robot = Settings::of_text(CLOUDS, "robot").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(robot.auth_url, "http://old.example:5000/v3");
        assert_eq!(robot.login.pointer("/identity/application_credential/id"), Some(&json!("0af1")));
        assert_eq!(robot.login.pointer("/scope"), None);
        for (name, why) in [("open", "cacert"), ("odd", "v3oidcpassword"), ("none", "there are: ")] {
            let said = Settings::of_text(CLOUDS, name).err().unwrap_or_default();
            assert!(said.contains(why), "{name}: {said}");
        }
    }
}
