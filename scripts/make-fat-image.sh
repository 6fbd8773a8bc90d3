#!/usr/bin/env bash
# Makes the image of a "fat" member out of Debian's packages alone: busybox-static, runit as its init and dropbear as its
# ssh server, with the libraries they name. It serves ssh on 22 with the keys that the instance was given, keeps an agent
# running, and ends in order on SIGPWR. Nothing of it is installed here; cached by this script's own text.
# Usage: make-fat-image.sh ARCHIVE, a `docker save` archive of `fat:latest`.
set -euo pipefail
archive=$(realpath -m "$1")
cd "$(dirname "$0")/.."

mkdir -p target/lab-cache "$(dirname "$archive")"
cache=$(realpath target/lab-cache)
exec 9>"$cache/fat.lock"
flock 9
stamp=$(sha256sum <scripts/make-fat-image.sh | cut -d' ' -f1)
if [ "$(cat "$cache/fat.stamp" 2>/dev/null || true)" != "$stamp" ] || [ ! -e "$cache/fat.tar" ]; then
  rm -f "$cache/fat.stamp"
  work=$(mktemp -d "$cache/fat.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  root=$work/root
  packages=(dropbear-bin libtomcrypt1 libtommath1 runit libc6 libcrypt1 zlib1g libgmp10)
  mkdir -p "$work/packages" "$root"
  fetch() { (cd "$work/packages" && apt-get -q -o APT::Sandbox::User=root download "${packages[@]}"); }
  fetch || { apt-get -q update && fetch; }
  for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/all"; done
  mkdir -p "$root"/{bin,dev,etc/dropbear,etc/service,lib64,proc,run,sys,tmp,root,var/log,usr/bin,usr/sbin,usr/lib,sbin}
  # Libraries lie where the loader looks for them, whether their packages say /lib or /usr/lib.
  libraries=$root/lib/x86_64-linux-gnu
  mkdir -p "$libraries"
  find "$work/all" -name '*.so*' \( -path '*/lib/x86_64-linux-gnu/lib[a-z]*' -o -name 'ld-linux*' \) ! -path '*/gconv/*' -exec cp -a {} "$libraries/" \;
  cp -L "$libraries/ld-linux-x86-64.so.2" "$root/lib64/"
  cp "$work"/all/usr/bin/{runsv,runsvdir,sv,dropbearkey} "$root/usr/bin/"
  cp "$work"/all/usr/sbin/dropbear "$root/usr/sbin/"
  cp /bin/busybox "$root/bin/busybox"
  for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || [ -e "$root/usr/bin/$applet" ] || ln -sf /bin/busybox "$root/bin/$applet"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n' >"$root/etc/group"
  printf '/bin/sh\n' >"$root/etc/shells"
  chmod 1777 "$root/tmp"
  chmod 700 "$root/root"
  # -R makes the host key at the first connection; -s refuses passwords.
  mkdir -p "$root"/etc/service/{ssh,agent}
  printf '#!/bin/sh\nexec /usr/sbin/dropbear -F -E -R -s -p 22 2>&1\n' >"$root/etc/service/ssh/run"
  printf '#!/bin/sh\necho "agent of $(hostname)" >>/run/agent\nexec sleep 1000000\n' >"$root/etc/service/agent/run"
  # Says that it ended in order.
  printf '#!/bin/sh\necho "agent ended" >/proc/1/fd/1\n' >"$root/etc/service/agent/finish"
  # The init: reaps whatever is left to it, keeps the services up out of a folder in memory, and takes them down in order
  # on SIGPWR, as a machine's does.
  cat >"$root/sbin/init" <<'INIT'
#!/bin/sh
down() {
  sv -w 10 shutdown /run/service/*
  echo "all down"
  exit 0
}
trap down PWR
cp -a /etc/service /run/service
runsvdir -P /run/service &
while :; do wait; done
INIT
  chmod 755 "$root"/etc/service/*/* "$root/sbin/init"
  save=$work/save
  mkdir -p "$save"
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -C "$root" -cf "$save/layer.tar" .
  layer=$(sha256sum <"$save/layer.tar" | cut -d' ' -f1)
  mkdir "$save/$layer"
  mv "$save/layer.tar" "$save/$layer/layer.tar"
  jq -cn --arg layer "sha256:$layer" '{architecture: "amd64", os: "linux", created: "1970-01-01T00:00:00Z",
      config: {Env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], Cmd: ["/sbin/init"], WorkingDir: "/", StopSignal: "SIGPWR"},
      rootfs: {type: "layers", diff_ids: [$layer]},
      history: [{created: "1970-01-01T00:00:00Z", created_by: "scripts/make-fat-image.sh"}]}' >"$save/config.json"
  jq -cn --arg layer "$layer/layer.tar" '[{Config: "config.json", RepoTags: ["fat:latest"], Layers: [$layer]}]' >"$save/manifest.json"
  (cd "$save" && tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf "$cache/fat.tar" -- *)
  echo "$stamp" >"$cache/fat.stamp"
fi
cp "$cache/fat.tar" "$archive"
