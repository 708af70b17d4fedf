# SPDX-License-Identifier: Apache-2.0
"""Fabrics on several machines: who belongs to one, who may join, and who is still there.

Each machine makes an instance of the fabric from the same topology, and an agent in one of its processes: it admits
connections, makes those that processes here need, and watches the other machines. The agent of one machine (the first in
`machines:`) is the coordinator: it hands the topology to those who join and tells all of them who is lost. Bytes of
operations pass no agent: they travel between processes and gateways (csrc/socket.c, csrc/gateway.c).

Owns: the control plane. Must not know: what operations do.
"""

from .agent import Agent, host, join

__all__ = ["Agent", "host", "join"]
