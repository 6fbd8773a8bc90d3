#!/usr/bin/env bash
# Makes the lab's images out of Debian's packages alone: two container images of busybox-static; a virtual machine's kernel
# and initramfs of linux-image-cloud-amd64 and busybox, the same initramfs with qemu-guest-agent in it, and the same guest on a
# disk that a BIOS boots by syslinux. The packages are unpacked, never installed; nothing is mounted.
# Cached by this script and the version of busybox-static; the second run is instant. Archives are the same bytes every time.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=target/lab-cache
images=${AMPHI_LAB_DIR:-target/lab}/images
mkdir -p "$cache" "$images"
cache=$(realpath "$cache") images=$(realpath "$images")
exec 9>"$cache/lock"
flock 9

stamp="$(sha256sum <scripts/make-images.sh | cut -d' ' -f1) $(dpkg-query --show --showformat='${Version}' busybox-static)"
all=("$images"/{busybox.tar,web.tar,vm-kernel,vm-initramfs,vm-agent-initramfs,vm-disk.qcow2} "$cache/kernel/.complete")
if [ "$(cat "$images/.stamp" 2>/dev/null || true)" = "$stamp" ] && ls "${all[@]}" >/dev/null 2>&1; then
  exit 0
fi
rm -f "$images/.stamp"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A root with busybox under all its names.
busybox_root() {
  local root=$1 applet
  mkdir -p "$root"/{bin,dev,etc,proc,run,sys,tmp,root,data,var/log,usr/bin,usr/sbin,sbin}
  chmod 1777 "$root/tmp"
  chmod 700 "$root/root"
  cp /bin/busybox "$root/bin/busybox"
  for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -sf /bin/busybox "$root/bin/$applet"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
}

same_tar() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -C "$1" -cf "$2" .; }

# docker_save NAME COMMAND LAYER_DIRECTORY…: the archive that `docker save` would make.
docker_save() {
  local name=$1 command=$2 out="$work/save-$1" digests=() layers=() layer digest config
  shift 2
  mkdir -p "$out"
  for layer in "$@"; do
    same_tar "$layer" "$out/layer.tar"
    digest=$(sha256sum <"$out/layer.tar" | cut -d' ' -f1)
    mkdir -p "$out/$digest"
    mv "$out/layer.tar" "$out/$digest/layer.tar"
    digests+=("sha256:$digest")
    layers+=("$digest/layer.tar")
  done
  jq -cn --argjson cmd "$command" '{architecture: "amd64", os: "linux", created: "1970-01-01T00:00:00Z",
      config: {Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], Cmd: $cmd, WorkingDir: "/"},
      rootfs: {type: "layers", diff_ids: $ARGS.positional},
      history: [$ARGS.positional[] | {created: "1970-01-01T00:00:00Z", created_by: "scripts/make-images.sh"}]}' \
    --args "${digests[@]}" >"$out/config.json"
  config=$(sha256sum <"$out/config.json" | cut -d' ' -f1)
  mv "$out/config.json" "$out/$config.json"
  jq -cn --arg config "$config.json" --arg tag "$name:latest" '[{Config: $config, RepoTags: [$tag], Layers: $ARGS.positional}]' \
    --args "${layers[@]}" >"$out/manifest.json"
  # Members are named without a leading ./, as readers of the format look them up.
  (cd "$out" && tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf "$images/$name.tar" -- *)
}

echo "container images"
busybox_root "$work/base"
mkdir -p "$work/web/bin" "$work/web/data"
echo 'amphi web' >"$work/web/data/index.html"
cat >"$work/web/bin/web" <<'WEB'
#!/bin/sh
# Serves /data on port 80 and ends at once when asked to.
mkdir -p /data
httpd -f -p 80 -h /data &
trap 'kill $!; exit 0' TERM INT
wait $!
WEB
chmod 755 "$work/web/bin/web"
docker_save busybox '["/bin/sh","-c","trap \"exit 0\" TERM INT; while :; do sleep 1000000 & wait $!; done"]' "$work/base"
docker_save web '["/bin/web"]' "$work/base" "$work/web"

