# SPDX-License-Identifier: Apache-2.0
"""The files of the kernel's NTB test drivers, over the NTB devices of a fabric.

`ntb_tool`, `ntb_pingpong`, `ntb_perf` and `ntb_msi_test` show a device as files under debugfs; scripts for NTB hardware are written
against these. Here they are a tree of Python objects (`open_tree`), which `fabricctl ntb-tool` mounts. From the bottom up: `text`
(numbers as the kernel reads them), `tree` (files, directories, waiting), `device` (one node's device and what is borrowed from it),
one module for each driver, `debugfs` (all of it), `mount` (FUSE, which only that module knows).

The drivers' header comments (drivers/ntb/test in Linux) say what the files are for; nothing here is copied from them.
"""

from __future__ import annotations

from .debugfs import Debugfs, Settings
from .tree import Directory, File, MemoryFile, Waiting

__all__ = ["Debugfs", "Directory", "File", "MemoryFile", "Settings", "Waiting"]
