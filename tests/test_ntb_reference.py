# SPDX-License-Identifier: Apache-2.0
"""docs/reference/ntb.md: every function of the kernel's NTB API is there, and everything that the page names exists."""

from __future__ import annotations

import re
from pathlib import Path

from fabrex.node import Node
from fabrex.ntb import Ntb, Window

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reference" / "ntb.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## Functions")[2].partition("## Device profiles")[0]

# The functions of include/linux/ntb.h (Linux 6.1).
KERNEL = [
    "ntb_clear_ctx",
    "ntb_client_ops_is_valid",
    "ntb_ctx_ops_is_valid",
    "ntb_db_clear",
    "ntb_db_clear_mask",
    "ntb_db_event",
    "ntb_db_is_unsafe",
    "ntb_db_read",
    "ntb_db_read_mask",
    "ntb_db_set",
    "ntb_db_set_mask",
    "ntb_db_valid_mask",
    "ntb_db_vector_count",
    "ntb_db_vector_mask",
    "ntb_default_peer_port_count",
    "ntb_default_peer_port_idx",
    "ntb_default_peer_port_number",
    "ntb_default_port_number",
    "ntb_dev_ops_is_valid",
    "ntb_get_dma_dev",
    "ntb_link_disable",
    "ntb_link_enable",
    "ntb_link_event",
    "ntb_link_is_up",
    "ntb_logical_port_number",
    "ntb_msg_clear_mask",
    "ntb_msg_clear_sts",
    "ntb_msg_count",
    "ntb_msg_event",
    "ntb_msg_inbits",
    "ntb_msg_outbits",
    "ntb_msg_read",
    "ntb_msg_read_sts",
    "ntb_msg_set_mask",
    "ntb_msi_clear_mws",
    "ntb_msi_init",
    "ntb_msi_peer_addr",
    "ntb_msi_peer_trigger",
    "ntb_msi_setup_mws",
    "ntb_mw_clear_trans",
    "ntb_mw_count",
    "ntb_mw_get_align",
    "ntb_mw_set_trans",
    "ntb_peer_db_addr",
    "ntb_peer_db_clear",
    "ntb_peer_db_clear_mask",
    "ntb_peer_db_read",
    "ntb_peer_db_read_mask",
    "ntb_peer_db_set",
    "ntb_peer_db_set_mask",
    "ntb_peer_highest_mw_idx",
    "ntb_peer_logical_port_number",
    "ntb_peer_msg_write",
    "ntb_peer_mw_clear_trans",
    "ntb_peer_mw_count",
    "ntb_peer_mw_get_addr",
    "ntb_peer_mw_set_trans",
    "ntb_peer_port_count",
    "ntb_peer_port_idx",
    "ntb_peer_port_number",
    "ntb_peer_resource_idx",
    "ntb_peer_spad_addr",
    "ntb_peer_spad_read",
    "ntb_peer_spad_write",
    "ntb_port_number",
    "ntb_register_client",
    "ntb_register_device",
    "ntb_set_ctx",
    "ntb_spad_count",
    "ntb_spad_is_unsafe",
    "ntb_spad_read",
    "ntb_spad_write",
    "ntb_topo_string",
    "ntb_unregister_client",
    "ntb_unregister_device",
    "ntbm_msi_free_irq",
    "ntbm_msi_request_irq",
    "ntbm_msi_request_threaded_irq",
]


def test_every_function_of_the_kernel_has_its_row() -> None:
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in TABLE.splitlines() if line.startswith("|")]
    named = [name for row in rows for name in re.findall(r"`(ntbm?_\w+)`", row[0])]
    assert sorted(named) == sorted(set(named)), "one row each"
    assert set(KERNEL) - set(named) == set() and set(named) - set(KERNEL) == set()
    for row in rows:
        kernel, python, c, test = row
        if kernel in ("kernel", "---") or kernel.startswith("none"):
            continue
        assert python.startswith("none") or test.strip(), f"{kernel}: no test is named"
        assert (python.startswith("none") and c == "none") or "fbx_" in c, kernel


def test_what_the_table_names_exists() -> None:
    methods = set(re.findall(r"`(?:[a-z.]+\.)?([a-z_]+)\(", TABLE)) | set(
        re.findall(r", `(wait_event|poll|set_callback|fileno)`", TABLE)
    )
    for method in methods - {"attach", "len", "gva"}:
        assert any(hasattr(kind, method) for kind in (Ntb, Window, Node)) or method == "set_translation", method
    header = (ROOT / "csrc" / "fabrex.h").read_text(encoding="utf-8")
    for function in set(re.findall(r"`(fbx_\w+)`", TABLE)):
        assert re.search(rf"\b{function}\(", header), function
    tests = (ROOT / "tests" / "test_ntb.py").read_text(encoding="utf-8")
    for test in set(re.findall(r"`(test_\w+)`", TABLE)):
        assert f"def {test}(" in tests, test
    for file in set(re.findall(r"`(tests/[\w/.]+)`", PAGE)):
        assert (ROOT / file).exists(), file
