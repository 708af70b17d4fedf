# SPDX-License-Identifier: Apache-2.0
"""KV caches in fabric memory.

`FabricCache` is a cache for Hugging Face transformers whose keys and values lie in the fabric: one process fills it, another
goes on from it. `python -m fabrex.kv` shows two engines that share the work that way. For engines that use NIXL see
`fabrex.nixl`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .layout import KVAddress, KVLayout

if TYPE_CHECKING:
    from .cache import FabricCache, FabricLayer

__all__ = ["FabricCache", "FabricLayer", "KVAddress", "KVLayout"]


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import, and not everybody has them.
    if name not in ("FabricCache", "FabricLayer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import cache
    except ImportError as error:
        raise ImportError(f"fabrex.kv.{name} needs torch and transformers 5: pip install 'fabrex[kv]' ({error})") from error
    return getattr(cache, name)
