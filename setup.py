# SPDX-License-Identifier: Apache-2.0
"""Build the two extensions; everything declarative is in pyproject.toml.

`fabrex._core` is cffi's binding (API mode) with all of csrc/*.c inside it; `fabrex._hot` is a hand-written extension for the
scalar operations, which links nothing and gets the core's functions at run time. Both use only the limited API of Python 3.10,
so one wheel serves every later version.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)
sys.path.insert(0, str(ROOT / "tools" / "build"))

import cdef  # noqa: E402  (a helper beside this file, importable only now)

LIMITED_API = "0x030A0000"
EXTENSIONS = os.environ.get("FABREX_BUILD_EXTENSIONS", "1") != "0"
"""`make` sets this to 0 for its editable install, because it builds the extensions itself, and only what changed."""
CSRC = Path("csrc")


def flags(name: str) -> list[str]:
    """Return the words of one variable of tools/build/flags.mk."""
    for line in Path("tools/build/flags.mk").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == name:
            return value.split()
    raise SystemExit(f"tools/build/flags.mk does not define {name}")


class BuildExtensions(build_ext):
    """Generate the binding's C source, and compile the core in parallel and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; for the binding, its generated source and the core's objects first."""
        if ext.name == "fabrex._core":
            from cffi import FFI

            ffi = FFI()
            ffi.cdef(cdef.generate(CSRC))
            ffi.set_source(ext.name, cdef.includes(CSRC), py_limited_api=True)
            generated = Path(self.build_temp) / "_core.c"
            generated.parent.mkdir(parents=True, exist_ok=True)
            ffi.emit_c_code(str(generated))
            ext.sources = [str(generated)]
            ext.extra_objects = self._core_objects(ext)
        super().build_extension(ext)

    def _core_objects(self, ext: Extension) -> list[str]:
        """Compile csrc/*.c; an object newer than its source, every header and the build's own files is kept."""
        common = [*CSRC.glob("*.h"), Path("setup.py"), Path("tools/build/flags.mk")]
        newest = max(path.stat().st_mtime for path in common)

        def compile_one(source: Path) -> str:
            out = Path(self.build_temp) / source.with_suffix(".o")
            if out.exists() and not self.force and out.stat().st_mtime > max(newest, source.stat().st_mtime):
                return str(out)
            [made] = self.compiler.compile(
                [str(source)],
                output_dir=self.build_temp,
                include_dirs=[str(CSRC)],
                extra_postargs=ext.extra_compile_args,
            )
            return str(made)

        sources = sorted(CSRC.glob("*.c"))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(compile_one, sources))


class AbiWheel(bdist_wheel):
    """Tag the wheel for every Python from 3.10 on."""

    def finalize_options(self) -> None:
        """Ask for the abi3 tag."""
        self.py_limited_api = "cp310"
        super().finalize_options()


setup(
    ext_modules=EXTENSIONS
    and [
        Extension(
            "fabrex._core",
            sources=[],
            depends=sorted(str(path) for path in CSRC.glob("*.[ch]")),
            include_dirs=[str(CSRC)],
            define_macros=[("Py_LIMITED_API", LIMITED_API)],
            extra_compile_args=flags("CORE_CFLAGS"),
            extra_link_args=flags("CORE_LDLIBS"),
            py_limited_api=True,
        ),
        *(
            Extension(
                "fabrex._hot",
                sources=[str(path)],
                depends=sorted(str(header) for header in CSRC.glob("*.h")),
                include_dirs=[str(CSRC)],
                define_macros=[("Py_LIMITED_API", LIMITED_API)],
                extra_compile_args=flags("CORE_CFLAGS"),
                extra_link_args=flags("CORE_LDLIBS"),
                py_limited_api=True,
            )
            for path in sorted(CSRC.glob("python/hot.c"))
        ),
    ],
    cmdclass={"build_ext": BuildExtensions, "bdist_wheel": AbiWheel},
)
