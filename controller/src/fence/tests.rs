use super::*;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    // Written by another process: a descriptor of ours, inherited by a fork elsewhere, would make it busy.
    let quoted = format!("cat >{} <<'END'\n#!/bin/sh\n{text}\nEND\n", path.display());
    assert!(std::process::Command::new("sh").arg("-c").arg(quoted).status().unwrap().success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

fn command(argv: &[&str], timeout_seconds: u64) -> Fence {
    let argv = argv.iter().map(|a| (*a).to_owned()).collect();
    FenceConfig::Command { argv, timeout_seconds }.open().unwrap()
}

#[tokio::test]
async fn a_command_says_by_its_exit_code() {
    command(&["/bin/sh", "-c", "test \"$AMPHI_FENCE_HOST\" = h1"], 5).fence("h1").await.unwrap();
    let refused =
        command(&["/bin/sh", "-c", "echo broken PDU >&2; exit 3"], 5).fence("h1").await.unwrap_err();
    let told = refused.to_string();
    assert!(told.contains("'h1'") && told.contains("broken PDU") && told.contains('3'), "{told}");
    let late = command(&["/bin/sleep", "60"], 1).fence("h1").await.unwrap_err();
    assert!(matches!(late, FenceError::Late { seconds: 1, .. }), "{late}");
    assert!(command(&["/no/such/program"], 1).fence("h1").await.is_err());
}

#[tokio::test]
async fn ipmi_asks_until_the_host_is_off_and_hides_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("password");
    std::fs::write(&secret, "hunter2\n").unwrap();
    // Off at the second question.
    let program = script(
        dir.path(),
        "ipmitool",
        "echo \"$@\" >>\"$(dirname \"$0\")/log\"\ncase \"$*\" in *status) n=\"$(dirname \"$0\")/n\"; if [ -e $n ]; then echo Chassis Power is off; else touch $n; echo Chassis Power is on; fi;; *) echo Down/Off;; esac",
    );
    let fence = FenceConfig::Ipmi {
        address: "10.0.0.5".into(),
        user: "admin".into(),
        password_file: secret.clone(),
        program,
        timeout_seconds: 10,
    };
    fence.open().unwrap().fence("h1").await.unwrap();
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let verbs: Vec<&str> = log.lines().filter_map(|l| l.split_whitespace().last()).collect();
    assert_eq!(verbs, ["off", "status", "status"]);
    assert!(log.contains("-H 10.0.0.5 -U admin -f ") && !log.contains("hunter2"), "{log}");

    let deaf = script(dir.path(), "deaf", "echo no route to BMC >&2; exit 1");
    let FenceConfig::Ipmi { address, user, password_file, .. } = fence else { unreachable!() };
    let deaf = FenceConfig::Ipmi { address, user, password_file, program: deaf, timeout_seconds: 5 };
    let told = deaf.open().unwrap().fence("h1").await.unwrap_err().to_string();
    assert!(told.contains("no route to BMC") && !told.contains("hunter2"), "{told}");
}

/// A BMC whose host is off two questions after the order.
#[derive(Default)]
struct Bmc {
    ordered: Option<Value>,
    questions: u32,
}

type Shared = Arc<Mutex<Bmc>>;

async fn system(State(bmc): State<Shared>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    // admin:hunter2
    if headers.get("authorization").is_none_or(|v| v != "Basic YWRtaW46aHVudGVyMg==") {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let mut bmc = bmc.lock().unwrap();
    bmc.questions += 1;
    let off = bmc.ordered.is_some() && bmc.questions > 2;
    Ok(Json(json!({"PowerState": if off { "Off" } else { "On" },
        "Actions": {"#ComputerSystem.Reset": {"target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"}}})))
}

#[tokio::test]
async fn redfish_forces_off_and_waits_for_the_power_state() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bmc = Shared::default();
    let reset = |State(bmc): State<Shared>, Json(body): Json<Value>| async move {
        bmc.lock().unwrap().ordered = Some(body);
        StatusCode::NO_CONTENT
    };
    let routes = axum::Router::new()
        .route("/redfish/v1/Systems/1", get(system))
        .route("/redfish/v1/Systems/1/Actions/ComputerSystem.Reset", post(reset))
        .with_state(bmc.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, routes).into_future());
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("password");
    std::fs::write(&secret, "hunter2\n").unwrap();
    let config = |path: &str| FenceConfig::Redfish {
        url: format!("http://{address}{path}"),
        user: "admin".into(),
        password_file: secret.clone(),
        ca_file: None,
        timeout_seconds: 10,
    };
    config("/redfish/v1/Systems/1").open().unwrap().fence("h1").await.unwrap();
    assert_eq!(bmc.lock().unwrap().ordered, Some(json!({"ResetType": "ForceOff"})));
    assert_eq!(bmc.lock().unwrap().questions, 3);
    let told = config("/redfish/v1/Systems/2").open().unwrap().fence("h1").await.unwrap_err().to_string();
    assert!(told.contains("404") && !told.contains("hunter2"), "{told}");
    std::fs::write(&secret, "wrong").unwrap();
    let told = config("/redfish/v1/Systems/1").open().unwrap().fence("h1").await.unwrap_err().to_string();
    assert!(told.contains("401") && !told.contains("wrong"), "{told}");
}

#[test]
fn settings() {
    let read = |text: &str| toml::from_str::<FenceConfig>(text);
    let config = read("driver = \"ipmi\"\naddress = \"a\"\nuser = \"u\"\npassword_file = \"/p\"").unwrap();
    assert!(
        matches!(&config, FenceConfig::Ipmi { program, timeout_seconds: 20, .. } if program.ends_with("ipmitool"))
    );
    assert!(read("driver = \"ipmi\"\npassword = \"x\"").is_err(), "no secret in the settings");
    assert!(read("driver = \"hammer\"").is_err());
    let open = |text: &str| read(text).unwrap().open().map(drop);
    assert!(open("driver = \"command\"\nargv = []").is_err());
    assert!(open("driver = \"command\"\nargv = [\"x\"]\ntimeout_seconds = 0").is_err());
}
