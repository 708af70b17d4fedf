# SPDX-License-Identifier: Apache-2.0
"""What the fixtures do once a test has asked for one: making fabrics, reporting, and checking that nothing is left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from ._session import Session, timing_lock

if TYPE_CHECKING:
    from ..topology import Topology
    from ._run import FabricUnderTest

__all__ = ["Factory", "demanded", "described", "factory"]

_SESSION = pytest.StashKey[Session]()
_RUNS = pytest.StashKey[list[Any]]()  # of Run
_FAILED = pytest.StashKey[bool]()
_DEMANDS = pytest.StashKey[list[Any]]()  # of (fabric, arguments of shortfalls(), Disturbance)
_MARK = ("topology", "timing", "ordering", "seed", "strict_errors", "fidelity")
_INCONCLUSIVE = ("skip", "fail")
_TIMING_WAIT = 600.0
_STYLES = {"auto": "long", "long": "long", "short": "short", "line": "short", "no": "short", "native": "native"}


def _session(config: pytest.Config) -> Session:
    session = config.stash.get(_SESSION, None)
    if session is None:
        worker = getattr(config, "workerinput", {}).get("workerid", "main")
        preload = list(dict.fromkeys(["numpy", *config.getini("fabrex_preload")]))
        session = config.stash[_SESSION] = Session(worker, preload, config.rootpath)
        config.pluginmanager.register(_Reporter(), "fabrex-reporter")
        config.add_cleanup(session.close)
    return session


def demanded(item: pytest.Item, fabric: Any, fidelity: Any) -> None:
    """Remember that a test's verdict counts only at this fidelity."""
    from ..fidelity import Disturbance, shortfalls

    words = {"late": fidelity} if isinstance(fidelity, (int, float)) else fidelity
    if not isinstance(words, dict) or not set(words) <= {"late", "by", "ops"}:
        pytest.fail(f"fidelity is a share, or some of late, by and ops; not {fidelity!r}", pytrace=False)
    shortfalls({}, **words)  # says what is wrong with them now, and not when the test has run
    if not fabric.timing:
        pytest.fail(
            "fidelity is how well modelled time is kept, and this fabric has timing off: ask for timing='on'", pytrace=False
        )
    item.stash.setdefault(_DEMANDS, []).append((fabric, words, Disturbance().__enter__()))


def _inconclusive(item: pytest.Item) -> list[str]:
    """What the machine did not give of what the test demanded."""
    from ..fidelity import shortfalls

    faults: list[str] = []
    for fabric, words, disturbance in item.stash.get(_DEMANDS, []):
        if fabric.closed:
            faults.append(f"{fabric.name} was closed before anybody looked at its fidelity")
        else:
            disturbance.update()
            faults += shortfalls(fabric.fidelity(), **words, disturbance=disturbance)
    return faults


def _rewrite(item: pytest.Item, report: Any) -> None:
    """Make a report inconclusive: the machine did not give what the verdict rests on."""
    faults = _inconclusive(item)
    if not faults:
        return
    choice = item.config.getini("fabrex_inconclusive")
    if choice not in _INCONCLUSIVE:
        raise pytest.UsageError(f"fabrex_inconclusive is {' or '.join(_INCONCLUSIVE)}, not {choice!r}")
    passed = report.outcome == "passed"
    reason = f"inconclusive, though it {'passed' if passed else 'failed'}: " + "; ".join(faults)
    if choice == "fail":
        if passed:
            report.outcome, report.longrepr = "failed", reason
        else:
            report.sections.append(("fabrex: inconclusive", "\n".join(faults)))
        return
    if not passed:
        report.sections.append(("fabrex: what failed while it was inconclusive", str(report.longrepr)))
    path, line, _ = item.location
    report.outcome, report.longrepr = "skipped", (path, (line or 0) + 1, f"Skipped: {reason}")


class _Reporter:
    """Adds what nodes said to the reports of failed tests; registered when the first fabric is made."""

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        outcome = yield
        report = outcome.get_result()  # type: ignore[attr-defined]
        if report.when == "call" and report.outcome in ("passed", "failed") and not hasattr(report, "wasxfail"):
            _rewrite(item, report)
        runs = item.stash.get(_RUNS, [])
        if runs and report.failed and not item.stash.get(_FAILED, False):
            item.stash[_FAILED] = True
            for run in runs:
                report.sections.extend(run.sections())


