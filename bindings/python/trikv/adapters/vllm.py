"""A secondary tier for vLLM's tiered KV offloading.

The contract is vllm/v1/kv_offload/tiering/base.py as of 2026-11 (docs/engines.md). vLLM loads the class
by its own name for tiers; register it before the engine starts:

    SecondaryTierFactory.register_tier("trikv", "trikv.adapters.vllm", "TrikvTier")

and name it in the offloading connector's configuration: {"type": "trikv", "max_chunks": 4096}.

Chunks are exact unless `layout` says how keys and values lie in them. All methods but the constructor
and drain_jobs return at once; one thread does the work, in the order of its submission.
"""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Callable, Collection, Iterable

import numpy as np
from vllm.v1.kv_offload.base import LookupResult, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from ..client import Client
from ..pages import PageLayout, PageStore

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec, OffloadKey, ReqContext
    from vllm.v1.kv_offload.tiering.base import TransferJob


_log = logging.getLogger(__name__)


class TrikvTier(SecondaryTierManager):  # type: ignore[misc]
    def __init__(self, offloading_spec: OffloadingSpec, primary_kv_view: memoryview,
                 tier_type: str, *, socket: str | None = None, max_chunks: int = 4096,
                 layout: dict[str, Any] | None = None, codec: str = "tq4") -> None:
        super().__init__(offloading_spec=offloading_spec, primary_kv_view=primary_kv_view,
                         tier_type=tier_type)
        self._chunks = np.asarray(primary_kv_view).view(np.uint8)
        if self._chunks.ndim != 2:
            raise ValueError(f"primary_kv_view has {self._chunks.ndim} dimensions, want 2")
        self._exact = layout is None
        self._store = PageStore(lambda: Client(socket, name="vllm", staging_bytes=1 << 22),
                                self._chunks.shape[1], max_pages=max_chunks, codec=codec,
                                layout=None if layout is None else PageLayout(**layout))
        # Keys on their way in: looked up again later. Counted, since jobs may overlap.
        self._arriving: dict[OffloadKey, int] = {}
        self._lock = threading.Lock()
        self._finished: list[JobResult] = []
        self._idle = threading.Condition(self._lock)
        self._n_jobs = 0
        self._jobs: SimpleQueue[tuple[TransferJob, Callable[[OffloadKey, int], bool]] | None]
        self._jobs = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="trikv-tier", daemon=True)
        self._thread.start()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if self._store.has(key, exact=self._exact):
            return LookupResult.HIT
        with self._lock:
            return LookupResult.RETRY if key in self._arriving else LookupResult.MISS

    def submit_store(self, job_metadata: TransferJob) -> None:
        with self._lock:
            for key in job_metadata.keys:
                self._arriving[key] = self._arriving.get(key, 0) + 1
        self._submit(job_metadata, self._put)

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._get)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        with self._lock:
            finished, self._finished = self._finished, []
        return finished

    def has_pending_work(self) -> bool:
        with self._lock:
            return self._n_jobs > 0

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self._jobs.put((_Touch(keys), self._touch))

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def drain_jobs(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._n_jobs == 0)

    def shutdown(self) -> None:
        """What was submitted is finished first."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
            self._store.close()

    # ---- the thread ----

    def _submit(self, job: TransferJob, move: Callable[[OffloadKey, int], bool]) -> None:
        if len(job.keys) != len(job.chunk_ids):
            raise ValueError(f"{len(job.keys)} keys, {len(job.chunk_ids)} chunks")
        with self._lock:
            self._n_jobs += 1
        self._jobs.put((job, move))

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, move = item
            moved = []
            for key, chunk in zip(job.keys, job.chunk_ids):
                try:
                    ok = move(key, int(chunk))
                except Exception:  # noqa: BLE001  a job that never ends would hold its chunks
                    _log.exception("a chunk could not be moved")
                    ok = False
                if ok:
                    moved.append(key)
            if not isinstance(job, _Touch):
                self._finish(job, moved)

    def _finish(self, job: TransferJob, moved: list[OffloadKey]) -> None:
        whole = len(moved) == len(job.keys)
        partial = tuple(moved) if moved and not whole and job.is_promotion else None
        with self._idle:
            self._finished.append(JobResult(job_id=job.job_id, success=whole,
                                            successful_keys=partial))
            self._n_jobs -= 1
            self._idle.notify_all()

    def _put(self, key: OffloadKey, chunk: int) -> bool:
        try:
            return self._store.put(key, self._chunks[chunk], exact=self._exact)
        finally:
            with self._lock:
                self._arriving[key] -= 1
                if self._arriving[key] == 0:
                    del self._arriving[key]

    def _get(self, key: OffloadKey, chunk: int) -> bool:
        return self._store.get(key, self._chunks[chunk], exact=self._exact)

    def _touch(self, key: OffloadKey, chunk: int) -> bool:
        self._store.touch(key)
        return True


class _Touch:
    """Keys that the thread tells the store of, in the form of a job; nobody hears of its end."""

    def __init__(self, keys: Collection[OffloadKey]) -> None:
        self.keys = tuple(keys)
        self.chunk_ids = (0,) * len(self.keys)
