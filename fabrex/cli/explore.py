# SPDX-License-Identifier: Apache-2.0
"""`fabricctl explore`: runs a script's programs with many seeds, and explains the first that fails.

Owns: jobs, progress, what is printed. Must not know: how a run is made small or told.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import output
from .output import CommandError, document, emit, usage

_CHUNK = 64
"""Seeds that a job takes at a time."""


def explore(arguments: Any) -> int:
    """`explore SCRIPT`: exits with 1 if a seed fails."""
    from ..errors import FabricError
    from ..sim._script import load

    if arguments.seeds < 1 or arguments.jobs < 1 or arguments.most < 1:
        usage("--seeds, --jobs and --most are at least 1")
    if not os.path.isfile(arguments.script):
        hint = "a Python file with programs; see `fabricctl explore --help`"
        raise CommandError(f"no script {arguments.script!r}", hint, output.NOT_FOUND)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            case = load(arguments.script, arguments.ordering)
    except FabricError:
        raise
    except Exception as error:
        raise CommandError(f"{arguments.script} cannot be loaded: {type(error).__name__}: {error}", "") from None
    # What programs print is no data of ours.
    with contextlib.redirect_stdout(sys.stderr):
        code, say = _one(arguments, case) if arguments.seed is not None else _many(arguments, case)
    say()
    return code


def _facts(arguments: Any, case: Any) -> dict[str, Any]:
    from ..topology import Topology

    return {
        "script": arguments.script,
        "topology": Topology.resolve(case.topology).name,
        "ordering": case.ordering,
        "nodes": list(case.programs),
    }


def _one(arguments: Any, case: Any) -> tuple[int, Callable[[], None]]:
    """Run one seed; explain it if it fails, show its trace if that is wanted."""
    result = case.attempt(arguments.seed)
    trace = str(result.trace) if arguments.trace else ""
    explanation = _explain(case, arguments.seed) if result.error is not None and not arguments.no_explain else None

    def say() -> None:
        if arguments.json:
            document(
                "explore",
                **_facts(arguments, case),
                seeds=1,
                first_seed=arguments.seed,
                run=1,
                failures=[_failure(result)] if result.error is not None else [],
                failed=int(result.error is not None),
                trace_hash=result.trace_hash,
                explanation=_told(explanation),
            )
            return
        if trace:
            emit(trace)
        if result.error is None:
            emit(f"seed {arguments.seed} passes: {result.trace.total} events, trace {result.trace_hash}")
            for node, value in result.returned.items():
                emit(f"  {node} returned {value!r}")
        elif explanation is not None:
            emit(str(explanation))
        else:
            _list([_failure(result)])

    return output.OK if result.error is None else output.FAILURE, say


def _many(arguments: Any, case: Any) -> tuple[int, Callable[[], None]]:
    begin = time.monotonic()
    failures: list[dict[str, Any]] = []
    run = 0
    bar = _Progress(arguments.seeds, arguments.json)
    try:
        for made, found in _results(arguments, case):
            run += made
            failures += found
            bar(run, len(failures))
            if len(failures) >= arguments.most:
                break
    finally:
        bar.end()
    failures = failures[: arguments.most]
    seconds = time.monotonic() - begin
    explanation = _explain(case, failures[0]["seed"]) if failures and not arguments.no_explain else None

    def say() -> None:
        if arguments.json:
            document(
                "explore",
                **_facts(arguments, case),
                seeds=arguments.seeds,
                first_seed=arguments.first,
                run=run,
                failures=failures,
                failed=len(failures),
                seconds=round(seconds, 6),
                seeds_per_s=round(run / seconds, 1) if seconds else None,
                explanation=_told(explanation),
            )
            return
        rate = f"{run} seed{'s' * (run != 1)} in {seconds:.1f} s ({run / max(seconds, 1e-9):.0f} a second)"
        emit(f"{rate}: {len(failures) or 'none'} failed.")
        _list(failures)
        if explanation is not None:
            emit("")
            emit(str(explanation))

    return output.FAILURE if failures else output.OK, say


def _list(failures: list[dict[str, Any]]) -> None:
    for failure in failures:
        emit(output.fit(f"  seed {failure['seed']}: {failure['node'] or 'check'}: {failure['error']}: {failure['message']}"))


def _explain(case: Any, seed: int) -> Any:
    from ..sim._explain import explain_case

    return explain_case(case, seed)


def _failure(result: Any) -> dict[str, Any]:
    from ..sim._search import Failure

    found = Failure.of(result)
    return {"seed": found.seed, "node": found.node, "error": found.kind, "message": found.message}


def _told(explanation: Any) -> dict[str, Any] | None:
    if explanation is None:
        return None
    return {
        "seed": explanation.seed,
        "failure": explanation.failure,
        "reasons": explanation.reasons,
        "steps": [{"at_ps": step.at_ps, "text": step.text, "source": step.source} for step in explanation.steps],
        "decisions": explanation.decisions,
        "decisions_of_seed": explanation.minimal.whole,
        "runs": explanation.minimal.runs,
        "replay": explanation.replay,
        "text": str(explanation),
    }


# -- jobs -------------------------------------------------------------------------------------------------------------


def _chunk(case: Any, first: int, count: int, most: int) -> tuple[int, list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    for made, seed in enumerate(range(first, first + count), 1):
        result = case.attempt(seed)
        if result.error is not None:
            found.append(_failure(result))
            if len(found) >= most:
                return made, found
    return count, found


_loaded: dict[tuple[str, str], Any] = {}


def _job(path: str, ordering: str, first: int, count: int, most: int) -> tuple[int, list[dict[str, Any]]]:
    """In a process of its own: load the script once, run some seeds."""
    from ..sim._script import load

    with contextlib.redirect_stdout(sys.stderr):
        case = _loaded.get((path, ordering))
        if case is None:
            case = _loaded[path, ordering] = load(path, ordering)
        return _chunk(case, first, count, most)


def _results(arguments: Any, case: Any) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    first, end = arguments.first, arguments.first + arguments.seeds
    chunks = [(at, min(_CHUNK, end - at)) for at in range(first, end, _CHUNK)]
    jobs = min(arguments.jobs, len(chunks))
    if jobs == 1:
        for at, count in chunks:
            yield _chunk(case, at, count, arguments.most)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        # In the order of the seeds, so that the answer does not depend on which job was quick.
        try:
            script = os.path.abspath(arguments.script)
            waiting = [pool.submit(_job, script, case.ordering, at, count, arguments.most) for at, count in chunks]
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Progress:
    """How many seeds were run: a line on a terminal, nothing elsewhere."""

    def __init__(self, seeds: int, quiet: bool) -> None:
        self._seeds = seeds
        self._drawn = output.tty(sys.stderr) and not quiet
        self._next = 0.0

    def __call__(self, run: int, failed: int) -> None:
        now = time.monotonic()
        if self._drawn and now >= self._next:
            self._next = now + 0.1
            sys.stderr.write(f"\r{run} of {self._seeds} seeds, {failed} failed ")
            sys.stderr.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._drawn:
            sys.stderr.write("\r" + " " * 60 + "\r")
            sys.stderr.flush()
