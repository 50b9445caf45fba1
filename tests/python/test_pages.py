"""Pages by key: exact ones to the bit, compressed ones never for exact ones, room for newer ones."""

from __future__ import annotations

import numpy as np
from service import Service, ServiceTest

import trikv
from trikv.pages import PageLayout, PageStore, exact_tokens, pack_exact, unpack_exact

LAYOUT = PageLayout(n_layers=3, n_kv_heads=2, head_dim=64, n_tokens=16, dtype="bfloat16",
                    order="lkthd")


def random_bytes(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


def bfloat16_page(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(LAYOUT.shape, dtype=np.float32)
    return (x.view(np.uint32) >> 16).astype(np.uint16).reshape(-1).view(np.uint8)


def floats(page: np.ndarray) -> np.ndarray:
    return (page.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


class PagesTest(ServiceTest):
    def store(self, page_bytes: int = LAYOUT.page_bytes, **options: object) -> PageStore:
        options = {"max_pages": 64, "layout": LAYOUT, **options}
        store = PageStore(lambda: trikv.Client(self.service.socket), page_bytes, **options)
        self.addCleanup(store.close)
        return store

    def test_packing(self) -> None:
        for n in (1, 29, 30, 31, 4095, 4096, 3840, 3841, 100_000):
            page = random_bytes(n, n)
            k, v = pack_exact(page)
            self.assertEqual(len(k), exact_tokens(n))
            self.assertTrue(np.isfinite(k).all() and np.isfinite(v).all())
            np.testing.assert_array_equal(unpack_exact(k, v, n), page)
        for value in (0, 255):
            page = np.full(3000, value, np.uint8)
            k, v = pack_exact(page)
            self.assertTrue(np.isfinite(k).all())
            np.testing.assert_array_equal(unpack_exact(k, v, 3000), page)

    def test_exact_pages_are_exact(self) -> None:
        store = self.store(10_001, layout=None)
        pages = {i: random_bytes(i, 10_001) for i in range(40)}
        for key, page in pages.items():
            self.assertTrue(store.put(key, page, exact=True))
        for key in reversed(pages):
            into = np.zeros(10_001, np.uint8)
            self.assertTrue(store.get(key, into, exact=True))
            np.testing.assert_array_equal(into, pages[key])

    def test_compressed_pages_are_close(self) -> None:
        store = self.store()
        pages = {i: bfloat16_page(i) for i in range(20)}
        for key, page in pages.items():
            self.assertTrue(store.put(key, page, exact=False))
        for key, page in pages.items():
            into = np.zeros_like(page)
            self.assertTrue(store.get(key, into, exact=False))
            error = np.square(floats(into) - floats(page)).mean()
            self.assertLess(error, 0.02)
        first = np.zeros_like(pages[0])
        store.get(0, first, exact=False)
        self.assertFalse(np.array_equal(first, pages[0]))

    def test_full_segments_are_coded(self) -> None:
        store = self.store(max_pages=16, segment_pages=16)
        for i in range(16):
            store.put(i, bfloat16_page(i), exact=False)
        (segment,) = store._segments.values()
        stats = segment.session.stats()
        self.assertEqual(stats.n_seen, 256)
        self.assertEqual(int(segment.session.handle().entries["n_tokens"].sum()), 256 * 6)

    def test_lossy_is_never_exact(self) -> None:
        store = self.store()
        page, into = bfloat16_page(1), np.zeros(LAYOUT.page_bytes, np.uint8)
        store.put("a", page, exact=False)
        self.assertTrue(store.has("a", exact=False))
        self.assertFalse(store.has("a", exact=True))
        self.assertFalse(store.get("a", into, exact=True))
        self.assertFalse(into.any())
        self.assertTrue(store.put("a", page, exact=True))
        self.assertTrue(store.get("a", into, exact=True))
        np.testing.assert_array_equal(into, page)
        into[:] = 0
        self.assertTrue(store.get("a", into, exact=False))
        np.testing.assert_array_equal(into, page)

    def test_layout_orders(self) -> None:
        want = np.random.default_rng(3).standard_normal((2, 16, 3, 2, 64)).astype(np.float16)
        for order in ("klthd", "ktlhd", "lkthd", "lkhtd", "tlkhd"):
            layout = PageLayout(3, 2, 64, 16, "float16", order)
            page = np.ascontiguousarray(want.transpose(["ktlhd".index(a) for a in order]))
            flat = page.reshape(-1).view(np.uint8)
            np.testing.assert_array_equal(layout.view(flat), want)
            store = self.store(layout=layout, codec="f16")
            into = np.zeros_like(flat)
            store.put(0, flat, exact=False)
            store.get(0, into, exact=False)
            np.testing.assert_array_equal(into, flat)

    def test_padding_after_the_layout(self) -> None:
        store = self.store(LAYOUT.page_bytes + 100, codec="f16")
        page = np.concatenate([bfloat16_page(1), np.full(100, 9, np.uint8)])
        into = np.full_like(page, 7)
        store.put(0, page, exact=False)
        self.assertTrue(store.get(0, into, exact=False))
        self.assertFalse(into[-100:].any())

    def test_pages_that_no_codec_stores(self) -> None:
        store = self.store()
        page = bfloat16_page(1)
        page.view(np.uint16)[5] = 0x7f80  # infinity
        self.assertFalse(store.put("inf", page, exact=False))
        self.assertFalse(store.has("inf", exact=False))
        self.assertTrue(store.put("inf", page, exact=True))
        self.assertTrue(store.put("next", bfloat16_page(2), exact=False))

    def test_the_least_recently_used_go(self) -> None:
        store = self.store(3000, layout=None, max_pages=32, segment_pages=4)
        for i in range(32):
            store.put(i, random_bytes(i, 3000), exact=True)
        store.touch(0)
        into = np.zeros(3000, np.uint8)
        self.assertTrue(store.get(9, into, exact=True))
        for i in range(32, 52):
            self.assertTrue(store.put(i, random_bytes(i, 3000), exact=True))
        self.assertEqual([i for i in range(32) if store.has(i, exact=True)],
                         [0, 1, 2, 3, 8, 9, 10, 11, *range(28, 32)])
        for i in (0, 11, 30, 51):
            self.assertTrue(store.get(i, into, exact=True))
            np.testing.assert_array_equal(into, random_bytes(i, 3000))

    def test_wrong_use(self) -> None:
        store = self.store(3000, layout=None)
        with self.assertRaisesRegex(ValueError, "layout"):
            store.put(0, random_bytes(0, 3000), exact=False)
        with self.assertRaisesRegex(ValueError, "want 3000 bytes"):
            store.put(0, random_bytes(0, 2999), exact=True)
        with self.assertRaisesRegex(ValueError, "order"):
            PageLayout(1, 1, 64, 16, "float16", "lkth")
        with self.assertRaisesRegex(ValueError, "exact"):
            PageLayout(1, 1, 64, 16, "float8_e4m3fn")
        with self.assertRaisesRegex(ValueError, "over 1024"):
            PageLayout(200, 8, 64, 16, "float16")
        with self.assertRaises(trikv.RequestError):
            self.store(codec="tq9").put(0, bfloat16_page(0), exact=False)


class LossTest(ServiceTest):
    def test_small_daemon_makes_room(self) -> None:
        small = Service()
        small.start("--memory-cap", "4MiB")
        try:
            store = PageStore(lambda: trikv.Client(small.socket), 100_000, max_pages=1000,
                              segment_pages=4)
            for i in range(100):
                self.assertTrue(store.put(i, random_bytes(i, 100_000), exact=True), i)
            into = np.zeros(100_000, np.uint8)
            self.assertTrue(store.get(99, into, exact=True))
            np.testing.assert_array_equal(into, random_bytes(99, 100_000))
            self.assertTrue(3 < len(store) < 60, len(store))
            store.close()
        finally:
            small.stop()

    def test_a_lost_daemon_is_a_miss(self) -> None:
        service = Service()
        service.start()
        socket = [service.socket]
        store = PageStore(lambda: trikv.Client(socket[0]), 1000, max_pages=10)
        into = np.zeros(1000, np.uint8)
        self.assertTrue(store.put(1, random_bytes(1, 1000), exact=True))
        service.stop()
        self.assertFalse(store.get(1, into, exact=True))
        self.assertEqual(len(store), 0)
        self.assertFalse(store.put(1, random_bytes(1, 1000), exact=True))
        socket[0] = self.service.socket
        self.assertTrue(store.put(1, random_bytes(1, 1000), exact=True))
        self.assertTrue(store.get(1, into, exact=True))
        store.close()
