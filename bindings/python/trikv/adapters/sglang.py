"""A storage backend for SGLang's HiCache.

The contract is python/sglang/srt/mem_cache/hicache_storage.py at 001067f (docs/engines.md). SGLang
loads it by name:

    --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{"backend_name": "trikv",
      "module_path": "trikv.adapters.sglang", "class_name": "TrikvStorage", "trikv": {"max_pages": 4096}}'

Pages are exact unless "layout" says how keys and values lie in a flat page. Each rank has a connection
and pages of its own. Pools beside the one of keys and values (the v2 interface) are refused by the base
class: an engine that has them must not use this backend.
"""

from __future__ import annotations

import ctypes
from typing import Any, Sequence

import numpy as np
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

from ..client import Client
from ..pages import Bytes, PageLayout, PageStore


class TrikvStorage(HiCacheStorage):  # type: ignore[misc]
    def __init__(self, storage_config: Any, kwargs: dict[str, Any] | None = None) -> None:
        options = dict((storage_config.extra_config or {}).get("trikv", {}))
        layout = options.pop("layout", None)
        self._layout = None if layout is None else PageLayout(**layout)
        self._exact = layout is None
        self._socket = options.pop("socket", None)
        self._max_pages = int(options.pop("max_pages", 4096))
        self._codec = options.pop("codec", "tq4")
        if options:
            raise ValueError(f"trikv: unknown options {', '.join(sorted(options))}")
        self._stores: dict[int, PageStore] = {}  # by the size of a page

    # ---- one page ----

    def exists(self, key: str) -> bool:
        return any(store.has(key, exact=self._exact) for store in self._stores.values())

    def set(self, key: str, value: Any | None = None, target_location: Any | None = None,
            target_sizes: Any | None = None) -> bool:
        if value is None:
            raise TypeError("set wants the page as value")
        page = _bytes_of(value)
        return self._store(page.size).put(key, page, exact=self._exact)

    def get(self, key: str, target_location: Any | None = None,
            target_sizes: Any | None = None) -> Any | None:
        """The page, written into target_location, which is returned; None if it is not there."""
        if target_location is None:
            raise TypeError("get wants a tensor to write into as target_location")
        page = _bytes_of(target_location)
        found = self._store(page.size).get(key, page, exact=self._exact)
        return target_location if found else None

    # ---- many ----

    def batch_set(self, keys: Sequence[str], values: Any | None = None,
                  target_locations: Any | None = None, target_sizes: Any | None = None) -> bool:
        if values is None or len(values) != len(keys):
            raise TypeError("batch_set wants one page for each key as values")
        return all([self.set(key, value) for key, value in zip(keys, values)])

    def batch_get(self, keys: Sequence[str], target_locations: Any | None = None,
                  target_sizes: Any | None = None) -> list[Any | None]:
        if target_locations is None or len(target_locations) != len(keys):
            raise TypeError("batch_get wants one tensor for each key as target_locations")
        return [self.get(key, to) for key, to in zip(keys, target_locations)]

    def batch_exists(self, keys: Sequence[str], extra_info: Any | None = None) -> int:
        """How many are there, counted up to the first that is not."""
        for n, key in enumerate(keys):
            if not self.exists(key):
                return n
        return len(keys)

    def batch_set_v1(self, keys: Sequence[str], host_indices: Any,
                     extra_info: Any | None = None) -> list[bool]:
        return [self.set(key, self.mem_pool_host.get_data_page(index, flat=True))
                for key, index in zip(keys, self._first_indices(keys, host_indices))]

    def batch_get_v1(self, keys: Sequence[str], host_indices: Any,
                     extra_info: Any | None = None) -> list[bool]:
        found = []
        for key, index in zip(keys, self._first_indices(keys, host_indices)):
            page = self.get(key, self.mem_pool_host.get_dummy_flat_data_page())
            if page is not None:
                self.mem_pool_host.set_from_flat_data_page(index, page)
            found.append(page is not None)
        return found

    def clear(self) -> None:
        for store in self._stores.values():
            store.clear()

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    def _first_indices(self, keys: Sequence[str], host_indices: Any) -> list[int]:
        """Where the tokens of each page begin in the host pool."""
        size = self.mem_pool_host.page_size
        if len(host_indices) != len(keys) * size:
            raise ValueError(f"{len(keys)} keys, {len(host_indices)} tokens, pages of {size}")
        return [int(host_indices[i * size]) for i in range(len(keys))]

    def _store(self, page_bytes: int) -> PageStore:
        if page_bytes not in self._stores:
            self._stores[page_bytes] = PageStore(
                lambda: Client(self._socket, name="sglang", staging_bytes=1 << 22), page_bytes,
                max_pages=self._max_pages, layout=self._layout, codec=self._codec)
        return self._stores[page_bytes]


def _bytes_of(tensor: Any) -> Bytes:
    """The memory of a dense tensor on the CPU, of any type, as bytes; not copied."""
    if not tensor.is_contiguous():
        raise ValueError("a page must be dense")
    n = tensor.numel() * tensor.element_size()
    memory = (ctypes.c_uint8 * n).from_address(tensor.data_ptr())
    return np.frombuffer(memory, np.uint8)
