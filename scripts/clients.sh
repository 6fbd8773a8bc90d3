#!/usr/bin/env bash
# clients.sh DIRECTORY REQUIREMENTS: a Python virtual environment with what a file of pins names. Made once, and anew when
# the pins or the Python have changed; several at once wait for each other.
set -euo pipefail
venv=$1 pins=$2
mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
stamp="$(sha256sum <"$pins" | cut -d' ' -f1) $(python3 --version)"
if [ "$(cat "$venv/.stamp" 2>/dev/null || true)" = "$stamp" ]; then
  exit 0
fi
echo "installing what $pins names into $venv"
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" --quiet --disable-pip-version-check install --requirement "$pins"
echo "$stamp" >"$venv/.stamp"
