"""Sequence states of llama.cpp: the files of llama_state_seq_save_file and of llama-server's
/slots?action=save (magic GGSQ, versions 2 and 3).

    state = trikv.llama.read_state("slot.bin", n_kv_heads=8)
    session = client.open([trikv.Layer(32, 8, 128)] * len(state.layers))
    state.append_to(session)

A state has no checksum and no name of its model: every size in it is checked, and that it is this
model's is for the caller to know. Taken are states of one cache of F32, F16 or BF16. Refused, not
guessed at:

- quantised caches: newer builds store those turned by a Hadamard matrix, and the file does not say so;
- a second cache (sliding windows kept apart, recurrent layers), positions of more than one dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .session import Session

_MAGIC = 0x67677371  # "ggsq"
_TYPES = {0: ("<f4", None), 1: ("<f2", None), 30: ("<u2", "bfloat16")}
_CELL_EXTRA_BYTES = {2: (0,), 3: (0, 12)}  # 3: position in two dimensions and the token, or nothing
_MAX_LAYERS = 512
_MAX_POSITION = 0x7ffffffe


class StateFormatError(ValueError):
    """These bytes are not a state that can be taken; the text says where and why."""


@dataclass(frozen=True)
class LayerState:
    """k [n][n_kv_heads][head_dim_k], v likewise; dtype is "bfloat16" for bit patterns of it."""

    k: NDArray[Any]
    v: NDArray[Any]
    dtype: str | None


@dataclass(frozen=True)
class State:
    version: int
    tokens: NDArray[np.int32]  # of the prompt, as the file says
    positions: NDArray[np.int32]
    layers: list[LayerState]

    def append_to(self, session: Session, chunk_tokens: int = 1024) -> None:
        """Every layer's tokens, which the session's layers must have the geometry of."""
        if session.n_layers != len(self.layers):
            raise ValueError(f"the session has {session.n_layers} layers, the state "
                             f"{len(self.layers)}")
        for i, layer in enumerate(self.layers):
            for at in range(0, len(self.positions), chunk_tokens):
                part = slice(at, at + chunk_tokens)
                session.append(i, layer.k[part], layer.v[part], dtype=layer.dtype,
                               positions=self.positions[part])


def read_state(path: str | Path, n_kv_heads: int) -> State:
    return parse_state(Path(path).read_bytes(), n_kv_heads)


def parse_state(data: bytes, n_kv_heads: int) -> State:
    """The state in these bytes, of a model with so many KV heads in every layer."""
    if n_kv_heads < 1:
        raise ValueError(f"n_kv_heads is {n_kv_heads}")
    file = _Reader(data)
    if file.u32("magic") != _MAGIC:
        raise StateFormatError("byte 0: this is not a sequence state of llama.cpp (GGSQ)")
    version = file.u32("version")
    if version not in _CELL_EXTRA_BYTES:
        raise StateFormatError(f"byte 4: version {version}, want 2 or 3")
    tokens = file.array("<i4", file.u32("number of tokens"), "tokens")
    began = file.at
    errors = []
    for extra_bytes in _CELL_EXTRA_BYTES[version]:
        # Whether cells carry it depends on the model; only one reading ends where the file ends.
        file.at = began
        try:
            positions, layers = _read_cache(file, n_kv_heads, extra_bytes)
            return State(version, tokens.astype(np.int32), positions, layers)
        except StateFormatError as error:
            errors.append(error)
    raise max(errors, key=lambda e: e.args[1] if len(e.args) > 1 else 0)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def array(self, dtype: str, n: int, what: str) -> NDArray[Any]:
        """n elements where the reader is; nothing is allocated for what is not there."""
        size = np.dtype(dtype).itemsize
        left = len(self.data) - self.at
        if n * size > left:
            raise self.error(f"{what}: {n * size} bytes, the file has {left} more")
        values = np.frombuffer(self.data, dtype, n, self.at)
        self.at += n * size
        return values

    def u32(self, what: str) -> int:
        return int(self.array("<u4", 1, what)[0])

    def u64(self, what: str) -> int:
        return int(self.array("<u8", 1, what)[0])

    def error(self, text: str) -> StateFormatError:
        return StateFormatError(f"byte {self.at}: {text}", self.at)


def _read_cache(file: _Reader, n_kv_heads: int,
                extra_bytes: int) -> tuple[NDArray[np.int32], list[LayerState]]:
    n_streams = file.u32("number of streams")
    found = None
    for _ in range(n_streams):
        n_cells = file.u32("number of cells")
        if n_cells == 0:
            continue
        if found is not None:
            raise file.error("cells in more than one stream: this is not one sequence")
        found = _read_stream(file, n_cells, n_kv_heads, extra_bytes)
    if found is None:
        raise file.error("a state without cells")
    if file.at != len(file.data):
        raise file.error(f"{len(file.data) - file.at} bytes follow: the model has a second cache "
                         "(sliding windows, recurrent layers), or another number of KV heads")
    return found


def _read_stream(file: _Reader, n_cells: int, n_kv_heads: int,
                 extra_bytes: int) -> tuple[NDArray[np.int32], list[LayerState]]:
    positions, order = _read_cells(file, n_cells, extra_bytes)
    transposed = file.u32("v_trans")
    if transposed > 1:
        raise file.error(f"v_trans is {transposed}, want 0 or 1")
    n_layers = file.u32("number of layers")
    if not 1 <= n_layers <= _MAX_LAYERS:
        raise file.error(f"{n_layers} layers, want 1 to {_MAX_LAYERS}")
    keys = [_read_rows(file, n_cells, n_kv_heads, f"keys of layer {i}") for i in range(n_layers)]
    read_values = _read_columns if transposed else _read_rows
    values = [read_values(file, n_cells, n_kv_heads, f"values of layer {i}")
              for i in range(n_layers)]
    layers = []
    for i, ((k, k_type), (v, v_type)) in enumerate(zip(keys, values)):
        if k_type != v_type:  # one type for a session's tokens: floats hold both
            k, v, k_type = _widen(k, k_type), _widen(v, v_type), None
        layers.append(LayerState(k[order], v[order], k_type))
    return positions, layers


def _read_cells(file: _Reader, n_cells: int,
                extra_bytes: int) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Positions, ascending, and the cells in that order."""
    cell = np.dtype([("position", "<i4"), ("n_ids", "<u4"), ("extra", f"V{extra_bytes}"),
                     ("id", "<i4")])
    cells = file.array("<u1", n_cells * cell.itemsize, "cells").view(cell)
    if (cells["n_ids"] != 1).any():
        raise file.error("a cell of no or of many sequences")
    order = np.argsort(cells["position"], kind="stable")
    positions = cells["position"][order].astype(np.int32)
    if positions[0] < 0 or positions[-1] > _MAX_POSITION or (np.diff(positions) < 1).any():
        raise file.error("positions are negative or not all different")
    return positions, order


