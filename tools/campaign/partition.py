# SPDX-License-Identifier: Apache-2.0
"""Machines that work on each other's memory while the network between them fails at random: is anything lost, repeated or stuck?

`make campaign-partition COUNT=100` (rounds) writes results/partition.json. In a round three machines on loopback, with relays
between them (tests/relay.py), add, store, write and read back in each other's memory for some seconds; meanwhile connections are
reset amid frames, lose bytes silently, are delayed, narrow or held up, and sometimes a machine is cut off for good. Then:

- each addition that was reported done was done once, and one whose fate was not known at most once;
- what a flush found in order is there, and what is not there had been reported as lost;
- what was read is what was written; nothing took longer than its deadline; the machines ended by themselves.

The same seed has the same faults, though not at the same instruction. `tests/test_bad_networks.py` runs a round.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

HOSTS = 3
SECONDS = 3.0


def work(fabric: Any, node: Any, seed: int, seconds: float, hosts: int) -> dict[str, Any]:
    """What each machine does; runs in its process, and must stand alone."""
    import os
    import random
    import time

    import fabrex

    deadline, slots, bulk = 12.0, 256, 64 << 10
    choose = random.Random(f"{seed} {node.name}")
    me = int(node.name[4:])
    others = [f"host{i}" for i in range(hosts) if i != me]
    base = {name: fabric.gva(name) for name in others}
    said: dict[str, Any] = {"added": {n: [] for n in others}, "unknown": dict.fromkeys(others, 0), "wrong": [], "slowest": 0.0}
    said |= {"stored": dict.fromkeys(others, 0), "operations": 0, "failed": {}, "lost": [], "reported": False}
    mine = 4096 + me * 4096  # where this node's numbers go, in everybody's memory
    area: dict[str, int] = {}
    for name in others:
        area[name] = node.alloc(bulk, on=name).gva
    end = time.monotonic() + seconds
    while time.monotonic() < end and others:
        name = choose.choice(others)
        what = choose.choice(("add", "add", "store", "store", "bulk", "flush"))
        begun: list[Any] = []
        began = time.monotonic()
        try:
            if what == "add":
                begun = [node.begin("fetch_add", base[name] + 64, 1) for _ in range(choose.randrange(1, 33))]
                while begun:
                    said["added"][name].append(begun[0].wait(deadline))
                    begun.pop(0)
                    said["operations"] += 1
            elif what == "store":
                for _ in range(choose.randrange(1, 100)):
                    number = said["stored"][name] = said["stored"][name] + 1
                    node.store(base[name] + mine + 8 * (number % slots), number)
                    said["operations"] += 1
            elif what == "bulk":
                data = os.urandom(choose.randrange(1, bulk))
                node.write(area[name], data)
                back = node.read(area[name], len(data))
                said["operations"] += 2
                if back != data:
                    said["wrong"].append(f"{len(data)} bytes read back from {name} are others")
            else:
                node.flush(name, check=True)
                said["operations"] += 1
        except fabrex.WaitTimeout as error:
            said["wrong"].append(f"stuck: {error}")
            break
        except (fabrex.PeerLost, fabrex.CompletionTimeout, fabrex.LinkDown) as error:
            kind = type(error).__name__
            said["failed"][kind] = said["failed"].get(kind, 0) + 1
            said["reported"] = True
            for operation in begun[1:]:
                try:
                    said["added"][name].append(operation.wait(deadline))
                except fabrex.FabricError:
                    said["unknown"][name] += 1
            said["unknown"][name] += len(begun[:1])
            if isinstance(error, fabrex.PeerLost) and fabric.node_info(name)["state"] == "lost":
                others.remove(name)
                said["lost"].append(name)
        took = time.monotonic() - began
        said["slowest"] = max(said["slowest"], took)
        if took > deadline:
            said["wrong"].append(f"{what} at {name} took {took:.1f} s")
    # The network is good again by now, or its machine is lost.
    time.sleep(1.0)
    for name in list(others):
        try:
            node.flush(name, check=True)
        except fabrex.FabricError as error:
            said["reported"] = True
            if fabric.node_info(name)["state"] == "lost":
                said["lost"].append(name)
            else:
                said["failed"][type(error).__name__] = said["failed"].get(type(error).__name__, 0) + 1
    return said


def trouble(relay: Any, choose: random.Random, until: float, cut_off: str | None) -> list[str]:
    """Faults, one after the other, until that time; says which. The last is healed."""
    done = []
    names = [f"m{i}" for i in range(HOSTS)]
    while (left := until - time.monotonic()) > 0:
        one, other = choose.sample(names, 2)
        kind = choose.choice(("reset", "reset", "reset", "delay", "rate", "hold", "vanish"))
        seconds = min(choose.random() * 0.6, left)
        if kind == "reset":
            relay.reset(one, other, within=choose.choice((1, 100, 10_000, 200_000)))
            seconds = min(seconds, 0.15)
        elif kind == "delay":
            relay.shape(one, other, delay=choose.random() * 0.05, jitter=choose.random() * 0.05)
        elif kind == "rate":
            relay.shape(one, other, rate=choose.choice((50e3, 1e6)))
        elif kind == "hold":
            relay.both(one, other, hold=True)
        else:
            relay.both(one, other, vanish=True)
            seconds = min(seconds, 0.2)
        done.append(kind)
        time.sleep(seconds)
        relay.heal()
        if cut_off and left < SECONDS / 2:
            for name in names:
                if name != cut_off:
                    relay.both(name, cut_off, hold=True)
            done.append("cut off")
            time.sleep(3.5)
            cut_off = None
            relay.heal()
    return done


def run_round(seed: int) -> dict[str, Any]:
    """One round; `wrong` says what should not be."""
    from relay import bed

    choose = random.Random(seed)
    cut_off = f"m{choose.randrange(1, HOSTS)}" if choose.random() < 0.2 else None
    record: dict[str, Any] = {"seed": seed, "cut_off": cut_off, "wrong": []}
    seconds = SECONDS + (4.0 if cut_off else 0.0)
    with bed(HOSTS, seed=seed, timing=choose.random() < 0.3) as made, made.first.attach("host0", role="owner") as h0:
        source = inspect.getsource(work)
        for peer in made.peers.values():
            peer.send("program", source, seed, seconds, HOSTS)
        faults: list[str] = []
        begun = time.monotonic()
        thread = threading.Thread(target=lambda: faults.extend(trouble(made.relay, choose, begun + SECONDS, cut_off)))
        thread.start()
        said = {"host0": work(made.first, h0, seed, seconds, HOSTS)}
        thread.join()
        for machine, peer in made.peers.items():
            said["host" + machine[1:]] = peer.result()
        time.sleep(0.3)
        reads = {"host0": h0.read} | {
            "host" + m[1:]: (lambda gva, size, peer=peer: peer.call("node.read", gva, size)) for m, peer in made.peers.items()
        }
        gone = {name for other in said.values() for name in other["lost"]}
        memory = {name: reads[name](made.first.gva(name), 65536) for name in said}
        record["resets"], record["connections"] = made.relay.resets, made.relay.connections
    record["faults"] = {kind: faults.count(kind) for kind in sorted(set(faults))}
    wrong = record["wrong"]
    if gone and not cut_off:
        record["machines_lost"] = sorted(gone)  # a hold and a slow machine may add up to that
    for name, other in said.items():
        wrong += [f"{name}: {text}" for text in other["wrong"]]
    for name, bytes_ in memory.items():
        value = int.from_bytes(bytes_[64:72], "little")
        added = [old for other in said.values() for old in other["added"].get(name, ())]
        unknown = sum(other["unknown"].get(name, 0) for other in said.values())
        if len(set(added)) != len(added):
            wrong.append(f"{name}: two additions found the same value")
        if not len(added) <= value <= len(added) + unknown:
            wrong.append(f"{name}: {value} after {len(added)} additions and {unknown} of which nobody knows")
        for writer, other in said.items():
            last = other["stored"].get(name, 0)
            if writer == name or other["reported"]:
                continue
            at = 4096 + int(writer[4:]) * 4096
            there = [int.from_bytes(bytes_[at + 8 * s : at + 8 * s + 8], "little") for s in range(256)]
            missing = [i for i in range(max(1, last - 255), last + 1) if there[i % 256] != i]
            if missing:
                wrong.append(f"{name}: {len(missing)} stores of {writer} are not there and were not reported, {missing[0]} first")
    record["operations"] = sum(other["operations"] for other in said.values())
    record["additions"] = sum(len(a) for other in said.values() for a in other["added"].values())
    record["unknown"] = sum(sum(other["unknown"].values()) for other in said.values())
    record["failed"] = {n: o["failed"] for n, o in said.items() if o["failed"]}
    record["slowest_s"] = round(max(other["slowest"] for other in said.values()), 3)
    return record


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10, help="rounds")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    given = parser.parse_args()
    rounds = []
    started = time.time()
    for seed in range(given.seed, given.seed + given.count):
        with tempfile.TemporaryDirectory(prefix="fabrex-partition-", dir="/dev/shm") as place:
            os.environ["FABREX_DIRECTORY"] = place
            try:
                rounds.append(run_round(seed))
            except Exception as error:
                rounds.append({"seed": seed, "wrong": [f"{type(error).__name__}: {error}"], "faults": {}})
        for text in rounds[-1]["wrong"]:
            print(f"seed {seed}: {text}", flush=True)
    bad = [one for one in rounds if one["wrong"]]
    faults: dict[str, int] = {}
    for one in rounds:
        for kind, count in one["faults"].items():
            faults[kind] = faults.get(kind, 0) + count
    record = {
        "schema_version": 1,
        "campaign": "partition",
        "rounds": len(rounds),
        "first_seed": given.seed,
        "passed": not bad,
        "failed_seeds": [one["seed"] for one in bad],
        "faults": faults,
        "resets": sum(one.get("resets", 0) for one in rounds),
        "operations": sum(one.get("operations", 0) for one in rounds),
        "additions": sum(one.get("additions", 0) for one in rounds),
        "additions_unknown": sum(one.get("unknown", 0) for one in rounds),
        "machines_cut_off": sum(bool(one.get("cut_off")) for one in rounds),
        "slowest_s": max((one.get("slowest_s", 0.0) for one in rounds), default=0.0),
        "seconds": round(time.time() - started, 1),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "each": rounds,
    }
    results = ROOT / "results"
    results.mkdir(exist_ok=True)
    (results / "partition.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rounds)} rounds, {sum(faults.values())} faults, {record['resets']} resets, {record['seconds']} s")
    print(f"{record['operations']} operations; {record['additions']} additions counted exactly")
    print(f"{record['additions_unknown']} of which nobody knows; longest wait {record['slowest_s']} s; {len(bad)} rounds failed")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
