#!/usr/bin/env bash
# Tempest's core list against the lab that `AMPHI_RECYCLE_HOURS=0 make up` has started (volumes that are deleted would
# stay in the recycle bin, and fill the hosts), once for each kind of body; or with KIND=vm or KIND=set
# for one. Everything else that the runner takes (LIST, CONCURRENCY, RUNLOG, JSON …) is passed on.
#   TEMPEST=/path/tempest-run.sh   the runner, with requirements.lock and tempest-core.txt beside it
set -euo pipefail
cd "$(dirname "$0")/.."
runner=${TEMPEST:-../shared/openstack/tempest-run.sh}
lab=${AMPHI_LAB_DIR:-target/lab}
[ -f "$runner" ] || { echo "tempest.sh: no runner at $runner; say where it is: TEMPEST=/path/tempest-run.sh" >&2; exit 2; }
[ -f "$lab/env" ] || { echo "tempest.sh: no lab is up in $lab; start one with: AMPHI_RECYCLE_HOURS=0 make up" >&2; exit 2; }
scripts/clients.sh target/tempest "$(dirname "$runner")/requirements.lock"
VENV=$(realpath target/tempest)
export VENV
# shellcheck disable=SC1091
. "$lab/env"
openstack() { "$VENV/bin/openstack" "$@"; }

failed=0
for kind in ${KIND:-vm set}; do
  list=${LIST:-}
  if [ "$kind" = set ]; then
    # Only the compute part knows of bodies. Its images are container images.
    name=tempest-set-$$
    for image in IMAGE_REF IMAGE_REF_ALT; do
      id=$(openstack image create "$name-$image" --public --disk-format raw --container-format docker \
        --file "$lab/images/web.tar" -f value -c id)
      export "$image=$id"
    done
    if [ -z "$list" ]; then
      list=$(mktemp)
      grep '^tempest\.api\.compute' "$(dirname "$runner")/tempest-core.txt" >"$list"
    fi
  fi
  echo "tempest, $kind:"
  LIST=${list:-$(dirname "$runner")/tempest-core.txt} bash "$runner" "$OS_AUTH_URL" "$OS_USERNAME" "$OS_PASSWORD" || failed=1
done
exit $failed
