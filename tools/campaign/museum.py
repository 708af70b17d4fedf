# SPDX-License-Identifier: Apache-2.0
"""How many seeds the adversary takes to find each bug of the museum.

`make campaign-museum COUNT=400` looks for each bug from COUNT first seeds on and writes results/museum.json: the median and the
worst number of seeds and the median time until it is found, and that the mended programs survive as many.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))


def main() -> int:
    """Run the campaign; the status is that everything was found and nothing else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="searches for each exhibit")
    given = parser.parse_args()
    from museum.exhibits import EXHIBITS
    from museum.seeds import first_failure

    found, failed = [], False
    print(f"{'exhibit':24}{'median':>8}{'worst':>8}{'median s':>10}")
    for exhibit in EXHIBITS:
        took, seconds = [], []
        for search in range(given.count):
            started = time.perf_counter()
            tried = first_failure(exhibit, exhibit.buggy, range(search * 10_000, search * 10_000 + 2000))
            seconds.append(time.perf_counter() - started)
            took.append(2000 if tried is None else tried)
            failed |= tried is None
        mended = first_failure(exhibit, exhibit.mended, range(given.count))
        failed |= mended is not None
        row = {
            "exhibit": exhibit.name,
            "rules": list(exhibit.rules),
            "seeds_median": statistics.median(took),
            "seeds_worst": max(took),
            "seconds_median": round(statistics.median(seconds), 4),
            "mended_fails_after": mended,
        }
        found.append(row)
        print(f"{exhibit.name:24}{row['seeds_median']:8}{row['seeds_worst']:8}{row['seconds_median']:10}")
    record = {
        "schema_version": 1,
        "campaign": "museum",
        "searches": given.count,
        "exhibits": found,
        "passed": not failed,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    (results / "museum.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
