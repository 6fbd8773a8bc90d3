//! Query strings as OpenStack's clients send them: repeated names, numbers and booleans as text, names that a service
//! does not know.

use super::answers::Refusal;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::convert::Infallible;

/// The parameters in the order they came in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The last value of a name: what the services' own frameworks take.
    pub fn one(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// All values of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.one(name).is_some()
    }

    /// A boolean in any of its spellings; none: not given.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        let Some(text) = self.one(name) else { return Ok(None) };
        boolean(text).map(Some).ok_or_else(|| Refusal::field(name, format!("'{text}' is not a boolean")))
    }

    /// A number of at least zero; none: not given.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.one(name) else { return Ok(None) };
        text.trim()
            .parse()
            .map(Some)
            .map_err(|_| Refusal::field(name, format!("'{text}' is not an integer of at least 0")))
    }
}

/// The spellings that oslo.utils' `strutils.bool_from_string` takes in its strict form.
pub fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Some(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Some(false),
        _ => None,
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let query = Query::parse("fields=id&fields=name&limit=5&shared=True&name=a%20b&x");
        assert_eq!(query.all("fields").collect::<Vec<_>>(), ["id", "name"]);
        assert_eq!(query.number("limit"), Ok(Some(5)));
        assert_eq!(query.flag("shared"), Ok(Some(true)));
        assert_eq!(query.one("name"), Some("a b"));
        assert_eq!(query.one("x"), Some(""));
        assert_eq!(query.flag("absent"), Ok(None));
        assert!(query.flag("name").unwrap_err().message.contains("name"));
        assert!(Query::parse("limit=-1").number("limit").is_err());
    }
}
