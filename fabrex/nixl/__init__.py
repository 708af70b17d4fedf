# SPDX-License-Identifier: Apache-2.0
"""NIXL's Python API on the fabric.

An engine that moves its KV cache with NIXL runs on a fabric unchanged: `fabricctl run --nixl TOPOLOGY -- COMMAND` puts this
package in NIXL's place, and so does `SHIM_PATH` as the first entry of PYTHONPATH. Each process is a node of the fabric, by
FABREX_FABRIC and FABREX_NODE. The backend is called FABREX, and answers to UCX. FABREX_NIXL_LOG names a file to which each
transfer adds a line of JSON: what it moved, what it took, and what the model gave it.
"""

from __future__ import annotations

from pathlib import Path

from ._api import (
    DEFAULT_COMM_PORT,
    agents,
    nixl_agent,
    nixl_agent_config,
    nixl_backend_handle,
    nixl_prepped_dlist_handle,
    nixl_thread_sync_t,
    nixl_xfer_handle,
)

SHIM_PATH = str(Path(__file__).resolve().parent / "shim")

__all__ = [
    "DEFAULT_COMM_PORT",
    "SHIM_PATH",
    "agents",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]
