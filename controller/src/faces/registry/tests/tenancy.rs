//! Who may what: passes, roles, strangers, what is open to everybody, and tags that never change.

use super::*;
use crate::ops::identity::{AppCredentialWish, Login, ProjectRef, Proof, ScopeWish};
use amphi_api::RepositoryId;
use amphi_api::repository::{RepositoryChange, RepositoryVisibility, Retention};
use jiff::{SignedDuration, Timestamp};

#[tokio::test]
async fn passes() {
    let desk = Desk::new().await;
    desk.push("alice", "shop/web", "v1", "hello").await;
    let challenge = desk.plain("GET /v2/", None).await;
    assert_eq!((challenge.status, challenge.code().as_str()), (401, "UNAUTHORIZED"));
    let want = "Bearer realm=\"http://127.0.0.1:8774/v2/token\",service=\"amphi\"";
    assert_eq!(challenge.header("www-authenticate"), want);
    let challenge = desk.plain("GET /v2/shop/web/manifests/v1", None).await;
    assert_eq!(challenge.header("www-authenticate"), format!("{want},scope=\"repository:shop/web:pull\""));
    // Rows: who, what is asked for, what is given.
    for (who, scope, given) in [
        ("alice", "repository:shop/web:pull,push", "repository:shop/web:pull,push"),
        ("alice", "repository:shop/web:*", "repository:shop/web:pull,push,delete"),
        ("alice", "repository:shop/new:pull,push", "repository:shop/new:pull,push"),
        ("alice", "repository:other/web:pull", ""),
        ("alice", "repository:mirror/hub/web:pull,push", "repository:mirror/hub/web:pull"),
        ("rita", "repository:shop/web:pull,push", "repository:shop/web:pull"),
        ("eve", "repository:shop/web:pull", ""),
        ("", "repository:shop/web:pull", ""),
        ("", "repository:mirror/hub/web:pull", ""),
    ] {
        let pass = desk.pass(who, &format!("service=amphi&scope={scope}")).await;
        assert_eq!((pass.status, pass.json()["scope"].as_str()), (200, Some(given)), "{who} {scope}");
        assert!(pass.json()["expires_in"].as_i64().unwrap() >= 60);
    }
    let token = |pass: Answer| format!("Bearer {}", pass.json()["token"].as_str().unwrap());
    let narrow = token(desk.pass("alice", "service=amphi&scope=repository:shop/web:pull").await);
    assert_eq!(desk.plain("GET /v2/shop/web/manifests/v1", Some(&narrow)).await.status, 200);
    for beyond in
        ["GET /v2/shop/api/tags/list", "POST /v2/shop/web/blobs/uploads/", "DELETE /v2/shop/web/manifests/v1"]
    {
        let refused = desk.plain(beyond, Some(&narrow)).await;
        assert_eq!(refused.status, 401, "{beyond}");
        assert!(refused.header("www-authenticate").ends_with("error=\"insufficient_scope\""));
    }
    for bad in ["Bearer x", "Bearer ", "Basic YTpi", "x"] {
        assert_eq!(desk.plain("GET /v2/", Some(bad)).await.status, 401, "{bad}");
    }
    let wrong = format!("Basic {}", STANDARD.encode("alice:wrong"));
    let refused = desk.plain("GET /v2/token?service=amphi", Some(&wrong)).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "UNAUTHORIZED"));
    assert_eq!(desk.plain("GET /v2/token?service=amphi", Some("Basic %%%")).await.status, 401);
    assert_eq!(desk.pass("alice", "service=elsewhere").await.status, 403);
    // Whoever guesses waits: the throttle of passwords is the identity's.
    let guess = format!("Basic {}", STANDARD.encode("bob:wrong"));
    let guesses = (0..20).map(|_| desk.plain("GET /v2/token?service=amphi", Some(&guess)));
    let guesses = futures_util::future::join_all(guesses).await;
    let slowed =
        guesses.iter().find(|answer| answer.status == 429).expect("twenty guesses at once are too many");
    assert_eq!(slowed.code(), "TOOMANYREQUESTS");
    assert!(!slowed.header("retry-after").is_empty());
}

