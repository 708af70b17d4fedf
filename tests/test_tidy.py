# SPDX-License-Identifier: Apache-2.0
"""Tidy: the rules that keep the tree as it is meant to be, as ordinary tests.

Each rule is a table or a few lines here, with its reason. A rule that stops making sense is changed here, in the open; a file
that needs an exception is named here with why. Nothing here needs the compiled core, except the documentation's programs.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

# --- what belongs where ----------------------------------------------------------------------------------------------

# The C core from the bottom up. A file includes its own layer and those below. File names without their ending.
C_LAYERS: list[set[str]] = [
    {"fabrex", "pcie", "atomics", "layout", "wire", "hot", "Python"},  # the public header, named atomics, bytes shared by processes
    {"internal", "error", "clock", "copy", "prng", "trace", "jitter", "choice", "ordering"},
    {"segment", "lock", "registered", "ring", "timing", "link", "event", "tier", "fault", "stream", "looking"},
    {"route", "posted", "dma_queue", "ntb"},
    {"window", "directory", "transport", "call", "door", "change", "loop", "shm", "socket", "engine"},
    {"node", "op", "journey", "packets", "blocking", "view", "estimate", "away", "dma", "ntb_peer", "ntb_msi", "ntb_requester",
     "service", "fabric", "machine", "gateway", "errands", "export"},
    {"sim"},  # runs programs on all of it
    {"bench"},  # over everything
]

# Transports know the ops table and never one another.
C_TRANSPORTS = {"loop", "shm", "socket", "engine"}

# Raw atomics are in one file, so that every ordering in the core has a name that can be searched for.
C_RAW_ATOMICS = {"atomics.h"}

# What depends on the processor: its counter, its instructions, its name.
C_PER_PROCESSOR = {"atomics.h", "copy.c", "clock.h", "clock.c"}

# The only Python modules that may touch the compiled core. Everything else goes through them.
PY_CORE_IMPORTERS = {
    "fabrex/_handle.py",  # handles: lifetimes, locks, status to exception
    "fabrex/errors.py",  # the exceptions' codes come from the core's table
    "fabrex/pcie.py",  # link arithmetic: one implementation, in C
}

# Built upon the library; nothing below may import them.
PY_UPPER = ("fabrex.cli", "fabrex.ntbtool", "fabrex.kv", "fabrex.nixl", "fabrex.accel", "fabrex.pytest_plugin")

# Directories that are made, not written.
MADE = {".git", ".venv", "build", "dist", "results", "node_modules", "__pycache__"}


@functools.cache
def files() -> tuple[Path, ...]:
    """Return every written file of the tree."""
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not (name in MADE and (here == ROOT or name == "__pycache__"))
            and not name.endswith((".egg-info", "_cache"))
            and not (here / name / "pyvenv.cfg").exists()
            and name != ".hypothesis"
        )
        found += [here / name for name in sorted(names) if not name.endswith((".so", ".pyc", ".o", ".a"))]
    return tuple(found)


def with_suffix(*suffixes: str) -> list[Path]:
    """Return the written files with one of these endings."""
    return [path for path in files() if path.suffix in suffixes]


def name_of(path: Path) -> str:
    """Return a path as it is written in tables and messages."""
    return path.relative_to(ROOT).as_posix()


def line_at(text: str, offset: int) -> int:
    """Return the line number of an offset."""
    return text.count("\n", 0, offset) + 1


def report(faults: list[str]) -> None:
    """Fail with every fault at once."""
    assert not faults, "\n" + "\n".join(faults)


# --- all files -------------------------------------------------------------------------------------------------------


def test_licence_is_named_in_each_source_file() -> None:
    """A file copied out of the tree still says under which licence it is."""
    suffixes = {".py", ".pyi", ".c", ".h", ".in", ".sh", ".mk", ".toml", ".yaml", ".yml", ".cfg"}
    faults = []
    for path in files():
        if path.suffix not in suffixes and path.name not in {"Makefile", "run"}:
            continue
        if path.name == "MANIFEST.in" or "corpus" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        if text and "SPDX-License-Identifier: Apache-2.0" not in "\n".join(text.splitlines()[:5]):
            faults.append(f"{name_of(path)}: no SPDX-License-Identifier in the first five lines")
    report(faults)


def test_text_is_clean() -> None:
    """No trailing blanks, no tabs in Python and C, no missing or doubled last newline, no conflict markers."""
    faults = []
    for path in with_suffix(".py", ".pyi", ".c", ".h", ".md", ".toml", ".yaml", ".sh", ".mk"):
        text = path.read_text(encoding="utf-8")
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            faults.append(f"{name_of(path)}: ends with no newline, or with more than one")
        for number, line in enumerate(text.splitlines(), 1):
            if line != line.rstrip() and path.suffix != ".md":
                faults.append(f"{name_of(path)}:{number}: trailing blanks")
            if "\t" in line and path.suffix in {".py", ".pyi", ".c", ".h"}:
                faults.append(f"{name_of(path)}:{number}: tab")
            if re.match(r"(<{7}|>{7}|={7})( |$)", line) and path.suffix != ".md":
                faults.append(f"{name_of(path)}:{number}: conflict marker")
    report(faults)


def test_the_version_is_written_once() -> None:
    """The C header's version, where it has one, is pyproject.toml's."""
    found = re.search(r'^version = "(\d+)\.(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert found
    header = CSRC / "fabrex.h"
    text = header.read_text(encoding="utf-8") if header.exists() else ""
    for part, wanted in zip(("MAJOR", "MINOR", "PATCH"), found.groups(), strict=True):
        said = re.search(rf"FBX_VERSION_{part}\b[ \t=]+(\d+)", text)
        assert said is None or said[1] == wanted, f"fabrex.h: FBX_VERSION_{part} is {said[1]}, pyproject.toml says {wanted}"
    whole = re.search(r'#\s*define\s+FBX_VERSION(?:_STRING)?\s+"([^"]+)"', text)
    assert whole is None or whole[1] == ".".join(found.groups())


# --- C ---------------------------------------------------------------------------------------------------------------


def c_files() -> list[Path]:
    """Return the core's sources and headers."""
    return [path for path in with_suffix(".c", ".h") if path.is_relative_to(CSRC)]


