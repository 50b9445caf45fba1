"""Speculative decoding with rollback: the same words in fewer steps, to the bit.

    TRIKV_SOCKET=... PYTHONPATH=bindings/python python3 examples/speculative.py

The draft is "prompt lookup": what followed the last time these two tokens were said. The model checks a
whole draft in one step; what it would not have said itself is forgotten with truncate().
"""

from __future__ import annotations

import sys

import numpy as np
from toy import HEAD_DIM, N_LAYERS, N_Q_HEADS, Toy, prompt_of

import trikv

N_PROMPT, N_TOKENS, N_DRAFT = 400, 200, 6


def draft_of(said: list[int]) -> list[int]:
    for at in range(len(said) - 3, 0, -1):
        if said[at - 1:at + 1] == said[-2:]:
            return said[at + 1:at + 1 + N_DRAFT]
    return []


def decode(toy: Toy, session: trikv.Session, prompt: list[int], n: int) -> tuple[list[int], int]:
    """n tokens, and the number of steps that they took."""
    said = list(prompt)
    n_steps = 0
    while len(said) < len(prompt) + n:
        draft = draft_of(said)[:len(prompt) + n - len(said) - 1]
        checked = toy.next_tokens(session, [said[-1], *draft])
        n_right = 0
        while n_right < len(draft) and draft[n_right] == checked[n_right]:
            n_right += 1
        session.truncate(len(draft) - n_right)
        said += checked[:n_right + 1]
        n_steps += 1
    return said[len(prompt):], n_steps


def same_cache(a: trikv.Session, b: trikv.Session) -> bool:
    """Both hold the same bits, and attend to the same bits."""
    q = np.ones((1, N_Q_HEADS, HEAD_DIM), np.float32)
    for layer in range(N_LAYERS):
        x, y = a.read(layer), b.read(layer)
        if x.k.tobytes() != y.k.tobytes() or x.v.tobytes() != y.v.tobytes():
            return False
        if a.attend(layer, q).tobytes() != b.attend(layer, q).tobytes():
            return False
    return True


def main() -> int:
    toy, prompt = Toy(), prompt_of(3, N_PROMPT)
    with trikv.Client(name="speculative") as client:
        # So far behind a round of compression truncate() must still reach.
        plain, guessing = (toy.open(client, rollback_tokens=N_DRAFT) for _ in range(2))
        for session in (plain, guessing):
            toy.feed(session, prompt[:-1])
        want = toy.decode(plain, prompt[-1], N_TOKENS)
        got, n_steps = decode(toy, guessing, prompt, N_TOKENS)
        same = same_cache(plain, guessing)
    print(f"plain: {N_TOKENS} tokens in {N_TOKENS} steps")
    print(f"speculative: {len(got)} tokens in {n_steps} steps, "
          f"{len(got) / n_steps:.2f} accepted per step")
    print(f"same tokens: {got == want}; same cache, to the bit: {same}")
    return 0 if got == want and same and n_steps < N_TOKENS else 1


if __name__ == "__main__":
    sys.exit(main())
