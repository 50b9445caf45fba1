"""Sequence states of llama.cpp, written here byte by byte; hostile ones, too."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
from service import ROOT, ServiceTest, attention, tensors

import trikv
from trikv.llama import StateFormatError, parse_state

N, G, D, LAYERS = 70, 2, 32, 3
SEED = 8


class Model:
    """K and V of a few layers, and the state that llama.cpp would write of them."""

    def __init__(self, n: int = N, dtype: str = "<f2", dim_v: int = D) -> None:
        self.n, self.dtype = n, dtype
        self.k = [tensors(10 + i, n, G, D) for i in range(LAYERS)]
        self.v = [tensors(20 + i, n, G, dim_v) for i in range(LAYERS)]
        self.positions = np.arange(n) + 3
        self.cells = np.random.default_rng(SEED).permutation(n)  # order in the file
        self.tokens = list(range(n))

    def stored(self, x: np.ndarray) -> np.ndarray:
        if self.dtype == "bfloat16":
            return (x.view(np.uint32) >> 16).astype("<u2")
        return x.astype(self.dtype)

    def state(self, *, version: int = 2, transposed: bool = False, streams: int = 1,
              extra: bytes = b"", type_number: int | None = None) -> bytes:
        number = {"<f4": 0, "<f2": 1, "bfloat16": 30}[self.dtype]
        number = number if type_number is None else type_number
        out = [struct.pack("<III", 0x67677371, version, self.n),
               np.array(self.tokens, "<i4").tobytes(), struct.pack("<I", streams)]
        out += [struct.pack("<I", 0)] * (streams - 1) + [struct.pack("<I", self.n)]
        for cell in self.cells:
            out += [struct.pack("<iI", self.positions[cell], 1), extra, struct.pack("<i", 0)]
        out.append(struct.pack("<II", transposed, LAYERS))
        for k in self.k:
            rows = self.stored(k)[self.cells].reshape(self.n, -1)
            out += [struct.pack("<iQ", number, rows[0].nbytes), rows.tobytes()]
        for v in self.v:
            rows = self.stored(v)[self.cells].reshape(self.n, -1)
            if transposed:
                out += [struct.pack("<iII", number, rows.itemsize, rows.shape[1]),
                        rows.T.tobytes()]
            else:
                out += [struct.pack("<iQ", number, rows[0].nbytes), rows.tobytes()]
        return b"".join(out)


class LlamaTest(ServiceTest):
    def check(self, model: Model, data: bytes) -> None:
        state = parse_state(data, G)
        np.testing.assert_array_equal(state.positions, model.positions)
        np.testing.assert_array_equal(state.tokens, model.tokens)
        for layer, k, v in zip(state.layers, model.k, model.v):
            np.testing.assert_array_equal(layer.k, model.stored(k))
            np.testing.assert_array_equal(layer.v, model.stored(v))

    def test_forms(self) -> None:
        for dtype in ("<f4", "<f2", "bfloat16"):
            for transposed in (False, True):
                with self.subTest(dtype=dtype, transposed=transposed):
                    model = Model(dtype=dtype, dim_v=24)
                    self.check(model, model.state(transposed=transposed))
        model = Model()
        self.check(model, model.state(streams=4))
        self.check(model, model.state(version=3))
        self.check(model, model.state(version=3, extra=b"\1" * 12))

    def test_attention_on_an_imported_state(self) -> None:
        for dtype in ("<f2", "bfloat16"):
            model = Model(dtype=dtype)
            with trikv.Client(self.service.socket) as client:
                session = client.open(trikv.Layer(4, G, D), LAYERS, codec_k="f16", codec_v="f16")
                parse_state(model.state(transposed=True), G).append_to(session, chunk_tokens=32)
                self.assertEqual(session.stats().n_seen, N)
                q = tensors(3, N, 4, D)
                out = session.attend(1, q, positions=model.positions)
                want, _ = attention(model.k[1], model.v[1], q)
                self.assertLess(np.abs(out - want).max(), 0.03)
                np.testing.assert_array_equal(session.read(2).positions, model.positions)

    def test_files_of_a_real_build(self) -> None:
        """What llama.cpp wrote of the reference model (llama/README.md) is what that model computes."""
        sys.path.insert(0, str(ROOT / "models"))
        import reference  # noqa: PLC0415 (beside the model, no package)

        ids = [4029, 989, 765, 4045, 262, 989, 765]
        model = reference.Model(str(ROOT / "models" / "trikv-ref-6m.gguf"))
        record: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # q, k, v by layer
        model.forward(np.array(ids), record)
        for name in ("rows", "columns"):
            path = Path(__file__).parent / "llama" / f"{name}.bin"
            state = parse_state(path.read_bytes(), 2)
            self.assertEqual(state.tokens.tolist(), ids)
            self.assertEqual(len(state.layers), len(record))
            for layer, (_, k, v) in zip(state.layers, record):
                for got, want in ((layer.k, k), (layer.v, v)):
                    error = got.astype(float) - want.swapaxes(0, 1)  # it computes in 8 bits
                    self.assertLess(np.linalg.norm(error), 0.02 * np.linalg.norm(want))

    def test_what_is_refused(self) -> None:
        model = Model()
        good = model.state()
        cases = {
            "not a sequence state": b"GGUF" + good[4:],
            "version 9": model.state(version=9),
            "quantised": model.state(type_number=8),
            "5 bytes follow": good + b"12345",
            "the file has 0 more": good[:12],
            "more than one stream": None,
        }
        double = Model(n=2)
        body = double.state()
        head = 12 + 8
        cases["more than one stream"] = (body[:head] + struct.pack("<I", 2) + body[head + 4:] +
                                         body[head + 4:])
        for text, data in cases.items():
            with self.subTest(text), self.assertRaisesRegex(StateFormatError, text):
                parse_state(data, G)
        with self.assertRaisesRegex(StateFormatError, "3 heads"):
            parse_state(good, 3)
        same = Model()
        same.positions = same.positions.copy()
        same.positions[5] = same.positions[6]
        with self.assertRaisesRegex(StateFormatError, "not all different"):
            parse_state(same.state(), G)
        with trikv.Client(self.service.socket) as client:
            session = client.open(trikv.Layer(4, G, D), LAYERS + 1)
            with self.assertRaisesRegex(ValueError, "4 layers, the state 3"):
                parse_state(good, G).append_to(session)

    def test_cut_anywhere(self) -> None:
        data = Model(n=2).state(transposed=True)
        for n in range(len(data)):
            with self.assertRaises(StateFormatError):
                parse_state(data[:n], G)

    def test_changed_anywhere(self) -> None:
        """Any byte, any value: it parses, or it is refused; nothing else, and in little memory."""
        data = bytearray(Model(n=2).state(version=3, extra=b"\0" * 12))
        rng = np.random.default_rng(SEED)
        n_parsed = 0
        for at in range(len(data)):
            for value in (0, 255, int(rng.integers(256))):
                before, data[at] = data[at], value
                try:
                    parse_state(bytes(data), G)
                    n_parsed += 1
                except StateFormatError:
                    pass
                data[at] = before
        self.assertGreater(n_parsed, len(data))  # tensors may hold anything