echo "virtual machine: kernel"
if [ ! -e "$cache/kernel/.complete" ]; then
  cloud_kernel() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-6\..*\)/\1/p' | head -1; }
  package=$(cloud_kernel)
  if [ -z "$package" ]; then
    apt-get -q update
    package=$(cloud_kernel)
  fi
  rm -rf "$cache/kernel"
  mkdir -p "$cache/kernel"
  (cd "$cache/kernel" && apt-get -q -o APT::Sandbox::User=root download "$package" || { apt-get -q update && apt-get -q -o APT::Sandbox::User=root download "$package"; })
  dpkg-deb -x "$cache"/kernel/"$package"_*.deb "$cache/kernel"
  rm "$cache"/kernel/*.deb
  touch "$cache/kernel/.complete"
fi
release=$(ls "$cache/kernel/lib/modules")
depmod --basedir "$cache/kernel" "$release"
cp "$cache/kernel/boot/vmlinuz-$release" "$work/vm-kernel"

echo "virtual machine: initramfs"
vm=$work/vm
busybox_root "$vm"
mkdir -p "$vm"/{config,disk,mnt,lib/modules,root/.ssh}
chmod 700 "$vm/root/.ssh"
# The modules in the order in which each finds what it needs; those built into the kernel drop out.
for module in virtio_pci virtio_net virtio_blk crc32c_generic xfs virtio_console virtio_rng virtio_mem vfat nls_cp437 nls_iso8859-1 nls_ascii nls_utf8 isofs button evdev; do
  modprobe --dirname "$cache/kernel" --set-version "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r file; do
  cp "$file" "$vm/lib/modules/"
  basename "$file" >>"$vm/lib/modules/order"
done
# busybox cannot grow a file system.
for file in /usr/sbin/xfs_growfs $(ldd /usr/sbin/xfs_growfs | grep -o '/[^ ]*'); do
  mkdir -p "$vm$(dirname "$file")"
  cp -L "$file" "$vm$file"
done

cat >"$vm/etc/dhcp.sh" <<'DHCP'
#!/bin/sh
# What udhcpc calls with the lease in the environment: address, routes, MTU (option 26), host name (option 12). Only the first
# interface names the machine and its servers; the others' routes come after its own.
metric=$(cat "/sys/class/net/$interface/ifindex")
[ "$interface" != eth0 ] || metric=0
event=$1
case $event in
deconfig) ip -4 addr flush dev "$interface"; ip link set "$interface" up ;;
bound | renew)
  ip -4 addr flush dev "$interface"
  ip addr add "$ip/$mask" dev "$interface"
  [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
  if [ -n "$staticroutes" ]; then
    # Option 121 replaces the router option (RFC 3442).
    set -- $staticroutes
    while [ $# -ge 2 ]; do
      if [ "$2" = 0.0.0.0 ]; then ip route replace "$1" dev "$interface" metric "$metric"; else ip route replace "$1" via "$2" dev "$interface" metric "$metric"; fi
      shift 2
    done
  elif [ -n "$router" ]; then
    ip route replace default via "${router%% *}" dev "$interface" metric "$metric"
  fi
  if [ "$interface" = eth0 ]; then
    [ -z "$hostname" ] || hostname "$hostname"
    : >/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
    echo "$ip" >/run/address
  fi
  [ "$event" = renew ] || echo "amphi-vm: $interface has $ip" >/dev/console
  ;;
esac
DHCP

cat >"$vm/etc/plug.sh" <<'PLUG'
#!/bin/sh
# Called by `uevent` when a device comes or goes, and by init for those that are there: an interface asks for its address, and a
# disk with XFS is mounted, the first one on /data. What is told twice is done once.
exec </dev/null >/dev/console 2>&1
name=${INTERFACE:-${DEVNAME##*/}}
seen=/run/plugged-$SUBSYSTEM-$name
case $ACTION:$SUBSYSTEM:$name in
add:net:eth*)
  mkdir "$seen" 2>/dev/null || exit 0
  # Goes on asking until there is a lease, and renews it.
  udhcpc -f -i "$name" -t 5 -T 1 -A 1 -O hostname -O mtu -O staticroutes -s /etc/dhcp.sh >"$seen/log" &
  echo $! >"$seen/pid"
  ;;
add:block:vd?)
  mkdir "$seen" 2>/dev/null || exit 0
  echo "amphi-vm: disk $name serial=$(cat "/sys/block/$name/serial") $(($(cat "/sys/block/$name/size") / 2048)) MiB"
  # XFS, by its magic.
  [ "$(head -c 4 "/dev/$name" 2>/dev/null)" = XFSB ] || exit 0
  point=/data
  ! mountpoint -q /data || point=/mnt/$name
  mkdir -p "$point"
  if mount -t xfs -o nouuid "/dev/$name" "$point"; then
    echo "amphi-vm: $point on /dev/$name"
    echo "$point" >"$seen/point"
    sh /etc/grow.sh "$name" "$point" &
    echo $! >"$seen/pid"
  fi
  ;;
