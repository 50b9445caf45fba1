"""The compressed cache itself: blocks in shared memory, and the table of where they are."""

from __future__ import annotations

import ctypes
import mmap
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _abi

if TYPE_CHECKING:
    from typing_extensions import Self

# struct trikv_table_entry of proto/shm_layout.h
ENTRY = np.dtype([
    ("block_offset", "<u8"), ("block_bytes", "<u4"), ("k_bytes", "<u4"), ("v_bytes", "<u4"),
    ("first_position", "<u4"), ("layer", "<u2"), ("kv_head", "<u2"), ("codec_k", "<u2"),
    ("codec_v", "<u2"), ("head_dim_k", "<u2"), ("head_dim_v", "<u2"), ("n_tokens", "<u2"),
    ("n_score_heads", "<u2"), ("has_means", "<u2"), ("reserved", "V22"),
])
HEADER_BYTES = 64


class Handle:
    """`entries` is the table, one row a block; `block(i)` its bytes, read-only, not copied. What
    is listed does not change until the session is appended to or holds a round: then take a new
    handle and compare `generation`."""

    def __init__(self, c: _abi.Handle) -> None:
        self.generation: int = c.generation
        self.arena_bytes: int = c.arena_bytes
        self._map: mmap.mmap | None = None
        try:
            table = ctypes.string_at(c.table, c.table_bytes)
            self.entries: NDArray[Any] = np.frombuffer(table, dtype=ENTRY, offset=HEADER_BYTES)
            if c.arena_bytes:
                self._map = mmap.mmap(c.fd, c.arena_bytes, prot=mmap.PROT_READ)
        finally:
            _abi.library().handle_release(ctypes.byref(c))

    def block(self, i: int) -> NDArray[np.uint8]:
        """Keys, values, positions and scores of block i as proto/shm_layout.h lays them out."""
        if self._map is None:
            raise ValueError("this handle was closed, or has no blocks")
        e = self.entries[i]
        return np.frombuffer(self._map, np.uint8, int(e["block_bytes"]), int(e["block_offset"]))

    def close(self) -> None:
        """Give the mapping back; BufferError while a block of it is still in use."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def __len__(self) -> int:
        return len(self.entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<trikv.Handle {len(self)} blocks, generation {self.generation}>"
