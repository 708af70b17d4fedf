# SPDX-License-Identifier: Apache-2.0
"""The build's own helpers: the preflight's one line, the cffi declarations, the installed C library.

They need the source tree; where only the tests were copied (beside an installed wheel) everything here is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PREFLIGHT = ROOT / "tools" / "build" / "preflight.sh"

pytestmark = pytest.mark.skipif(not PREFLIGHT.exists(), reason="needs the source tree")


def preflight(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run the preflight with these variables over the ones at hand."""
    return subprocess.run(
        ["sh", str(PREFLIGHT)],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        text=True,
        capture_output=True,
        check=False,
    )


def test_preflight_is_silent_where_all_is_there() -> None:
    run = preflight(CC="true")  # a compiler that always succeeds, so that only the rest is looked at
    assert run.returncode in (0, 2)
    if run.returncode == 0:
        assert run.stdout == ""


@pytest.mark.parametrize(
    ("environment", "packages"),
    [
        ({"PYTHON": "no-such-python"}, ["python3", "python3-dev", "python3-venv"]),
        ({"PYTHON": "/nowhere/python3.99"}, ["python3.99", "python3.99-dev", "python3.99-venv"]),
        ({"CC": "no-such-cc"}, ["gcc"]),
        ({"CC": "no-such-clang -m64"}, ["clang"]),
        ({"CC": "false"}, ["libc6-dev"]),
    ],
    ids=["python", "other-python", "cc", "clang", "libc-headers"],
)
def test_preflight_names_what_is_missing_in_one_line(environment: dict[str, str], packages: list[str]) -> None:
    run = preflight(**environment)
    assert run.returncode == 2
    [line] = run.stdout.splitlines()
    command, _, named = line.partition("-y ")
    assert command == "sudo apt-get install "
    assert set(packages) <= set(named.split())
    if "CC" in environment:
        assert "python3" not in named.split(), "what is there is not named"


def test_preflight_on_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    run = preflight(PYTHON=str(old))
    assert run.returncode == 2
    assert "3.10 or later" in run.stderr
    assert run.stdout == ""


def test_cdef_takes_declarations_and_integer_macros(tmp_path: Path) -> None:
    cffi = pytest.importorskip("cffi")
    sys.path.insert(0, str(ROOT / "tools" / "build"))
    try:
        import cdef
    finally:
        sys.path.pop(0)
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    (tmp_path / "fabrex.h").write_text(
        """
#ifndef FBX_CDEF
#include <stdint.h>
#endif
#include "more.h"
#define FBX_COUNT 16u /* a comment */
#define FBX_MASK (UINT64_C(1) << FBX_SHIFT)
#define FBX_TEXT "not an integer"
#define FBX_CALL(x) (x)
#define FBX_EMPTY
// #define FBX_OLD 1
_Static_assert(sizeof(int) == 4, "a reason (with brackets)");
struct fbx_pair { uint64_t a, b; };
int fbx_first(const struct fbx_pair *pair);
"""
    )
    (tmp_path / "more.h").write_text("#define FBX_SHIFT 3\nint fbx_second(void);\n")
    text = cdef.generate(tmp_path)
    assert sorted(cdef.constants(tmp_path)) == ["FBX_COUNT", "FBX_MASK", "FBX_SHIFT"]
    assert "Static" not in text
    cffi.FFI().cdef(text)


def test_a_c_program_builds_against_the_installed_library(tmp_path: Path) -> None:
    """Install as a package would, then compile with what pkg-config says and nothing else."""
    for tool in ("make", "cc", "pkg-config"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}")
    if not (ROOT / "csrc" / "fabrex.h").exists():
        pytest.skip("no core")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}

    def run(*command: str, **more: str) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env={**environment, **more}, text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    stage = tmp_path / "stage"
    run("make", "install-lib", "PREFIX=/opt/fabrex", f"DESTDIR={stage}", f"PYTHON={sys.executable}")
    installed = {path.relative_to(stage / "opt/fabrex").as_posix() for path in stage.rglob("*") if not path.is_dir()}
    assert {
        "include/fabrex/fabrex.h",
        "lib/libfabrex.so",
        "lib/libfabrex.so.1",
        "lib/libfabrex.a",
        "lib/pkgconfig/fabrex.pc",
    } <= installed

    found = {"PKG_CONFIG_PATH": str(stage / "opt/fabrex/lib/pkgconfig"), "PKG_CONFIG_SYSROOT_DIR": str(stage)}
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version = "))
    assert run("pkg-config", "--modversion", "fabrex", **found).strip() == version.split('"')[1]
    source = tmp_path / "program.c"
    source.write_text("#include <fabrex.h>\nint main(void) { return fbx_error_name(-1) ? 0 : 1; }\n")
    flags = run("pkg-config", "--cflags", "--libs", "fabrex", **found).split()
    run("cc", "-Wall", "-Werror", str(source), "-o", str(tmp_path / "program"), *flags)
    run(str(tmp_path / "program"), LD_LIBRARY_PATH=str(stage / "opt/fabrex/lib"))
