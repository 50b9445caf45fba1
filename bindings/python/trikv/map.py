"""A session mapped into this process: attention on the daemon's bytes without asking it."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from . import _abi
from .errors import ErrorCode, StateError
from .step import Floats, Step
from .types import Geometry, read_struct

if TYPE_CHECKING:
    from typing_extensions import Self

    from .client import Client


class Map:
    """Made by Client.map and Session.map: the session as it was then, to the bit what the daemon
    would say. It holds memory of the daemon until close()."""

    def __init__(self, client: Client, c_map: ctypes.c_void_p) -> None:
        self._client = client
        self._pointer = c_map
        self.n_layers: int = _abi.library().map_n_layers(c_map)

    @property
    def closed(self) -> bool:
        return not self._pointer

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
        with Step(layer, dtype) as step:
            step.take("q", q, (None, g.n_q_heads, g.head_dim_k))
            result = step.outputs(g, out, lse)
            self._call("attend_local", step.ready(positions))
        return result

    def close(self) -> None:
        """Let it go; again: nothing."""
        with self._client.lock:
            if self._pointer and not self._client.closed:
                self._client.call("unmap", ctypes.byref(self._pointer))

    def forget(self) -> None:
        """The client frees what is behind it."""
        self._pointer = ctypes.c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            try:
                self.close()
            except Exception:  # noqa: BLE001  nobody is left to be told
                pass

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
