# SPDX-License-Identifier: Apache-2.0
"""The documentation keeps its word: the tutorial runs as written, examples run, generated pages and quoted figures are current.

That every block of code in every page parses, that those which import fabrex run, and that links lead somewhere is in test_tidy.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fabrex

pytest_plugins = ["helpers"]

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def run(command: list[str], where: Path, timeout: float = 120) -> str:
    """Run a command; return what it prints to standard output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "FABREX_NODE"))}
    environment["PATH"] = f"{where / 'bin'}:{environment.get('PATH', '/usr/bin:/bin')}"
    done = subprocess.run(command, cwd=where, env=environment, text=True, capture_output=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{command[-1][:200]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A directory in which `python` is this Python."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


def tutorial() -> Iterator[tuple[int, str, str, str | None]]:
    """Yield line, language, text and expected output of each block."""
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    for i, block in enumerate(found):
        if block[1] == "text":
            continue
        after = found[i + 1] if i + 1 < len(found) else None
        shown = after[2] if after and after[1] == "text" and not text[block.end() : after.start()].strip() else None
        yield text.count("\n", 0, block.start()) + 1, block[1], block[2], shown


def test_the_tutorial_runs_as_written(place: Path, desk: Path) -> None:
    """Blocks that name a file become it; the others run; what they print is what the page shows."""
    ran = 0
    for line, language, text, shown in tutorial():
        name = re.match(r"# (\w+\.py)\n", text)
        if language == "python" and name:
            (desk / name[1]).write_text(text)
            continue
        if language == "sh" and "python " not in text:
            continue  # installation
        assert language in ("python", "sh"), f"line {line}: a block of {language}"
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-e", "-c", text]
        printed = run(command, desk)
        assert shown is None or printed == shown, f"docs/tutorial.md:{line}"
        ran += 1
    assert ran >= 5
    written = set(re.findall(r"`(\w+\.py)`", (DOCS / "tutorial.md").read_text(encoding="utf-8")))
    assert {path.name for path in desk.glob("*.py")} <= written, "the page says under which names to save its programs"


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples" / "python").glob("*.py")))
def test_python_examples_run(place: Path, example: str, desk: Path) -> None:
    assert run([sys.executable, str(ROOT / "examples" / "python" / example)], desk)


def compiler() -> str:
    """Return the C compiler, or skip."""
    found = shutil.which(os.environ.get("CC", "cc"))
    if not found:
        pytest.skip("no C compiler")
    return found


def test_the_c_example_runs(place: Path, desk: Path) -> None:
    """`make examples` builds it against an installed library; here the core's objects do."""
    objects = [str(path) for path in sorted((ROOT / "build" / "core").glob("*.o"))]
    if not objects:
        pytest.skip("the core's objects are not built (make c-tests)")
    source, program = ROOT / "examples" / "c" / "pair.c", desk / "pair"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", "-pthread"]
    run([compiler(), *flags, str(source), *objects, "-o", str(program)], desk)
    printed = run([str(program)], desk)
    assert "host0 sees 42; host1 added 1 to 42" in printed
    assert "LINK_DOWN" in printed


# --- generated pages ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """tools/docs/build.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "tools" / "docs" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_build"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["api.md", "errors.md", "layout.md"])
def test_generated_pages_are_current(generator: ModuleType, page: str) -> None:
    assert (DOCS / "reference" / page).read_text(encoding="utf-8") == generator.PAGES[page](), "run `make docs`"


def test_the_api_page_has_what_the_package_exports(generator: ModuleType) -> None:
    """Nothing that `fabrex` offers is missing from the reference."""
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    for name in fabrex._LAZY:
        assert f"### fabrex.{name}\n" in text
    for name in dir(fabrex.Node):
        if not name.startswith("_") and name != "empty" and getattr(fabrex.Node, name).__doc__:
            assert re.search(rf"^#### `{name}[(:]", text, re.M), f"Node.{name}"


def test_the_layout_page_says_what_the_compiler_says(generator: ModuleType, desk: Path) -> None:
    """Offsets and sizes on the page are computed from the text of layout.h; here a compiler does it."""
    layout = generator.Layout()
    lines, wanted = [], []
    for name, _, fields, size in layout.structs:
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        wanted.append(f"{name} {size}")
        for field in fields:
            plain = re.sub(r"(\[[^]]*\])+$", "", field.name)
            lines.append(f'printf("{name}.{plain} %zu\\n", offsetof(struct {name}, {plain}));')
            wanted.append(f"{name}.{plain} {field.offset}")
    includes = '#include <stddef.h>\n#include <stdio.h>\n#include "layout.h"\n'
    (desk / "offsets.c").write_text(f"{includes}int main(void)\n{{\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    run([compiler(), "-std=gnu11", f"-I{ROOT / 'csrc'}", "offsets.c", "-o", "offsets"], desk)
    assert run([str(desk / "offsets")], desk).splitlines() == wanted


# --- figures and pictures ----------------------------------------------------------------------------------------------


def test_quoted_figures_of_the_timing_model() -> None:
    """docs/internals/timing.md quotes the program that measures the model."""
    program = ROOT / "build" / "core" / "test" / "test_timing"
    if not program.exists():
        pytest.skip("the C tests are not built (make c-tests)")
    printed = [line.strip() for line in run([str(program)], ROOT).splitlines() if line.startswith("  ")]
    page = (DOCS / "internals" / "timing.md").read_text(encoding="utf-8")
    quoted = re.search(r"<!-- output of build/core/test/test_timing -->\n```text\n(.*?)```", page, re.S)
    assert quoted
    assert quoted[1].splitlines() == printed


def test_the_picture_shows_what_the_model_says(place: Path) -> None:
    """docs/img/journey.svg names times of the preset fabrex-pair."""
    picture = (DOCS / "img" / "journey.svg").read_text(encoding="utf-8")
    with fabrex.Fabric.create("fabrex-pair") as fabric, fabric.attach("host0"), fabric.attach("host1") as host1:
        gva = fabric.gva("host0")
        assert f">{host1.estimate('store', gva)['arrives_ps'] / 1000:.0f} ns: visible at host0<" in picture
        assert f">{host1.estimate('load', gva)['completes_ps'] / 1000:.0f} ns: the call returns<" in picture


@pytest.mark.parametrize("picture", sorted(path.name for path in (DOCS / "img").glob("*.svg")))
def test_pictures_are_well_formed(picture: str) -> None:
    root = xml.etree.ElementTree.parse(DOCS / "img" / picture).getroot()
    assert root.tag.endswith("svg")
    assert root.get("viewBox")
    assert root.find("{http://www.w3.org/2000/svg}title") is not None


def test_device_profiles_are_as_the_page_says(place: Path) -> None:
    """The table in docs/concepts/address-space.md, against the devices."""
    text = (DOCS / "concepts" / "address-space.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (\d+)", text, re.M))
    luts = dict(re.findall(r"^\| `([\w-]+)` \| [^|]*\| [^|]*\| (\d+) of", text, re.M))
    assert len(rows) == 7
    for profile, direct in rows.items():
        topology = fabrex.Topology.preset("local").override({"nodes.*.ntb": profile})
        with fabrex.Fabric.create(topology) as fabric, fabric.attach("host0") as host0:
            windows = list(host0.ntb.windows)
            assert sum(not window.lut for window in windows) == int(direct), profile
            assert sum(window.lut for window in windows) == int(luts.get(profile, 0)), profile


def test_every_page_is_reachable() -> None:
    """From docs/index.md, link by link."""
    seen: set[Path] = set()
    todo = [DOCS / "index.md"]
    while todo:
        page = todo.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        for target in re.findall(r"\]\(([^)#\s:]+\.md)", page.read_text(encoding="utf-8")):
            todo.append((page.parent / target).resolve())
    missing = sorted(path.relative_to(ROOT).as_posix() for path in set(DOCS.rglob("*.md")) - seen)
    assert not missing


def test_the_readme_fits_a_screen() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80
