//! Every route with nonsense: malformed JSON, wrong types, huge and missing fields, strange ids and parameters. Never a
//! fault of ours, and what is refused changes nothing.

use super::super::policy;
use super::super::routes::{Need, Route};
use super::people::People;
use serde_json::{Map, Value, json};

/// Requests per route; the seed is fixed, so a failure is found again. `AMPHI_FUZZ_ROUNDS` asks for more.
const ROUNDS: u64 = 24;

/// A small generator of numbers (Marsaglia's xorshift64): what matters is that the same seed gives the same walk.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.roll(all.len())]
    }
}

/// Names that services look for, so that nonsense gets past the first look.
const FIELDS: &[&str] = &[
    "name",
    "id",
    "description",
    "enabled",
    "tags",
    "metadata",
    "size",
    "volume_id",
    "snapshot_id",
    "imageRef",
    "flavorRef",
    "networks",
    "network_id",
    "subnet_id",
    "port_id",
    "cidr",
    "ip_version",
    "allocation_pools",
    "fixed_ips",
    "security_groups",
    "security_group_id",
    "direction",
    "protocol",
    "port_range_min",
    "port_range_max",
    "remote_ip_prefix",
    "remote_group_id",
    "ethertype",
    "gateway_ip",
    "host_routes",
    "dns_nameservers",
    "mac_address",
    "allowed_address_pairs",
    "external_gateway_info",
    "floating_network_id",
    "fixed_ip_address",
    "routes",
    "provider:network_type",
    "provider:segmentation_id",
    "router:external",
    "shared",
    "mtu",
    "admin_state_up",
    "block_device_mapping_v2",
    "min_count",
    "max_count",
    "key_name",
    "user_data",
    "availability_zone",
    "OS-DCF:diskConfig",
    "host",
    "vcpus",
    "ram",
    "disk",
    "swap",
    "rxtx_factor",
    "extra_specs",
    "public_key",
    "policies",
    "policy",
    "rules",
    "cores",
    "gigabytes",
    "new_size",
    "volume_type",
    "source_volid",
    "status",
    "force",
    "type",
    "password",
    "domain_id",
    "project_id",
    "default_project_id",
    "email",
    "parent_id",
    "interface",
    "url",
    "region",
    "service_id",
    "roles",
    "user",
    "identity",
    "methods",
    "scope",
    "visibility",
    "disk_format",
    "container_format",
    "min_disk",
    "min_ram",
    "op",
    "path",
    "value",
    "member",
    "method",
    "length",
    "device",
    "volumeAttachment",
    "interfaceAttachment",
    "adminPass",
    "reservations",
    "locked_reason",
    "os_type",
    "max_rate",
    "weight",
];

fn value(dice: &mut Dice, depth: usize) -> Value {
    match dice.roll(if depth == 0 { 14 } else { 18 }) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(i64::MAX),
        5 => json!(u64::MAX),
        6 => json!(1e300),
        7 => json!(""),
        8 => json!("x".repeat(70_000)),
        9 => json!("nul \u{0} and \u{202e} and \u{1f600}"),
        10 => json!("10.0.0.0/33"),
        11 => json!("0123456789abcdef0123456789abcdef"),
        12 => json!("../../etc/passwd"),
        13 => json!("1"),
        14 | 15 => Value::Array((0..dice.roll(4)).map(|_| value(dice, depth - 1)).collect()),
        _ => object(dice, depth - 1),
    }
}

