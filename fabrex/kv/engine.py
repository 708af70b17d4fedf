# SPDX-License-Identifier: Apache-2.0
"""One engine of two, as a process of its own: `python -m fabrex.kv.engine ROLE PLAN`.

The prefill engine is host0 of each fabric of the plan, the decode engine host1. Requests go through the fabric's directory,
which costs no modelled time; the cache goes through the fabric. Times are fabric time, one clock for both processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import sys
import threading
import time
from typing import Any

TIMEOUT = 90.0
DMA = ("dma_write", "dma_read")


def moved(fabric: Any) -> dict[str, Any]:
    """Return what DMA has moved, and how much of it late."""
    facts = [fabric.fidelity().get(kind, {}) for kind in DMA]
    return {key: sum(int(fact.get(key, 0)) for fact in facts) for key in ("bytes", "late", "count", "preempted")}


def since(fabric: Any, before: dict[str, Any]) -> dict[str, Any]:
    """Return what has been added."""
    return {key: value - before[key] for key, value in moved(fabric).items()}


def _transformers(role: str, plan: dict[str, Any]) -> None:
    import torch

    from ..fabric import Fabric
    from . import model as small
    from .cache import FabricCache
    from .layout import KVAddress

    torch.set_num_threads(1)
    net = small.build(**plan["shape"])
    prompts, count = small.prompts(plan["prompts"]), plan["tokens"]
    # Warm, so that the first request is like the others; and what transformers generates by itself, to compare with.
    expected = [small.alone(net, prompt, count) for prompt in prompts]
    room = max(len(prompt) for prompt in prompts) + count + 16
    mine, other = ("host0", "host1") if role == "prefill" else ("host1", "host0")
    for name in plan["fabrics"]:
        fabric = Fabric.open(name, plan["directory"])
        with fabric, fabric.attach(mine) as node:
            cache = FabricCache(node, net.config, room)
            cache.storage.fill_(1.0)  # committed and mapped before anything is timed
            fabric.put(f"kv-{mine}", cache.address.pack())
            peer = KVAddress.unpack(fabric.get(f"kv-{other}", timeout=TIMEOUT))
            node.barrier("kv-ready", TIMEOUT, size=2)
            # Once through everything: pages are mapped at the first touch, by each process for itself.
            if role == "prefill":
                cache.push(peer, cache.layout.tokens).wait(TIMEOUT)
                node.barrier("kv-pushed", TIMEOUT, size=2)
                cache.offer(peer, cache.layout.tokens)
            else:
                cache.receive(TIMEOUT)
                node.barrier("kv-pushed", TIMEOUT, size=2)
                cache.pull(peer, TIMEOUT)
            node.barrier("kv-warm", TIMEOUT, size=2)
            for way in plan["ways"]:
                for i, prompt in enumerate(prompts):
                    key = f"{way}-{i}"
                    if role == "prefill":
                        _prefill(fabric, cache, peer, net, prompt, way, key, bool(plan.get("damage")))
                    else:
                        row = _decode(fabric, cache, peer, net, prompt, way, key, expected[i])
                        print(json.dumps({"fabric": name, "way": way, "prompt": len(prompt), **row}), flush=True)
            node.barrier("kv-done", TIMEOUT, size=2)
            cache.free()
            del cache


def _prefill(fabric: Any, cache: Any, peer: Any, net: Any, prompt: list[int], way: str, key: str, damage: bool) -> None:
    from . import model as small

    fabric.get(f"ask-{key}", timeout=TIMEOUT)
    began = fabric.now_ps
    cache.reset()
    small.prefill(net, prompt, cache)
    if damage:  # the negative control: other bytes, of the same size
        cache.storage[: cache.length].normal_()
    ready = fabric.now_ps
    if way == "push":
        done = cache.push(peer)
        done.wait(TIMEOUT)
        pushed = done.bytes_done
    else:
        cache.offer(peer)
        pushed = 0
    estimate = cache.estimate(peer, len(prompt) - 1, pull=way == "pull")
    fabric.put(
        f"told-{key}", json.dumps({"began_ps": began, "ready_ps": ready, "modelled_ps": estimate, "pushed": pushed}).encode()
    )


def _decode(
    fabric: Any, cache: Any, peer: Any, net: Any, prompt: list[int], way: str, key: str, expected: list[int]
) -> dict[str, Any]:
    from . import model as small

    before = moved(fabric)
    fabric.put(f"ask-{key}", b"1")
    tokens = cache.receive(TIMEOUT) if way == "push" else cache.pull(peer, TIMEOUT)
    here = fabric.now_ps
    got = small.decode(net, prompt, cache, 1)
    first = fabric.now_ps
    # The way that transformers itself goes on with a cache that it is given.
    cache.truncate(tokens)
    got = small.decode(net, prompt, cache, len(expected))
    told = json.loads(fabric.get(f"told-{key}", timeout=TIMEOUT))
    added = since(fabric, before)
    if not fabric.timing:  # then nobody counts but the operation itself
        added["bytes"] = told["pushed"] if way == "push" else cache.bytes_pulled
    return {
        "bytes": cache.layout.bytes_for(tokens),
        "tokens": got,
        "expected": expected,
        "same": got == expected,
        "ttft_ps": first - told["began_ps"],
        "handover_ps": here - told["ready_ps"],
        "modelled_ps": told["modelled_ps"],
        **{f"dma_{key}": value for key, value in added.items()},
    }


# -- vLLM -------------------------------------------------------------------------------------------------------------

_CONNECTORS = {"pull": "NixlPullConnector", "push": "NixlPushConnector"}


def vllm_environment(port: int) -> dict[str, str]:
    """Return what vLLM needs to run on a machine without accelerators, in one process."""
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _vllm(role: str, plan: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    from . import model as small

    prompts, count, way = small.prompts(plan["prompts"]), plan["tokens"], plan["ways"][0]
    connector: dict[str, Any] = {}
    if role != "alone":
        transfer = KVTransferConfig(
            kv_connector=_CONNECTORS[way],
            kv_role="kv_producer" if role == "prefill" else "kv_consumer",
            kv_buffer_device="cpu",
        )
        connector["kv_transfer_config"] = transfer
    llm = LLM(
        model=plan["model"],
        skip_tokenizer_init=True,
        block_size=32,
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        dtype="float32",
        seed=0,
        enable_prefix_caching=False,
        num_gpu_blocks_override=256,
        **connector,
    )

    made = itertools.count()

    def generate(prompt: list[int], length: int, params: dict[str, Any] | None = None) -> tuple[Any, float]:
        """Return the finished request, and when its first token was there."""
        extra = {"kv_transfer_params": params} if params else None
        sampling = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False, extra_args=extra)
        name = f"request-{next(made)}"  # the same in both engines: a pushing connector goes by it
        llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        first = 0.0
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            for out in llm.llm_engine.step():
                if out.request_id.startswith(name):
                    first = first or time.monotonic()
                    if out.finished:
                        return out, first
        raise TimeoutError(f"vLLM did not finish a prompt of {len(prompt)} tokens")

    if role == "alone":
        for prompt in prompts:
            print(json.dumps({"prompt": len(prompt), "tokens": list(generate(prompt, count)[0].outputs[0].token_ids)}), flush=True)
        return
    _vllm_serve(role, plan, llm, generate)


def _vllm_serve(role: str, plan: dict[str, Any], llm: Any, generate: Any) -> None:
    import fabrex.nixl

    from ..fabric import Fabric
    from . import model as small

    prompts = small.prompts(plan["prompts"])

    fabric = Fabric.open(plan["fabrics"][0], plan["directory"])

    def idle(until: Any) -> bytes:
        """Wait for a key; the engine goes on meanwhile, since it has to answer the other one."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                return fabric.get(until)
            llm.llm_engine.step()
            time.sleep(0.002)
        raise TimeoutError(f"the other engine did not say {until}")

    generate(prompts[0][:16], 1, None)  # warm
    fabric.put(f"up-{role}", b"1")
    for other in ("prefill", "decode"):
        idle(f"up-{other}")
    for i, prompt in enumerate(prompts):
        if role == "prefill":
            idle(f"ask-{i}")
            began = fabric.now_ps
            asked = {"do_remote_decode": True, "do_remote_prefill": False}
            nothing = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
            given = generate(prompt, 1, {**asked, **nothing})[0].kv_transfer_params
            if plan.get("damage"):  # the negative control: other bytes, of the same size
                for agent in fabrex.nixl.agents():
                    for address, size, _ in agent.regions():
                        ctypes.memset(address, 0x3F, size)
            told = {"began_ps": began, "ready_ps": fabric.now_ps, "params": given}
            fabric.put(f"told-{i}", json.dumps(told).encode())
            idle(f"done-{i}")
        else:
            before = moved(fabric)
            fabric.put(f"ask-{i}", b"1")
            told = json.loads(idle(f"told-{i}"))
            got, at = generate(prompt, plan["tokens"], told["params"])
            first = fabric.now_ps - int((time.monotonic() - at) * 1e12)
            tokens = list(got.outputs[0].token_ids)
            added = since(fabric, before)
            fabric.put(f"done-{i}", b"1")
            row = {
                "fabric": fabric.name,
                "way": plan["ways"][0],
                "prompt": len(prompt),
                "tokens": tokens,
                "ttft_ps": first - told["began_ps"],
                "prefill_ps": told["ready_ps"] - told["began_ps"],
                **{f"dma_{key}": value for key, value in added.items()},
            }
            print(json.dumps(row), flush=True)
    fabric.put(f"end-{role}", b"1")
    for other in ("prefill", "decode"):
        idle(f"end-{other}")


def _end_with_parent() -> None:
    """Wait for the end of standard input, which is the parent's."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(1)


def main(arguments: list[str]) -> int:
    """Be one engine."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    role, plan = arguments[0], json.loads(arguments[1])
    {"transformers": _transformers, "vllm": _vllm}[plan["engine"]](role, plan)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
