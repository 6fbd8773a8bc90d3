//! The face by its routes: answers' forms, who is let in, and that no malformed request is a fault of ours.

use super::super::{OpenStack, router};
use crate::ops::tests::Cloud;
use amphi_api::ProjectId;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

const PASSWORD: &str = "correct horse";

struct Face {
    router: Router,
    _cloud: Cloud,
}

impl Face {
    async fn new() -> Self {
        let cloud = Cloud::new().await;
        cloud.ops.bootstrap_identity(PASSWORD).await.unwrap();
        Self { router: router(&OpenStack::new(cloud.ops.clone())), _cloud: cloud }
    }

    async fn send(&self, token: &str, request: &str, body: Value) -> (u16, HeaderMap, Value) {
        let (method, path) = request.split_once(' ').unwrap();
        let mut builder = Request::builder()
            .method(method)
            .uri(format!("/identity{path}"))
            .header("host", "c:1")
            .header("x-subject-token", token);
        if !token.is_empty() {
            builder = builder.header("x-auth-token", token);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let answer = self.router.clone().oneshot(builder.body(body).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        (parts.status.as_u16(), parts.headers, value)
    }

    async fn ask(&self, token: &str, request: &str, body: Value) -> (u16, Value) {
        let (status, _, body) = self.send(token, request, body).await;
        (status, body)
    }

    async fn token(&self, user: &str, scope: Value) -> String {
        let mut auth = json!({"identity": {"methods": ["password"], "password": {"user": {
            "name": user, "domain": {"id": "default"}, "password": PASSWORD}}}});
        if !scope.is_null() {
            auth["scope"] = scope;
        }
        let (status, headers, body) = self.send("", "POST /v3/auth/tokens", json!({"auth": auth})).await;
        assert_eq!(status, 201, "{body}");
        headers["x-subject-token"].to_str().unwrap().to_owned()
    }

    async fn admin(&self) -> String {
        self.token("admin", json!({"project": {"name": "admin", "domain": {"name": "Default"}}})).await
    }

    /// Makes something; its id.
    async fn make(&self, token: &str, noun: &str, plural: &str, fields: Value) -> String {
        let (status, body) = self.ask(token, &format!("POST /v3/{plural}"), json!({ noun: fields })).await;
        assert_eq!(status, 201, "{noun}: {body}");
        body[noun]["id"].as_str().unwrap().to_owned()
    }

    /// A user with a role on a project of its own; the token for it.
    async fn user(&self, admin: &str, name: &str, role: &str) -> (String, String, String) {
        let user = self.make(admin, "user", "users", json!({"name": name, "password": PASSWORD})).await;
        let project = self.make(admin, "project", "projects", json!({"name": name})).await;
        let (_, roles) = self.ask(admin, &format!("GET /v3/roles?name={role}"), Value::Null).await;
        let role = roles["roles"][0]["id"].as_str().unwrap();
        let path = format!("PUT /v3/projects/{project}/users/{user}/roles/{role}");
        assert_eq!(self.ask(admin, &path, Value::Null).await.0, 204);
        (user, project.clone(), self.token(name, json!({"project": {"id": project}})).await)
    }
}

/// Ids and times replaced, so that the form can be compared.
fn formed(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Array(all) => all.iter_mut().for_each(walk),
            Value::Object(map) => map.iter_mut().for_each(|(key, value)| match value {
                Value::String(text) if key.ends_with("_at") => *text = "TIME".into(),
                Value::Array(all) if key == "audit_ids" => {
                    *all = vec![json!(format!("{} audit ids", all.len()))]
                }
                Value::String(text) => {
                    let words = text.split('/').map(|part| {
                        let hex = part.len() == 32 && part.bytes().all(|b| b.is_ascii_hexdigit());
                        if hex { "ID" } else { part }
                    });
                    *text = words.collect::<Vec<_>>().join("/");
                }
                value => walk(value),
            }),
            _ => {}
        }
    }
    walk(&mut value);
    value
}

