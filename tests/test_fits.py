# SPDX-License-Identifier: Apache-2.0
"""Presets beside the measurements that they stand for: predictions hold, and the page says what the tool says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/bench/fits.py as a module."""
    spec = importlib.util.spec_from_file_location("fits", ROOT / "tools" / "bench" / "fits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fits"] = module
    spec.loader.exec_module(module)
    return module


def test_predictions_are_within_ten_per_cent(tool: ModuleType) -> None:
    rows = tool.fits()
    off = {f"{fit.preset}: {fit.what}": round(fit.error, 3) for fit in rows if fit.role != "beyond" and abs(fit.error) > 0.10}
    assert off == {}
    for preset in tool.PRESETS:
        roles = [fit.role for fit in rows if fit.preset == preset]
        assert roles.count("predicted") > roles.count("fitted") >= 2, preset
    assert all(fit.remark for fit in rows if fit.role != "predicted"), "what is fitted or excused says by what"


def test_a_wrong_constant_is_noticed(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a link twice as wide predicts PIO writes that nobody measured."""
    import fabrex

    right = fabrex.Topology.preset("ntb-measured")
    wide = right.override({"links.*.pcie.lanes": 32})
    monkeypatch.setattr(fabrex.Topology, "preset", classmethod(lambda cls, name: wide))
    monkeypatch.setattr(tool, "PRESETS", {"ntb-measured": tool.PRESETS["ntb-measured"]})
    off = {fit.what for fit in tool.fits() if fit.role == "predicted" and abs(fit.error) > tool.LIMIT}
    assert {"PIO write of 2 MiB", "DMA write of 4 MiB"} <= off
    assert tool.main(["--json"]) == 1


def test_the_page_has_the_tools_tables(tool: ModuleType) -> None:
    page = (ROOT / "docs" / "reference" / "fits.md").read_text(encoding="utf-8")
    for table in tool.markdown(tool.fits()).split("\n\n"):
        assert table in page, "docs/reference/fits.md: `python tools/bench/fits.py --markdown` prints other tables now"
