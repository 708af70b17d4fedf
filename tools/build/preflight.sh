#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Look for what a bare Debian or Ubuntu lacks to build and test this project. Silent, status 0: all there. Otherwise one line
# on standard output that installs exactly what is missing, and status 2. Each need is tested by using it, because a package's
# name says nothing about software that came from elsewhere.
#
# Environment: PYTHON, CC (commands), NEED_PKG_CONFIG (non-empty where pkg-config is needed too).
set -u
python=${PYTHON:-python3}
cc=${CC:-cc}
missing=""
need() { missing="$missing $1"; }

compiles() { # compile and link the program on standard input, with these flags
    out=$(mktemp) || exit 1
    # shellcheck disable=SC2086  # $cc may hold words
    $cc -x c - "$@" -o "$out" 2>/dev/null
    status=$?
    rm -f "$out"
    return $status
}

first=${cc%% *}
have_cc=yes
if ! command -v "$first" >/dev/null 2>&1; then
    have_cc=no
    case $first in
    *clang*) need clang ;;
    *) need gcc ;;
    esac
fi
if [ $have_cc = yes ]; then
    printf '#include <stdio.h>\n#include <pthread.h>\nint main(void) { return 0; }\n' | compiles -pthread || need libc6-dev
elif [ ! -e /usr/include/stdio.h ]; then
    need libc6-dev
fi
command -v make >/dev/null 2>&1 || need make

# python3 belongs to the distribution; python3.12 and its like have packages of that name.
case ${python##*/} in
python3.[0-9]*) package=${python##*/} ;;
*) package=python3 ;;
esac
if ! command -v "$python" >/dev/null 2>&1; then
    missing="$missing $package $package-dev $package-venv"
else
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "fabrex needs Python 3.10 or later; $python is $("$python" -V 2>&1). Name another: make PYTHON=python3.12" >&2
        exit 2
    }
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$include/Python.h" ] || need "$package-dev"
    "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 || need "$package-venv"
fi
[ -z "${NEED_PKG_CONFIG:-}" ] || command -v pkg-config >/dev/null 2>&1 || need pkg-config

[ -z "$missing" ] && exit 0
echo "sudo apt-get install -y$missing"
exit 2