#[tokio::test]
async fn application_credentials_and_tokens() {
    let desk = Desk::new().await;
    desk.push("alice", "shop/web", "v1", "hello").await;
    let domain = crate::ops::identity::DomainRef::Name("Default".into());
    let user = crate::ops::identity::UserRef::Named { name: "alice".into(), domain };
    let login = Login {
        proofs: vec![Proof::Password { user, password: PASSWORD.into() }],
        scope: ScopeWish::Project(ProjectRef::Id(desk.shop.to_string())),
        from: None,
    };
    let (token, caller) = desk.cloud.ops.login(&login).await.unwrap();
    // A token of the identity service does as well, for its project.
    let bearer = format!("Bearer {token}");
    assert_eq!(desk.plain("GET /v2/shop/web/manifests/v1", Some(&bearer)).await.status, 200);
    let wish = AppCredentialWish { name: "ci".into(), roles: vec!["reader".into()], ..Default::default() };
    let (record, secret) = desk.cloud.ops.create_app_credential(&caller, &wish).await.unwrap();
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{secret}", record.id)));
    let path = "GET /v2/token?service=amphi&scope=repository:shop/web:pull,push";
    let pass = desk.plain(path, Some(&basic)).await;
    assert_eq!(pass.json()["scope"], "repository:shop/web:pull", "{}", pass.json());
    let bearer = format!("Bearer {}", pass.json()["token"].as_str().unwrap());
    assert_eq!(desk.plain("GET /v2/shop/web/manifests/v1", Some(&bearer)).await.status, 200);
    desk.cloud.ops.delete_app_credential(&caller, record.user, record.id).await.unwrap();
    assert_eq!(desk.plain("GET /v2/shop/web/manifests/v1", Some(&bearer)).await.status, 401, "at once");
}

#[tokio::test]
async fn strangers_see_nothing() {
    let desk = Desk::new().await;
    let v1 = desk.push("alice", "shop/web", "v1", "hello").await;
    let layer = digest(&tar("hello"));
    for request in [
        "GET /v2/shop/web/manifests/v1".to_owned(),
        format!("GET /v2/shop/web/blobs/{layer}"),
        "GET /v2/shop/web/tags/list".to_owned(),
        format!("GET /v2/shop/web/referrers/{v1}"),
        "DELETE /v2/shop/web/manifests/v1".to_owned(),
        "POST /v2/shop/web/blobs/uploads/".to_owned(),
    ] {
        for who in ["eve", ""] {
            let answer = desk.ask(who, &request, &[], b"").await;
            assert_eq!((answer.status, answer.code().as_str()), (401, "UNAUTHORIZED"), "{who} {request}");
            // The same words as for what is not there.
            let nothing = desk.ask(who, &request.replace("shop/web", "shop/none"), &[], b"").await;
            assert_eq!(answer.body, nothing.body, "{who} {request}");
        }
    }
    assert_eq!(desk.ask("eve", "GET /v2/_catalog", &[], b"").await.json()["repositories"], json!([]));
    // Another project's blob by its digest: not to be seen, mounted or named.
    assert_eq!(desk.ask("eve", &format!("HEAD /v2/other/x/blobs/{layer}"), &[], b"").await.status, 404);
    let mount = format!("POST /v2/other/x/blobs/uploads/?mount={layer}&from=shop/web");
    assert_eq!(desk.ask("eve", &mount, &[], b"").await.status, 202, "an upload, not the blob");
    let manifest = desk.image("alice", "shop/web", "hello").await;
    let refused = desk.put("eve", "other/x", "v1", &manifest).await;
    assert_eq!((refused.status, refused.code().as_str()), (404, "MANIFEST_BLOB_UNKNOWN"));
    // A reader reads.
    assert_eq!(desk.ask("rita", "GET /v2/shop/web/manifests/v1", &[], b"").await.status, 200);
    assert_eq!(desk.ask("rita", "DELETE /v2/shop/web/manifests/v1", &[], b"").await.status, 401);
    // By the project's id as well.
    let id = desk.shop.0.simple();
    assert_eq!(desk.ask("rita", &format!("GET /v2/{id}/web/manifests/v1"), &[], b"").await.status, 200);
}

