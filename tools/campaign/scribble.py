# SPDX-License-Identifier: Apache-2.0
"""Scribble over shared memory beside working processes, for many seeds, under AddressSanitizer.

`make campaign-scribble COUNT=1000` writes results/scribble.json: what ran, on what, and what it found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the campaign; the status is that of the test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="seeds")
    given = parser.parse_args()
    program = ROOT / "build" / "asan" / "test" / "test_scribble"
    subprocess.run(["make", "--no-print-directory", "-s", str(program.relative_to(ROOT))], cwd=ROOT, check=True)
    started = time.time()
    done = subprocess.run(
        [program], env={**os.environ, "SCRIBBLE_SEEDS": str(given.count)}, capture_output=True, text=True, check=False
    )
    record = {
        "schema_version": 1,
        "campaign": "scribble",
        "seeds": given.count,
        "passed": done.returncode == 0,
        "seconds": round(time.time() - started, 1),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "output": (done.stdout + done.stderr)[-4000:],
    }
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    (results / "scribble.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(
        f"{given.count} seeds in {record['seconds']} s: {'no crash' if record['passed'] else 'FAILED, see results/scribble.json'}"
    )
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
