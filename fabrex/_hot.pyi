# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from typing import Any, Literal, overload

from typing_extensions import disjoint_base

def bind(table: int, handler: Callable[[int, Any], None], /) -> None: ...

@disjoint_base
class Requester:
    @overload
    def load(
        self, gva: int, /, size: Literal[1, 2, 4, 8] = 8, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0
    ) -> int: ...
    @overload
    def load(
        self, gva: int, /, size: Literal[16, 32, 64], *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0
    ) -> bytes: ...
    @overload
    def load(self, gva: int, /, size: int, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0) -> int | bytes: ...
    def store(
        self, gva: int, value: int | bytes, /, size: int = 8, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0
    ) -> None: ...
    def fetch_add(
        self, gva: int, value: int, /, size: int = 8, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0
    ) -> int: ...
    def swap(
        self, gva: int, value: int, /, size: int = 8, *, ro: bool = False, ido: bool = False, tc: int = 0, path: int = 0
    ) -> int: ...
    def compare_swap(
        self,
        gva: int,
        expected: int,
        desired: int,
        /,
        size: int = 8,
        *,
        ro: bool = False,
        ido: bool = False,
        tc: int = 0,
        path: int = 0,
    ) -> int: ...
    def empty(self, *args: object, **kwargs: object) -> None: ...
    def _dma_copy(self, dst: int, src: int, size: int, /) -> int | None: ...
    def _dma_release(self, number: int, /) -> None: ...
    def _nothing(self, ps: int, /, size: int = 8) -> int: ...
    def _bind(self, address: int, owner: object, /) -> None: ...
