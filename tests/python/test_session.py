"""Sessions on a real daemon, through the binding."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
import threading
from pathlib import Path

import numpy as np
from service import Service, ServiceTest, attention, tensors

import trikv
from trikv import ConnectionLostError, ErrorCode, Layer, RequestError, StateError

N, H, G, D = 200, 4, 2, 64
LAYER = Layer(H, G, D)


class SessionTest(ServiceTest):
    def setUp(self) -> None:
        self.client = trikv.Client(self.service.socket, name="test")
        self.addCleanup(self.client.close)
        self.k, self.v = tensors(1, N, G, D), tensors(2, N, G, D)
        self.q = tensors(3, N, H, D)

    def open(self, codec: str = "f16", **options: object) -> trikv.Session:
        options = {"recent_tokens": 64, "pinned_tokens": 4, **options}
        return self.client.open(LAYER, 2, codec_k=codec, codec_v=codec, **options)

    def test_attention_is_right(self) -> None:
        s = self.open()
        lse = np.empty((N, H), np.float32)
        out = s.append_attend(0, self.k, self.v, self.q, lse=lse)
        want, want_lse = attention(self.k, self.v, self.q)
        self.assertLess(np.abs(out - want).max(), 2e-3)
        self.assertLess(np.abs(lse - want_lse).max(), 2e-3)

    def test_codec_loses_little(self) -> None:
        s = self.open("tq4")
        out = s.append_attend(0, self.k, self.v, self.q)
        want, _ = attention(self.k, self.v, self.q)
        error = np.square(out - want).mean() / np.square(want).mean()
        self.assertLess(error, 0.03)
        self.assertGreater(error, 1e-6)

    def test_parts_are_the_whole(self) -> None:
        both, apart = self.open(), self.open()
        want = both.append_attend(1, self.k, self.v, self.q)
        apart.append(1, self.k, self.v, positions=np.arange(N))
        got = apart.attend(1, self.q[-8:])
        np.testing.assert_allclose(got, want[-8:], rtol=1e-5, atol=1e-6)

    def test_prefix_is_found(self) -> None:
        ids = np.arange(100, 100 + N)
        wish = {"fingerprint": "test", "prefix": trikv.Prefix(keep=True, salt=b"python")}
        first = self.open("tq4", **wish)
        self.assertEqual(first.prefix.outcome, "")
        for layer in range(2):
            first.append(layer, self.k[:150], self.v[:150], token_ids=ids[:150])
        self.assertEqual(first.keep(), 150)
        want = [first.append_attend(i, self.k[150:], self.v[150:], self.q[150:], token_ids=ids[150:])
                for i in range(2)]
        first.close()
        second = self.open("tq4", fingerprint="test",
                           prefix=trikv.Prefix(token_ids=ids[:150], salt=b"python"))
        self.assertEqual(second.prefix, trikv.PrefixResult("hit", 150, "none"))
        for i in range(2):
            got = second.append_attend(i, self.k[150:], self.v[150:], self.q[150:])
            np.testing.assert_array_equal(got, want[i])
        with self.assertRaises(RequestError):
            self.open(prefix=trikv.Prefix(token_ids=ids))

    def test_staging_gives_the_same(self) -> None:
        want = self.open("tq4").append_attend(0, self.k, self.v, self.q)
        with trikv.Client(self.service.socket, staging_bytes=1 << 20) as c:
            s = c.open(LAYER, 2, codec_k="tq4", codec_v="tq4", recent_tokens=64, pinned_tokens=4)
            np.testing.assert_array_equal(s.append_attend(0, self.k, self.v, self.q), want)

    def test_ring_gives_the_same(self) -> None:
        other = self.open("tq4")
        n = 20
        with trikv.Client(self.service.socket) as c:
            memory = c.open_ring(tensor_bytes=3 * n * H * D * 4)
            s = c.open(LAYER, 2, codec_k="tq4", codec_v="tq4", recent_tokens=64, pinned_tokens=4)
            placed = memory.view(np.float32).reshape(3, n, H, D)
            for i in range(0, N, n):
                k, v, q = self.k[i:i + n], self.v[i:i + n], self.q[i:i + n]
                want = other.append_attend(0, k, v, q)
                np.testing.assert_array_equal(s.append_attend(0, k, v, q), want)
                want = other.append_attend(1, k, v, q)
                placed[0] = q
                out = s.append_attend(1, k, v, placed[0], out=placed[1])
                np.testing.assert_array_equal(out, want)
            with self.assertRaises(RequestError):
                s.append_attend(9, self.k[:1], self.v[:1], self.q[:1])
            c.close_ring()
            c.close_ring()
            self.assertEqual(s.stats().n_seen, other.stats().n_seen)
            np.testing.assert_array_equal(s.attend(0, self.q[-4:]), other.attend(0, self.q[-4:]))

    def test_batch_is_its_steps(self) -> None:
        with trikv.Client(self.service.socket) as c:
            c.open_ring(n_entries=4)
            for client in (self.client, c):
                one = self.open("tq4")
                many = client.open(LAYER, 2, codec_k="tq4", codec_v="tq4", recent_tokens=64,
                                   pinned_tokens=4)
                for i in range(0, N, 20):
                    k, v, q = self.k[i:i + 20], self.v[i:i + 20], self.q[i:i + 20]
                    with many.batch() as batch:
                        batch.append(0, k[:10], v[:10])
                        lse = np.empty((10, H), np.float32)
                        got = [batch.append_attend(0, k[10:], v[10:], q[10:], lse=lse),
                               batch.append_attend(1, k, v, q), batch.attend(1, q[-1:])]
                    one.append(0, k[:10], v[:10])
                    want_lse = np.empty((10, H), np.float32)
                    want = [one.append_attend(0, k[10:], v[10:], q[10:], lse=want_lse),
                            one.append_attend(1, k, v, q), one.attend(1, q[-1:])]
                    for x, y in zip(got, want):
                        np.testing.assert_array_equal(x, y)
                    np.testing.assert_array_equal(lse, want_lse)
                with self.assertRaisesRegex(RequestError, "over 199"), many.batch() as batch:
                    batch.append(0, self.k[:2], self.v[:2], positions=[900, 901])
                    batch.append(1, self.k[:2], self.v[:2], positions=[7, 8])
                    batch.append(1, self.k[:2], self.v[:2])
                with self.assertRaises(ZeroDivisionError), many.batch() as batch:
                    batch.append(1, self.k[:2], self.v[:2])
                    raise ZeroDivisionError
                # the first was done, what followed the error was not
                self.assertEqual(len(many.read(0).positions), N + 2)
                self.assertEqual(len(many.read(1).positions), N)

    def test_halves_and_bfloat16(self) -> None:
        halves = [a.astype(np.float16) for a in (self.k, self.v, self.q)]
        want = self.open().append_attend(0, *[a.astype(np.float32) for a in halves])
        np.testing.assert_array_equal(self.open().append_attend(0, *halves), want)
        bits = [(a.view(np.uint32) >> 16).astype(np.uint16) for a in (self.k, self.v, self.q)]
        floats = [(b.astype(np.uint32) << 16).view(np.float32) for b in bits]
        want = self.open().append_attend(0, *floats)
        got = self.open().append_attend(0, *bits, dtype="bfloat16")
        np.testing.assert_array_equal(got, want)

    def test_output_is_written_in_place(self) -> None:
        s = self.open()
        place = np.zeros((N, H, D), np.float32)
        self.assertIs(s.append_attend(0, self.k, self.v, self.q, out=place), place)
        self.assertTrue(place.any())

    def test_truncate_is_exact(self) -> None:
        a, b = self.open("tq4"), self.open("tq4")
        for s, n in ((a, 160), (b, 140)):
            s.append(0, self.k[:n], self.v[:n])
            s.append(1, self.k[:n], self.v[:n])
        a.truncate(20)
        rest = slice(140, 145)
        got = a.append_attend(0, self.k[rest], self.v[rest], self.q[rest])
        want = b.append_attend(0, self.k[rest], self.v[rest], self.q[rest])
        np.testing.assert_array_equal(got, want)

    def test_fork(self) -> None:
        parent = self.open("tq3")
        parent.append(0, self.k, self.v)
        child = parent.fork(label="child")
        with trikv.Client(self.service.socket) as other:
            stranger = other.fork(parent.id)
            self.assertEqual(stranger.geometry(1), trikv.Geometry(H, G, D, D))
            self.assertEqual(stranger.n_layers, 2)
            want = parent.attend(0, self.q[-4:])
            np.testing.assert_array_equal(child.attend(0, self.q[-4:]), want)
            np.testing.assert_array_equal(stranger.attend(0, self.q[-4:]), want)
        self.assertGreater(parent.stats().shared_bytes, 0)

    def test_snapshot(self) -> None:
        s = self.open("tq3")
        for layer in range(2):
            s.append(layer, self.k, self.v)
        self.assertGreater(s.snapshot("python"), 0)
        want = s.attend(0, self.q[-4:])
        s.close()
        back = self.client.restore("python")
        np.testing.assert_array_equal(back.attend(0, self.q[-4:]), want)
        self.client.delete_snapshot("python")
        with self.assertRaises(RequestError) as caught:
            self.client.restore("python")
        self.assertEqual(caught.exception.code, ErrorCode.ARGUMENT)

    def test_stats(self) -> None:
        s = self.open("tq4")
        for layer in range(2):
            s.append(layer, self.k, self.v)
        s.round()
        st = s.stats()
        self.assertEqual((st.session, st.n_seen, st.n_kept), (s.id, N, float(N)))
        self.assertEqual(st.fp16_bytes, 2 * N * G * 2 * D * 2)
        self.assertTrue(dataclasses.is_dataclass(st))
        self.assertAlmostEqual(st.compression, st.fp16_bytes / st.resident_bytes)

    def test_handle(self) -> None:
        s = self.open("tq4")
        s.append(0, self.k, self.v)
        s.round()
        with s.handle() as h:
            self.assertEqual(len(h), len(h.entries))
            mine = h.entries[(h.entries["layer"] == 0) & (h.entries["kv_head"] == 1)]
            self.assertEqual(int(mine["n_tokens"].sum()), N - 64 - 4)
            self.assertEqual(int(mine["first_position"][0]), 4)
            block = h.block(0)
            self.assertEqual(block.size, int(h.entries["block_bytes"][0]))
            self.assertTrue(block.any())
            with self.assertRaises(ValueError):
                block[0] = 1
            del block
        with self.assertRaises(ValueError):
            h.block(0)

    def test_map(self) -> None:
        s = self.open("tq4")
        s.append(0, self.k[:150], self.v[:150])
        with trikv.Client(self.service.socket) as other, other.map(s.id) as m:
            want = s.attend(0, self.q[146:150])
            self.assertEqual((m.n_layers, m.n_seen(0), m.n_seen(1)), (2, 150, 0))
            self.assertEqual(m.geometry(1), trikv.Geometry(H, G, D, D))
            lse = np.empty((4, H), np.float32)
            np.testing.assert_array_equal(m.attend(0, self.q[146:150], lse=lse), want)
            s.append(0, self.k[150:], self.v[150:])
            s.round()
            np.testing.assert_array_equal(m.attend(0, self.q[146:150]), want)
            self.assertIn("150 tokens", repr(m))
            with self.assertRaisesRegex(RequestError, "layer is 2"):
                m.attend(2, self.q)
        self.assertTrue(m.closed)
        with self.assertRaises(ConnectionLostError):
            m.attend(0, self.q)
        mine = s.map()
        mine.close()
        with self.assertRaisesRegex(StateError, "map was closed"):
            mine.attend(0, self.q)

    def test_read(self) -> None:
        s = self.open("f16")
        s.append(0, self.k, self.v)
        t = s.read(0, 50, dtype="float16")
        np.testing.assert_array_equal(t.k, self.k[50:].astype(np.float16))
        np.testing.assert_array_equal(t.v, self.v[50:].astype(np.float16))
        np.testing.assert_array_equal(t.positions, np.arange(50, N))
        self.assertTrue(t.exact and t.n_kept == N)
        lossy = self.open("tq4")
        lossy.append(0, self.k, self.v)
        lossy.round()
        t = lossy.read(0, kv_head=1)
        self.assertFalse(t.exact)
        self.assertTrue(lossy.read(0, N - 8).exact)
        error = np.square(t.k[:, 0] - self.k[:, 1]).mean()
        self.assertTrue(1e-4 < error < 0.02, error)
        with self.assertRaisesRegex(RequestError, "keeps 200 tokens"):
            lossy.read(0, 199, 2)
        with self.assertRaisesRegex(TypeError, "float64"):
            lossy.read(0, dtype="float64")

    def test_calibration(self) -> None:
        s = self.client.open(LAYER, 2, rope=trikv.Rope(10000.0, D), method="none")
        for layer in range(2):
            s.observe(layer, self.q, before_rope=True)
            s.observe(layer, self.q, positions=np.arange(N))
        made = s.calibrate("mine", architecture="test")
        self.assertEqual(made.n_tokens, 2 * N)
        self.assertIn('name: "mine"', made.yaml)

    def test_errors_carry_the_daemons_text(self) -> None:
        s = self.open()
        with self.assertRaisesRegex(RequestError, "layer is 2") as caught:
            s.append(2, self.k, self.v)
        self.assertEqual(caught.exception.code, ErrorCode.ARGUMENT)
        with self.assertRaisesRegex(RequestError, "the session has 2"):
            s.geometry(2)
        bad = self.k.copy()
        bad[7, 1, 3] = np.nan
        with self.assertRaises(RequestError) as caught:
            s.append(0, bad, self.v)
        self.assertEqual(caught.exception.code, ErrorCode.VALUE)
        with self.assertRaises(RequestError) as caught:
            s.append(0, self.k[:2], self.v[:2], positions=[5, 5])
        self.assertEqual(caught.exception.code, ErrorCode.POSITION)
        with self.assertRaises(RequestError):
            self.open("tq9")
        with self.assertRaises(StateError) as caught:
            self.client.fork(999999)
        self.assertEqual(caught.exception.code, ErrorCode.NO_SESSION)
        s.append(0, self.k, self.v)

    def test_wrong_arrays_are_refused_here(self) -> None:
        s = self.open()
        with self.assertRaisesRegex(TypeError, "float64"):
            s.append(0, self.k.astype(float), self.v.astype(float))
        with self.assertRaisesRegex(TypeError, "the other tensors"):
            s.append(0, self.k, self.v.astype(np.float16))
        with self.assertRaisesRegex(ValueError, r"k: shape \(200, 2, 63\)"):
            s.append(0, self.k[:, :, :-1], self.v)
        with self.assertRaisesRegex(ValueError, "v: shape"):
            s.append(0, self.k, self.v[:-1])
        with self.assertRaisesRegex(ValueError, "positions"):
            s.append(0, self.k, self.v, positions=np.arange(N) - 1)
        with self.assertRaisesRegex(ValueError, "out: want"):
            s.append_attend(0, self.k, self.v, self.q, out=np.empty((N, H, D + 2), np.float32))
        with self.assertRaisesRegex(ValueError, "sinks"):
            self.client.open(Layer(H, G, D, sinks=[1.0]))
        self.assertEqual(s.stats().n_seen, 0)

    def test_strided_arrays_are_taken(self) -> None:
        a, b = self.open(), self.open()
        a.append(0, self.k[::2], self.v[::2])
        b.append(0, self.k[::2].copy(), self.v[::2].copy())
        at = np.full(4, 99)
        at[:] = [96, 97, 98, 99]
        np.testing.assert_array_equal(a.attend(0, self.q[::50], positions=at),
                                      b.attend(0, self.q[::50].copy()))

    def test_unlike_layers(self) -> None:
        layers = [Layer(4, 2, 64, 32), Layer(2, 1, 32, window_tokens=16, sinks=[0.5, -1.0])]
        s = self.client.open(layers, codec_k="f16", codec_v="f16")
        self.assertEqual(s.geometry(0), trikv.Geometry(4, 2, 64, 32))
        self.assertEqual(s.geometry(1), trikv.Geometry(2, 1, 32, 32))
        out = s.append_attend(0, self.k, tensors(5, N, 2, 32), self.q)
        self.assertEqual(out.shape, (N, 4, 32))

    def test_latents(self) -> None:
        s = self.client.open(Layer(16, 1, 80, rope_dim=16, scale=0.1), codec_k="f16")
        self.assertEqual(s.geometry(0), trikv.Geometry(16, 1, 80, 64))
        k, q = tensors(6, N, 1, 80), tensors(7, N, 16, 80)
        out = s.append_attend(0, k, None, q)
        logits = 0.1 * q[-1].astype(np.float64) @ k[:, 0].astype(np.float64).T
        p = np.exp(logits - logits.max(1, keepdims=True))
        want = p / p.sum(1, keepdims=True) @ k[:, 0, :64].astype(np.float64)
        np.testing.assert_allclose(out[-1], want, atol=2e-3)
        s.append(0, k, None)
        with self.assertRaisesRegex(trikv.RequestError, "latents"):
            s.append(0, k, k[:, :, :64])

    def test_closing(self) -> None:
        s = self.open()
        s.close()
        s.close()
        self.assertTrue(s.closed)
        with self.assertRaises(StateError):
            s.stats()
        t = self.open()
        self.client.close()
        self.assertTrue(t.closed)
        with self.assertRaises(ConnectionLostError):
            t.stats()
        with self.assertRaises(ConnectionLostError):
            self.open()
        self.assertIn("closed", repr(t))

    def test_garbage_closes_sessions(self) -> None:
        for _ in range(70):  # more than one connection may hold
            self.open().append(0, self.k[:1], self.v[:1])
            gc.collect()

    def test_context_managers(self) -> None:
        with trikv.Client(self.service.socket) as c, c.open(LAYER) as s:
            s.append(0, self.k, self.v)
        self.assertTrue(s.closed and c.closed)

    def test_notebook(self) -> None:
        s = self.open("tq4")
        s.append(0, self.k, self.v)
        self.assertEqual(repr(s), f"<trikv.Session {s.id}, 2 layers>")
        self.assertIn("<td>200 seen", s._repr_html_())
        self.assertIn("1 sessions", repr(self.client))

    def test_threads_take_turns(self) -> None:
        s = self.open("tq4")
        s.append(0, self.k, self.v)
        want = s.attend(0, self.q[-16:])
        wrong = []

        def work() -> None:
            for _ in range(50):
                if not np.array_equal(s.attend(0, self.q[-16:]), want):
                    wrong.append(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertFalse(wrong)

    def test_gate(self) -> None:
        with self.assertRaisesRegex(StateError, "no gate"):
            self.open().gate()

    def test_info(self) -> None:
        info = self.client.info
        self.assertEqual(info.protocol, 1)
        self.assertEqual(info.memory_cap_bytes, 256 << 20)
        self.assertEqual(info.version, trikv.library_version())

    def test_nobody_listens(self) -> None:
        with self.assertRaises(ConnectionLostError) as caught:
            trikv.Client(self.service.folder + "/nothing.sock")
        self.assertEqual(caught.exception.code, ErrorCode.CONNECT)
        self.assertIsInstance(caught.exception, ConnectionError)


PROFILE = """format: trikv-profile/1
name: gated
model: {architecture: test, fingerprint: none, n_layers: 2, n_q_heads: 4, n_kv_heads: 2, head_dim: 64}
policy:
  tokens: {method: streaming, budget: 100, beta: 64, recent: 16, pinned: 4}
  bits: {k: tq4, v: tq4}
  gate: {lost_mass: 0.05, surplus: 16, probes: 12}
"""


class GateTest(ServiceTest):
    @classmethod
    def setUpClass(cls) -> None:
        profiles = tempfile.TemporaryDirectory()
        cls.addClassCleanup(profiles.cleanup)
        Path(profiles.name, "gated.yaml").write_text(PROFILE)
        cls.service = Service()
        cls.service.start("--profiles", profiles.name)

    def test_gate_says_what_a_round_does(self) -> None:
        with trikv.Client(self.service.socket) as c:
            s = c.open(LAYER, 2, profile="gated")
            for layer in range(2):
                s.append_attend(layer, tensors(1, N, G, D), tensors(2, N, G, D),
                                tensors(3, N, H, D))
            before = s.stats().n_evicted
            gate = s.gate()
            s.round()
            self.assertEqual([layer.n_probes for layer in gate], [12, 12])
            self.assertTrue(0 < gate[0].lost_mass < 1)
            dropped = sum(layer.n_dropped for layer in gate)
            self.assertGreater(dropped, 0)
            self.assertEqual(s.stats().n_evicted - before, dropped)
