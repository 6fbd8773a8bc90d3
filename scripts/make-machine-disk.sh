#!/usr/bin/env bash
# Makes the disk of a machine as somebody may bring it: Debian by debootstrap, with systemd and nginx, on logical volumes in an
# MBR partition, its page on a volume of its own; with what conversions have to keep (owners, modes, a capability, an extended
# attribute, a hard link, a sparse file) and what they have to tell of (modules, swap, an interface, another machine's mount).
# Nothing boots it here: it has no kernel. Cached by this script's own text. Usage: make-machine-disk.sh DISK, a qcow2 file.
set -euo pipefail
disk=$(realpath -m "$1")
cd "$(dirname "$0")/.."

mkdir -p target/lab-cache "$(dirname "$disk")"
cache=$(realpath target/lab-cache)
exec 9>"$cache/machine.lock"
flock 9
stamp=$(sha256sum <scripts/make-machine-disk.sh | cut -d' ' -f1)
if [ "$(cat "$cache/machine.stamp" 2>/dev/null || true)" != "$stamp" ] || [ ! -e "$cache/machine.qcow2" ]; then
  rm -f "$cache/machine.stamp"
  work=$(mktemp -d "$cache/machine.XXXXXX")
  loop=
  trap '[ -z "$loop" ] || losetup -d "$loop"; rm -rf "$work"' EXIT
  root=$work/root
  debootstrap --variant=minbase --include=systemd-sysv,nginx-light,libcap2-bin bookworm "$root" "${AMPHI_DEBIAN:-http://deb.debian.org/debian}" >"$work/log" 2>&1 || {
    tail -20 "$work/log" >&2
    exit 1
  }
  # A machine's, not a download's.
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,locale,man,info}/* "$root"/dev/*
  mkdir -p "$root/boot/grub" "$root/lib/modules/6.1.0" "$root/srv/kept" "$root/etc/modules-load.d" "$root/etc/network"
  echo 'a kernel' >"$root/boot/vmlinuz-6.1.0"
  ln -s boot/vmlinuz-6.1.0 "$root/vmlinuz"
  echo module >"$root/lib/modules/6.1.0/some.ko"
  echo nf_conntrack >"$root/etc/modules-load.d/own.conf"
  printf 'auto ens3\niface ens3 inet dhcp\n' >"$root/etc/network/interfaces"
  {
    echo '/dev/mapper/machine-root / ext4 errors=remount-ro 0 1'
    echo '/dev/machine/www /var/www ext4 defaults 0 2'
    echo '/dev/machine/swap none swap sw 0 0'
    echo 'files.example:/export /mnt nfs defaults 0 0'
    echo 'proc /proc proc defaults 0 0'
  } >"$root/etc/fstab"
  kept=$root/srv/kept
  echo kept >"$kept/file"
  chown 1234:4321 "$kept/file"
  chmod 6751 "$kept/file"
  setfattr -n user.colour -v green "$kept/file" 2>/dev/null || python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.colour", b"green")' "$kept/file"
  ln "$kept/file" "$kept/other-name"
  cp "$root/usr/bin/true" "$kept/capable"
  chroot "$root" setcap cap_net_raw+ep /srv/kept/capable
  truncate --size 64M "$kept/sparse"
  echo end | dd of="$kept/sparse" bs=1 seek=$(((64 << 20) - 4)) conv=notrunc status=none
  mkdir "$work/www"
  mv "$root"/var/www/* "$work/www/"
  echo 'the page of a machine' >"$work/www/html/index.html"

  # The volumes' metadata are LVM's own; device-mapper is not needed, since each volume lies in one piece.
  raw=$work/disk.raw mib=700
  truncate --size "${mib}M" "$raw"
  little() { printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)); }
  printf "\\x00\\x20\\x21\\x00\\x8e\\xfe\\xff\\xff$(little 2048)$(little $(((mib - 1) * 2048)))" | dd of="$raw" bs=1 seek=446 conv=notrunc status=none
  printf '\x55\xaa' | dd of="$raw" bs=1 seek=510 conv=notrunc status=none
  loop=$(losetup --find --show --offset $((1 << 20)) "$raw")
  mkdir "$work/lvm"
  printf 'devices { use_devicesfile=0 filter=["a|^%s$|","r|.*|"] }\nactivation { udev_sync=0 udev_rules=0 }\nglobal { locking_dir="%s" }\nbackup { backup=0 archive=0 }\n' "$loop" "$work/lvm" >"$work/lvm/lvm.conf"
  export LVM_SYSTEM_DIR=$work/lvm LVM_SUPPRESS_FD_WARNINGS=1
  lv() { lvm "$@" >"$work/lvm.log" 2>&1 || { cat "$work/lvm.log" >&2; exit 1; }; }
  ask() { lvm "$@" --noheadings --nosuffix 2>>"$work/lvm.log" | tr -d ' '; }
  lv pvcreate --driverloaded n "$loop"
  lv vgcreate --driverloaded n machine "$loop"
  for volume in swap:16 root:560 www:32; do
    lv lvcreate --driverloaded n -an -Zn -Wn --size "${volume#*:}m" --name "${volume%:*}" machine
  done
  begin=$(ask pvs --driverloaded n --units b -o pe_start "$loop")
  extent=$(ask vgs --driverloaded n --units b -o vg_extent_size machine)
  at() { echo $(((1 << 20) + begin + extent * $(ask lvs --driverloaded n -o seg_pe_ranges "machine/$1" | sed 's/.*:\([0-9]*\)-.*/\1/'))); }
  root_at=$(at root) www_at=$(at www) swap_at=$(at swap)
  losetup -d "$loop"
  loop=
  # With journals, as machines have them.
  mkfs.ext4 -q -F -d "$root" -E "offset=$root_at,lazy_itable_init=1" "$raw" 560M
  mkfs.ext4 -q -F -d "$work/www" -E "offset=$www_at" "$raw" 32M
  printf 'SWAPSPACE2' | dd of="$raw" bs=1 seek=$((swap_at + 4086)) conv=notrunc status=none
  qemu-img convert -q -O qcow2 "$raw" "$cache/machine.qcow2"
  echo "$stamp" >"$cache/machine.stamp"
fi
cp "$cache/machine.qcow2" "$disk"
chmod 644 "$disk"