def c_code(path: Path) -> str:
    """Return a C file without comments and strings, its lines where they were."""
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)

    def blank(match: re.Match[str]) -> str:
        if match[0].startswith('"'):
            # An include's name stays: the layering test reads it.
            start = text.rfind("\n", 0, match.start()) + 1
            return match[0] if re.match(r"\s*#\s*include", text[start : match.start()]) else '""'
        return re.sub(r"[^\n]", " ", match[0])

    return pattern.sub(blank, text)


def c_includes(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each quoted include."""
    for number, line in enumerate(c_code(path).splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if found:
            yield number, found[1]


def test_c_includes_point_downwards() -> None:
    """Each file of the core has a layer, and includes nothing from above it."""
    level = {name: index for index, names in enumerate(C_LAYERS) for name in names}
    faults = []
    for path in c_files():
        if path.stem not in level:
            faults.append(f"{name_of(path)}: give it a place in C_LAYERS (tests/test_tidy.py)")
            continue
        for number, included in c_includes(path):
            stem = Path(included).stem
            if stem not in level:
                faults.append(f"{name_of(path)}:{number}: {included} has no place in C_LAYERS")
            elif level[stem] > level[path.stem]:
                faults.append(f"{name_of(path)}:{number}: includes {included}, which is above it")
            elif {stem, path.stem} <= C_TRANSPORTS and stem != path.stem:
                faults.append(f"{name_of(path)}:{number}: a transport includes another, {included}")
    report(faults)


def test_c_calls_point_downwards() -> None:
    """A file of the core calls its own layer and those below, whatever header declared the function."""
    level = {name: index for index, names in enumerate(C_LAYERS) for name in names}
    sources = [path for path in c_files() if path.suffix == ".c" and path.stem in level]
    code = {path: c_code(path) for path in sources}
    home: dict[str, Path] = {}
    for path in sources:
        for found in re.finditer(r"^(?!static\b)[A-Za-z_][\w \t*]*?\b(fbxi?_\w+)\s*\([^;{}]*\)\s*\{", code[path], re.M):
            home[found[1]] = path
    faults = []
    for path in sources:
        for found in re.finditer(r"\bfbxi?_\w+", code[path]):
            owner = home.get(found[0], path)
            if level[owner.stem] > level[path.stem]:
                faults.append(f"{name_of(path)}:{line_at(code[path], found.start())}: {found[0]}() is above it, in {owner.name}")
    report(faults)


def test_c_files_include_their_own_header_first() -> None:
    """So each header is known to stand alone."""
    faults = []
    for path in c_files():
        if path.suffix != ".c" or not path.with_suffix(".h").exists():
            continue
        includes = re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', c_code(path), re.M)
        if not includes or includes[0] != f"{path.stem}.h":
            faults.append(f"{name_of(path)}: {path.stem}.h is not its first include")
    report(faults)


C_WORDS = {
    "atomics": (
        r"\batomic_\w+|\b__atomic_\w+|\b__sync_\w+|\bmemory_order_\w+|<stdatomic\.h>",
        C_RAW_ATOMICS,
        "raw atomics have names in atomics.h",
    ),
    "atomic types": (r"\b_Atomic\b", C_RAW_ATOMICS, "shared words are fbx_au32 and fbx_au64"),
    "volatile": (r"\bvolatile\b", C_RAW_ATOMICS, "volatile orders nothing; use a named atomic"),
    "processor": (
        r"\b__asm__\b|\basm\b|\b__x86_64__\b|\b__aarch64__\b|\b_mm_\w+|\b__rdtscp?\b",
        C_PER_PROCESSOR,
        "processors differ in the clock and atomics files only",
    ),
}


@pytest.mark.parametrize(("pattern", "allowed", "why"), C_WORDS.values(), ids=C_WORDS)
def test_c_words_stay_in_their_files(pattern: str, allowed: set[str], why: str) -> None:
    """Words that belong to one file only."""
    faults = []
    for path in c_files():
        if path.name in allowed:
            continue
        code = c_code(path)
        faults += [f"{name_of(path)}:{line_at(code, at.start())}: {at[0]}: {why}" for at in re.finditer(pattern, code)]
    report(faults)


def test_the_library_never_prints_or_exits() -> None:
    """Errors are codes; standard output and the process belong to the program."""
    faults = []
    for path in c_files():
        code = c_code(path)
        for at in re.finditer(r"(?<![\w.>])(printf|puts|putchar|perror|exit|abort)\s*\(|\bf(?:printf|puts)\s*\(\s*std", code):
            faults.append(f"{name_of(path)}:{line_at(code, at.start())}: {at[0]}")
    report(faults)


# --- Python ----------------------------------------------------------------------------------------------------------


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Return a file's syntax tree, as the oldest supported Python reads it."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_python_parses_on_the_oldest_version() -> None:
    """Syntax newer than 3.10 is found here and not on a user's machine."""
    faults = []
    for path in with_suffix(".py", ".pyi"):
        try:
            tree_of(path)
        except SyntaxError as error:
            faults.append(f"{name_of(path)}:{error.lineno}: {error.msg}")
    report(faults)


def test_python_files_say_what_they_are() -> None:
    """Every module has a docstring; so has everything public in the package."""
    faults = []
    for path in with_suffix(".py"):
        tree = tree_of(path)
        if tree.body and not ast.get_docstring(tree):
            faults.append(f"{name_of(path)}: no module docstring")
        if not path.is_relative_to(ROOT / "fabrex"):
            continue
        todo: list[tuple[str, ast.AST]] = [("", tree)]
        while todo:
            prefix, parent = todo.pop()
            for node in ast.iter_child_nodes(parent):
                if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                    continue
                derived = any("overload" in ast.unparse(item) or ".setter" in ast.unparse(item) for item in node.decorator_list)
                if not ast.get_docstring(node) and not derived:
                    faults.append(f"{name_of(path)}:{node.lineno}: {prefix}{node.name} has no docstring")
                if isinstance(node, ast.ClassDef):
                    todo.append((f"{node.name}.", node))
    report(faults)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of everything a module of the package imports, inside functions too."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    typing_only = {
        inner
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }
    for node in ast.walk(tree_of(path)):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def package_files() -> list[Path]:
    """Return the package's modules."""
    return [path for path in with_suffix(".py") if path.is_relative_to(ROOT / "fabrex")]


