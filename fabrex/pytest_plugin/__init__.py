# SPDX-License-Identifier: Apache-2.0
"""fabrex for pytest: a fabric per test, its nodes in real processes, and reports that say which node said what.

    def consumer(node):
        return node.wait_until(node.fabric.gva("host0"), "!=", 0)

    def producer(node):
        node.store(node.fabric.gva("host0"), 42)

    @pytest.mark.fabrex(topology="fabrex-pair")
    def test_flag(fabrex_fabric):
        results = fabrex_fabric.run({"host0": consumer, "host1": producer}, timeout=10)
        assert results["host0"] == 42

Active wherever fabrex is installed, and free where it is not used: this module imports neither the core nor NumPy, and starts
nothing before a test asks for a fabric.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..fabric import Fabric
    from ._fixtures import Factory as Factory
    from ._run import FabricUnderTest as FabricUnderTest
    from ._run import NodeDied as NodeDied
    from ._run import NodeError as NodeError
    from ._run import NodeFailed as NodeFailed
    from ._run import NodeProcess as NodeProcess
    from ._run import NodeTimeout as NodeTimeout
    from ._run import RemoteError as RemoteError
    from ._run import Run as Run

_LAZY = ("FabricUnderTest", "NodeDied", "NodeError", "NodeFailed", "NodeProcess", "NodeTimeout", "RemoteError", "Run")


def __getattr__(name: str) -> Any:
    import importlib

    if name == "Factory":
        return importlib.import_module("._fixtures", __name__).Factory
    if name in _LAZY:
        return getattr(importlib.import_module("._run", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini options."""
    parser.addini("fabrex_timeout", "seconds that fabrex_fabric.run() waits for its nodes", default="30")
    parser.addini(
        "fabrex_inconclusive",
        "what a test is whose machine could not give the fidelity that it demands: skip (default) or fail",
        default="skip",
    )
    parser.addini(
        "fabrex_preload",
        "modules that node processes find imported already (numpy always is one, where the tests import it)",
        type="args",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "fabrex(topology='fabrex-pair', timing=False, ordering=None, seed=None, strict_errors=False, fidelity=None): "
        "the fabric that fabrex_fabric makes; topology is a preset, a YAML file beside the test, or a Topology; fidelity is the "
        "share of operations that may be late, or the arguments of fabrex.fidelity.shortfalls",
    )


@pytest.fixture
def fabrex_factory(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """Make fabrics: fabrex_factory(topology, timing=…, ordering=…, seed=…). They end with the test."""
    from ._fixtures import factory

    yield from factory(request)


@pytest.fixture
def fabrex_fabric(request: pytest.FixtureRequest, fabrex_factory: Factory) -> Generator[FabricUnderTest, None, None]:
    """A fabric of the test's own, as the marker `fabrex` (or an indirect parameter) describes it."""
    from ._fixtures import demanded, described

    words = described(request)
    fidelity = words.pop("fidelity", None)
    fabric = fabrex_factory(**words)
    if fidelity is not None:
        demanded(request.node, fabric, fidelity)
    yield fabric


@pytest.fixture
def fabrex_fidelity(request: pytest.FixtureRequest, fabrex_factory: Factory) -> Callable[..., None]:
    """Demand a fidelity: fabrex_fidelity(fabric, late=0.01, by="1us", ops=["load"]); the arguments of fabrex.fidelity.shortfalls.

    When the test has run and the machine did not give it, the test's verdict is worth nothing: it is inconclusive, which is a
    skip with the reason, or a failure where the ini option `fabrex_inconclusive` says so.
    """
    from ._fixtures import demanded

    def demand(fabric: Fabric, **demands: Any) -> None:
        demanded(request.node, fabric, demands)

    return demand
