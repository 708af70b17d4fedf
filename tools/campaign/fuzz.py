# SPDX-License-Identifier: Apache-2.0
"""Send a gateway frames that no peer would, millions of them, under AddressSanitizer, and see whether it crashes or grows.

`make campaign-fuzz COUNT=10000000` writes results/fuzz.json. COUNT is the number of frames. The frames are made from a seed: most
are right in all places but one, so that they get past the first look; some streams are bytes mutated blindly.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GROWTH_BYTES = 64 << 20
"""What may be added between the first quarter of the frames and their end. The sanitizer keeps freed memory for a while."""


def main() -> int:
    """Run the campaign; the status is 0 if nothing crashed and nothing grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="frames")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    program = ROOT / "build" / "fuzz" / "fuzz_frames"
    subprocess.run(["make", "--no-print-directory", "-s", str(program.relative_to(ROOT))], cwd=ROOT, check=True)
    started = time.time()
    done = subprocess.run(
        [program, "-max_total_time=1"],
        env={"ASAN_OPTIONS": "quarantine_size_mb=16", **os.environ, "FRAMES": str(given.count), "SEED": str(given.seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.search(r"frames (\d+) connections (\d+) resumed (\d+) taken (\d+) garbage (\d+) grown (-?\d+)", done.stdout)
    facts = (
        dict(zip(("frames", "connections", "resumed", "taken", "garbage", "grown_bytes"), map(int, said.groups()), strict=True))
        if said
        else {}
    )
    passed = done.returncode == 0 and bool(facts) and facts["frames"] >= given.count and facts["grown_bytes"] < GROWTH_BYTES
    record = {
        "schema_version": 1,
        "campaign": "fuzz",
        "seed": given.seed,
        "passed": passed,
        "seconds": round(time.time() - started, 1),
        "machine": platform.machine(),
        "kernel": platform.release(),
        **facts,
        "output": (done.stdout + done.stderr)[-4000:],
    }
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    (results / "fuzz.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    verdict = "no crash, no growth" if passed else "FAILED, see results/fuzz.json"
    print(f"{facts.get('frames', 0)} frames over {facts.get('connections', 0)} connections in {record['seconds']} s: {verdict}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
