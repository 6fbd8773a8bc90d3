//! What holds for all services at once: the policy table as it is written down, and that every route keeps it.

mod fuzz;
mod people;
mod walk;

use super::*;
use std::fmt::Write;

#[test]
fn every_path_has_one_handler_per_method_and_the_policy_is_as_written_down() {
    for service in Service::ALL {
        let mut text = String::new();
        for route in policy().into_iter().filter(|route| route.service == service) {
            let action = route.action.map(|name| format!(" {name}")).unwrap_or_default();
            let need = format!("{:?}", route.need);
            let _ = writeln!(text, "{need:7} {:6} {}{}{action}", route.method, service.root(), route.path);
        }
        insta::assert_snapshot!(format!("policy_{service:?}"), text);
    }
}

/// A service of a few routes, to see what the frame around every service does.
async fn sample(service: Service) -> axum::Router {
    use axum::http::Method;
    use routes::{Call, Need};
    let shown = async |version: microversion::Microversion, query: query::Query| {
        axum::Json(serde_json::json!({"version": version.to_string(), "name": query.one("name")}))
    };
    let routes = Routes::new(service)
        .on(Method::GET, "/open", Need::Public, shown)
        .get("/closed", Need::Reader, async || "never")
        .action("/things/{id}/action", "os-go", Need::Member, async |call: Call| {
            Err(answers::Refusal::not_found("thing", call.id))
        })
        .get("/panics", Need::Public, async || -> () { panic!("secret") })
        .rewrite(|path| path.strip_prefix("/p1").map(str::to_owned));
    let cloud = crate::ops::tests::Cloud::new().await;
    let state = OpenStack::new(cloud.ops.clone());
    axum::Router::new().nest_service("/x", routes.into_service(state))
}

async fn ask(
    router: &axum::Router,
    request: &str,
    headers: &[(&str, &str)],
) -> (u16, axum::http::HeaderMap, String) {
    use tower::ServiceExt;
    let (method, path) = request.split_once(' ').unwrap();
    let mut builder = axum::http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let response = router.clone().oneshot(builder.body(axum::body::Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (parts.status.as_u16(), parts.headers, String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn the_frame_around_a_service() {
    let router = sample(Service::Compute).await;
    let version = [("x-openstack-nova-api-version", "2.79")];
    let (status, headers, body) = ask(&router, "GET /x/open?name=a&name=b", &version).await;
    assert_eq!((status, body.as_str()), (200, r#"{"version":"2.79","name":"b"}"#));
    assert_eq!(headers["x-openstack-nova-api-version"], "2.79");
    assert_eq!(headers["openstack-api-version"], "compute 2.79");
    assert_eq!(headers.get_all("vary").iter().count(), 2);
    assert!(headers["x-openstack-request-id"].to_str().unwrap().starts_with("req-"));
    assert_eq!(headers["x-openstack-request-id"], headers["x-compute-request-id"]);

    let (status, _, body) = ask(&router, "GET /x/p1/open", &[]).await;
    assert_eq!(
        (status, body.as_str()),
        (200, r#"{"version":"2.1","name":null}"#),
        "the other form of the path"
    );
    let (status, headers, body) = ask(&router, "GET /x/closed", &[]).await;
    assert_eq!(status, 401, "{body}");
    assert!(headers.contains_key("www-authenticate"));
    assert_eq!(ask(&router, "POST /x/things/1/action", &[("x-auth-token", "nonsense")]).await.0, 401);
    for (request, headers, status, word) in [
        ("GET /x/absent", &[][..], 404, "itemNotFound"),
        ("DELETE /x/open", &[], 405, "badMethod"),
        ("GET /x/open", &[("x-openstack-nova-api-version", "9.9")], 406, "computeFault"),
        ("GET /x/panics", &[], 500, "the controller's log"),
    ] {
        let (got, headers, body) = ask(&router, request, headers).await;
        assert_eq!(got, status, "{request}: {body}");
        assert!(body.contains(word) && !body.contains("secret"), "{request}: {body}");
        assert!(headers.contains_key("x-openstack-request-id"), "{request}");
    }
    let (_, _, body) = ask(&sample(Service::Network).await, "GET /x/absent", &[]).await;
    assert_eq!(
        body,
        r#"{"NeutronError":{"type":"HTTPNotFound","message":"The resource could not be found.","detail":""}}"#
    );
}