remove:net:eth* | remove:block:vd?)
  [ ! -e "$seen/pid" ] || kill "$(cat "$seen/pid")"
  [ ! -e "$seen/point" ] || umount -l "$(cat "$seen/point")"
  rm -rf "$seen"
  echo "amphi-vm: $name is gone"
  ;;
esac
PLUG

cat >"$vm/etc/power.sh" <<'POWER'
#!/bin/sh
# Ends the machine when its power button is pressed. An input event is 24 bytes: time, type, code, value; a pressed KEY_POWER
# is type 1, code 116, value 1.
exec 3<"$1"
while event=$(dd bs=24 count=1 <&3 2>/dev/null | od -An -v -tx1 | tr -d ' \n') && [ -n "$event" ]; do
  case $event in
  ????????????????????????????????0100740001000000)
    echo "amphi-vm: power button" >/dev/console
    trap '' TERM
    kill -TERM -1
    sleep 0.3
    kill -KILL -1
    sync
    umount /data /mnt/* /disk 2>/dev/null
    echo "amphi-vm: down" >/dev/console
    poweroff -f
    ;;
  esac
done
POWER

cat >"$vm/etc/grow.sh" <<'GROW'
#!/bin/sh
# Grows a file system when its disk has grown. $1: vdb, or the like; $2: where it is mounted.
size=$(cat "/sys/block/$1/size")
while sleep 1; do
  now=$(cat "/sys/block/$1/size" 2>/dev/null) || exit 0
  [ "$now" = "$size" ] && continue
  size=$now
  if /usr/sbin/xfs_growfs -d "$2" >/run/resize.log 2>&1; then echo "amphi-vm: grown $1 to $((size / 2048)) MiB"; else echo "amphi-vm: $1 does not grow: $(tail -1 /run/resize.log)"; fi
done
GROW

cat >"$vm/bin/fetch" <<'FETCH'
#!/bin/sh
# A path of the metadata service to standard output. Not wget: static as it is here, it crashes while it looks up a name.
answer=/run/fetched-$$
printf 'GET %s HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n' "$1" | nc -w 5 169.254.169.254 80 >"$answer" 2>/dev/null
head -n 1 "$answer" | grep -q ' 200 ' && sed '1,/^\r$/d' "$answer"
code=$?
rm -f "$answer"
exit $code
FETCH

cat >"$vm/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
exec </dev/console >/dev/console 2>&1
echo "amphi-vm: init"
hostname amphi-vm
while read -r module; do
  insmod "/lib/modules/$module" || echo "amphi-vm: module $module does not load"
done </lib/modules/order
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
ip link set lo up

for device in /dev/input/event*; do
  [ ! -e "$device" ] || sh /etc/power.sh "$device" &
done

uevent /etc/plug.sh >/dev/null 2>&1 &
for path in /sys/class/net/eth*; do
  [ ! -e "$path" ] || ACTION=add SUBSYSTEM=net INTERFACE=${path##*/} sh /etc/plug.sh
done
# Where it reads what it is to be: on the config drive, or with this word over the network alone.
source=/config/openstack/latest
case " $(cat /proc/cmdline) " in
*" amphi.metadata "*) source=/run/metadata ;;
esac
if [ "$source" = /run/metadata ]; then
  mkdir "$source"
elif config=$(findfs LABEL=config-2 2>/dev/null); then
  mount -t vfat -o ro "$config" /config 2>/dev/null || mount -t iso9660 -o ro "$config" /config || echo "amphi-vm: config drive $config cannot be read"
fi
for path in /sys/block/vd?; do
  [ ! -e "$path" ] || ACTION=add SUBSYSTEM=block DEVNAME=${path##*/} sh /etc/plug.sh
done
# The disk that this came from, if it did: whether it is the same one as the last time.
if disk=$(findfs LABEL=AMPHI-DISK 2>/dev/null) && mount -t vfat -o sync "$disk" /disk; then
  boots=$(($(cat /disk/boots 2>/dev/null || echo 0) + 1))
  echo "$boots" >/disk/boots
  echo "amphi-vm: boot $boots of $disk"
fi
keys() {
  sed -n '/"public_keys"/,/}/s/^ *"[^"]*": "\([^"]*\)",\{0,1\}$/\1/p' "$source/meta_data.json" 2>/dev/null >/root/.ssh/authorized_keys
  chmod 600 /root/.ssh/authorized_keys
  while read -r key; do echo "amphi-vm: key $key"; done </root/.ssh/authorized_keys
}
[ "$source" = /run/metadata ] || keys
httpd -p 80 -h /data
# Where the image has one: the guest agent, at its port, again whenever it ends.
for port in /sys/class/virtio-ports/*; do
  [ -x /usr/sbin/qemu-ga ] && [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
  while :; do /usr/sbin/qemu-ga -p "/dev/${port##*/}" -t /run; sleep 1; done >/run/qemu-ga.log 2>&1 &
