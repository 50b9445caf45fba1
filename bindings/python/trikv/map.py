"""A session mapped into this process: attention on the daemon's bytes without asking it."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from . import _abi
from .errors import ErrorCode, StateError
from .owned import Owned
from .step import Floats, attend_step
from .types import Geometry, read_struct

if TYPE_CHECKING:
    from .client import Client


class Map(Owned):
    """Made by Client.map and Session.map: the session as it was then, to the bit what the daemon
    would say. It holds memory of the daemon until close()."""

    _ending = "unmap"

    def __init__(self, client: Client, c_map: ctypes.c_void_p) -> None:
        super().__init__(client, c_map)
        self.n_layers: int = _abi.library().map_n_layers(c_map)

    def geometry(self, layer: int) -> Geometry:
        g = _abi.Geometry()
        self._call("map_geometry", layer, ctypes.byref(g))
        shape: Geometry = read_struct(Geometry, g)
        return shape

    def n_seen(self, layer: int) -> int:
        """Tokens that the session had seen in this layer."""
        with self._client.lock:
            self._check()
            return int(_abi.library().map_n_seen(self._pointer, layer))

    def attend(self, layer: int, q: ArrayLike, *, positions: ArrayLike | None = None,
               dtype: str | None = None, out: Floats | None = None,
               lse: Floats | None = None) -> Floats:
        """As Session.attend, computed here. An error STALE if the connection has ended."""
        g = self.geometry(layer)
        step, result = attend_step(g, layer, q, positions, dtype, out, lse)
        self._call("attend_local", ctypes.byref(step.c))
        return result

    def __repr__(self) -> str:
        if self.closed:
            return "<trikv.Map closed>"
        return f"<trikv.Map of {self.n_layers} layers, {self.n_seen(0)} tokens>"

    def _check(self) -> None:
        self._client.pointer()
        if not self._pointer:
            raise StateError(ErrorCode.STATE, "this map was closed")

    def _call(self, name: str, *arguments: Any) -> None:
        with self._client.lock:
            self._check()
            self._client.call(name, self._pointer, *arguments)
