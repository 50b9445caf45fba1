"""A connection to trikvd."""

from __future__ import annotations

import ctypes
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
from numpy.typing import NDArray

from . import _abi
from .errors import ConnectionLostError, ErrorCode, make_error
from .map import Map
from .session import Session
from .types import Info, Layer, Prefix, Rope, encoded, read_struct

if TYPE_CHECKING:
    from typing_extensions import Self


class Client:
    """One connection, and the sessions opened on it, which end with it.

    A lock keeps calls of different threads apart, one after the other; for work side by side
    use a client per thread. Not to be used in a child of os.fork().
    """

    def __init__(self, socket: str | None = None, *, timeout_ms: int = 0, staging_bytes: int = 0,
                 name: str | None = None) -> None:
        """Connect. socket None: $TRIKV_SOCKET, else /run/trikv/trikvd.sock; staging_bytes: size
        of a shared area for tensors, 0 sends them through the socket."""
        self._lib = _abi.library()
        self._lock = threading.RLock()
        self._pointer = ctypes.c_void_p()
        self._held: weakref.WeakSet[Any] = weakref.WeakSet()
        options = _abi.Options(size=ctypes.sizeof(_abi.Options), socket=encoded(socket),
                               timeout_ms=timeout_ms, staging_bytes=staging_bytes,
                               name=encoded(name))
        code = self._lib.connect(ctypes.byref(self._pointer), ctypes.byref(options))
        if code:
            error = make_error(code, self._lib.last_error(self._pointer).decode())
            self._lib.disconnect(ctypes.byref(self._pointer))
            raise error

    def call(self, name: str, *arguments: Any) -> None:
        """Call trikv_NAME; an error number becomes an exception with its text."""
        with self._lock:
            self.pointer()
            code = getattr(self._lib, name)(*arguments)
            if code:
                raise make_error(code, self._lib.last_error(self._pointer).decode())

    def reconnect(self) -> None:
        """After ConnectionLostError: connect again, to whatever daemon is there now. Sessions go on
        after Session.reattach; maps are gone."""
        self.call("reconnect", self.pointer())

    def pointer(self) -> ctypes.c_void_p:
        """The struct trikv_client; an error if the client was closed."""
        if not self._pointer:
            raise ConnectionLostError(ErrorCode.DISCONNECTED, "this client was closed")
        return self._pointer

    @property
    def info(self) -> Info:
        with self._lock:
            info: Info = read_struct(Info, self._lib.info(self.pointer()).contents)
            return info

    def open(self, layers: Layer | Sequence[Layer], n_layers: int | None = None, *,
             profile: str | None = None, fingerprint: str | None = None, rope: Rope | None = None,
             label: str | None = None, codec_k: str | None = None, codec_v: str | None = None,
             method: str | None = None, budget_tokens: int = 0, beta_tokens: int = 0,
             recent_tokens: int | None = None, pinned_tokens: int | None = None,
             eviction_mode: str | None = None, aggregation: str | None = None, offset_max: int = 0,
             normalize_scores: bool | None = None,
             rollback_tokens: int | None = None, budget_bytes: int = 0, max_tokens: int = 0,
             target_ratio: float = 0,
             prefix: Prefix | None = None, never_evict: bool = False,
             allocator: str | None = None) -> Session:
        """Open a session of these layers, or of n_layers like the one given. What is not said
        is taken from the profile, else from the daemon's configuration."""
        if isinstance(layers, Layer):
            layers = [layers]
        elif n_layers not in (None, len(layers)):
            raise ValueError(f"n_layers is {n_layers}, layers are {len(layers)}")
        c_layers = (_abi.Layer * len(layers))()
        kept = [layer.fill(c) for layer, c in zip(layers, c_layers)]
        o = _abi.SessionOptions(
            size=ctypes.sizeof(_abi.SessionOptions), n_layers=n_layers or len(layers),
            layers=c_layers, same_layers=n_layers is not None and len(layers) == 1,
            profile=encoded(profile), fingerprint=encoded(fingerprint), label=encoded(label),
            codec_k=encoded(codec_k), codec_v=encoded(codec_v), method=encoded(method),
            budget_tokens=budget_tokens, beta_tokens=beta_tokens,
            recent_tokens=_or_default(recent_tokens), pinned_tokens=_or_default(pinned_tokens),
            eviction_mode=encoded(eviction_mode), aggregation=encoded(aggregation),
            offset_max=offset_max, normalize_scores=_or_default(normalize_scores),
            rollback_tokens=_or_default(rollback_tokens),
            budget_bytes=budget_bytes, max_tokens=max_tokens, target_ratio=target_ratio,
            never_evict=never_evict, allocator=encoded(allocator))
        if rope is not None:
            o.rope = ctypes.pointer(rope.to_c())
        if prefix is not None:
            c_prefix, ids = prefix.to_c()
            o.prefix = ctypes.pointer(c_prefix)
            kept.append(ids)
        pointer = ctypes.c_void_p()
        self.call("open", self.pointer(), ctypes.byref(o), ctypes.byref(pointer))
        del kept
        return self.adopt(pointer)

    def fork(self, session: int, *, label: str | None = None, budget_tokens: int = 0) -> Session:
        """Fork a session by its id: one of another process of the same user, too."""
        o = _abi.ForkOptions(size=ctypes.sizeof(_abi.ForkOptions), label=encoded(label),
                             budget_tokens=budget_tokens)
        pointer = ctypes.c_void_p()
        self.call("fork_id", self.pointer(), session, ctypes.byref(o), ctypes.byref(pointer))
        return self.adopt(pointer)

    def restore(self, name: str) -> Session:
        """A new session as that one was which Session.snapshot wrote under this name."""
        pointer = ctypes.c_void_p()
        self.call("restore", self.pointer(), encoded(name), ctypes.byref(pointer))
        return self.adopt(pointer)

    def delete_snapshot(self, name: str) -> None:
        """Remove the file that Session.snapshot wrote under this name."""
        self.call("snapshot_delete", self.pointer(), encoded(name))

    def map(self, session: int) -> Map:
        """Map a session by its id: one of another process of the same user, too."""
        pointer = ctypes.c_void_p()
        self.call("map", self.pointer(), session, ctypes.byref(pointer))
        made = Map(self, pointer)
        self._held.add(made)
        return made

    def open_ring(self, *, n_entries: int = 0, spin_us: int = 0, copy_bytes: int = 0,
                  tensor_bytes: int = 0) -> NDArray[np.uint8]:
        """Make the fast path, which steps take by themselves from then on; 0: the default, spin_us
        -1: never spin. Returns tensor_bytes of memory: arrays in it, at multiples of 64 bytes, are
        not copied. It must not be used after close_ring() or close()."""
        o = _abi.RingOptions(size=ctypes.sizeof(_abi.RingOptions), n_entries=n_entries,
                             spin_us=spin_us, copy_bytes=copy_bytes, tensor_bytes=tensor_bytes)
        self.call("ring_open", self.pointer(), ctypes.byref(o))
        if not tensor_bytes:
            return np.empty(0, np.uint8)
        at = self._lib.ring_tensors(self.pointer())
        memory = (ctypes.c_uint8 * tensor_bytes).from_address(at)
        tensors: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        return tensors

    def wait_ring(self) -> None:
        """Wait for what was submitted; of Batch."""
        self.call("ring_wait", self.pointer())

    def close_ring(self) -> None:
        """End the fast path; steps go by the socket again. No ring: nothing."""
        self.call("ring_close", self.pointer())

    def adopt(self, pointer: ctypes.c_void_p) -> Session:
        """The Session of a struct trikv_session that was just made on this client."""
        session = Session(self, pointer)
        self._held.add(session)
        return session

    def close(self) -> None:
        """Close the connection and with it every session; again: nothing."""
        with self._lock:
            for held in list(self._held):
                held.forget()
            self._lib.disconnect(ctypes.byref(self._pointer))

    @property
    def closed(self) -> bool:
        return not self._pointer

    @property
    def lock(self) -> threading.RLock:
        """Held during every call."""
        return self._lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<trikv.Client closed>"
        n = sum(isinstance(held, Session) for held in self._held)
        return f"<trikv.Client of trikvd {self.info.version}, {n} sessions>"


def _or_default(value: int | bool | None) -> int:
    """Negative is "not said" in struct trikv_session_options."""
    return -1 if value is None else int(value)
