#!/usr/bin/env bash
# Makes a container image of a whole Debian out of Debian's packages: a debootstrap tree with nginx and OpenSSH, and above it
# a layer with how they are set up and start. nginx serves /data/www on port 80, sshd answers on 22 with the instance's keys;
# both end when they are told to. Cached by this script's own text; nothing of it is installed here.
# Usage: make-debian-image.sh ARCHIVE, a `docker save` archive of `debian-web:latest`.
set -euo pipefail
archive=$(realpath -m "$1")
cd "$(dirname "$0")/.."

mkdir -p target/lab-cache "$(dirname "$archive")"
cache=$(realpath target/lab-cache)
exec 9>"$cache/debian.lock"
flock 9
stamp=$(sha256sum <scripts/make-debian-image.sh | cut -d' ' -f1)
if [ "$(cat "$cache/debian.stamp" 2>/dev/null || true)" != "$stamp" ] || [ ! -e "$cache/debian-web.tar" ]; then
  rm -f "$cache/debian.stamp"
  work=$(mktemp -d "$cache/debian.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  root=$work/root
  # Without recommendations: debootstrap takes none.
  debootstrap --variant=minbase --include=nginx-light,openssh-server --merged-usr bookworm "$root" \
    "${AMPHI_DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
  # What nobody runs, and what is made anew: keys of a machine belong to the machine.
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,info,locale,lintian,bash-completion}/* \
    "$root"/var/log/*.log "$root"/etc/ssh/ssh_host_* "$root"/etc/machine-id "$root"/etc/hostname "$root"/etc/resolv.conf "$root"/dev
  mkdir -p "$root/dev" "$root/data"
  own=$work/own
  mkdir -p "$own"/etc/{nginx,ssh/sshd_config.d} "$own/usr/local/sbin"
  cat >"$own/etc/nginx/nginx.conf" <<'NGINX'
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
  access_log off;
  server { listen 80; root /data/www; index index.html; }
}
NGINX
  printf 'PasswordAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\nHostKey /data/host/ssh_host_ed25519_key\n' >"$own/etc/ssh/sshd_config.d/amphi.conf"
  cat >"$own/usr/local/sbin/start" <<'START'
#!/bin/sh
# Both servers, until the web's ends or the member is told to. The host's key lies on the volume, as the page does: what
# the instance is known by stays, whatever body it has.
set -e
mkdir -p /run/sshd /data/www /data/host
[ -e /data/host/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -f /data/host/ssh_host_ed25519_key
nginx -g 'daemon off;' &
web=$!
/usr/sbin/sshd -D -e &
ssh=$!
trap 'kill -QUIT $web; kill $ssh; wait; exit 0' TERM INT
wait $web || true
kill $ssh
exit 1
START
  chmod 755 "$own/usr/local/sbin/start"
  save=$work/save
  mkdir -p "$save"
  layers=() digests=()
  for tree in "$root" "$own"; do
    tar --sort=name --mtime=@0 --numeric-owner --xattrs --format=posix \
      --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -C "$tree" -cf "$save/layer.tar" .
    digest=$(sha256sum <"$save/layer.tar" | cut -d' ' -f1)
    mkdir -p "$save/$digest"
    mv "$save/layer.tar" "$save/$digest/layer.tar"
    layers+=("$digest/layer.tar")
    digests+=("sha256:$digest")
  done
  jq -cn '{architecture: "amd64", os: "linux", created: "1970-01-01T00:00:00Z",
      config: {Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], Cmd: ["/usr/local/sbin/start"], WorkingDir: "/"},
      rootfs: {type: "layers", diff_ids: $ARGS.positional},
      history: [$ARGS.positional[] | {created: "1970-01-01T00:00:00Z", created_by: "scripts/make-debian-image.sh"}]}' \
    --args "${digests[@]}" >"$save/config.json"
  config=$(sha256sum <"$save/config.json" | cut -d' ' -f1)
  mv "$save/config.json" "$save/$config.json"
  jq -cn --arg config "$config.json" '[{Config: $config, RepoTags: ["debian-web:latest"], Layers: $ARGS.positional}]' \
    --args "${layers[@]}" >"$save/manifest.json"
  (cd "$save" && tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf "$cache/debian-web.tar" -- *)
  echo "$stamp" >"$cache/debian.stamp"
fi
cp "$cache/debian-web.tar" "$archive"
