"""What the adapters need of vLLM and SGLang, as their interfaces say it, for tests without them.

Only names, signatures and which methods are abstract: vllm/v1/kv_offload/{base,tiering/base}.py and
python/sglang/srt/mem_cache/hicache_storage.py as docs/engines.md quotes them.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto
from types import ModuleType
from typing import Any

import numpy as np


class LookupResult(Enum):
    MISS = auto()
    HIT = auto()
    HIT_PENDING = auto()
    RETRY = auto()


class RequestOffloadingContext:
    pass


@dataclass
class TransferJob:
    job_id: int
    keys: list[bytes]
    chunk_ids: np.ndarray
    is_promotion: bool
    req_context: Any = None


@dataclass
class JobResult:
    job_id: int
    success: bool
    successful_keys: Any = None
    transfer_time: float | None = None


class SecondaryTierManager(ABC):
    def __init__(self, offloading_spec: Any, primary_kv_view: memoryview, tier_type: str) -> None:
        self.tier_type = tier_type

    @abstractmethod
    def lookup(self, key, req_context): ...

    @abstractmethod
    def submit_store(self, job_metadata): ...

    @abstractmethod
    def submit_load(self, job_metadata): ...

    @abstractmethod
    def get_finished_jobs(self): ...

    @abstractmethod
    def on_new_request(self, req_context): ...

    @abstractmethod
    def drain_jobs(self): ...


class HiCacheStorage(ABC):
    def register_mem_pool_host(self, mem_pool_host):
        self.mem_pool_host = mem_pool_host

    def batch_exists_v2(self, keys, pool_transfers=None, extra_info=None):
        raise NotImplementedError

    @abstractmethod
    def get(self, key, target_location=None, target_sizes=None): ...

    @abstractmethod
    def batch_get(self, keys, target_locations=None, target_sizes=None): ...

    @abstractmethod
    def set(self, key, value=None, target_location=None, target_sizes=None): ...

    @abstractmethod
    def batch_set(self, keys, values=None, target_locations=None, target_sizes=None): ...

    @abstractmethod
    def exists(self, key): ...


def install() -> None:
    """Make them importable under the engines' names."""
    modules = {
        "vllm.v1.kv_offload.base": [LookupResult, RequestOffloadingContext],
        "vllm.v1.kv_offload.tiering.base": [JobResult, SecondaryTierManager, TransferJob],
        "sglang.srt.mem_cache.hicache_storage": [HiCacheStorage],
    }
    for path, classes in modules.items():
        parts = path.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        for cls in classes:
            setattr(sys.modules[path], cls.__name__, cls)


class Tensor:
    """As much of a tensor as a storage backend looks at."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def numel(self) -> int:
        return self.array.size

    def element_size(self) -> int:
        return self.array.itemsize

    def is_contiguous(self) -> bool:
        return self.array.flags.c_contiguous


class HostPool:
    """A host pool of SGLang in layout "layer_first": [2][layer][token][head][dim]."""

    def __init__(self, n_tokens: int, page_size: int) -> None:
        self.page_size = page_size
        rng = np.random.default_rng(9)
        self.buffer = rng.standard_normal((2, 3, n_tokens, 2, 64)).astype(np.float16)

    def get_data_page(self, index: int, flat: bool = True) -> Tensor:
        page = self.buffer[:, :, index:index + self.page_size]
        return Tensor(page.flatten() if flat else page)

    def get_dummy_flat_data_page(self) -> Tensor:
        return Tensor(np.zeros(2 * 3 * self.page_size * 2 * 64, np.float16))

    def set_from_flat_data_page(self, index: int, page: Tensor) -> None:
        self.buffer[:, :, index:index + self.page_size] = page.array.reshape(
            2, 3, self.page_size, 2, 64)