#[tokio::test]
async fn what_is_public_and_what_never_changes() {
    let desk = Desk::new().await;
    let (ops, id) = (&desk.cloud.ops, RepositoryId::of(desk.shop, "web"));
    let v1 = desk.push("alice", "shop/web", "v1", "hello").await;
    let secret = desk.push("alice", "shop/secret", "v1", "secret").await;
    let change = RepositoryChange {
        visibility: Some(RepositoryVisibility::Public),
        immutable: Some(vec!["v*".into()]),
        ..Default::default()
    };
    ops.change_repository(desk.shop, id, &change).await.unwrap();
    for who in ["eve", ""] {
        assert_eq!(desk.ask(who, "GET /v2/shop/web/manifests/v1", &[], b"").await.status, 200, "{who}");
        let blob = format!("GET /v2/shop/web/blobs/{}", digest(&tar("hello")));
        assert_eq!(desk.ask(who, &blob, &[], b"").await.status, 200, "{who}");
        let hidden = format!("GET /v2/shop/web/blobs/{}", digest(&tar("secret")));
        assert_eq!(desk.ask(who, &hidden, &[], b"").await.status, 404, "{who}: of another repository");
        assert_eq!(
            desk.ask(who, &format!("GET /v2/shop/web/manifests/{secret}"), &[], b"").await.status,
            404
        );
        assert_eq!(desk.ask(who, "GET /v2/shop/secret/manifests/v1", &[], b"").await.status, 401);
    }
    let mount = format!("POST /v2/other/x/blobs/uploads/?mount={}&from=shop/web", digest(&tar("hello")));
    assert_eq!(desk.ask("eve", &mount, &[], b"").await.status, 201, "what may be pulled may be mounted");

    let other = desk.image("alice", "shop/web", "other").await;
    let refused = desk.put("alice", "shop/web", "v1", &other).await;
    assert_eq!((refused.status, refused.code().as_str()), (409, "DENIED"));
    assert!(refused.json()["errors"][0]["message"].as_str().unwrap().contains("'v1' never changes"));
    assert_eq!(desk.push("alice", "shop/web", "v1", "hello").await, v1, "the same again is no change");
    assert_eq!(desk.ask("alice", "DELETE /v2/shop/web/manifests/v1", &[], b"").await.status, 409);
    assert_eq!(desk.ask("alice", &format!("DELETE /v2/shop/web/manifests/{v1}"), &[], b"").await.status, 409);
    let kept = {
        let view = ops.world().read();
        view.tagged(desk.shop, "web:v1").map(|row| row.id).unwrap()
    };
    let refused = ops.delete_image(desk.shop, kept).await.unwrap_err();
    assert!(refused.to_string().contains("'v1' never changes"), "{refused}");
    assert_eq!(desk.put("alice", "shop/web", "latest", &other).await.status, 201);
    assert_eq!(desk.push("alice", "shop/web", "latest", "hello").await, v1, "this one may move");

    // Names of set descriptions.
    let image = |scope: ProjectId, text: &str| {
        let view = ops.world().read();
        view.tagged(scope, text).map(|row| row.id)
    };
    let eve = desk.cloud.ops.world().read().identity.project_named(DomainId::DEFAULT, "other").unwrap().id;
    let found = image(desk.shop, "web:v1");
    assert!(found.is_some());
    for text in ["web", "web:latest", "shop/web:v1", &format!("web@{v1}")] {
        assert_eq!(image(desk.shop, text), found, "{text}");
    }
    assert_eq!(image(eve, "shop/web:v1"), found, "open to everybody");
    assert_eq!((image(eve, "shop/secret:v1"), image(eve, "web:v1")), (None, None));

    // Retention takes what is neither kept nor immutable.
    let retention = Retention { keep_last: Some(1), keep_days: None, untagged_days: Some(1) };
    let change = RepositoryChange { retention: Some(retention), ..Default::default() };
    let later = |days: i64| Timestamp::now() + SignedDuration::from_hours(24 * days);
    for tag in ["a", "b", "c"] {
        desk.push("alice", "shop/web", tag, tag).await;
    }
    ops.change_repository(desk.shop, id, &change).await.unwrap();
    ops.retain(later(0)).await.unwrap();
    assert_eq!(ops.tag_names(desk.shop, "web").unwrap(), ["c", "v1"]);
    assert_eq!(ops.repository(desk.shop, id).unwrap().manifests, 5, "those without a tag wait");
    ops.retain(later(2)).await.unwrap();
    assert_eq!(ops.repository(desk.shop, id).unwrap().manifests, 2);
    assert_eq!(desk.ask("rita", "GET /v2/shop/web/manifests/v1", &[], b"").await.status, 200);
}
