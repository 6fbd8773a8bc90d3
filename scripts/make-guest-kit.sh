#!/usr/bin/env bash
# Makes the guest kit, with which hosts run sets as VMs: Debian's cloud kernel and an initramfs of the guest's init, built
# static, with the modules that it loads. The kernel package is the one that make-images.sh has unpacked.
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
if [ "$(cat "$kit/.stamp" 2>/dev/null || true)" = "$stamp" ] && [ -e "$kit/kernel" ] && [ -e "$kit/initramfs" ]; then
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
# In the order in which each finds what it needs; those built into the kernel drop out.
for module in virtio_pci virtio_blk virtio_net virtio_console crc32c_generic squashfs overlay xfs vfat nls_cp437 nls_iso8859-1 nls_ascii nls_utf8 button evdev; do
  modprobe --dirname "$cache/kernel" --set-version "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r file; do
  strip --strip-debug -o "$work/root/modules/$(basename "$file")" "$file"
  basename "$file" >>"$work/root/modules/order"
done
find "$work/root" -exec touch --no-dereference --date=@0 {} +
# Not compressed: an emulated processor would spend longer on unpacking than the disk on reading.
(cd "$work/root" && find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0 --reproducible >"$work/initramfs")
cp "$cache/kernel/boot/vmlinuz-$release" "$work/kernel"
mv "$work/kernel" "$work/initramfs" "$kit/"
# QEMU runs as a user of its own.
chmod 755 "$kit"
chmod 644 "$kit/kernel" "$kit/initramfs"
echo "$stamp" >"$kit/.stamp"
ls -l "$kit/kernel" "$kit/initramfs" | awk '{print $5, $9}'
