#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make test-wheel`: build the source distribution, the wheel from it, and try that one wheel under every Python from 3.10 on
# that the machine has. Everything happens outside the source tree, so that a file forgotten in the wheel is missed here and
# not by users. Environment: VENV (the project's environment), PYTHONS (interpreters to use instead of those found).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
venv=$(cd "${VENV:-.venv}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=(-m pip --quiet --disable-pip-version-check --no-input)
failed=0

# --- build: through the source distribution, so that it is known to be complete ---
"$venv/bin/python" -m venv "$work/tools"
tools="$work/tools/bin/python"
"$tools" "${pip[@]}" install build
mkdir -p dist
rm -f dist/fabrex-*.whl dist/fabrex-*.tar.gz
"$tools" -m build --outdir dist "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
wheel=$(ls dist/fabrex-*.whl)
echo "built $wheel"

case $wheel in
*-cp310-abi3-linux_*) ;;
*)
    echo "FAIL  the wheel's tag is not cp310-abi3-linux_*"
    failed=1
    ;;
esac

# --- contents ---
"$tools" - "$wheel" "$root" <<'PY' || failed=1
import pathlib, sys, zipfile

wheel, root = sys.argv[1], pathlib.Path(sys.argv[2])
held = set(zipfile.ZipFile(wheel).namelist())
wanted = {"fabrex/_core.abi3.so"}
if (root / "csrc/python/hot.c").exists():
    wanted.add("fabrex/_hot.abi3.so")
for pattern in ("**/*.py", "py.typed", "**/*.pyi", "presets/*.yaml", "schema/*.json"):
    wanted |= {path.relative_to(root).as_posix() for path in (root / "fabrex").glob(pattern)}
missing = sorted(wanted - held)
foreign = sorted(name for name in held if not name.startswith(("fabrex/", "fabrex-")))
for name in missing:
    print("FAIL  not in the wheel:", name)
for name in foreign:
    print("FAIL  does not belong in the wheel:", name)
if not any(name.endswith("licenses/LICENSE") for name in held):
    print("FAIL  no licence in the wheel")
    missing.append("LICENSE")
sys.exit(bool(missing or foreign))
PY

# --- the limited API is kept ---
if "$tools" "${pip[@]}" install abi3audit 2>"$work/abi3audit.log"; then
    if "$work/tools/bin/abi3audit" --strict --summary "$wheel" >"$work/abi3audit.log" 2>&1; then
        echo "ok    abi3audit"
    else
        cat "$work/abi3audit.log"
        echo "FAIL  abi3audit"
        failed=1
    fi
else
    echo "skip  abi3audit: cannot be installed here ($(tail -n 1 "$work/abi3audit.log"))"
fi

# --- every Python ---
if [ -n "${PYTHONS:-}" ]; then
    read -ra pythons <<<"$PYTHONS"
else
    pythons=()
    for minor in 10 11 12 13 14; do
        found=""
        for candidate in "$(command -v python3.$minor || true)" "$HOME/.pyenv/versions/3.$minor"*/bin/python; do
            # A name on PATH may be a shim for an interpreter that is not installed; only one that runs counts.
            if [ -x "$candidate" ] && "$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, $minor))" 2>/dev/null; then
                found=$candidate
                break
            fi
        done
        if [ -z "$found" ]; then
            # uv can fetch an interpreter, where its download site may be reached.
            if [ ! -x "$work/tools/bin/uv" ]; then "$tools" "${pip[@]}" install uv 2>/dev/null || true; fi
            if [ -x "$work/tools/bin/uv" ] &&
                UV_PYTHON_INSTALL_DIR="$work/pythons" timeout 120 "$work/tools/bin/uv" python install --quiet 3.$minor 2>"$work/uv.log"; then
                found=$(ls -d "$work"/pythons/cpython-3.$minor*/bin/python3.$minor | head -n 1)
            else
                echo "skip  Python 3.$minor: not on this machine, and uv could not fetch it"
                continue
            fi
        fi
        pythons+=("$found")
    done
fi

# A copy of the tests, beside nothing from which fabrex could be imported.
mkdir "$work/run"
cp -r tests pyproject.toml "$work/run"
rm -f "$work/run/tests/test_tidy.py"
if [ -d "$work/run/tests/smoke" ]; then what=(tests/smoke); else what=(tests -m smoke); fi

for python in "${pythons[@]}"; do
    version=$("$python" -c 'import platform; print(platform.python_version())')
    env="$work/env-$version"
    if ! { "$python" -m venv "$env" && "$env/bin/python" "${pip[@]}" install "${wheel}[test]"; } >"$work/install.log" 2>&1; then
        # What has no binary for this Python yet is not a fault of the wheel: it must still install and import by itself.
        tail -n 3 "$work/install.log"
        echo "FAIL  Python $version: cannot be installed with its dependencies"
        failed=1
        continue
    fi
    # -I: neither the current directory nor PYTHONPATH is on the path.
    if ! (cd "$work/run" && "$env/bin/python" -I -c '
import pathlib, sys, fabrex, fabrex._core
assert pathlib.Path(fabrex.__file__).is_relative_to(sys.prefix), fabrex.__file__
'); then
        echo "FAIL  Python $version: import"
        failed=1
        continue
    fi
    if output=$(cd "$work/run" && PATH="$env/bin:$PATH" "$env/bin/python" -I -m pytest -q -p no:cacheprovider "${what[@]}" 2>&1 </dev/null); then
        echo "ok    Python $version: $(tail -n 1 <<<"$output")"
    else
        printf '%s\n' "$output"
        echo "FAIL  Python $version"
        failed=1
    fi
    rm -rf "$env"
done
exit $failed
