#!/usr/bin/env python3
"""Why TriAttention loses planted facts: where the model looks for them, and what eviction keeps there.

    lost_facts.py MODEL.gguf --tokenizer tokenizer.model TEXT.txt

Prose with numbers told and asked for (tasks.py, original wording), 1,024 tokens each. Per layer and KV
head: the attention that the answers put on the told digits (largest query head), the mean
percentile of those digits among all tokens before the first question by TriAttention score
(statistics from other prose), and the share of them that half of the tokens would keep, by
that score and by key novelty (least similar to the mean key).
"""
import argparse
import numpy as np
import reference
import tasks

CONTEXT, OFFSETS = 1024, 2.0 ** np.arange(17)


def bands(x):
    half = x.shape[-1] // 2
    return x[..., :half] + 1j * x[..., half:]


def statistics(model, tokens, freq, count=4):
    """Mean complex query and mean magnitude before RoPE, [layer][head][band]."""
    centre, size = 0, 0
    for i in range(count):
        record = []
        model.forward(tokens[i * CONTEXT:(i + 1) * CONTEXT], record)
        turn = np.exp(-1j * np.arange(CONTEXT)[:, None] * freq)
        q = np.stack([bands(layer[0]) * turn for layer in record])
        centre, size = centre + q.mean(2) / count, size + np.abs(q).mean(2) / count
    return centre, size


def tri_scores(key, centre, size, freq, now):
    """z-scores, the largest over the query heads of the group; key [n][dim], centre [head][band]."""
    k = bands(key)
    virtual = centre * np.exp(1j * OFFSETS[:, None] * freq).mean(0) * np.exp(1j * now * freq)
    s = (np.conj(k) @ virtual.T).real + np.abs(k) @ (size - np.abs(centre)).T
    return ((s - s.mean(0)) / s.std(0)).max(1)


def novelty(key):
    unit = key / np.linalg.norm(key, axis=1, keepdims=True)
    return -unit @ unit.mean(0)


def told_digits(ids, answers, end):
    """Positions before `end` where an answer's tokens stand as a whole."""
    found = set()
    edges = np.flatnonzero(np.diff(np.r_[0, answers.astype(int), 0]))
    for start, stop in edges.reshape(-1, 2):
        wanted = ids[start:stop]
        for at in range(end - len(wanted)):
            if np.array_equal(ids[at:at + len(wanted)], wanted):
                found.update(range(at, at + len(wanted)))
    return np.array(sorted(found))


def rank(score):
    return score.argsort().argsort() / len(score)


def measure(model, ids, answers, stats, freq):
    """[layer][kv head][attention, percentile, kept by score, kept by novelty] of one sequence."""
    record, (centre, size) = [], stats
    model.forward(ids[:-1], record)
    asked = np.flatnonzero(answers) - 1  # the queries that must find the answers
    end = int(asked[0])
    told = told_digits(ids, answers, end)
    out = np.zeros((model.layers, model.kv_heads, 4))
    group = model.heads // model.kv_heads
    for layer, (q, k, _) in enumerate(record):
        for j in range(model.kv_heads):
            heads = slice(j * group, (j + 1) * group)
            s = q[heads][:, asked] @ k[j].T / np.sqrt(model.head_dim)
            s[:, np.arange(k.shape[1]) > asked[:, None]] = -np.inf
            key = k[j, :end]
            by_score = rank(tri_scores(key, centre[layer, heads], size[layer, heads], freq, end))
            out[layer, j] = (reference.softmax(s)[..., told].sum(-1).mean(1).max(),
                             by_score[told].mean(), (by_score[told] >= 0.5).mean(),
                             (rank(novelty(key))[told] >= 0.5).mean())
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("text")
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--count", type=int, default=10, help="sequences")
    a = ap.parse_args()
    model, make = reference.Model(a.model, np.float32), tasks.Tasks(a.tokenizer)
    tokens = np.array(make.sp.encode(open(a.text, encoding="utf8").read()))
    freq = model.theta ** (-np.arange(0, model.head_dim, 2) / model.head_dim)
    stats = statistics(model, tokens[:4 * CONTEXT], freq)
    rng = np.random.RandomState(5)
    total = 0
    for _ in range(a.count):
        ids, answers = make.original(rng, tokens[4 * CONTEXT:], CONTEXT + 1)
        total = total + measure(model, ids, answers, stats, freq) / a.count
    print("layer  kv head  attention  percentile  kept by TriAttention  kept by novelty")
    for layer, heads in enumerate(total):
        for j, (mass, percentile, kept, novel) in enumerate(heads):
            print(f"{layer:5} {j:8} {mass:10.2f} {percentile:11.2f} {kept:21.2f} {novel:16.2f}")


if __name__ == "__main__":
    main()