done

address=-
if [ -e /sys/class/net/eth0 ]; then
  while [ ! -s /run/address ]; do sleep 0.05; done
  address=$(cat /run/address)
fi
if [ "$source" = /run/metadata ]; then
  until fetch /openstack/latest/meta_data.json >"$source/meta_data.json"; do sleep 0.2; done
  fetch /openstack/latest/user_data >"$source/user_data" || rm -f "$source/user_data"
  keys
fi
script=$source/user_data
if [ "$(head -c 2 "$script" 2>/dev/null)" = '#!' ]; then
  cp "$script" /run/user_data
  chmod 700 /run/user_data
  (cd /root && /run/user_data; echo "amphi-vm: user data ended with $?") &
fi
echo "amphi-vm: ready $address"
case " $(cat /proc/cmdline) " in
*" amphi.shell "*) while :; do setsid cttyhack /bin/sh -l; done ;;
esac
while :; do wait; sleep 3600; done
INIT
chmod 755 "$vm/init" "$vm/bin/fetch" "$vm"/etc/*.sh
find "$vm" -exec touch --no-dereference --date=@0 {} +
# Not compressed: an emulated processor would spend longer on unpacking than the disk on reading.
(cd "$vm" && find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0 --reproducible >"$work/vm-initramfs")

echo "virtual machine: guest agent"
# A second archive behind the first: the kernel unpacks both.
agent=$work/agent
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download qemu-guest-agent || { apt-get -q update && apt-get -q -o APT::Sandbox::User=root download qemu-guest-agent; })
dpkg-deb -x "$work"/qemu-guest-agent_*.deb "$work/qemu-guest-agent"
mkdir -p "$agent/usr/sbin"
cp "$work/qemu-guest-agent/usr/sbin/qemu-ga" "$agent/usr/sbin/"
for file in $(ldd "$agent/usr/sbin/qemu-ga" | grep -o '/[^ ]*'); do
  # What the first archive has already stays its.
  [ ! -e "$vm$file" ] || continue
  mkdir -p "$agent$(dirname "$file")"
  cp -L "$file" "$agent$file"
done
! ldd "$agent/usr/sbin/qemu-ga" | grep 'not found'
find "$agent" -exec touch --no-dereference --date=@0 {} +
(cd "$agent" && find . -mindepth 1 -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0 --reproducible) | cat "$work/vm-initramfs" - >"$work/vm-agent-initramfs"

echo "virtual machine: disk"
# One active FAT partition from 1 MiB to the end, all of it under a BIOS's old limits. Written by hand: sfdisk may be missing.
disk=$work/vm-disk.raw mib=64
sectors=$(((mib - 1) * 2048))
truncate --size "${mib}M" "$disk"
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$disk" conv=notrunc status=none
little() { printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)); }
# Boot flag, first cylinder/head/sector, type FAT16 by LBA, last cylinder/head/sector, first sector, number of sectors.
printf "\\x80\\x20\\x21\\x00\\x0e\\xfe\\xff\\xff$(little 2048)$(little "$sectors")" | dd of="$disk" bs=1 seek=446 conv=notrunc status=none
printf '\x55\xaa' | dd of="$disk" bs=1 seek=510 conv=notrunc status=none
/sbin/mkfs.vfat --invariant -F 16 -n AMPHI-DISK -h 2048 --offset 2048 "$disk" $((sectors / 2)) >/dev/null
printf 'DEFAULT vm\nPROMPT 0\nLABEL vm\n  KERNEL vmlinuz\n  INITRD initrd\n  APPEND console=ttyS0 quiet no_timer_check\n' >"$work/syslinux.cfg"
for file in vm-kernel:vmlinuz vm-initramfs:initrd syslinux.cfg:syslinux.cfg; do
  mcopy -i "$disk@@1M" "$work/${file%:*}" "::${file#*:}"
done
syslinux --install --offset $((1 << 20)) "$disk"
qemu-img convert -O qcow2 "$disk" "$work/vm-disk.qcow2"

mv "$work/vm-kernel" "$work/vm-initramfs" "$work/vm-agent-initramfs" "$work/vm-disk.qcow2" "$images/"
chmod 644 "${all[@]}"
echo "$stamp" >"$images/.stamp"
ls -l "${all[@]}" | awk '{print $5, $9}'
