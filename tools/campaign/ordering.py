# SPDX-License-Identifier: Apache-2.0
"""Run the litmus catalogue under the adversary, many seeds for each test, and compare with what the rules allow.

`make campaign-ordering COUNT=10000` writes results/ordering.json: for each test which outcomes were seen, how often and with which
seed first, what was seen and is forbidden, and what is allowed and was never seen. The status is that nothing forbidden was
seen. `--jobs` processes share the work; `--only TEXT` takes the tests whose names contain it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))


def work(job: tuple[str, int, int]) -> tuple[str, int, dict[Any, int], Counter[Any]]:
    """Run seeds first .. first + count - 1 of one test."""
    from litmus.adversary import Runs
    from litmus.catalogue import everything

    name, first, count = job
    runs = Runs(next(test for test in everything() if test.name == name))
    runs.take(range(first, first + count))
    return name, count, runs.first, runs.often


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="seeds for each test")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--only", default="", help="tests whose names contain this")
    given = parser.parse_args()
    from litmus.catalogue import everything

    tests = {test.name: test for test in everything() if given.only in test.name}
    step = 1000
    jobs = [(name, given.first + done, min(step, given.count - done)) for name in tests for done in range(0, given.count, step)]
    first: dict[str, dict[Any, int]] = {name: {} for name in tests}
    often: dict[str, Counter[Any]] = {name: Counter() for name in tests}
    started = time.time()
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for name, _, seeds, counts in pool.imap_unordered(work, jobs):
            for outcome, seed in seeds.items():
                first[name][outcome] = min(seed, first[name].get(outcome, seed))
            often[name] += counts
    seconds = time.time() - started
    cells = []
    for name, test in tests.items():
        seen = set(first[name])
        cells.append(
            {
                "test": name,
                "rules": list(test.rules),
                "seen": {repr(o): {"count": often[name][o], "first_seed": first[name][o]} for o in sorted(seen, key=repr)},
                "forbidden": sorted(map(repr, seen - test.allowed)),
                "never_seen": sorted(map(repr, test.must - seen)),
            }
        )
    wrong = [cell["test"] for cell in cells if cell["forbidden"]]
    short = [cell["test"] for cell in cells if cell["never_seen"]]
    record = {
        "schema_version": 1,
        "campaign": "ordering",
        "seeds_per_test": given.count,
        "first_seed": given.first,
        "tests": len(cells),
        "runs": given.count * len(cells),
        "forbidden": wrong,
        "incomplete": short,
        "seconds": round(seconds, 1),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cells": cells,
    }
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    (results / "ordering.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{record['runs']} runs of {len(cells)} tests in {seconds:.1f} s")
    print(f"{len(wrong)} with forbidden outcomes, {len(short)} incomplete")
    for cell in cells:
        if cell["forbidden"]:
            print(f"FORBIDDEN {cell['test']}: {', '.join(cell['forbidden'])}")
    for cell in cells:
        if cell["never_seen"]:
            print(f"never seen {cell['test']}: {', '.join(cell['never_seen'])}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