#[tokio::test]
async fn forms() {
    let face = Face::new().await;
    let admin = face.admin().await;
    let mut text = String::new();
    let requests = [
        ("GET /", Value::Null),
        ("GET /v3", Value::Null),
        ("GET /v3/auth/tokens?nocatalog", Value::Null),
        ("GET /v3/auth/projects", Value::Null),
        ("GET /v3/auth/domains", Value::Null),
        ("GET /v3/auth/system", Value::Null),
        ("GET /v3/domains/default", Value::Null),
        ("POST /v3/projects", json!({"project": {"name": "p", "colour": "red", "tags": ["a"]}})),
        ("POST /v3/users", json!({"user": {"name": "u", "password": "p", "email": "u@x"}})),
        ("POST /v3/groups", json!({"group": {"name": "g"}})),
        ("POST /v3/roles", json!({"role": {"name": "r"}})),
        ("POST /v3/services", json!({"service": {"type": "t"}})),
        ("POST /v3/regions", json!({"region": {"id": "R2", "parent_region_id": "RegionOne"}})),
        ("GET /v3/role_assignments?include_names=True", Value::Null),
        ("GET /v3/role_inferences", Value::Null),
        ("GET /v3/users?name=nobody", Value::Null),
        ("GET /v3/users/nobody", Value::Null),
        ("POST /v3/users", json!({"user": {}})),
        ("POST /v3/projects", json!({"project": {"name": "p"}})),
        ("PATCH /v3", Value::Null),
    ];
    for (request, body) in requests {
        let (status, answer) = face.ask(&admin, request, body).await;
        text += &format!("{request}\n{status} {:#}\n\n", formed(answer));
    }
    let (_, whole) = face.ask(&admin, "GET /v3/auth/tokens", Value::Null).await;
    for service in whole["token"]["catalog"].as_array().unwrap() {
        let public =
            service["endpoints"].as_array().unwrap().iter().find(|e| e["interface"] == "public").unwrap();
        text +=
            &format!("{} {} {} {}\n", service["type"], service["name"], public["region_id"], public["url"]);
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn administrators_others_and_strangers() {
    let face = Face::new().await;
    let admin = face.admin().await;
    let (dave, own, member) = face.user(&admin, "dave", "member").await;
    let (mary, other, _) = face.user(&admin, "mary", "reader").await;
    let unscoped = face.token("dave", json!("unscoped")).await;
    // Path, the administrator, a member, an unscoped token, no token.
    let table = [
        ("/v3/users".to_owned(), 200, 403, 403, 401),
        ("/v3/projects".into(), 200, 403, 403, 401),
        ("/v3/roles".into(), 200, 403, 403, 401),
        ("/v3/services".into(), 200, 403, 403, 401),
        ("/v3/role_assignments".into(), 200, 403, 403, 401),
        ("/v3/regions".into(), 200, 200, 200, 401),
        (format!("/v3/users/{dave}"), 200, 200, 200, 401),
        (format!("/v3/users/{mary}"), 200, 403, 403, 401),
        (format!("/v3/users/{dave}/projects"), 200, 200, 200, 401),
        (format!("/v3/users/{mary}/projects"), 200, 403, 403, 401),
        (format!("/v3/users/{mary}/application_credentials"), 200, 403, 403, 401),
        (format!("/v3/projects/{own}"), 200, 200, 200, 401),
        (format!("/v3/projects/{other}"), 200, 403, 403, 401),
        (format!("/v3/projects/{own}/users/{dave}/roles"), 200, 403, 403, 401),
        ("/v3/auth/catalog".into(), 200, 200, 403, 401),
        ("/v3/auth/projects".into(), 200, 200, 200, 401),
    ];
    for (path, of_admin, of_member, of_unscoped, of_nobody) in table {
        for (token, wanted) in
            [(&admin, of_admin), (&member, of_member), (&unscoped, of_unscoped), (&String::new(), of_nobody)]
        {
            let (status, body) = face.ask(token, &format!("GET {path}"), Value::Null).await;
            assert_eq!(status, wanted, "{path}: {body}");
            assert_eq!(body["error"]["code"].as_u64(), (wanted >= 400).then_some(wanted.into()), "{path}");
        }
    }
    // Nobody helps themselves to more.
    let (_, roles) = face.ask(&admin, "GET /v3/roles?name=admin", Value::Null).await;
    let role = roles["roles"][0]["id"].as_str().unwrap();
    let path = format!("PUT /v3/projects/{own}/users/{dave}/roles/{role}");
    assert_eq!(face.ask(&member, &path, Value::Null).await.0, 403);
    let wish = json!({"application_credential": {"name": "c", "roles": [{"name": "admin"}]}});
    let path = format!("POST /v3/users/{dave}/application_credentials");
    assert_eq!(face.ask(&member, &path, wish.clone()).await.0, 400);
    assert_eq!(face.ask(&admin, &path, wish).await.0, 403, "not even an administrator speaks for others");
}

#[tokio::test]
async fn tokens_by_their_routes() {
    let face = Face::new().await;
    let admin = face.admin().await;
    let (_, _, member) = face.user(&admin, "dave", "member").await;
    let (status, headers, shown) = face.send(&member, "GET /v3/auth/tokens", Value::Null).await;
    assert_eq!((status, headers["x-subject-token"].to_str().unwrap()), (200, member.as_str()));
    assert_eq!(shown["token"]["user"]["name"], "dave");
    assert_eq!(face.ask(&member, "HEAD /v3/auth/tokens", Value::Null).await.0, 200);
    assert_eq!(face.ask(&member, "DELETE /v3/auth/tokens", Value::Null).await.0, 204);
    assert_eq!(face.ask(&member, "GET /v3/auth/tokens", Value::Null).await.0, 401);
    let spoken_of = Request::get("/identity/v3/auth/tokens").header("x-auth-token", &admin);
    let spoken_of = spoken_of.header("x-subject-token", &member).body(Body::empty()).unwrap();
    let answer = face.router.clone().oneshot(spoken_of).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND, "a revoked token is none");
    let wrong = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": {
        "name": "nobody", "domain": {"id": "default"}, "password": "wrong"}}}}});
    // Somebody who has come in from here before waits instead; see `guesses`.
    for attempt in 0..8 {
        let (status, headers, _) = face.send("", "POST /v3/auth/tokens", wrong.clone()).await;
        match attempt {
            0 => assert_eq!(status, 401),
            7 => assert!(status == 429 && headers.contains_key("retry-after"), "{status}"),
            _ => {}
        }
    }
}

