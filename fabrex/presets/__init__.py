# SPDX-License-Identifier: Apache-2.0
"""Topologies that come with the package: one YAML file each, every constant with its source.

Reading the list opens no file that is not needed and imports no YAML parser.
"""

from __future__ import annotations

import functools
import os

__all__ = ["names", "path", "summary", "text"]

_DIRECTORY = os.path.dirname(os.path.abspath(__file__))


@functools.cache
def names() -> tuple[str, ...]:
    """Names of all presets, sorted."""
    return tuple(sorted(entry[:-5] for entry in os.listdir(_DIRECTORY) if entry.endswith(".yaml")))


def path(name: str) -> str:
    """Path of a preset's file.

    Raises:
        KeyError: there is no such preset.
    """
    if name not in names():
        raise KeyError(name)
    return os.path.join(_DIRECTORY, f"{name}.yaml")


def text(name: str) -> str:
    """A preset's YAML text.

    Raises:
        KeyError: there is no such preset.
    """
    with open(path(name), encoding="utf-8") as file:
        return file.read()


def summary(name: str) -> str:
    """One line on what a preset is: the first comment of its file after the licence.

    Raises:
        KeyError: there is no such preset.
    """
    with open(path(name), encoding="utf-8") as file:
        for line in file:
            if line.startswith("# ") and "SPDX" not in line:
                return line[2:].strip()
    return ""
