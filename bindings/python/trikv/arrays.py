"""From numpy arrays to pointers. What lies dense in memory is passed where it is, never copied."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _abi

_CODES = {"float32": _abi.F32, "float16": _abi.F16, "bfloat16": _abi.BF16}


def dtype_code(array: NDArray[Any], name: str, dtype: str | None) -> int:
    """0 float, 1 half, 2 bfloat16. numpy has no bfloat16 of its own: arrays of a dtype with this
    name (ml_dtypes) are, and uint16 bit patterns if the caller says dtype="bfloat16"."""
    found = array.dtype.name
    if dtype == "bfloat16" and found == "uint16":
        return _abi.BF16
    if dtype is not None and dtype != found:
        raise TypeError(f"{name} is {found}, said to be {dtype}")
    if found not in _CODES:
        raise TypeError(f'{name} is {found}: want float32, float16, or uint16 and dtype="bfloat16"')
    return _CODES[found]


def dense(array: ArrayLike, name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """The array, dense, of this shape; None in it is any number."""
    a = np.ascontiguousarray(array)
    if a.ndim != len(shape) or any(w is not None and w != n for w, n in zip(shape, a.shape)):
        want = ", ".join("n" if w is None else str(w) for w in shape)
        raise ValueError(f"{name}: shape {a.shape}, want ({want})")
    return a


def output(array: NDArray[np.float32] | None, name: str,
           shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Where a result goes: the caller's array, which must fit as it is, or a new one."""
    if array is None:
        return np.empty(shape, dtype=np.float32)
    fits = array.dtype == np.float32 and array.shape == shape
    if not fits or not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(f"{name}: want a dense, writable float32 array of shape {shape}, "
                         f"got {array.dtype} {array.shape}")
    return array


def positions_of(positions: ArrayLike | None, n: int) -> NDArray[np.int32] | None:
    if positions is None:
        return None
    wide = np.asarray(positions)
    if wide.dtype.kind not in "iu":
        raise TypeError(f"positions are {wide.dtype}, want integers")
    if wide.size and (wide.min() < 0 or wide.max() > 0x7ffffffe):
        raise ValueError("positions: want 0 to 2147483646")
    return dense(wide.astype(np.int32, copy=False), "positions", (n,))


def pointer(array: NDArray[Any] | None) -> int | None:
    return None if array is None else int(array.ctypes.data)
