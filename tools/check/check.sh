#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# `make check`: everything that can be told without running a fabric. Every step runs, whatever the earlier ones said; the
# status is non-zero if any failed. Environment: BIN (the virtual environment's bin), CORE_CFLAGS.
set -u
bin=${BIN:-.venv/bin}
failed=""

step() { # name, then a command whose output is shown only if it fails
    name=$1
    shift
    if output=$("$@" 2>&1); then
        echo "ok    $name"
    else
        printf '%s\n' "$output"
        echo "FAIL  $name"
        failed="$failed $name"
    fi
}

# Beyond -Wall -Wextra. Sign conversion alone is left out: it drowns the truncations that matter in index arithmetic.
warnings="-Werror -Wconversion -Wno-sign-conversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith
 -Wcast-qual -Wwrite-strings -Wundef -Wvla -Wformat=2 -Wno-format-nonliteral"

compile_core() { # compiler
    status=0
    for source in csrc/*.c; do
        [ -e "$source" ] || continue
        # shellcheck disable=SC2086
        "$1" $CORE_CFLAGS $warnings -Icsrc -c "$source" -o /dev/null || status=1
    done
    return $status
}

headers_alone() { # each header compiles by itself, in C; the public ones in C++ too
    status=0
    for header in csrc/*.h; do
        [ -e "$header" ] || continue
        # shellcheck disable=SC2086
        "${CC:-cc}" $CORE_CFLAGS -Werror -Icsrc -fsyntax-only -x c -include "$header" /dev/null || status=1
    done
    if command -v c++ >/dev/null 2>&1 && [ -e csrc/fabrex.h ]; then
        c++ -std=c++17 -Wall -Wextra -Werror -Icsrc -fsyntax-only -x c++ -include csrc/fabrex.h /dev/null || status=1
    fi
    return $status
}

cdef_parses() {
    [ -e csrc/fabrex.h ] || return 0
    "$bin/python" - <<'PY'
import pathlib, sys
sys.path.insert(0, "tools/build")
import cdef, cffi
cffi.FFI().cdef(cdef.generate(pathlib.Path("csrc")))
PY
}

stubs() { # the stubs of the compiled modules say what the modules hold
    for stub in fabrex/_*.pyi; do
        [ -e "$stub" ] || return 0
        module=fabrex.$(basename "$stub" .pyi)
        "$bin/python" -m mypy.stubtest --ignore-missing-stub "$module" || return 1
    done
}

# shellcheck disable=SC2086
step "ruff" "$bin/ruff" check --quiet .
step "mypy --strict" "$bin/mypy" --strict -p fabrex
step "stubs" stubs
step "tidy" "$bin/python" -m pytest -q -p no:cacheprovider tests/test_tidy.py
step "headers" headers_alone
step "cdef" cdef_parses
for compiler in gcc clang aarch64-linux-gnu-gcc; do
    if command -v $compiler >/dev/null 2>&1; then
        step "warnings ($compiler)" compile_core $compiler
    else
        echo "skip  warnings ($compiler): not installed"
    fi
done
if command -v shellcheck >/dev/null 2>&1; then
    step "shellcheck" shellcheck --severity=warning tools/build/*.sh tools/check/*.sh tools/*.sh .ci/run
else
    echo "skip  shellcheck: not installed"
fi

[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
