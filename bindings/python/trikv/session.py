"""A session: the cache of one sequence."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from html import escape
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
from numpy.typing import ArrayLike

from . import _abi
from .arrays import dense, dtype_code, pointer, positions_of
from .batch import Batch
from .errors import ErrorCode, StateError, TrikvError
from .handle import Handle
from .map import Map
from .owned import Owned
from .step import Floats, Step, append_attend_step, append_step, attend_step
from .types import Calibration, Gate, Geometry, PrefixResult, Stats, Tokens, encoded, read_struct

if TYPE_CHECKING:
    from .client import Client


class Session(Owned):
    """Made by Client.open and Client.fork; ends with close(), with its client, or when
    nothing refers to it any more.

    Tensors are numpy arrays, float32, float16 or (dtype="bfloat16") uint16, first index the token.
    Dense ones are read where they are.
    """

    _ending = "close"

    def __init__(self, client: Client, c_session: ctypes.c_void_p) -> None:
        super().__init__(client, c_session)
        lib = _abi.library()
        self.id: int = lib.session_id(c_session)
        self.reserved_bytes: int = lib.session_reserved_bytes(c_session)
        self.n_layers: int = lib.session_n_layers(c_session)

    @property
    def client(self) -> Client:
        return self._client

    def geometry(self, layer: int) -> Geometry:
        g = _abi.Geometry()
        self._call("session_geometry", layer, ctypes.byref(g))
        shape: Geometry = read_struct(Geometry, g)
        return shape

    # ---- tokens ----

    def append(self, layer: int, k: ArrayLike, v: ArrayLike | None, *,
               positions: ArrayLike | None = None, dtype: str | None = None,
               token_ids: ArrayLike | None = None) -> None:
        """Add tokens to a layer; without positions they follow the newest one. v is None where
        the layer has latents. token_ids: of a session opened with a Prefix, in at least one layer."""
        g = self.geometry(layer)
        step = append_step(g, layer, k, v, positions, dtype, token_ids)
        self._call("append", ctypes.byref(step.c))

    def attend(self, layer: int, q: ArrayLike, *, positions: ArrayLike | None = None,
               dtype: str | None = None, out: Floats | None = None,
               lse: Floats | None = None) -> Floats:
        """Attention of queries over what the layer holds: out [n][n_q_heads][head_dim_v]. The
        logarithms of the sums go to lse [n][n_q_heads] if it is given."""
        g = self.geometry(layer)
        step, result = attend_step(g, layer, q, positions, dtype, out, lse)
        self._call("attend", ctypes.byref(step.c))
        return result

    def append_attend(self, layer: int, k: ArrayLike, v: ArrayLike | None, q: ArrayLike, *,
                      positions: ArrayLike | None = None, dtype: str | None = None,
                      out: Floats | None = None, lse: Floats | None = None,
                      token_ids: ArrayLike | None = None) -> Floats:
        """Both in one round trip: every new token attends to all up to and including itself."""
        g = self.geometry(layer)
        step, result = append_attend_step(g, layer, k, v, q, positions, dtype, out, lse, token_ids)
        self._call("append_attend", ctypes.byref(step.c))
        return result

    def batch(self) -> Batch:
        """Steps to be done together: with a ring (Client.open_ring) in one go."""
        return Batch(self)

    def run_steps(self, kind: int, steps: Sequence[Step]) -> None:
        """Do these, each of this kind, in order, and wait for the last; of Batch."""
        array = (_abi.Step * len(steps))(*[step.c for step in steps])
        with self._client.lock:
            try:
                self._call("ring_submit", kind, array, len(steps))
            except TrikvError:
                with suppress(TrikvError):  # what went before it
                    self._client.wait_ring()
                raise
            self._client.wait_ring()

    def read(self, layer: int, first: int = 0, n_tokens: int | None = None, *,
             kv_head: int | None = None, dtype: str = "float32") -> Tokens:
        """Tokens back, decoded, as float32 or float16: n_tokens from the first on in order of
        position, None: all that follow. kv_head None: all heads, if nothing is evicted."""
        g = self.geometry(layer)
        if dtype not in ("float32", "float16"):
            raise TypeError(f"dtype is {dtype}, want float32 or float16")
        n = self._n_kept(layer, kv_head) - first if n_tokens is None else n_tokens
        n_heads = g.n_kv_heads if kv_head is None else 1
        positions = np.empty(max(n, 0), np.int32)
        k = np.empty((len(positions), n_heads, g.head_dim_k), dtype)
        v = np.empty((len(positions), n_heads, g.head_dim_v), dtype)
        r = _abi.Read(size=ctypes.sizeof(_abi.Read), layer=layer,
                      kv_head=-1 if kv_head is None else kv_head, first=first,
                      n_tokens=len(positions), dtype=dtype_code(k, "k", dtype),
                      positions=pointer(positions), k=pointer(k), v=pointer(v))
        result = _abi.ReadResult()
        self._call("read", ctypes.byref(r), ctypes.byref(result))
        return Tokens(positions, k, v, bool(result.exact), result.n_kept)

    def _n_kept(self, layer: int, kv_head: int | None) -> int:
        r = _abi.Read(size=ctypes.sizeof(_abi.Read), layer=layer,
                      kv_head=-1 if kv_head is None else kv_head)
        result = _abi.ReadResult()
        self._call("read", ctypes.byref(r), ctypes.byref(result))
        return int(result.n_kept)

    def round(self) -> None:
        """Hold a round of compression now."""
        self._call("round")

    def reattach(self) -> list[int]:
        """After Client.reconnect: go on with this session, which the new daemon took over. How many
        tokens each layer has seen; of a request that was not answered it may be some."""
        n_seen = (ctypes.c_uint64 * self.n_layers)()
        p = _abi.Progress(size=ctypes.sizeof(_abi.Progress), n_seen=n_seen,
                          n_seen_cap=len(n_seen))
        self._call("reattach", ctypes.byref(p))
        return list(n_seen)

    def truncate(self, n_tokens: int) -> None:
        """Forget the newest n_tokens, to the bit, or raise StateError and change nothing."""
        self._call("truncate", n_tokens)

    def fork(self, *, label: str | None = None, budget_tokens: int = 0) -> Session:
        """A session that begins as this one is now; what they share is kept once."""
        return self._client.fork(self.id, label=label, budget_tokens=budget_tokens)

    def keep(self) -> int:
        """Store it as it is now, for sessions that begin with the same tokens: how many those are."""
        n = ctypes.c_uint32()
        self._call("keep", ctypes.byref(n))
        return n.value

    def snapshot(self, name: str) -> int:
        """Write it as it is now to a file that the daemon keeps under this name: its bytes."""
        n = ctypes.c_uint64()
        self._call("snapshot", encoded(name), ctypes.byref(n))
        return n.value

    # ---- what it is ----

    @property
    def prefix(self) -> PrefixResult:
        """What was found of the Prefix it was opened with."""
        c = _abi.PrefixResult()
        with self._client.lock:
            self._client.pointer()
            _abi.library().session_prefix(self._pointer, ctypes.byref(c))
        names = ("", "hit", "partial", "miss")
        return PrefixResult(names[c.outcome], c.n_tokens, (c.reason or b"").decode())

    def stats(self) -> Stats:
        c = _abi.Stats()
        self._call("stats", ctypes.byref(c))
        stats: Stats = read_struct(Stats, c)
        return stats

    def gate(self) -> list[Gate]:
        """What a round held now would drop, layer by layer; nothing changes."""
        layers = (_abi.Gate * self.n_layers)()
        self._call("gate", layers)
        return [read_struct(Gate, layer) for layer in layers]

    def handle(self) -> Handle:
        """The compressed blocks themselves, mapped read-only; close it."""
        c = _abi.Handle()
        self._call("handle", ctypes.byref(c))
        return Handle(c)

    def map(self) -> Map:
        """The session as it is now, to be attended to in this process; close it."""
        return self._client.map(self.id)

    # ---- calibration ----

    def observe(self, layer: int, q: ArrayLike, *, positions: ArrayLike | None = None,
                before_rope: bool = False, dtype: str | None = None) -> None:
        """Let the daemon see queries; positions are needed unless they are before RoPE."""
        g = self.geometry(layer)
        a = dense(q, "q", (None, g.n_q_heads, g.head_dim_k))
        at = positions_of(positions, len(a))
        queries = _abi.Queries(size=ctypes.sizeof(_abi.Queries), layer=layer, n_tokens=len(a),
                               dtype=dtype_code(a, "q", dtype), positions=pointer(at),
                               q=pointer(a), before_rope=before_rope)
        self._call("observe", ctypes.byref(queries))

    def calibrate(self, name: str, *, architecture: str | None = None,
                  fingerprint: str | None = None) -> Calibration:
        """A profile of what was observed."""
        o = _abi.CalibrationOptions(size=ctypes.sizeof(_abi.CalibrationOptions),
                                    name=encoded(name), architecture=encoded(architecture),
                                    fingerprint=encoded(fingerprint))
        c = _abi.Calibration()
        self._call("calibrate", ctypes.byref(o), ctypes.byref(c))
        try:
            return Calibration(ctypes.string_at(c.yaml, c.yaml_bytes).decode(), c.n_tokens)
        finally:
            _abi.library().calibration_release(ctypes.byref(c))

    def __repr__(self) -> str:
        if self.closed:
            return f"<trikv.Session {self.id} closed>"
        return f"<trikv.Session {self.id}, {self.n_layers} layers>"

    def _repr_html_(self) -> str:
        if self.closed:
            return f"<code>{escape(repr(self))}</code>"
        s = self.stats()
        rows = {
            "tokens": f"{s.n_seen:,} seen, {s.n_kept:,.1f} kept per head",
            "memory": f"{s.resident_bytes:,} bytes, {s.compression:.2f} times less than halves",
            "bits per value": f"{s.bits_k:.2f} keys, {s.bits_v:.2f} values",
            "rounds": f"{s.n_rounds:,}, {s.n_evicted:,} evicted",
        }
        body = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows.items())
        return f"<table><caption>{escape(repr(self)[1:-1])}</caption>{body}</table>"

    def _call(self, name: str, *arguments: Any) -> None:
        with self._client.lock:
            self._client.pointer()
            if not self._pointer:
                raise StateError(ErrorCode.NO_SESSION, f"session {self.id} was closed")
            self._client.call(name, self._pointer, *arguments)
