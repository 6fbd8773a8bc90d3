//! `amphi set check`: without a controller, by the server's own rules, with the place of what is wrong.

mod fake;

use fake::{Ended, amphi};
use serde_json::{Value, json};

/// Runs the check on a file of this text.
fn check(text: &[u8]) -> (Ended, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("set.json");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (amphi(None, &["set", "check", &path]), path)
}

#[test]
fn a_good_set_is_printed_as_it_would_be_kept() {
    let set = json!({"members": [
        {"index": 5, "image": "busybox"},
        {"index": 2, "image": "busybox", "name": "db", "options": {"cpu": 80, "mem": 50}}]});
    let (ended, _) = check(set.to_string().as_bytes());
    let ended = ended.with(0);
    let kept: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(kept["members"][0]["name"], "db");
    assert_eq!(kept["members"][1]["name"], "member-5");
    assert_eq!(kept["members"][1]["options"], json!({"cpu": 20, "mem": 50}));
    assert_eq!(kept["volume_mount"], "/data");
    assert_eq!(ended.err, "");
}

#[test]
fn refusals_name_place_and_field() {
    let table: [(&str, &str, Option<&str>); 9] = [
        (
            "{\n \"members\": [\n  {\"index\": 0 \"image\": \"a\"}\n ]\n}",
            ":3:15: expected `,` or `}`",
            Some("members[0]"),
        ),
        ("{\"members\": []}", ":1:13: must be 1 to 64", Some("members")),
        ("{}", ": missing field `members`", Some("members")),
        ("{\"members\": [{\"image\": \"a\"}]}", "missing field `index`", Some("members[0].index")),
        (
            "{\"members\": [{\"index\": 0, \"image\": \"a\"},\n {\"index\": 0, \"image\": \"a\"}]}",
            ":2:12: 0 is taken by another member",
            Some("members[1].index"),
        ),
        (
            "{\"members\": [{\"index\": 0, \"image\": \"a\", \"options\": {\"cpu\": 60}},\n {\"index\": 1, \"image\": \"a\", \"options\": {\"cpu\": 41}}]}",
            ":2:48: the members' cpu shares add up to 101 %",
            Some("members[1].options.cpu"),
        ),
        (
            "{\"members\": [{\"index\": 0, \"image\": \"a\", \"colour\": 1}]}",
            "unknown field `colour`",
            Some("members[0].colour"),
        ),
        (
            "{\"members\": [{\"index\": 0, \"image\": \"a\\u0007\"}]}",
            "control characters",
            Some("members[0].image"),
        ),
        (
            "{\"anchor\": {\"sysctls\": {\"kernel.panic\": \"1\"}}, \"members\": [{\"index\": 0, \"image\": \"a\"}]}",
            ":1:41: only parameters of the set's own namespaces",
            Some("anchor.sysctls.kernel.panic"),
        ),
    ];
    for (text, says, field) in table {
        let (ended, path) = check(text.as_bytes());
        let ended = ended.with(4).says(&format!("error: {path}:")).says(says);
        assert_eq!(ended.out, "", "{text}");
        let named = ended.err.lines().find_map(|line| line.strip_prefix("field: "));
        assert_eq!(named, field, "{text}\n{}", ended.err);
    }
}

#[test]
fn files_that_are_no_json() {
    let (ended, path) = check(b"{\n \xff");
    ended.with(4).says(&format!("{path}:2:2: not UTF-8"));
    let (ended, _) = check(&vec![b' '; (1 << 20) + 1]);
    ended.with(4).says("larger than the 1048576 bytes");
    amphi(None, &["set", "check", "/nonexistent/set.json"])
        .with(2)
        .says("/nonexistent/set.json: cannot be read");
    amphi(None, &["set", "check"]).with(2);
}
