# SPDX-License-Identifier: Apache-2.0
"""Four processes on the same NTB registers at random: is the history of each register linearizable?

`make campaign-linearizability COUNT=10000000` (operations) writes results/linearizability.json: what ran, on what, and what it
found. The program also runs with processes that break the rules on purpose, each of which must be found out; see
tests/c/test_linearizability.c, which runs a slice of this with the ordinary tests.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the campaign; the status is that of the test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="operations in all")
    given = parser.parse_args()
    program = ROOT / "build" / "core" / "test" / "test_linearizability"
    subprocess.run(["make", "--no-print-directory", "-s", str(program.relative_to(ROOT))], cwd=ROOT, check=True)
    environment = {**os.environ, "LINEARIZABILITY_OPERATIONS": str(max(given.count, 1))}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        found = {}
    record = {
        "schema_version": 1,
        "campaign": "linearizability",
        "asked": given.count,
        "passed": done.returncode == 0,
        **found,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "output": done.stderr[-4000:],
    }
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    (results / "linearizability.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    verdict = "no divergence" if record["passed"] else "FAILED, see results/linearizability.json"
    print(f"{found.get('operations', 0)} operations on {found.get('registers', 0)} registers: {verdict}")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
