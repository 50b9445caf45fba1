"""A trikvd of one's own for a Python test, and the tensors that it is fed with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("TRIKV_BUILD", "build")
PROGRAMS = Path(os.environ.get("TRIKV_BIN", BUILD / "bin"))

sys.path.insert(0, str(ROOT / "bindings" / "python"))
os.environ.setdefault("TRIKV_LIBRARY", str(BUILD / "lib" / "libtrikv.so.0"))


class Service:
    """trikvd on a private socket, from start() to stop()."""

    def start(self, *options: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="trikv-python-")
        self.socket = self.folder + "/trikvd.sock"
        config = Path(self.folder, "trikvd.yaml")
        disabled = os.environ.get("TRIKV_CPU_DISABLE", "")
        snapshots = Path(self.folder, "snapshots")
        snapshots.mkdir(mode=0o700)
        config.write_text(f'workers:\n  threads: 2\n  cpu_disable: "{disabled}"\n'
                          f'snapshot:\n  directory: "{snapshots}"\n')
        self.process = subprocess.Popen(
            [str(PROGRAMS / "trikvd"), "--config", str(config), "--socket", self.socket,
             "--memory-cap", "256MiB", "--profiles", "/nonexistent", "--log-level", "error",
             *options])
        end = time.monotonic() + 10
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError("trikvd did not start")
            time.sleep(0.01)

    def answers(self) -> bool:
        """The path alone says little: it is there before anybody listens."""
        with socket.socket(socket.AF_UNIX) as s:
            return s.connect_ex(self.socket) == 0

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(timeout=20)
        shutil.rmtree(self.folder)
        return status


class ServiceTest(unittest.TestCase):
    """Tests on one daemon, which ends cleanly after the last of them."""

    service: Service

    @classmethod
    def setUpClass(cls) -> None:
        cls.service = Service()
        cls.service.start()

    @classmethod
    def tearDownClass(cls) -> None:
        status = cls.service.stop()
        if status != 0:
            raise AssertionError(f"trikvd ended with {status}")


def tensors(seed: int, n_tokens: int, n_heads: int, dim: int,
            dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_tokens, n_heads, dim), dtype=np.float32).astype(dtype)


def attention(k: np.ndarray, v: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Causal attention of all tokens, in double: outputs, and logarithms of the sums."""
    n, n_q, dim = q.shape
    group = n_q // k.shape[1]
    out = np.empty((n, n_q, v.shape[2]))
    lse = np.empty((n, n_q))
    for h in range(n_q):
        logits = q[:, h].astype(float) @ k[:, h // group].astype(float).T / np.sqrt(dim)
        logits[np.triu_indices(n, 1)] = -np.inf
        top = logits.max(axis=1, keepdims=True)
        weights = np.exp(logits - top)
        total = weights.sum(axis=1, keepdims=True)
        out[:, h] = weights / total @ v[:, h // group].astype(float)
        lse[:, h] = (np.log(total) + top)[:, 0]
    return out, lse
