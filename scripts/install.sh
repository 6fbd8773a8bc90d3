#!/usr/bin/env bash
# Installs what Amphi's build, tests and lab need on Debian 12: only what is missing, so the second run asks no network.
# Starts no service: where nobody has said otherwise, a policy-rc.d forbids it for the time of the installation.
set -euo pipefail

packages=(
  docker.io iptables                                    # containers
  libvirt-daemon-system libvirt-clients libvirt-dev qemu-system-x86 qemu-utils   # virtual machines
  openvswitch-switch ovn-central ovn-host               # network
  lvm2 xfsprogs e2fsprogs dosfstools                    # volumes, the lab's disks, config drives, what guests write on
  squashfs-tools                                        # root file systems of sets that run as VMs
  busybox-static cpio kmod xz-utils mtools syslinux syslinux-common debootstrap   # images
  user-mode-linux                                       # the device-mapper lane
  skopeo                                                # container images, in and out of the registry
  iproute2 ethtool iperf3 iputils-ping curl jq openssh-client   # the lab and its tests
  libfaketime                                           # clocks that go wrong
  python3 python3-venv                                  # OpenStack's clients
  prometheus zabbix-server-pgsql postgresql              # who takes figures, for tests
  pkg-config gcc libc6-dev make util-linux
)

missing=()
look() {
  local installed package
  missing=()
  installed=$(dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
  for package in "${packages[@]}"; do
    grep -qx "$package installed" <<<"$installed" || missing+=("$package")
  done
}
look

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_missing() {
  local policy=/usr/sbin/policy-rc.d ours='' options=()
  if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\n# Until the installation of Amphi'\''s packages is over.\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  echo "installing: ${missing[*]}"
  # Nothing that is on the machine may go for it.
  local apt=(as_root env DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 --no-remove)
  "${apt[@]}" -q update
  if ! "${apt[@]}" -s install --no-install-recommends "${missing[@]}" >/dev/null 2>&1; then
    # qemu-utils from elsewhere (backports) keeps out the qemu-system-x86 of the configured sources: take theirs.
    local have want
    have=$(dpkg-query --show --showformat='${Version}' qemu-utils 2>/dev/null || true)
    want=$(apt-cache policy qemu-system-x86 | sed -n 's/^  Candidate: //p')
    if [ -z "$have" ] || [ "$have" = "$want" ]; then
      "${apt[@]}" -s install --no-install-recommends "${missing[@]}" >&2 || true
      echo "install.sh: these packages cannot be installed together" >&2
      exit 1
    fi
    echo "qemu-utils $have does not go with the qemu-system-x86 that is to be had: changing it to $want"
    options=(--allow-downgrades)
    missing+=("qemu-utils=$want")
  fi
  "${apt[@]}" -q -y "${options[@]}" install --no-install-recommends "${missing[@]}"
  if [ -n "$ours" ]; then
    as_root rm -f "$policy"
    trap - EXIT
  fi
}

if [ ${#missing[@]} -gt 0 ]; then
  install_missing
  look
  if [ ${#missing[@]} -gt 0 ]; then
    echo "install.sh: still missing: ${missing[*]}" >&2
    exit 1
  fi
fi

if ! command -v cargo-nextest >/dev/null; then
  if ! command -v cargo >/dev/null; then
    echo "install.sh: no cargo on the PATH; install Rust first" >&2
    exit 1
  fi
  cargo install cargo-nextest --locked
fi
