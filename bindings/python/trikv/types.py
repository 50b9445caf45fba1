"""What goes in and comes out, as plain data."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from typing import Any, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _abi


def encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


@dataclass(frozen=True)
class Geometry:
    """Shape of one layer: q [n][n_q_heads][head_dim_k], k [n][n_kv_heads][head_dim_k],
    v [n][n_kv_heads][head_dim_v]."""

    n_q_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int


@dataclass(frozen=True)
class Layer:
    """Geometry and attention of one layer. head_dim_v None: as head_dim_k; scale None:
    1 / sqrt(head_dim_k); 0: none of it. rope_dim: the layer has latents (MLA), keys of one KV head
    whose last rope_dim coordinates carry the position; the rest is also the value, so that v is
    None and head_dim_v follows. Their scale must be said."""

    n_q_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int | None = None
    scale: float | None = None
    softcap: float = 0.0
    window_tokens: int = 0
    rope_dim: int = 0
    sinks: Sequence[float] | NDArray[np.float32] | None = None

    def fill(self, to: _abi.Layer) -> Any:
        """Write the C struct; what is returned must live as long as it."""
        to.n_q_heads = self.n_q_heads
        to.n_kv_heads = self.n_kv_heads
        to.head_dim_k = self.head_dim_k
        rest = self.head_dim_k - self.rope_dim
        to.head_dim_v = rest if self.head_dim_v is None else self.head_dim_v
        to.scale = self.scale or 0.0
        to.softcap = self.softcap
        to.window_tokens = self.window_tokens
        to.rope_dim = self.rope_dim
        if self.sinks is None:
            return None
        sinks = np.ascontiguousarray(self.sinks, dtype=np.float32)
        if sinks.shape != (self.n_q_heads,):
            raise ValueError(f"sinks: shape {sinks.shape}, want ({self.n_q_heads},)")
        to.sinks = sinks.ctypes.data
        return sinks


@dataclass(frozen=True)
class Rope:
    """Rotary embedding; 0 is "not said"."""

    theta: float
    rotary_dim: int
    layout: str = "half"
    scaling: str = "none"
    factor: float = 0.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_context: int = 0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    attention_factor: float = 0.0
    no_truncate: bool = False

    def to_c(self) -> _abi.Rope:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["layout"] = self.layout.encode()
        values["scaling"] = self.scaling.encode()
        return _abi.Rope(**values)


@dataclass(frozen=True)
class Prefix:
    """Begin with what is stored of these tokens; keep: store the session when it ends."""

    token_ids: ArrayLike = ()
    keep: bool = False
    salt: bytes = b""

    def to_c(self) -> tuple[_abi.Prefix, Any]:
        """The C struct, and what must live as long as it."""
        ids = np.ascontiguousarray(self.token_ids, dtype=np.uint32)
        if ids.ndim != 1:
            raise ValueError(f"token_ids: shape {ids.shape}, want (n)")
        return _abi.Prefix(size=ctypes.sizeof(_abi.Prefix), token_ids=ids.ctypes.data,
                           n_token_ids=len(ids), keep=self.keep, salt=self.salt,
                           salt_bytes=len(self.salt)), ids


@dataclass(frozen=True)
class PrefixResult:
    """The session began with n_tokens of those asked for: "hit" all of them, "partial", "miss",
    or "" if nothing was asked; reason: why not more."""

    outcome: str
    n_tokens: int
    reason: str


@dataclass(frozen=True)
class Info:
    """What the daemon said of itself."""

    protocol: int
    boot_id: int
    version: str
    cpu: str
    max_payload_bytes: int
    memory_cap_bytes: int


@dataclass(frozen=True)
class Stats:
    """Of a session; struct trikv_stats explains the numbers."""

    session: int
    n_seen: int
    n_kept: float
    resident_bytes: int
    fp16_bytes: int
    bits_k: float
    bits_v: float
    n_rounds: int
    n_evicted: int
    arena_bytes: int
    slack_bytes: int
    shared_bytes: int

    @property
    def compression(self) -> float:
        """How many times less memory than halves of all tokens seen would take."""
        return self.fp16_bytes / self.resident_bytes if self.resident_bytes else 0.0


@dataclass(frozen=True)
class Gate:
    """Of a layer: what the profile's gate says to a round; struct trikv_gate explains the numbers."""

    n_passed: int
    n_kept_more: int
    n_exceeded: int
    n_surplus_tokens: int
    n_dropped: int
    n_probes: int
    output_error: float
    lse_change: float
    lost_mass: float


@dataclass(frozen=True)
class Tokens:
    """What Session.read got back: positions [n], k [n][heads][dim], v likewise; exact if they are
    to the bit what was appended, as halves; n_kept is all that the head keeps."""

    positions: NDArray[np.int32]
    k: NDArray[Any]
    v: NDArray[Any]
    exact: bool
    n_kept: int


@dataclass(frozen=True)
class Calibration:
    """A profile made of what was observed: text for NAME.yaml in the directory of profiles."""

    yaml: str
    n_tokens: int


def read_struct(cls: type, c: ctypes.Structure) -> Any:
    """A dataclass of a C struct with the same fields."""
    values = {f.name: getattr(c, f.name) for f in fields(cls)}
    return cls(**{k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()})
