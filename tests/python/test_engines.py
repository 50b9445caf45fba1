"""The adapters against the engines' interfaces."""

from __future__ import annotations

import time
from types import SimpleNamespace

import contracts
import numpy as np
from service import ServiceTest

contracts.install()

from trikv.adapters.sglang import TrikvStorage  # noqa: E402
from trikv.adapters.vllm import TrikvTier  # noqa: E402

HIT, MISS = contracts.LookupResult.HIT, contracts.LookupResult.MISS
RETRY = contracts.LookupResult.RETRY
CHUNK_BYTES = 2 * 3 * 16 * 2 * 64 * 2
LAYOUT = {"n_layers": 3, "n_kv_heads": 2, "head_dim": 64, "n_tokens": 16, "dtype": "float16",
          "order": "lkthd"}


class VllmTest(ServiceTest):
    def tier(self, **options: object) -> TrikvTier:
        rng = np.random.default_rng(4)
        halves = rng.standard_normal((32, CHUNK_BYTES // 2)).astype(np.float16)
        self.primary = halves.view(np.int8)
        self.before = self.primary.copy()
        options = {"socket": self.service.socket, **options}
        tier = TrikvTier(None, memoryview(self.primary), "trikv", **options)
        self.addCleanup(tier.shutdown)
        self.n_jobs = 0
        return tier

    def job(self, keys: list[bytes], chunks: list[int], load: bool) -> contracts.TransferJob:
        self.n_jobs += 1
        return contracts.TransferJob(self.n_jobs, keys, np.array(chunks), load)

    def wait(self, tier: TrikvTier) -> list[contracts.JobResult]:
        tier.drain_jobs()
        self.assertFalse(tier.has_pending_work())
        return list(tier.get_finished_jobs())

    def test_exact_round_trip(self) -> None:
        tier = self.tier()
        keys = [b"a", b"b", b"c"]
        self.assertIs(tier.lookup(b"a", None), MISS)
        tier.submit_store(self.job(keys, [3, 7, 1], False))
        (result,) = self.wait(tier)
        self.assertTrue(result.success and result.job_id == 1)
        self.assertEqual([tier.lookup(key, None) for key in keys], [HIT] * 3)
        tier.submit_load(self.job([b"c", b"a"], [20, 21], True))
        (result,) = self.wait(tier)
        self.assertTrue(result.success)
        np.testing.assert_array_equal(self.primary[20], self.before[1])
        np.testing.assert_array_equal(self.primary[21], self.before[3])
        self.assertEqual(list(tier.get_finished_jobs()), [])

    def test_compressed(self) -> None:
        tier = self.tier(layout=LAYOUT, codec="tq4", max_chunks=8)
        tier.submit_store(self.job([b"a"], [0], False))
        tier.submit_load(self.job([b"a"], [9], True))
        self.assertTrue(all(r.success for r in self.wait(tier)))
        error = np.square(self.primary[9].view(np.float16).astype(float) -
                          self.before[0].view(np.float16)).mean()
        self.assertTrue(1e-4 < error < 0.02, error)

    def test_partial_loads_are_told(self) -> None:
        tier = self.tier()
        tier.submit_store(self.job([b"a"], [0], False))
        tier.submit_load(self.job([b"x", b"a"], [10, 11], True))
        _, result = self.wait(tier)
        self.assertFalse(result.success)
        self.assertEqual(result.successful_keys, (b"a",))
        np.testing.assert_array_equal(self.primary[10], self.before[10])

    def test_what_arrives_is_retried(self) -> None:
        tier = self.tier()
        with tier._store._lock:  # the store is busy
            tier.submit_store(self.job([b"a"], [0], False))
            began = time.monotonic()
            self.assertIs(tier.lookup(b"a", None), RETRY)
            self.assertTrue(tier.has_pending_work())
            self.assertEqual(list(tier.get_finished_jobs()), [])
            tier.touch([b"a"], None)
            self.assertLess(time.monotonic() - began, 0.5)
        self.assertTrue(self.wait(tier)[0].success)
        self.assertIs(tier.lookup(b"a", None), HIT)

    def test_failures_are_results(self) -> None:
        tier = self.tier(socket=self.service.folder + "/nothing.sock")
        tier.submit_store(self.job([b"a"], [0], False))
        (result,) = self.wait(tier)
        self.assertFalse(result.success)
        self.assertIsNone(result.successful_keys)
        self.assertIs(tier.lookup(b"a", None), MISS)

    def test_shutdown_twice(self) -> None:
        tier = self.tier()
        tier.submit_store(self.job([b"a"], [0], False))
        tier.shutdown()
        tier.shutdown()
        self.assertTrue(list(tier.get_finished_jobs())[0].success)


class SglangTest(ServiceTest):
    def storage(self, **options: object) -> TrikvStorage:
        extra = {"trikv": {"socket": self.service.socket, **options}}
        storage = TrikvStorage(SimpleNamespace(extra_config=extra), {})
        storage.register_mem_pool_host(contracts.HostPool(128, 16))
        self.addCleanup(storage.close)
        return storage

    def test_pages(self) -> None:
        storage = self.storage()
        pool = storage.mem_pool_host
        before = pool.buffer.copy()
        indices = np.arange(64)
        self.assertEqual(storage.batch_set_v1(["a", "b", "c", "d"], indices), [True] * 4)
        self.assertEqual(storage.batch_exists(["a", "b", "x", "d"]), 2)
        self.assertTrue(storage.exists("d"))
        self.assertEqual(storage.batch_get_v1(["d", "x", "a"], np.arange(64, 112)),
                         [True, False, True])
        np.testing.assert_array_equal(pool.buffer[:, :, 64:80], before[:, :, 48:64])
        np.testing.assert_array_equal(pool.buffer[:, :, 80:96], before[:, :, 80:96])
        np.testing.assert_array_equal(pool.buffer[:, :, 96:112], before[:, :, 0:16])
        storage.clear()
        self.assertEqual(storage.batch_exists(["a"]), 0)

    def test_generic_interface(self) -> None:
        storage = self.storage()
        page = contracts.Tensor(np.arange(500, dtype=np.float32))
        to = contracts.Tensor(np.zeros(500, np.float32))
        self.assertTrue(storage.set("k", page))
        self.assertIs(storage.get("k", to), to)
        np.testing.assert_array_equal(to.array, page.array)
        self.assertIsNone(storage.get("other", to))
        self.assertTrue(storage.batch_set(["p", "q"], [page, to]))
        self.assertEqual(storage.batch_get(["q", "z"], [to, to]), [to, None])
        with self.assertRaises(TypeError):
            storage.get("k")

    def test_compressed(self) -> None:
        storage = self.storage(layout={**LAYOUT, "order": "klthd"}, codec="tq3",
                               max_pages=8)
        pool = storage.mem_pool_host
        before = pool.buffer.copy()
        self.assertEqual(storage.batch_set_v1(["a"], np.arange(16)), [True])
        self.assertEqual(storage.batch_get_v1(["a"], np.arange(32, 48)), [True])
        error = np.square(pool.buffer[:, :, 32:48].astype(float) - before[:, :, :16]).mean()
        self.assertTrue(1e-4 < error < 0.06, error)

    def test_what_it_cannot_do_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "unknown options colour"):
            self.storage(colour="red")
        storage = self.storage()
        with self.assertRaises(NotImplementedError):
            storage.batch_exists_v2(["a"])
        with self.assertRaisesRegex(ValueError, "pages of 16"):
            storage.batch_set_v1(["a"], np.arange(17))
