# SPDX-License-Identifier: Apache-2.0
"""fabrex: a PCIe NTB memory fabric without the hardware.

Hosts, accelerators and memory boxes become processes that share a 64-bit global address space, reach each other through NTB
windows with loads, stores and atomics, and feel the fabric's latency, bandwidth, ordering and failures::

    with fabrex.Fabric.create("fabrex-pair", name="lab") as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        inbox = h0.alloc(4096, name="inbox")
        h1.store(inbox.gva, 42)
        h0.wait_until(inbox.gva, "==", 42, timeout=1.0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import pcie as pcie
    from . import tlp as tlp
    from . import topology as topology
    from .dma import Completion as Completion
    from .errors import (
        AddressError as AddressError,
    )
    from .errors import (
        AlignmentError as AlignmentError,
    )
    from .errors import (
        Busy as Busy,
    )
    from .errors import (
        Cancelled as Cancelled,
    )
    from .errors import (
        ClosedHandle as ClosedHandle,
    )
    from .errors import (
        CompleterAbort as CompleterAbort,
    )
    from .errors import (
        CompletionTimeout as CompletionTimeout,
    )
    from .errors import (
        CorruptSegment as CorruptSegment,
    )
    from .errors import (
        FabricDenied as FabricDenied,
    )
    from .errors import (
        FabricError as FabricError,
    )
    from .errors import (
        FabricExists as FabricExists,
    )
    from .errors import (
        FabricNotFound as FabricNotFound,
    )
    from .errors import (
        InvalidArgument as InvalidArgument,
    )
    from .errors import (
        LayoutMismatch as LayoutMismatch,
    )
    from .errors import (
        LinkDown as LinkDown,
    )
    from .errors import (
        NoWindow as NoWindow,
    )
    from .errors import (
        OutOfFabricMemory as OutOfFabricMemory,
    )
    from .errors import (
        PeerLost as PeerLost,
    )
    from .errors import (
        PoisonedData as PoisonedData,
    )
    from .errors import (
        QueueFull as QueueFull,
    )
    from .errors import (
        StaleHandle as StaleHandle,
    )
    from .errors import (
        SystemRefused as SystemRefused,
    )
    from .errors import (
        TopologyError as TopologyError,
    )
    from .errors import (
        UnsupportedRequest as UnsupportedRequest,
    )
    from .errors import (
        ValueRangeError as ValueRangeError,
    )
    from .errors import (
        WaitTimeout as WaitTimeout,
    )
    from .errors import (
        WindowError as WindowError,
    )
    from .event import Event as Event
    from .event import Events as Events
    from .fabric import Fabric as Fabric
    from .fabric import attach as attach
    from .listing import fabrics as fabrics
    from .memory import Buffer as Buffer
    from .node import Node as Node
    from .node import Operation as Operation
    from .registered import Registered as Registered
    from .topology import Topology as Topology

__version__ = "0.1.0"

# Names and the modules that they come from: loaded when first used, so that `fabricctl list` and test collection stay quick.
_LAZY = {
    "Event": "event",
    "Events": "event",
    "Fabric": "fabric",
    "attach": "fabric",
    "fabrics": "listing",
    "Buffer": "memory",
    "Completion": "dma",
    "Node": "node",
    "Operation": "node",
    "Registered": "registered",
    "Topology": "topology",
}
_MODULES = (
    "caching",
    "dma",
    "errors",
    "event",
    "fabric",
    "fidelity",
    "graph",
    "link",
    "listing",
    "memory",
    "node",
    "ntb",
    "pcie",
    "registered",
    "sim",
    "tlp",
    "topology",
    "units",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        errors = importlib.import_module(".errors", __name__)
        if name not in errors.__all__:
            raise AttributeError(f"module 'fabrex' has no attribute {name!r}")
        value = getattr(errors, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    errors = importlib.import_module(".errors", __name__)
    return sorted({*globals(), *_LAZY, *_MODULES, *errors.__all__})
