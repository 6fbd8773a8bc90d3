"""openstacksdk, unmodified, drives one kind of body: sdk_story.py vm|set IMAGE FLAVOR NETWORK.

The environment says which cloud (OS_AUTH_URL and the rest). Every check is an assertion; the last line is `sdk: ok KIND`.
"""

import sys
import uuid

import openstack
from openstack import exceptions


def main(kind, image, flavor, network):
    cloud = openstack.connect()
    tag = f"sdk-{kind}-{uuid.uuid4().hex[:6]}"
    compute, block, net = cloud.compute, cloud.block_storage, cloud.network

    print("discovery")
    assert compute.get_endpoint_data().max_microversion >= (2, 79)
    assert cloud.current_project_id

    print("create")
    key = compute.create_keypair(name=tag)
    assert key.private_key
    group = net.create_security_group(name=tag)
    net.create_security_group_rule(
        security_group_id=group.id, direction="ingress", protocol="icmp", ethertype="IPv4"
    )
    server = cloud.create_server(
        tag, image=image, flavor=flavor, network=network, key_name=key.name, security_groups=[tag],
        meta={"who": "sdk"}, wait=True, auto_ip=False, timeout=180,
    )
    try:
        use(cloud, compute, block, net, server, tag)
    finally:
        print("delete")
        cloud.delete_server(server.id, wait=True, timeout=180)
        compute.delete_keypair(key)
        net.delete_security_group(group)
    assert compute.find_server(tag) is None
    assert not list(net.ports(device_id=server.id)), "ports of a deleted server"


def use(cloud, compute, block, net, server, tag):
    assert server.status == "ACTIVE", server.status
    assert server.task_state is None
    assert server.metadata == {"who": "sdk"}, server.metadata
    ports = list(net.ports(device_id=server.id))
    assert len(ports) == 1 and ports[0].fixed_ips[0]["ip_address"] in str(server.addresses), (ports, server.addresses)
    assert [s.id for s in compute.servers(name=tag)] == [server.id]

    print("stop, start, pause")
    for order, status, back, then in [
        (compute.stop_server, "SHUTOFF", compute.start_server, "ACTIVE"),
        (compute.pause_server, "PAUSED", compute.unpause_server, "ACTIVE"),
    ]:
        order(server)
        compute.wait_for_server(server, status=status, wait=120)
        back(server)
        compute.wait_for_server(server, status=then, wait=120)

    print("volume")
    volume = block.create_volume(name=tag, size=1)
    block.wait_for_status(volume, "available", wait=120)
    attachment = compute.create_volume_attachment(server, volume_id=volume.id)
    assert attachment.device, attachment
    block.wait_for_status(volume, "in-use", wait=120)
    assert [a.volume_id for a in compute.volume_attachments(server)] == [volume.id]
    compute.delete_volume_attachment(server, volume)
    block.wait_for_status(volume, "available", wait=120)
    block.delete_volume(volume)
    block.wait_for_delete(volume, wait=120)

    print("metadata and names")
    compute.set_server_metadata(server, colour="blue")
    assert compute.get_server_metadata(server).metadata == {"who": "sdk", "colour": "blue"}
    compute.update_server(server, name=f"{tag}-renamed")
    assert compute.get_server(server.id).name == f"{tag}-renamed"
    compute.update_server(server, name=tag)

    print("refusals")
    for what, wrong in [
        ("an unknown server", lambda: compute.get_server(str(uuid.uuid4()))),
        ("an unknown volume", lambda: block.get_volume(str(uuid.uuid4()))),
        ("an unknown network", lambda: net.get_network(str(uuid.uuid4()))),
    ]:
        try:
            wrong()
        except exceptions.NotFoundException:
            continue
        raise AssertionError(f"{what} was found")
    actions = [a.action for a in compute.server_actions(server)]
    for action in ("create", "stop", "start", "pause", "unpause", "attach_volume", "detach_volume"):
        assert action in actions, (action, actions)


if __name__ == "__main__":
    main(*sys.argv[1:])
    print(f"sdk: ok {sys.argv[1]}")