/// Every route, with bodies of every wrong shape: an answer of our own, never a 500.
#[tokio::test]
async fn malformed_requests_are_refused_and_nothing_else() {
    let face = Face::new().await;
    let admin = face.admin().await;
    let long = "x".repeat(70_000);
    let shapes = [
        Value::Null,
        json!([]),
        json!("text"),
        json!({"auth": {"identity": {"methods": ["password", "token"], "password": [], "token": 1}}}),
    ];
    let values =
        [json!(null), json!(1), json!([]), json!({}), json!(""), json!(long), json!("\u{0}"), json!(-1e300)];
    let fields = [
        "name",
        "enabled",
        "domain_id",
        "parent_id",
        "tags",
        "options",
        "type",
        "url",
        "password",
        "roles",
        "service_id",
        "region_id",
        "parent_region_id",
        "expires_at",
        "default_project_id",
        "description",
        "is_domain",
    ];
    let id = uuid::Uuid::new_v4().simple().to_string();
    for route in super::super::policy() {
        if route.service != super::super::Service::Identity {
            continue;
        }
        let noun = route.path.split('/').nth(2).unwrap_or_default().trim_end_matches('s').to_owned();
        let noun = if route.path.contains("application_credentials") {
            "application_credential".into()
        } else {
            noun
        };
        for word in ["x", "%00", &id, "..%2f", "default"] {
            let path = route.path.split('/').map(|part| if part.starts_with('{') { word } else { part });
            let path = path.collect::<Vec<_>>().join("/");
            let mut bodies = shapes.to_vec();
            if word == "default" {
                let singles = fields.iter().flat_map(|f| values.iter().map(move |v| json!({ *f: v })));
                let valid = json!({"name": "n", "type": "t", "url": "http://x", "password": "p"});
                bodies.extend(singles.map(|single| {
                    let mut whole = valid.clone();
                    whole.as_object_mut().unwrap().extend(single.as_object().unwrap().clone());
                    json!({ noun.clone(): whole })
                }));
            }
            for body in bodies {
                // A token of one's own is not revoked here, nor the default domain switched off.
                let request = format!("{} {path}?limit=x&enabled=maybe", route.method);
                if request.starts_with("DELETE /v3/auth")
                    || request.starts_with("PATCH /v3/domains/default")
                    || request.starts_with("PATCH /v3/projects/default")
                {
                    continue;
                }
                let (status, answer) = face.ask(&admin, &request, body.clone()).await;
                let short: String = body.to_string().chars().take(200).collect();
                assert!(status < 500, "{request} {short}: {status} {answer}");
            }
        }
    }
    let (status, _) = face.ask(&admin, "GET /v3/auth/tokens", Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(crate::ops::identity::Caller::operator().project, Some(ProjectId::DEFAULT));
}
