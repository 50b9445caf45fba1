"""A language model small enough to read: random weights, real attention, greedy decoding.

Every layer's keys, values and queries are made of the token and its position; what attention
returns decides the next token. It says nothing sensible, but it says it deterministically, and only
if its cache is right.
"""

from __future__ import annotations

import numpy as np

import trikv

VOCABULARY, WIDTH = 50, 64
N_LAYERS, N_Q_HEADS, N_KV_HEADS, HEAD_DIM = 2, 4, 2, 64
LAYER = trikv.Layer(N_Q_HEADS, N_KV_HEADS, HEAD_DIM)


class Toy:
    def __init__(self, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)

        def weights(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.float32(shape[-2]))

        self.embedding = weights(1, VOCABULARY, WIDTH)[0] * 7
        self.wq = weights(N_LAYERS, WIDTH, N_Q_HEADS * HEAD_DIM) * 2
        self.wk = weights(N_LAYERS, WIDTH, N_KV_HEADS * HEAD_DIM)
        self.wv = weights(N_LAYERS, WIDTH, N_KV_HEADS * HEAD_DIM)
        self.wo = weights(N_LAYERS, N_Q_HEADS * HEAD_DIM, VOCABULARY)

    def open(self, client: trikv.Client, codec: str = "tq4", **options: object) -> trikv.Session:
        return client.open(LAYER, N_LAYERS, codec_k=codec, codec_v=codec, method="none", **options)

    def feed(self, session: trikv.Session, tokens: list[int]) -> np.ndarray:
        """Append the tokens; the scores of what follows each of them."""
        n = len(tokens)
        x = self.embedding[tokens]
        scores = np.zeros((n, VOCABULARY), np.float32)
        for layer in range(N_LAYERS):
            k = (x @ self.wk[layer]).reshape(n, N_KV_HEADS, HEAD_DIM)
            v = (x @ self.wv[layer]).reshape(n, N_KV_HEADS, HEAD_DIM)
            q = (x @ self.wq[layer]).reshape(n, N_Q_HEADS, HEAD_DIM)
            out = session.append_attend(layer, k, v, q)
            scores += out.reshape(n, -1) @ self.wo[layer]
        return scores

    def next_tokens(self, session: trikv.Session, tokens: list[int]) -> list[int]:
        return [int(t) for t in self.feed(session, tokens).argmax(axis=1)]

    def decode(self, session: trikv.Session, last: int, n: int) -> list[int]:
        """n tokens after `last`, one at a time."""
        said: list[int] = []
        while len(said) < n:
            last = self.next_tokens(session, [last])[0]
            said.append(last)
        return said


def prompt_of(seed: int, n: int) -> list[int]:
    """Tokens with a habit of repeating themselves."""
    rng = np.random.default_rng(seed)
    phrase = rng.integers(0, VOCABULARY, 12)
    words = [phrase if rng.random() < 0.7 else rng.integers(0, VOCABULARY, 5) for _ in range(n)]
    return [int(t) for t in np.concatenate(words)[:n]]
