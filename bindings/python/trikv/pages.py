"""Pages of an engine's KV cache, kept in a daemon by key: exact, or compressed by a codec.

An exact page comes back byte by byte, whatever it holds. A compressed one comes back as the codec left
it, and only to who asks for no more than that.

Pages lie one behind the other in sessions ("segments"). A session gives memory back as a whole, so
the segment that was not used for the longest time is what is dropped when room is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock
from typing import Callable, Hashable

import numpy as np
from numpy.typing import NDArray

from .client import Client
from .errors import ConnectionLostError, ErrorCode, LimitError, RequestError
from .session import Session
from .types import Layer

Bytes = NDArray[np.uint8]

_EXACT_DIM = 1024
_EXACT_HALVES = 2 * _EXACT_DIM  # of one token: a key and a value
_MAX_HEADS = 1024
_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_AXES = "klthd"


@dataclass(frozen=True)
class PageLayout:
    """How keys and values lie in a page: `order` is its axes from the outermost one on, of
    k (keys, then values), l (layers), t (tokens), h (KV heads), d (head_dim)."""

    n_layers: int
    n_kv_heads: int
    head_dim: int
    n_tokens: int
    dtype: str
    order: str = "lkthd"

    def __post_init__(self) -> None:
        if sorted(self.order) != sorted(_AXES):
            raise ValueError(f"order is {self.order!r}, want each of {_AXES!r} once")
        if self.dtype not in _ELEMENT_BYTES:
            raise ValueError(f"dtype is {self.dtype}, want one of {', '.join(_ELEMENT_BYTES)}: "
                             "keep pages of other types exact")
        if self.n_layers * self.n_kv_heads > _MAX_HEADS:
            raise ValueError(f"{self.n_layers} layers of {self.n_kv_heads} KV heads are over "
                             f"{_MAX_HEADS} in all: keep these pages exact")

    @property
    def shape(self) -> tuple[int, ...]:
        size = {"k": 2, "l": self.n_layers, "t": self.n_tokens, "h": self.n_kv_heads,
                "d": self.head_dim}
        return tuple(size[axis] for axis in self.order)

    @property
    def page_bytes(self) -> int:
        return int(np.prod(self.shape)) * _ELEMENT_BYTES[self.dtype]

    def view(self, page: Bytes) -> NDArray[np.generic]:
        """The page as [k][t][l][h][d], of its type (uint16 for bfloat16), not copied."""
        dtype = "uint16" if self.dtype == "bfloat16" else self.dtype
        array = page[:self.page_bytes].view(dtype).reshape(self.shape)
        return array.transpose([self.order.index(axis) for axis in "ktlhd"])


@dataclass
class _Segment:
    session: Session
    exact: bool
    n_pages: int = 0


@dataclass(frozen=True)
class _Place:
    segment: _Segment
    page: int


class PageStore:
    """`connect` makes the client; it is called again after the daemon was lost, and with it all
    pages. Lookups never wait for the daemon; one lock keeps everything else apart."""

    def __init__(self, connect: Callable[[], Client], page_bytes: int, *, max_pages: int,
                 layout: PageLayout | None = None, codec: str = "tq4",
                 segment_pages: int = 0) -> None:
        if layout is not None and layout.page_bytes > page_bytes:
            raise ValueError(f"the layout takes {layout.page_bytes} bytes, a page has {page_bytes}")
        if page_bytes < 1 or max_pages < 1:
            raise ValueError(f"page_bytes is {page_bytes}, max_pages {max_pages}: want at least 1")
        self._connect = connect
        self._client: Client | None = None
        self._page_bytes = page_bytes
        self._max_pages = max_pages
        self._segment_pages = segment_pages or max(1, max_pages // 16)
        self._layout = layout
        self._codec = codec
        self._lock = RLock()
        self._index: dict[Hashable, _Place] = {}
        self._segments: OrderedDict[int, _Segment] = OrderedDict()  # least recently used first
        self._open: dict[bool, _Segment] = {}  # by exact: where the next page goes

    def __len__(self) -> int:
        return len(self._index)

    def has(self, key: Hashable, *, exact: bool) -> bool:
        """Whether get() would find it; a compressed page is not there for who wants it exact."""
        place = self._index.get(key)
        return place is not None and (place.segment.exact or not exact)

    def put(self, key: Hashable, page: Bytes, *, exact: bool) -> bool:
        """Keep a page. False if it cannot be kept: there is no room for it at all, it has values that
        no codec stores, or the daemon is gone."""
        if not exact and self._layout is None:
            raise ValueError("pages are compressed by their layout, and there is none")
        if page.shape != (self._page_bytes,) or page.dtype != np.uint8:
            raise ValueError(f"page is {page.dtype} {page.shape}, want {self._page_bytes} bytes")
        with self._lock:
            if self.has(key, exact=exact):
                return True
            try:
                return self._put(key, page, exact)
            except RequestError as error:
                if error.code != ErrorCode.VALUE:  # not finite, or too large for a half
                    raise
                return False
            except ConnectionLostError:
                self._lose()
                return False

    def get(self, key: Hashable, into: Bytes, *, exact: bool) -> bool:
        """Write a page where the caller wants it; False, and nothing is written, if it is not
        there. What a layout does not cover is zero."""
        with self._lock:
            place = self._index.get(key)
            if place is None or not self.has(key, exact=exact):
                return False
            self._segments.move_to_end(place.segment.session.id)
            try:
                page = self._read_in_room(place)
            except ConnectionLostError:
                self._lose()
                return False
            if page is not None:
                into[:] = page
            return page is not None

    def touch(self, key: Hashable) -> None:
        """It was used: keep it longer."""
        with self._lock:
            place = self._index.get(key)
            if place is not None:
                self._segments.move_to_end(place.segment.session.id)

    def clear(self) -> None:
        with self._lock:
            try:
                while self._segments:
                    self._drop(next(iter(self._segments)))
            except ConnectionLostError:
                self._lose()

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._lose()

    # ---- segments ----

    def _lose(self) -> None:
        """The sessions are gone with their connection."""
        self._index.clear()
        self._segments.clear()
        self._open.clear()
        self._client = None

    def _drop(self, session_id: int) -> None:
        segment = self._segments.pop(session_id)
        if self._open.get(segment.exact) is segment:
            del self._open[segment.exact]
        for key in [k for k, place in self._index.items() if place.segment is segment]:
            del self._index[key]
        segment.session.close()

    def _segment_for(self, exact: bool) -> _Segment:
        segment = self._open.get(exact)
        if segment is not None and segment.n_pages < self._segment_pages:
            return segment
        if self._client is None:
            self._client = self._connect()
        session = self._open_session(self._client, exact)
        segment = _Segment(session, exact)
        self._segments[session.id] = segment
        self._open[exact] = segment
        return segment

    def _open_session(self, client: Client, exact: bool) -> Session:
        if exact:
            layer, codec = Layer(1, 1, _EXACT_DIM), "f16"
        else:
            assert self._layout is not None
            n = self._layout.n_layers * self._layout.n_kv_heads
            layer, codec = Layer(n, n, self._layout.head_dim), self._codec
        return client.open(layer, codec_k=codec, codec_v=codec, method="none", recent_tokens=0,
                           pinned_tokens=0, label="exact pages" if exact else "pages")

    def _put(self, key: Hashable, page: Bytes, exact: bool) -> bool:
        while sum(s.n_pages for s in self._segments.values()) >= self._max_pages:
            self._drop(next(iter(self._segments)))
        while True:
            try:
                segment = self._segment_for(exact)
                self._append(segment, page)
                break
            except LimitError:
                if not self._segments:
                    return False
                self._drop(next(iter(self._segments)))
        self._index[key] = _Place(segment, segment.n_pages)
        segment.n_pages += 1
        if segment.n_pages == self._segment_pages:
            self._finish(segment)
        self._segments.move_to_end(segment.session.id)
        return True

    def _finish(self, segment: _Segment) -> None:
        """Nothing comes after its newest tokens: code them, too. Other pages make room for that; if
        there are none left, they stay as they are."""
        while True:
            try:
                segment.session.round()
                return
            except LimitError:
                others = [i for i, s in self._segments.items() if s is not segment]
                if not others:
                    return
                self._drop(others[0])

    # ---- pages as tokens ----

    def _append(self, segment: _Segment, page: Bytes) -> None:
        if segment.exact:
            k, v = pack_exact(page)
            segment.session.append(0, k, v)
            return
        assert self._layout is not None
        k, v = self._layout.view(page).reshape(2, self._layout.n_tokens, -1, self._layout.head_dim)
        bfloat16 = self._layout.dtype == "bfloat16"
        segment.session.append(0, k, v, dtype="bfloat16" if bfloat16 else None)

    def _read_in_room(self, place: _Place) -> Bytes | None:
        """A reply takes room, too: other pages make it. None if there are none left."""
        while True:
            try:
                return self._read(place)
            except LimitError:
                if len(self._segments) == 1:
                    return None
                self._drop(next(iter(self._segments)))

    def _read(self, place: _Place) -> Bytes:
        session = place.segment.session
        if place.segment.exact:
            n = exact_tokens(self._page_bytes)
            tokens = session.read(0, place.page * n, n, dtype="float16")
            if not tokens.exact:
                raise AssertionError("the daemon calls an f16 segment not exact")
            return unpack_exact(tokens.k, tokens.v, self._page_bytes)
        assert self._layout is not None
        layout = self._layout
        tokens = session.read(0, place.page * layout.n_tokens, layout.n_tokens, dtype="float32")
        values = np.stack([tokens.k, tokens.v]).reshape(
            2, layout.n_tokens, layout.n_layers, layout.n_kv_heads, layout.head_dim)
        page = np.zeros(self._page_bytes, np.uint8)
        layout.view(page)[...] = _to_bfloat16(values) if layout.dtype == "bfloat16" else values
        return page


def _to_bfloat16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns, rounded to nearest, ties to even; x is finite."""
    bits = x.view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def exact_tokens(page_bytes: int) -> int:
    """Tokens that a page of so many bytes takes in an exact segment."""
    n_groups = -(-page_bytes // 30)
    return -(-n_groups * 16 // _EXACT_HALVES)


def pack_exact(page: Bytes) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Any bytes as halves that are finite: 15 words of 16 bits become 16 halves of 15 bits, whose
    exponents are below 16; the last half has the bits that the others have no room for."""
    n_tokens = exact_tokens(page.size)
    n_groups = n_tokens * _EXACT_HALVES // 16
    words = np.zeros((n_groups, 15), np.uint16)
    words.reshape(-1).view(np.uint8)[:page.size] = page
    halves = np.empty((n_groups, 16), np.uint16)
    halves[:, :15] = (words & 0x3fff) | ((words & 0x4000) << 1)
    halves[:, 15] = ((words >> 15) << _LAST_BITS).sum(axis=1, dtype=np.uint16)
    k, v = halves.reshape(2, n_tokens, 1, _EXACT_DIM).view(np.float16)
    return k, v


# Bits of the last half: all but the exponent's highest.
_LAST_BITS = np.array([*range(14), 15], np.uint16)


def unpack_exact(k: NDArray[np.float16], v: NDArray[np.float16], page_bytes: int) -> Bytes:
    halves = np.stack([k, v]).view(np.uint16).reshape(-1, 16)
    first = halves[:, :15]
    top = (halves[:, 15:] >> _LAST_BITS) & 1
    words = (first & 0x3fff) | ((first >> 1) & 0x4000) | (top << 15).astype(np.uint16)
    page: Bytes = words.reshape(-1).view(np.uint8)[:page_bytes]
    return page
