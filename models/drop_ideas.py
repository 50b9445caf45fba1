#!/usr/bin/env python3
"""Ideas for dropping tokens and keeping facts, each by itself, in the reference model.

    drop_ideas.py MODEL.gguf --tokenizer tokenizer.model TEXT.txt [--keep 0.5]

Prose with numbers told and asked for (tasks.py, original wording), 1,024 tokens each. Before the first
question every KV head keeps a share of the tokens, 4 first and 64 last among them, and the rest by a
score. Prints the share of answer tokens that are the model's first choice, and nats per token of the rest
behind the cut.
"""
import argparse
import numpy as np
import reference
import tasks
from lost_facts import CONTEXT, novelty, rank, statistics, tri_scores

FIRST, LAST, SEGMENT, PROTECTED = 4, 64, 64, 1 / 8


def observed(q, k, last=None):
    """Attention that each key got, from all queries or the last ones."""
    n = k.shape[0]
    rows = np.arange(n if last is None else last) + (0 if last is None else n - last)
    s = q[:, rows] @ k.T / np.sqrt(k.shape[1])
    s[:, np.arange(n) > rows[:, None]] = -np.inf
    return reference.softmax(s).sum((0, 1))


def with_protected(score, importance):
    """The most important eighth goes first, whatever its score."""
    score = rank(score)
    score[importance.argsort()[-int(len(score) * PROTECTED):]] += 1
    return score


def by_segment(score):
    return np.concatenate([rank(score[i:i + SEGMENT]) for i in range(0, len(score), SEGMENT)])


def outliers(k):
    return np.abs((k - k.mean(0)) / k.std(0)).max(1)


# name: score(tri, q, k, rarity); q [group][n][dim], k [n][dim], of the tokens before the cut
IDEAS = {
    "TriAttention": lambda tri, q, k, rarity: tri,
    "union with observed attention": lambda tri, q, k, rarity:
        np.maximum(rank(tri), rank(observed(q, k))),
    "union with the last queries' attention": lambda tri, q, k, rarity:
        np.maximum(rank(tri), rank(observed(q, k, LAST))),
    "quotas of 64-token segments": lambda tri, q, k, rarity: by_segment(tri),
    "key outliers protected": lambda tri, q, k, rarity: with_protected(tri, outliers(k)),
    "rare tokens protected": lambda tri, q, k, rarity: with_protected(tri, rarity),
    "values merged": lambda tri, q, k, rarity: tri,
    "key novelty": lambda tri, q, k, rarity: novelty(k),
    "key novelty, values merged": lambda tri, q, k, rarity: novelty(k),
}


class Dropping(reference.Model):
    """Queries from `end` on see what an idea keeps of the tokens before."""

    idea, end, keep, rarity, stats, freq = None, 0, 0.5, None, None, None

    def attend(self, layer, q, k, v):
        out = reference.attention(q, k, v)
        if self.idea is None:
            return out
        group = self.heads // self.kv_heads
        for j in range(self.kv_heads):
            heads = slice(j * group, (j + 1) * group)
            kept = self.choose(layer, heads, q[heads, :self.end], k[j, :self.end])
            out[heads, self.end:] = self.after(q[heads, self.end:], k[j], v[j], kept)
        return out

    def choose(self, layer, heads, q, k):
        centre, size = self.stats
        tri = tri_scores(k, centre[layer, heads], size[layer, heads], self.freq, self.end)
        score = IDEAS[self.idea](tri, q, k, self.rarity[:self.end]).astype(float)
        score[:FIRST] = score[-LAST:] = np.inf
        return np.sort(np.argsort(-score, kind="stable")[:int(self.end * self.keep)])

    def after(self, q, k, v, kept):
        end, n = self.end, k.shape[0]
        k, v, count = k.copy(), v.copy(), np.ones(n, v.dtype)
        gone = np.setdiff1d(np.arange(end), kept)
        if self.idea.endswith("values merged"):  # into the kept key of nearest direction
            unit = k[:end] / np.linalg.norm(k[:end], axis=1, keepdims=True)
            near = kept[(unit[gone] @ unit[kept].T).argmax(1)]
            np.add.at(count, near, 1)
            np.add.at(v, near, v[gone])
            v /= count[:, None]
        s = q @ k.T / np.sqrt(k.shape[1]).astype(k.dtype) + np.log(count)
        s[:, :, gone] = -np.inf
        s[:, np.arange(n) > np.arange(end, n)[:, None]] = -np.inf
        return reference.softmax(s) @ v


def measure(model, sequences):
    """Answer tokens that are the first choice in percent; nats per token of what else is behind the cut."""
    right, rest = [], []
    for ids, answers, end in sequences:
        model.end, model.rarity = end, model.rarity_of[ids]
        logits = model.forward(ids[:-1])
        wanted = answers[1:]
        right += list((logits.argmax(-1) == ids[1:])[wanted])
        behind = ~wanted & (np.arange(len(wanted)) >= end)
        rest += list(reference.losses(logits, ids[1:])[behind])
    return 100 * np.mean(right), np.mean(rest)


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("text")
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--count", type=int, default=10, help="sequences")
    ap.add_argument("--keep", type=float, default=0.5, help="share of the tokens")
    a = ap.parse_args()
    model, make = Dropping(a.model, np.float32), tasks.Tasks(a.tokenizer)
    tokens = np.array(make.sp.encode(open(a.text, encoding="utf8").read()))
    model.keep = a.keep
    model.freq = model.theta ** (-np.arange(0, model.head_dim, 2) / model.head_dim)
    model.stats = statistics(model, tokens[:4 * CONTEXT], model.freq)
    model.rarity_of = 1 / (1 + np.bincount(tokens, minlength=make.vocab))
    rng, sequences = np.random.RandomState(5), []
    for _ in range(a.count):
        ids, answers = make.original(rng, tokens[4 * CONTEXT:], CONTEXT + 1)
        sequences.append((ids, answers, int(np.flatnonzero(answers)[0]) - 16))
    for idea in (None, *IDEAS):
        model.idea = idea
        print("{:40} {:6.1f} % {:8.3f}".format(idea or "all kept", *measure(model, sequences)))


if __name__ == "__main__":
    main()
