#!/usr/bin/env python3
"""Evaluate a GGUF of the reference model on held-out books with the exact numpy forward pass.

    evaluate.py MODEL.gguf --tokenizer tokenizer.model --context 2048 --count 16 BOOK.txt...

Prints one JSON line per task: prose and the second showing of a passage in nats per token, recall
in percent of answer tokens given more than half of the probability, and of whole answers.
"""
import argparse
import json
import numpy as np
import reference
import tasks

KINDS = ("prose", "halves", "original", "number", "word", "list")


def held_out(books, sp):
    """Tokens of all books, and UTF-8 bytes per token."""
    texts = [open(book, encoding="utf8").read() for book in books]
    tokens = np.array(sum((sp.encode(text) for text in texts), []))
    return tokens, sum(len(text.encode()) for text in texts) / len(tokens)


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("books", nargs="+")
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--context", type=int, default=2048)
    ap.add_argument("--count", type=int, default=16, help="sequences per task")
    ap.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    ap.add_argument("--dtype", default="float64", choices=("float32", "float64"))
    a = ap.parse_args()
    model = reference.Model(a.model, np.dtype(a.dtype))
    make = tasks.Tasks(a.tokenizer)
    tokens, width = held_out(a.books, make.sp)
    for kind in a.kinds:
        rng = np.random.RandomState(99)
        losses, masks = [], []
        for _ in range(a.count):
            ids, mask = getattr(make, kind)(rng, tokens, a.context + 1)
            losses.append(reference.losses(model.forward(ids[:-1]), ids[1:]))
            masks.append(mask[1:])
        result = tasks.score(kind, losses, masks)
        if kind == "prose":
            result["bits_per_byte"] = result["nats"] / np.log(2) / width
        print(json.dumps({"task": kind, "context": a.context, "sequences": a.count} | result),
              flush=True)


if __name__ == "__main__":
    main()
