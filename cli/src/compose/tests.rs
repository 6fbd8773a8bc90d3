//! Whole files as they are met, with all that comes of them: the description and the list of what is left.

use super::*;
use std::path::Path;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compose/testdata")
}

fn around<T>(work: impl FnOnce(&Around<'_>) -> T) -> T {
    work(&Around {
        variable: &|_| None,
        file: &|path| match path {
            "./nginx.conf" => Some("events {}\n".to_owned()),
            "./token.txt" => Some("s3cret\n".to_owned()),
            _ => None,
        },
    })
}

fn told(source: &str, size: Size) -> String {
    match around(|around| import(source, size, around)) {
        Ok(imported) => {
            let left = imported.left.iter().map(|left| format!("{}: {}\n", left.place, left.why));
            let left: String = left.collect();
            format!("{}\n---\n{left}", serde_json::to_string_pretty(&imported.set).unwrap())
        }
        Err(why) => format!("refused: {why}\n"),
    }
}

/// `UPDATE_GOLDEN=1` writes them anew.
#[test]
fn files_as_they_are_met() {
    for name in ["shop", "plain"] {
        let source = std::fs::read_to_string(folder().join(format!("{name}.yaml"))).unwrap();
        let got = told(&source, Size { vcpus: 4, memory_mib: 4096 });
        let golden = folder().join(format!("{name}.golden"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &got).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert!(got == expected, "{name}: UPDATE_GOLDEN=1 writes it anew; it is now\n{got}");
    }
}

#[test]
fn what_matters_of_the_shop() {
    let source = std::fs::read_to_string(folder().join("shop.yaml")).unwrap();
    let Imported { set, left } =
        around(|around| import(&source, Size { vcpus: 4, memory_mib: 4096 }, around)).unwrap();
    let names: Vec<&str> = set.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["db", "migrate", "cache", "app", "proxy"]);
    let by = |name: &str| set.members.iter().find(|member| member.name == name).unwrap();
    assert_eq!(by("db").next_when, NextWhen::Ready);
    assert_eq!(by("migrate").next_when, NextWhen::Finished);
    assert_eq!(by("migrate").restart, RestartPolicy::Never);
    assert_eq!(by("app").next_when, NextWhen::Started, "nobody waits until it is healthy");
    assert_eq!((by("app").options.cpu, by("app").options.mem), (Some(25), Some(25)));
    assert_eq!(by("app").env["DATABASE_URL"], "postgres://shop:secret@db/shop");
    assert_eq!(by("app").args, ["bundle", "exec", "puma -C config"]);
    assert_eq!(set.anchor.hosts["db"].to_string(), "127.0.0.1");
    assert_eq!(by("proxy").files[0].content, "events {}\n");
    assert!(left.iter().any(|left| left.place == "services.proxy.cap_add.SYS_ADMIN"));
    assert!(left.iter().all(|left| !left.why.contains("s3cret")), "secrets are not told");
}

#[test]
fn what_cannot_be_a_set_is_refused_with_the_reason() {
    let size = Size { vcpus: 1, memory_mib: 256 };
    for (source, why) in [
        ("services: {}", "no services"),
        ("services: {a: {image: x, profiles: [p]}}", "no services"),
        (
            "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}",
            "a, b depend on each other",
        ),
        ("services: {a: {image: x, cpus: 2}}", "wants 2 CPUs, more than the whole set"),
        ("services: {a: {image: x, mem_limit: 1g}}", "wants 1g of memory, more than the whole set"),
        ("services: {a: {image: x, cpus: many}}", "is no number of CPUs"),
        ("services: {a: {image: x, cpus: 0.6}, b: {image: x, cpus: 0.6}}", "add up to 120 %"),
        ("services: {a: {image: x, command: \"a 'b\"}}", "a quote that does not end"),
        ("services: {a: {image: \"${IMAGE}\"}}", "the variable IMAGE is not set"),
        ("services: {a: {image: x, user: \"a b\"}}", "members[0].user"),
        ("services: {a b: {image: x}}", "members[0].name"),
    ] {
        let got = told(source, size);
        assert!(got.starts_with("refused: ") && got.contains(why), "{source}\n{got}");
    }
}
