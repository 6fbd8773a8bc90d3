#!/bin/sh
# The storage conformance suite on a real device-mapper: boots User-Mode Linux on the machine's own root
# file system and runs the test binary inside.
#
#   scripts/uml-lane.sh [TEST_BINARY [TEST_NAME_FILTER]]
#
# Without a binary it takes the one that `cargo nextest run --workspace` runs, built if need be. Prints the
# suite's output and, last, `uml: N passed, 0 failed`; exits 0 only if the suite ran to its end inside, every
# listed case passed, and all within UML_DEADLINE seconds (1200: a slow machine takes 20 s for some cases). Needs
# user-mode-linux, lvm2, dmsetup, xfsprogs, and without a binary cargo-nextest and jq. Leaves nothing behind; the machine's own kernel is not touched.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
deadline=${UML_DEADLINE:-1200}
binary=${1:-}
filter=${2:-}

fail() {
    echo "uml: FAILED: $*" >&2
    exit 1
}

command -v linux.uml >/dev/null || fail "user-mode-linux is not installed"
[ -d /usr/lib/uml/modules ] || fail "/usr/lib/uml/modules is missing"
if [ -z "$binary" ]; then
    # The one that the workspace's tests run: a build for this package alone would choose other features.
    binary=$(cd "$root" && cargo nextest list --workspace --list-type binaries-only --message-format json |
        jq -r '."rust-binaries"."amphi-hostsrv::storage_conformance"."binary-path"')
fi
[ -x "$binary" ] || fail "no test binary ${binary:-was built}"
binary=$(cd "$(dirname "$binary")" && pwd)/$(basename "$binary")

expected=$("$binary" --list --format terse $filter | grep -c ': test$')
[ "$expected" -gt 0 ] || fail "the test binary lists no case"

mkdir -p "$root/target/uml"
work=$(mktemp -d "$root/target/uml/lane.XXXXXX") || fail "no working directory"
uml=
end() {
    if [ -n "$uml" ]; then
        kill -s KILL -- "-$uml"
        wait "$uml"
    fi
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM HUP PIPE

# Where the kernel inside may write: a tmpfs over a directory that hides neither the binary nor the results.
scratch=/mnt
case "$work/ $binary" in /mnt/* | *" /mnt/"*) scratch=/tmp ;; esac

# The init of the kernel inside. hostfs is the machine's own root: everything written goes to tmpfs but the results.
cat >"$work/init" <<INIT
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=$scratch TMPDIR=$scratch
exec >"$work/output" 2>&1
prepare() {
    set -e
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    # The kernel may have mounted it by itself.
    mount -t devtmpfs dev /dev 2>/dev/null || [ -e /dev/null ]
    mount -t tmpfs tmpfs /run
    mount -t tmpfs -o size=900m tmpfs $scratch
    # Where modprobe looks, without touching the machine's own /lib/modules.
    mkdir -p $scratch/modules/lib
    ln -s /usr/lib/uml/modules $scratch/modules/lib/modules
    modprobe -d $scratch/modules -a dm-mod dm-snapshot loop
    mkdir $scratch/lane
}
# Without its own scratch space nothing may run: it would work on the machine's.
(prepare) || { echo "preparing the kernel inside failed"; echo o >/proc/sysrq-trigger; exec sleep 60; }
AMPHI_STORAGE_DM_LANE=$scratch/lane "$binary" --test-threads=1 --nocapture $filter
echo "\$?" >"$work/code"
dmsetup ls --target linear >"$work/left"
losetup --list --noheadings >>"$work/left"
sync
echo o >/proc/sysrq-trigger
INIT
chmod +x "$work/init"

gcc -O1 -shared -fPIC -o "$work/registers.so" "$root/scripts/uml-registers.c" || fail "scripts/uml-registers.c does not compile"

# A session of its own, so that every process of the kernel inside can be ended together.
LD_PRELOAD=$work/registers.so setsid linux.uml mem=1200M rootfstype=hostfs rootflags=/ rw init="$work/init" umid="amphi-$$" uml_dir="$work/" \
    con=null con0=fd:0,fd:1 quiet </dev/null >"$work/console" 2>&1 &
uml=$!
waited=0
while kill -0 "$uml" 2>/dev/null; do
    [ "$waited" -lt "$((deadline * 5))" ] || break
    sleep 0.2
    waited=$((waited + 1))
done
kill -0 "$uml" 2>/dev/null && late=yes || late=

[ ! -f "$work/output" ] || cat "$work/output"
show_console() {
    echo "--- console of the kernel inside" >&2
    tail -40 "$work/console" >&2
}
if [ -n "$late" ]; then
    show_console
    fail "not done within $deadline s"
fi
wait "$uml"
uml=
if [ ! -s "$work/code" ]; then
    show_console
    fail "the kernel inside ended before the suite did"
fi
code=$(cat "$work/code")
summary=$(grep '^test result: ' "$work/output" | tail -1)
passed=$(echo "$summary" | sed -n 's/^test result: [a-zA-Z]*\. \([0-9]*\) passed; .*/\1/p')
failed=$(echo "$summary" | sed -n 's/.* passed; \([0-9]*\) failed; .*/\1/p')
[ -n "$passed" ] && [ -n "$failed" ] || fail "the suite gave no result (exit code $code)"
if [ -s "$work/left" ] && ! grep -q '^No devices found$' "$work/left"; then
    cat "$work/left" >&2
    fail "devices were left behind inside; $passed passed, $failed failed"
fi
echo "uml: $passed passed, $failed failed"
[ "$code" = 0 ] && [ "$failed" = 0 ] && [ "$passed" = "$expected" ] || fail "expected $expected passed (exit code $code)"
