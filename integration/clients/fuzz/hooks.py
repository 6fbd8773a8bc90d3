"""What schemathesis cannot know of this face: the token, names and ids of what is really there, and that a refused order
leaves nothing behind."""

import os
import random
import zlib

import requests
import schemathesis

URL = os.environ["AMPHI_URL"]
TOKEN = {"Authorization": f"Bearer {os.environ['AMPHI_TOKEN']}"}
# Where each kind of record is listed, and under which key.
LISTS = {
    "instances": "instances",
    "volumes": "volumes",
    "recycle-bin": "volumes",
    "networks": "networks",
    "ports": "ports",
    "security-groups": "security_groups",
    "images": "images",
    "snapshots": "snapshots",
    "exchanges": "exchanges",
    "hosts": "hosts",
}
# What the run has laid out under one name.
NAME = "fuzz"
session = requests.Session()
session.headers.update(TOKEN)


def records():
    """Every record's id by noun; a group's rules too."""
    found = {}
    for path, key in LISTS.items():
        answer = session.get(f"{URL}/v1/{path}", timeout=30)
        assert answer.status_code == 200, f"list {path}: {answer.status_code}: {answer.text}"
        items = answer.json()[key]
        # A host that is being emptied orders moves by itself, whatever else is asked meanwhile.
        found[path] = {item["id"] for item in items if (item.get("journey") or {}).get("cause") != "maintenance"}
        if path == "security-groups":
            found["rules"] = {rule["id"] for item in items for rule in item["rules"]}
    return found


class Known:
    """What was there after the last order."""

    ids = None


@schemathesis.auth()
class Operator:
    def get(self, case, context):
        return TOKEN

    def set(self, case, data, context):
        case.headers = {**(case.headers or {}), **data}


def body(value):
    """A body that names what is there."""
    if "set" in value:
        for index, member in enumerate(value["set"].get("members", [])):
            member.update(image=f"{NAME}-set", index=index, name="", options={}, env={}, command=[])
        value["set"].update(anchor={}, volume_mount="/data")
    if "vm" in value:
        value["vm"]["image"] = NAME


def likely(noun, value, chance):
    """Makes an order that the description allows one that the records allow too, most of the time."""
    if isinstance(value.get("name"), str):
        value["name"] = "".join(c for c in value["name"] if c.isprintable()).strip()[:255] or "nameless"
    if noun == "instances":
        bodies = {next(iter(each)): each for each in value.get("bodies", []) if each}
        for each in bodies.values():
            body(each)
        if bodies:
            value.update(bodies=list(bodies.values()), vcpus=1, memory_mib=64)
        if "networks" in value:
            value["networks"] = [{"network": NAME}] * (len(value["networks"]) % 3)
        if "security_groups" in value:
            value["security_groups"] = [NAME]
        value.pop("host", None)
        value.pop("ssh_keys", None)
        if isinstance(value.get("volume"), dict):
            value["volume"] = {"size_gib": 1}
    elif noun == "volumes":
        value.pop("snapshot", None)
        value.pop("host", None)
        value["size_gib"] = chance.randint(1, 9)
    elif noun == "networks" and isinstance(value.get("subnet"), dict):
        value["subnet"] = {"cidr": f"10.{chance.randint(10, 250)}.0.0/24"}


@schemathesis.hook
def before_call(context, case, kwargs):
    """Without what is there hardly an order would get beyond "no such thing". The same case meets the same chance."""
    if Known.ids is None:
        Known.ids = records()
    chance = random.Random(zlib.crc32(f"{case.method} {case.path} {case.path_parameters} {case.body!r}".encode()))
    noun = case.path.split("/")[2]
    there = sorted(Known.ids.get(noun, ()))
    if there and "id" in (case.path_parameters or {}) and chance.random() < 0.7:
        case.path_parameters["id"] = chance.choice(there)
    positive = case.meta is None or case.meta.generation.mode.is_positive
    if positive and isinstance(case.body, dict) and case.method.upper() == "POST" and chance.random() < 0.7:
        likely(noun if case.path.count("/") == 2 else "", case.body, chance)


@schemathesis.check
def nothing_half_made(context, response, case):
    if case.method.upper() in ("GET", "HEAD", "OPTIONS", "TRACE"):
        return
    now = records()
    if response.status_code >= 400 and Known.ids is not None:
        for noun, ids in now.items():
            # What a host reports done moves volumes between the two.
            before = Known.ids["volumes"] | Known.ids["recycle-bin"] if noun in ("volumes", "recycle-bin") else Known.ids[noun]
            new = ids - before
            assert not new, f"a refused order ({response.status_code}) left {noun} behind: {sorted(new)}"
    Known.ids = now
