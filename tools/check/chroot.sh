#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prove that `make test` works on a bare machine: a minimal Debian 12 with /proc, a /dev/shm of 64 MiB (a container's usual) and
# 1024 file descriptors, as an ordinary user. Run as root: tools/check/chroot.sh [MAKE-TARGET...]   (default: test)
#
# It first runs make with nothing installed, takes the one line that this prints, runs that line, and runs make again.
#
# Environment: MIRROR (Debian mirror; the host's own if unset), SUITE (bookworm), WORK (/tmp/fabrex-chroot; its base/ is kept
# for the next run, remove it by hand), KEEP=1 (keep the used system too), SHM_SIZE (64m), FILES (1024). Proxy variables and
# pip's index settings are passed on, since they say how this machine reaches the network.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "chroot.sh: needs root (debootstrap, mount, chroot)" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "sudo apt-get install -y debootstrap" >&2; exit 2; }

# In namespaces of its own, every mount and process ends with this script, even if it is killed.
if [ -z "${FABREX_CHROOT_INSIDE:-}" ]; then
    exec env FABREX_CHROOT_INSIDE=1 unshare --mount --pid --fork --kill-child --propagation private "$0" "$@"
fi

root=$(cd "$(dirname "$0")/../.." && pwd)
suite=${SUITE:-bookworm}
work=${WORK:-/tmp/fabrex-chroot}
base=$work/base-$suite
system=$work/system
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 2>/dev/null | head -n 1)}
mirror=${mirror:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)}
targets=("${@:-test}")

if [ ! -e "$base/.complete" ]; then
    rm -rf "$base"
    mkdir -p "$work"
    echo "installing a minimal $suite"
    debootstrap --variant=minbase "$suite" "$base" "$mirror" >"$work/debootstrap.log" 2>&1 || { tail "$work/debootstrap.log" >&2; exit 1; }
    touch "$base/.complete"
fi
rm -rf "$system"
cp -a "$base" "$system"

mount -t proc proc "$system/proc"
mkdir -p "$system/dev/shm"
mount -t tmpfs -o "size=${SHM_SIZE:-64m},mode=1777" tmpfs "$system/dev/shm"
cleanup() {
    umount "$system/dev/shm" "$system/proc" 2>/dev/null || true
    [ -n "${KEEP:-}" ] || rm -rf --one-file-system "$system"
}
trap cleanup EXIT

# The network, as this machine reaches it.
cp -L /etc/resolv.conf "$system/etc/resolv.conf"
cp -L /etc/hosts "$system/etc/hosts"
apt-config dump | grep -E '^Acquire::(http|https|Retries)' >"$system/etc/apt/apt.conf.d/90host" || true
pass=()
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT http_proxy https_proxy no_proxy \
    HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [ -z "${!name:-}" ] || pass+=("$name=${!name}")
done
# Certificates under a name of their own: installing Debian's later overwrites the usual one.
certificates=${PIP_CERT:-${SSL_CERT_FILE:-}}
if [ -n "$certificates" ]; then
    install -m 644 "$certificates" "$system/etc/host-certificates.pem"
    pass+=(PIP_CERT=/etc/host-certificates.pem)
fi

run_as() { # user, command
    (
        ulimit -n "${FILES:-1024}"
        chroot "$system" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME="/home/$1" \
            LANG=C.UTF-8 TERM=dumb CI=true DEBIAN_FRONTEND=noninteractive "${pass[@]}" \
            setpriv --reuid="$1" --regid="$1" --init-groups bash -c "cd ~/fabrex 2>/dev/null || cd /; $2" </dev/null
    )
}

# What a clone of the tree as it stands would hold: tracked files and new ones, without what is ignored.
chroot "$system" useradd --create-home --shell /bin/bash tester
ln -s tester "$system/home/root"
mkdir "$system/home/tester/fabrex"
(cd "$root" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' path; do
    if [ -e "$path" ] || [ -L "$path" ]; then printf '%s\0' "$path"; fi
done | tar --null --files-from=- --create) | tar --extract --directory "$system/home/tester/fabrex"
chroot "$system" chown -R tester:tester /home/tester

# A minimal Debian has no make, so nothing of ours can run before it.
run_as root 'apt-get update -qq && apt-get install -qq -y make >/dev/null 2>&1' || { echo "cannot install make" >&2; exit 1; }

echo "== first run, on the bare system: one line is expected"
status=0
run_as tester "make ${targets[*]}" >"$work/first.log" 2>"$work/first.err" || status=$?
cat "$work/first.log"
if [ $status != 2 ] || [ "$(wc -l <"$work/first.log")" != 1 ] || ! grep -q '^sudo apt-get install -y ' "$work/first.log"; then
    cat "$work/first.err" >&2
    echo "FAIL  expected status 2 and one line that installs what is missing; got status $status" >&2
    exit 1
fi

echo "== running that line"
line=$(sed 's/^sudo //' "$work/first.log") # the chroot's root has no sudo, and needs none
run_as root "$line" >"$work/apt.log" 2>&1 || { tail "$work/apt.log" >&2; exit 1; }

echo "== make ${targets[*]}"
status=0
run_as tester "make ${targets[*]}" || status=$?
left=$(find "$system/dev/shm" -mindepth 1 | head)
if [ -n "$left" ]; then
    echo "FAIL  left behind in /dev/shm:" >&2
    echo "$left" >&2
    [ $status != 0 ] || status=1
fi
exit $status