fn object(dice: &mut Dice, depth: usize) -> Value {
    let count = dice.roll(6);
    let fields = (0..count).map(|_| ((*dice.pick(FIELDS)).to_owned(), value(dice, depth)));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// What a route's bodies are wrapped in.
fn envelope(route: &Route) -> String {
    if let Some(action) = route.action {
        return action.to_owned();
    }
    let nouns = route.path.split('/').filter(|s| !s.is_empty() && !s.starts_with('{'));
    let noun = { nouns }.next_back().unwrap_or_default().replace('-', "_");
    let noun = noun.strip_prefix("os_").unwrap_or(&noun).to_owned();
    let noun = noun.strip_suffix("ies").map(|n| format!("{n}y")).unwrap_or(noun);
    noun.strip_suffix('s').unwrap_or(&noun).to_owned()
}

fn body(dice: &mut Dice, route: &Route) -> Vec<u8> {
    let value = match dice.roll(10) {
        0 => return b"{\"broken\": ".to_vec(),
        1 => return vec![0xff, 0xfe, b'{', b'}'],
        2 => return Vec::new(),
        3 => return [vec![b'['; 10_000], vec![b']'; 10_000]].concat(),
        4 => value(dice, 2),
        5 => json!([object(dice, 2)]),
        6 => json!({ envelope(route): value(dice, 2) }),
        _ => json!({ envelope(route): object(dice, 3) }),
    };
    value.to_string().into_bytes()
}

const IDS: &[&str] = &[
    "0123456789abcdef0123456789abcdef",
    "00000000-0000-0000-0000-000000000000",
    "x",
    "%00",
    "%2e%2e%2f",
    "%F0%9F%98%80",
    "detail",
    "-1",
    "99999999999999999999",
    "default",
];
const QUERIES: &[&str] = &[
    "",
    "",
    "",
    "?limit=-1",
    "?limit=x",
    "?limit=0",
    "?marker=nothing",
    "?sort_key=nothing&sort_dir=up",
    "?name=%00",
    "?fields=id&fields=nothing",
    "?changes-since=yesterday",
    "?limit=99999999999999999999",
    "?%FF=%FE",
    "?tags=a,,b",
    "?status=x&status=y",
    "?id=in:",
    "?all_tenants=maybe",
    "?ip=(",
    "?name=(((",
    "?sort=a:b:c,",
    "?offset=-5",
    "?created_at=gt:",
    "?page_reverse=True&limit=1&marker=x",
    "?start=x&end=y&detailed=z",
];

#[tokio::test]
async fn nonsense_is_refused_and_changes_nothing() {
    let people = People::new().await;
    let rounds = std::env::var("AMPHI_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let mut dice = Dice(0x5eed_0fa1_1bad_f00d);
    let mut wrong = Vec::new();
    let mut sent = 0;
    for route in policy() {
        for round in 0..rounds {
            let mut before = "";
            let mut path = String::from(route.service.root());
            for segment in route.path.split('/').skip(1) {
                path.push('/');
                match (segment.starts_with('{'), people.ours.get(before)) {
                    (false, _) => path.push_str(segment),
                    (true, Some(id)) if round % 2 == 0 => path.push_str(id),
                    (true, _) => path.push_str(IDS[dice.roll(IDS.len())]),
                }
                before = segment;
            }
            // Deleting what all others are tried on would make them pass for nothing.
            if route.method == "DELETE" && round % 2 == 0 {
                continue;
            }
            let request = format!("{} {path}{}", route.method, dice.pick(QUERIES));
            let body = body(&mut dice, &route);
            let token = if route.need == Need::Public { "" } else { &people.admin };
            let revision = people.cloud.ops.world().read().revision();
            let answer = people.send(token, &request, "application/json", body.clone()).await;
            sent += 1;
            let unchanged = people.cloud.ops.world().read().revision() == revision;
            let text = String::from_utf8_lossy(&body).chars().take(400).collect::<String>();
            if answer.status >= 500 && answer.status != 501 {
                wrong.push(format!("{request} {text}: {} {}", answer.status, answer.body));
            } else if answer.status >= 400 && !unchanged {
                wrong.push(format!("{request} {text}: {} and something changed", answer.status));
            }
            if answer.status >= 400 && answer.body.is_null() && route.method != "HEAD" {
                wrong.push(format!("{request}: {} without a body", answer.status));
            }
        }
    }
    assert!(sent > 1000, "{sent} requests");
    assert!(wrong.is_empty(), "{} of {sent}:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}
