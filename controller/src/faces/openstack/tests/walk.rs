//! Every route, as everybody: nobody gets further than the table says, and nobody touches what is another project's.

use super::super::routes::{Need, Route};
use super::super::{Service, policy};
use super::people::People;
use serde_json::{Value, json};

/// The request of a route: ids of the project `ours` where a path wants one.
fn request(people: &People, route: &Route) -> String {
    let mut before = "";
    let mut path = String::from(route.service.root());
    for segment in route.path.split('/').skip(1) {
        path.push('/');
        match segment.strip_prefix('{') {
            None => path.push_str(segment),
            Some(_)
                if matches!(before, "projects" | "os-quota-sets" | "quotas" | "os-simple-tenant-usage") =>
            {
                path.push_str(&people.project);
            }
            // What is not there is nobody's.
            Some(_) => match people.ours.get(before) {
                Some(id) => path.push_str(id),
                None => path.push_str("0123456789abcdef0123456789abcdef"),
            },
        }
        before = segment;
    }
    format!("{} {path}", route.method)
}

/// Something to send: the action, or an object under the name that the service would look for.
fn body(route: &Route) -> Value {
    if let Some(action) = route.action {
        return json!({ action: {} });
    }
    if matches!(route.method.as_str(), "GET" | "DELETE" | "HEAD") {
        return Value::Null;
    }
    let nouns = route.path.split('/').filter(|s| !s.is_empty() && !s.starts_with('{'));
    let noun = { nouns }.next_back().unwrap_or_default().replace('-', "_");
    let noun = noun.strip_suffix("ies").map(|n| format!("{n}y")).unwrap_or(noun);
    json!({ noun.strip_suffix('s').unwrap_or(&noun): {"name": "renamed", "description": "changed"} })
}

fn place(route: &Route) -> String {
    format!("{} {}{} {}", route.method, route.service.root(), route.path, route.action.unwrap_or_default())
}

#[tokio::test]
async fn nobody_gets_further_than_the_table_says() {
    let people = People::new().await;
    let mut wrong = Vec::new();
    for route in policy() {
        let request = request(&people, &route);
        let anonymous = people.ask("", &request, body(&route)).await.status;
        if (anonymous == 401) != (route.need != Need::Public) && route.path != "/v3/auth/tokens" {
            wrong.push(format!("{}: without a token: {anonymous}", place(&route)));
        }
        if anonymous >= 500 {
            wrong.push(format!("{}: without a token: {anonymous}", place(&route)));
        }
        for (who, need) in [("nobody", Need::Reader), ("reader", Need::Member), ("member", Need::Admin)] {
            if route.need < need {
                continue;
            }
            let before = people.cloud.ops.world().read().revision();
            let answer = people.ask(&people.tokens[who], &request, body(&route)).await;
            if answer.status != 403 {
                wrong.push(format!("{}: as {who}: {} {}", place(&route), answer.status, answer.body));
            }
            let after = people.cloud.ops.world().read().revision();
            if after != before {
                wrong.push(format!("{}: as {who}: something was changed", place(&route)));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

/// Paths that tell of nobody's things, or of the caller's own.
fn his_own(route: &Route) -> bool {
    // What every project begins with.
    const DEFAULTS: [&str; 2] = ["/v2.1/os-quota-sets/{id}/defaults", "/v3/os-quota-sets/{id}/defaults"];
    !route.path.contains('{')
        || DEFAULTS.contains(&route.path)
        || (route.service == Service::Identity && route.need == Need::Token)
}

#[tokio::test]
async fn a_stranger_finds_nothing_and_changes_nothing() {
    let people = People::new().await;
    let stranger = &people.tokens["stranger"];
    let mut wrong = Vec::new();
    for route in policy().into_iter().filter(|r| r.need != Need::Public && !his_own(r)) {
        let request = request(&people, &route);
        if !people.ours.values().chain([&people.project]).any(|id| request.contains(id.as_str())) {
            continue;
        }
        let before = people.cloud.ops.world().read().revision();
        let answer = people.ask(stranger, &request, body(&route)).await;
        let after = people.cloud.ops.world().read().revision();
        // A body that is wrong by itself may be refused before anybody looks whose the thing is.
        let refused = match route.method.as_str() {
            "GET" | "DELETE" => matches!(answer.status, 403 | 404),
            _ => matches!(answer.status, 400 | 403 | 404 | 415),
        };
        if !refused {
            wrong.push(format!("{}: {} {}", place(&route), answer.status, answer.body));
        }
        if after != before {
            wrong.push(format!("{}: something was changed", place(&route)));
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));

    // And no list of his shows any of it.
    for route in
        policy().into_iter().filter(|r| r.method == "GET" && r.need != Need::Public && !r.path.contains('{'))
    {
        let request = request(&people, &route);
        let answer =
            people.ask(stranger, &format!("{request}?all_tenants=1&all_projects=1"), Value::Null).await;
        let text = answer.body.to_string();
        for (what, id) in &people.ours {
            assert!(!text.contains(id.as_str()), "{}: shows one of our {what}", place(&route));
        }
    }
}
