"""A step: the C struct, and the arrays that it points to."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _abi
from .arrays import dense, dtype_code, output, pointer, positions_of
from .types import Geometry

Floats = NDArray[np.float32]


class Step:
    """A struct trikv_step, c, and the arrays that it points to."""

    def __init__(self, layer: int, dtype: str | None) -> None:
        self.c = _abi.Step(size=ctypes.sizeof(_abi.Step), layer=layer)
        self._dtype = dtype
        self._kept: list[Any] = []
        self._code: int | None = None
        self._n: int | None = None

    def take(self, name: str, array: ArrayLike, shape: tuple[int | None, ...]) -> None:
        a = dense(array, name, (self._n, *shape[1:]))
        code = dtype_code(a, name, self._dtype)
        if self._code not in (None, code):
            raise TypeError(f"{name} is {a.dtype}, the other tensors of this step are not")
        self._code = code
        self._n = len(a)
        self._keep(name, a)

    def outputs(self, g: Geometry, out: Floats | None, lse: Floats | None) -> Floats:
        n = self._n or 0
        result = output(out, "out", (n, g.n_q_heads, g.head_dim_v))
        self._keep("out", result)
        if lse is not None:
            self._keep("lse", output(lse, "lse", (n, g.n_q_heads)))
        return result

    def finish(self, positions: ArrayLike | None, token_ids: ArrayLike | None = None) -> None:
        if token_ids is not None:
            ids = np.asarray(token_ids)
            if ids.dtype.kind not in "iu":
                raise TypeError(f"token_ids are {ids.dtype}, want integers")
            self._keep("token_ids", dense(ids.astype(np.uint32), "token_ids", (self._n,)))
        self.c.n_tokens = self._n or 0
        self.c.dtype = self._code or 0
        at = positions_of(positions, self.c.n_tokens)
        if at is not None:
            self._keep("positions", at)

    def _keep(self, name: str, array: NDArray[Any]) -> None:
        self._kept.append(array)
        setattr(self.c, name, pointer(array))


def append_step(g: Geometry, layer: int, k: ArrayLike, v: ArrayLike | None,
                positions: ArrayLike | None, dtype: str | None,
                token_ids: ArrayLike | None) -> Step:
    step = Step(layer, dtype)
    _take_kv(step, g, k, v)
    step.finish(positions, token_ids)
    return step


def attend_step(g: Geometry, layer: int, q: ArrayLike, positions: ArrayLike | None,
                dtype: str | None, out: Floats | None, lse: Floats | None) -> tuple[Step, Floats]:
    """The step, and where its result goes."""
    step = Step(layer, dtype)
    step.take("q", q, (None, g.n_q_heads, g.head_dim_k))
    result = step.outputs(g, out, lse)
    step.finish(positions)
    return step, result


def append_attend_step(g: Geometry, layer: int, k: ArrayLike, v: ArrayLike | None, q: ArrayLike,
                       positions: ArrayLike | None, dtype: str | None, out: Floats | None,
                       lse: Floats | None, token_ids: ArrayLike | None) -> tuple[Step, Floats]:
    """The step, and where its result goes."""
    step = Step(layer, dtype)
    _take_kv(step, g, k, v)
    step.take("q", q, (None, g.n_q_heads, g.head_dim_k))
    result = step.outputs(g, out, lse)
    step.finish(positions, token_ids)
    return step, result


def _take_kv(step: Step, g: Geometry, k: ArrayLike, v: ArrayLike | None) -> None:
    step.take("k", k, (None, g.n_kv_heads, g.head_dim_k))
    if v is not None:
        step.take("v", v, (None, g.n_kv_heads, g.head_dim_v))
