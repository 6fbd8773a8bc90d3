#!/usr/bin/env bash
# Makes the guest kit, with which hosts run sets as VMs and convert images: Debian's cloud kernel and an initramfs of the guest's
# init, built static, with the modules that it loads; the same with what only conversions need. The kernel package is the one that make-images.sh has unpacked.
# Cached by this script, the kernel's release and the init's bytes; the archive is the same bytes every time.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=target/lab-cache
kit=${AMPHI_GUEST_KIT:-target/guest-kit}
if [ ! -e "$cache/kernel/.complete" ]; then
  scripts/make-images.sh
fi
cache=$(realpath "$cache")
mkdir -p "$kit"
kit=$(realpath "$kit")
exec 9>"$cache/kit-lock"
flock 9

# Of its own target: the flag holds for everything that is linked, and the programs link libraries that have no static form.
target=x86_64-unknown-linux-gnu
sources=$(find guest Cargo.lock Cargo.toml scripts/make-guest-kit.sh -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
release=$(ls "$cache/kernel/lib/modules")
stamp="$sources $release"
if [ "$(cat "$kit/.stamp" 2>/dev/null || true)" = "$stamp" ] && [ -e "$kit/kernel" ] && [ -e "$kit/initramfs" ] && [ -e "$kit/convert-initramfs" ] && [ -e "$kit/boot.img" ]; then
  exit 0
fi
rm -f "$kit/.stamp"
# Debian's libc6-dev has the C library's static form. A jobserver or flags of an outer cargo are not ours.
env -u CARGO_MAKEFLAGS -u MAKEFLAGS RUSTFLAGS="-C target-feature=+crt-static" \
  cargo build --quiet --package amphi-guest --bin amphi-guest-init --target "$target"

work=$(mktemp -d "$cache/kit.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root"/{dev,modules}
strip -o "$work/root/init" "target/$target/debug/amphi-guest-init"
if ldd "$work/root/init" 2>/dev/null | grep -q '=>'; then
  echo "make-guest-kit: the guest's init is not static" >&2
  exit 1
fi
chmod 755 "$work/root/init"
depmod --basedir "$cache/kernel" "$release"
# In the order in which each finds what it needs; those built into the kernel drop out, and those that are there already.
add_modules() {
  touch "$work/root/modules/order"
  for module in "$@"; do
    modprobe --dirname "$cache/kernel" --set-version "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
  done | awk '!seen[$0]++' | while read -r file; do
    [ ! -e "$work/root/modules/$(basename "$file")" ] || continue
    strip --strip-debug -o "$work/root/modules/$(basename "$file")" "$file"
    basename "$file" >>"$work/root/modules/order"
  done
}
# Not compressed: an emulated processor would spend longer on unpacking than the disk on reading.
pack() {
  find "$work/root" -exec touch --no-dereference --date=@0 {} +
  (cd "$work/root" && find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0 --reproducible >"$work/$1")
}
add_modules virtio_pci virtio_blk virtio_net virtio_console virtio_mem crc32c_generic squashfs overlay xfs vfat nls_cp437 nls_iso8859-1 nls_ascii nls_utf8 button evdev
pack initramfs
add_modules dm_mod btrfs
pack convert-initramfs
cp "$cache/kernel/boot/vmlinuz-$release" "$work/kernel"
# What a BIOS starts from a disk that is made of a container image: the first partition of it, from its sector 2048 on.
truncate --size 64M "$work/boot.img"
mkfs.vfat --invariant -F 16 -n AMPHI-BOOT -h 2048 "$work/boot.img" >/dev/null
mcopy -i "$work/boot.img" "$work/kernel" ::vmlinuz
mcopy -i "$work/boot.img" "$work/convert-initramfs" ::initrd
syslinux --install "$work/boot.img"
cp /usr/lib/syslinux/mbr/mbr.bin "$work/mbr.bin"
mv "$work"/{kernel,initramfs,convert-initramfs,boot.img,mbr.bin} "$kit/"
# QEMU runs as a user of its own.
chmod 755 "$kit"
chmod 644 "$kit"/{kernel,initramfs,convert-initramfs,boot.img,mbr.bin}
echo "$stamp" >"$kit/.stamp"
ls -l "$kit"/{kernel,initramfs,convert-initramfs,boot.img} | awk '{print $5, $9}'