def _element(file: _Reader, what: str) -> tuple[str, str | None]:
    number = file.u32("type of " + what)
    if number not in _TYPES:
        raise file.error(f"{what}: type {number}, want 0 (F32), 1 (F16) or 30 (BF16); quantised "
                         "caches may be turned and cannot be taken")
    return _TYPES[number]


def _split(file: _Reader, n: int, n_kv_heads: int, what: str) -> int:
    """head_dim of rows of n elements."""
    if n == 0 or n % n_kv_heads or n // n_kv_heads > 1024:
        raise file.error(f"{what}: rows of {n} elements are not {n_kv_heads} heads of 1 to 1024")
    return n // n_kv_heads


def _read_rows(file: _Reader, n_cells: int, n_kv_heads: int,
               what: str) -> tuple[NDArray[Any], str | None]:
    dtype, name = _element(file, what)
    row_bytes = file.u64("row size of " + what)
    size = np.dtype(dtype).itemsize
    if row_bytes % size:
        raise file.error(f"{what}: rows of {row_bytes} bytes, elements of {size}")
    n = row_bytes // size
    dim = _split(file, n, n_kv_heads, what)
    return file.array(dtype, n_cells * n, what).reshape(n_cells, n_kv_heads, dim), name


def _read_columns(file: _Reader, n_cells: int, n_kv_heads: int,
                  what: str) -> tuple[NDArray[Any], str | None]:
    """Transposed: all cells of the first element of a row, then all of the second."""
    dtype, name = _element(file, what)
    size = file.u32("element size of " + what)
    if size != np.dtype(dtype).itemsize:
        raise file.error(f"{what}: elements of {size} bytes, want {np.dtype(dtype).itemsize}")
    n = file.u32("row length of " + what)
    dim = _split(file, n, n_kv_heads, what)
    columns = file.array(dtype, n_cells * n, what).reshape(n, n_cells)
    return columns.T.reshape(n_cells, n_kv_heads, dim), name


def _widen(x: NDArray[Any], name: str | None) -> NDArray[np.float32]:
    if name == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)
