# SPDX-License-Identifier: Apache-2.0
"""Compare, on many random programs, the exhaustive clock's reduced search with the whole one, and the core's adversary with both.

`make campaign-oracle COUNT=5000` writes results/oracle.json: how many agreed, and which did not.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))


def main() -> int:
    """Run the campaign; the status is whether all agreed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of the adversary for each program")
    given = parser.parse_args()
    from litmus.random_programs import against_core, compare

    from fabrex.sim import explore

    started = time.time()
    compared = [compare(given.first + i, explore) for i in range(given.count)]
    wrong = [said for agree, said, _ in compared if not agree]
    reduced, whole = (sum(states[side] for _, _, states in compared) for side in (0, 1))
    ran = [against_core(given.first + i, range(given.seeds)) for i in range(given.count)]
    forbidden = [said for what, said in ran if what]
    record = {
        "schema_version": 1,
        "campaign": "oracle",
        "programs": given.count,
        "first": given.first,
        "states_reduced": reduced,
        "states_whole": whole,
        "wrong": wrong,
        "adversary_seeds": given.seeds,
        "forbidden": forbidden,
        "seconds": round(time.time() - started, 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    (results / "oracle.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{given.count} programs in {record['seconds']} s: {len(wrong)} where the reduced search differs", *wrong, sep="\n")
    print(f"{reduced} states with reduction, {whole} without")
    print(f"{len(forbidden)} where the adversary shows what it must not", *forbidden, sep="\n")
    return 1 if wrong or forbidden else 0


if __name__ == "__main__":
    raise SystemExit(main())