def described(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what markers and an indirect parameter say about the test's fabric; the closest marker wins, word by word."""
    found: dict[str, Any] = {}
    for mark in request.node.iter_markers("fabrex"):
        words = dict(mark.kwargs)
        if mark.args:
            words.setdefault("topology", mark.args[0])
        unknown = [word for word in words if word not in _MARK]
        if unknown or len(mark.args) > 1:
            what = ", ".join(unknown) or "more than one positional argument"
            pytest.fail(f"the marker fabrex has {', '.join(_MARK)}, and not {what}", pytrace=False)
        found = {**words, **found}
    given = getattr(request, "param", None)
    if isinstance(given, dict):
        found.update(given)
    elif given is not None:
        found["topology"] = given
    return found


class Factory:
    """Makes fabrics of one test. Call it.

    Attributes:
        fabrics: those made so far.
    """

    def __init__(self, request: pytest.FixtureRequest, session: Session, stack: contextlib.ExitStack) -> None:
        self.fabrics: list[FabricUnderTest] = []
        self._item = request.node
        self._config = request.config
        self._session = session
        self._stack = stack
        self._timed = False
        self._runs = request.node.stash.setdefault(_RUNS, [])

    def __call__(
        self,
        topology: Topology | str | os.PathLike[str] = "fabrex-pair",
        *,
        timing: bool | str | None = None,
        ordering: str | None = None,
        seed: int | None = None,
        strict_errors: bool = False,
    ) -> FabricUnderTest:
        """Make a fabric that ends with the test.

        Args:
            topology: a preset's name, a YAML file (relative to the test's directory, or to the current one), or a Topology.
            timing: modelled time passes; off in tests unless asked for. Tests with it run one at a time on this machine.
            ordering, seed, strict_errors: as for Fabric.create.
        """
        from ._run import FabricUnderTest

        timed = timing not in (None, False, "off")
        if timed and not self._timed:
            self._stack.enter_context(timing_lock(_TIMING_WAIT))
            self._timed = True
        if isinstance(topology, (str, os.PathLike)):
            beside = self._item.path.parent / topology
            if beside.suffix in (".yaml", ".yml") and beside.is_file():
                topology = beside
        fabric = FabricUnderTest.create(
            topology,
            self._session.name(self._item.name),
            timing=timing if timed else False,
            ordering=ordering,
            seed=seed,
            strict_errors=strict_errors,
            directory=self._session.directory,
        )
        assert isinstance(fabric, FabricUnderTest)
        fabric._session = self._session
        fabric._timeout = float(self._config.getini("fabrex_timeout"))
        fabric._style = _STYLES.get(self._config.getoption("tbstyle", "auto"), "long")
        fabric._said = (
            f"{fabric.topology.name}, timing {'on' if fabric.timing else 'off'}, {fabric.ordering}, seed {fabric.info()['seed']}"
        )
        fabric._runs = self._runs
        self.fabrics.append(fabric)
        return fabric


def factory(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """Serve the fixture `fabrex_factory`: a factory, and at the test's end the check that nothing is left."""
    session = _session(request.config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(session.environment())
        before = session.fabrics()
        made = Factory(request, session, stack)
        yield made
        faults = _finish(made, session, before)
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def _finish(made: Factory, session: Session, before: set[str]) -> list[str]:
    """End everything that the test made; return what it should have ended itself, or did not look at."""
    from ._run import _OVER

    faults: list[str] = []
    for run in made._runs:
        running = [name for name, node in run.items() if node.alive]
        if running:
            run._end(_OVER, dump=False)
            if not run.observed:
                faults.append(f"still running when the test ended, which had not waited for them: {', '.join(running)}")
        elif not run.observed:
            # Started and never waited for: a failed assertion in it would go unnoticed.
            try:
                run.results()
            except pytest.skip.Exception:
                pass
            except Exception as error:
                faults.append(f"a node failed, and the test did not wait for it:\n{error}")
    if made._runs:
        faults += [f"a node left process {pid} behind: {command}" for pid, command in session.sweep()]
    for fabric in made.fabrics:
        try:
            fabric.close()
        except Exception as error:
            faults.append(f"closing {fabric.name}: {type(error).__name__}: {error}")
    left = session.fabrics() - before
    deadline = time.monotonic() + 1.0
    while left and time.monotonic() < deadline:
        # What a dead process left goes by itself, a little later.
        time.sleep(0.01)
        left = session.fabrics() - before
    for name in sorted(left):
        faults.append(f"the test left fabric {name} behind; close it, or take it down if it is persistent")
        session.remove(name)
    return faults
