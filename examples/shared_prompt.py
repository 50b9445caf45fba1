"""Two engines, two processes, one system prompt: it is read once and kept once.

    TRIKV_SOCKET=... PYTHONPATH=bindings/python python3 examples/shared_prompt.py

The first process reads the prompt. Each engine forks that session by its number and answers a
question of its own, at the same time. What they say is what an engine says that has read everything
itself.
"""

from __future__ import annotations

import subprocess
import sys

from toy import Toy, prompt_of

import trikv

N_PROMPT, N_ANSWER = 2000, 60
QUESTIONS = ([7, 31, 4, 4, 19], [22, 8, 45])


def answer(toy: Toy, session: trikv.Session, question: list[int]) -> list[int]:
    toy.feed(session, question[:-1])
    return toy.decode(session, question[-1], N_ANSWER)


def engine(parent: int, question: list[int]) -> None:
    """In a process of its own: the answer, and the memory that this fork shares and has alone."""
    with trikv.Client(name="engine") as client:
        session = client.fork(parent, label="engine")
        words = answer(Toy(), session, question)
        stats = session.stats()
    print(*words)
    print(stats.shared_bytes, stats.resident_bytes - stats.shared_bytes)


def run_engines(parent: int) -> list[list[list[int]]]:
    """The two lines of each engine, as numbers; they run side by side."""
    processes = [
        subprocess.Popen([sys.executable, __file__, str(parent), *map(str, question)],
                         stdout=subprocess.PIPE, text=True) for question in QUESTIONS]
    texts = [p.communicate()[0] for p in processes]
    if any(p.returncode for p in processes):
        raise RuntimeError("an engine failed")
    return [[[int(word) for word in line.split()] for line in text.splitlines()] for text in texts]


def main() -> int:
    toy, prompt = Toy(), prompt_of(5, N_PROMPT)
    with trikv.Client(name="system prompt") as client:
        shared = toy.open(client, label="system prompt")
        toy.feed(shared, prompt)
        print(f"the prompt: {N_PROMPT} tokens, {shared.stats().resident_bytes:,} bytes")
        results = run_engines(shared.id)
        right = True
        for question, (words, (shared_bytes, own_bytes)) in zip(QUESTIONS, results):
            alone = toy.open(client)
            toy.feed(alone, prompt)
            right &= words == answer(toy, alone, question)
            right &= own_bytes < shared_bytes
            alone.close()
            print(f"an engine: {shared_bytes:,} bytes shared, {own_bytes:,} of its own; "
                  f"it said {' '.join(map(str, words[:8]))} ...")
    print(f"as engines that read the prompt themselves: {right}")
    return 0 if right else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        engine(int(sys.argv[1]), [int(word) for word in sys.argv[2:]])
    else:
        sys.exit(main())