def test_only_handle_modules_import_the_core() -> None:
    """One place maps lifetimes and errors between the languages."""
    faults = []
    for path in package_files():
        if name_of(path) in PY_CORE_IMPORTERS:
            continue
        for number, name in imports_of(path):
            if name in {"fabrex._core", "fabrex._hot"}:
                faults.append(f"{name_of(path)}:{number}: imports {name}")
    report(faults)


def test_python_imports_point_downwards() -> None:
    """What is built upon the library is not imported by it."""
    faults = []
    for path in package_files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        own = next((upper for upper in PY_UPPER if module == upper or module.startswith(upper + ".")), None)
        if own:
            continue
        for number, name in imports_of(path):
            if any(name == upper or name.startswith(upper + ".") for upper in PY_UPPER):
                faults.append(f"{name_of(path)}:{number}: imports {name}, which is above it")
    report(faults)


def test_heavy_modules_are_imported_when_needed() -> None:
    """`import fabrex` stays quick: these are imported inside the functions that use them."""
    heavy = {"numpy", "torch", "matplotlib", "yaml", "jsonschema", "greenlet", "hypothesis", "asyncio"}
    faults = []
    for path in package_files():
        # The event loop of async programs derives from asyncio's; the module is imported when there is such a program.
        # Nobody meets fabrex.nixl and the cache for transformers without importing them by name.
        here = name_of(path)
        if here.startswith(("fabrex/pytest_plugin", "fabrex/nixl/")) or here in {"fabrex/sim/_async.py", "fabrex/kv/cache.py"}:
            continue
        for node in tree_of(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found = [name for name in names if name.split(".")[0] in heavy]
            faults += [f"{name_of(path)}:{node.lineno}: imports {name} at once" for name in found]
    report(faults)


# --- documentation ---------------------------------------------------------------------------------------------------

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```[ ]*$", re.M | re.S)


def blocks(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield line, language, text and the line before of each fenced block in a document."""
    text = path.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        indent = len(found["indent"])
        body = re.sub(rf"^ {{{indent}}}", "", found["body"], flags=re.M)
        before = text[: found.start()].rstrip().rpartition("\n")[2]
        yield line_at(text, found.start()), (found["info"].split() or [""])[0].lower(), body, before


ALL_BLOCKS = [
    pytest.param(path, line, language, body, before, id=f"{name_of(path)}:{line}")
    for path in with_suffix(".md")
    for line, language, body, before in blocks(path)
    if language in {"python", "py", "pycon", "json", "yaml", "sh", "bash"}
]


@pytest.mark.parametrize(("path", "line", "language", "body", "before"), ALL_BLOCKS)
def test_documented_code_is_code(path: Path, line: int, language: str, body: str, before: str) -> None:
    """Every block of code parses; a Python block that imports fabrex is a program, and runs.

    A line `<!-- not run: reason -->` above a block keeps it from running.
    """
    where = f"{name_of(path)}:{line}"
    if language == "json":
        json.loads(body)
    elif language == "yaml":
        yaml = pytest.importorskip("yaml")
        list(yaml.parse(body))
    elif language in {"sh", "bash"}:
        run = subprocess.run(["bash", "-n"], input=body, text=True, capture_output=True, check=False)
        assert run.returncode == 0, f"{where}: {run.stderr}"
    elif language == "pycon" or body.lstrip().startswith(">>>"):
        import doctest

        for example in doctest.DocTestParser().get_examples(body):
            compile(example.source, where, "single")
    else:
        compile(body, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if not re.search(r"^(import|from) fabrex\b", body, re.M) or before.startswith("<!-- not run:"):
            return
        run = subprocess.run([sys.executable, "-c", body], cwd=ROOT, text=True, capture_output=True, check=False, timeout=120)
        assert run.returncode == 0, f"{where}: {run.stderr}"


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as web hosts of git repositories make them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    found: set[str] = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = "".join(char for char in plain.strip().lower() if char in " -_" or unicodedata.category(char)[0] in "LN").replace(
            " ", "-"
        )
        base, count = slug, 0
        while slug in found:
            count += 1
            slug = f"{base}-{count}"
        found.add(slug)
    return found


def test_documented_links_lead_somewhere() -> None:
    """Relative links and their anchors exist."""
    faults = []
    for path in with_suffix(".md"):
        text = path.read_text(encoding="utf-8")
        prose = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
        prose = re.sub(r"`[^`\n]*`", lambda found: " " * len(found[0]), prose)
        for found in re.finditer(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", prose, re.M):
            target = found[1] or found[2]
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            name, _, anchor = target.partition("#")
            linked = (path.parent / name).resolve() if name else path
            where = f"{name_of(path)}:{line_at(prose, found.start())}"
            if not linked.exists():
                faults.append(f"{where}: {target} does not exist")
            elif anchor and linked.suffix == ".md" and anchor not in anchors(linked):
                faults.append(f"{where}: {target}: no such heading")
    report(faults)
