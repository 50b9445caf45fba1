#!/usr/bin/env python3
"""Convert the trained weights to a GGUF file that any Qwen3 loader reads.

    convert.py WEIGHTS.npz TOKENIZER.model OUT.gguf [--type q8_0|f16|f32]

Training multiplies the input embedding by a constant, which Qwen3 does not. The export folds it
away exactly: token_embd = scale * tok, output_norm = norm / scale; the tied output then gives the
same logits. Needs numpy alone.
"""
import argparse
import json
import struct
import numpy as np
import gguf

U32, FLOAT, BOOL, I32 = 4, 6, 7, 5
TYPES = {"f32": (gguf.F32, 0), "f16": (gguf.F16, 1), "q8_0": (gguf.Q8_0, 7)}  # tensor, file type
NAMES = {"attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
         "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "ffn_norm": "ffn_norm",
         "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
ABOUT = ("Small Qwen3-style model trained on public-domain books and recall tasks; a judge of "
         "KV-cache compression, not a useful language model")


def fields(message):
    """(field number, value) pairs of a serialised protocol buffer message."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        at += size
        yield key >> 3, message[at - size:at]


def tokenizer_metadata(path):
    """What sentencepiece_model.proto holds: pieces (1), trainer (2) and normaliser (3) settings."""
    model = list(fields(open(path, "rb").read()))
    pieces = [dict(fields(value)) for number, value in model if number == 1]
    trainer = dict(pair for number, value in model if number == 2 for pair in fields(value))
    normaliser = dict(pair for number, value in model if number == 3 for pair in fields(value))
    if trainer.get(3) != 2 or normaliser.get(1) != b"identity" or normaliser.get(4, 1):
        raise SystemExit("only BPE tokenizers that leave the text as it is are supported")
    return [
        ("tokenizer.ggml.model", gguf.STRING, "llama"),
        ("tokenizer.ggml.tokens", (gguf.ARRAY, gguf.STRING), [p[1] for p in pieces]),
        ("tokenizer.ggml.scores", (gguf.ARRAY, FLOAT),
         [struct.unpack("<f", p.get(2, bytes(4)))[0] for p in pieces]),
        ("tokenizer.ggml.token_type", (gguf.ARRAY, I32), [p.get(3, 1) for p in pieces]),
        ("tokenizer.ggml.unknown_token_id", U32, trainer.get(40, 0)),
        ("tokenizer.ggml.bos_token_id", U32, trainer.get(41, 1)),
        ("tokenizer.ggml.eos_token_id", U32, trainer.get(42, 2)),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_eos_token", BOOL, False),
        ("tokenizer.ggml.add_space_prefix", BOOL, bool(normaliser.get(3, 1))),
    ]


def model_metadata(c, name, file_type):
    return [
        ("general.architecture", gguf.STRING, "qwen3"),
        ("general.name", gguf.STRING, name),
        ("general.description", gguf.STRING, ABOUT),
        ("general.license", gguf.STRING, "apache-2.0"),
        ("general.file_type", U32, file_type),
        ("general.quantization_version", U32, 2),
        ("general.alignment", U32, 32),
        ("qwen3.context_length", U32, c["context"]),
        ("qwen3.block_count", U32, c["n_layers"]),
        ("qwen3.embedding_length", U32, c["d_model"]),
        ("qwen3.feed_forward_length", U32, c["d_ff"]),
        ("qwen3.attention.head_count", U32, c["n_heads"]),
        ("qwen3.attention.head_count_kv", U32, c["n_kv_heads"]),
        ("qwen3.attention.key_length", U32, c["head_dim"]),
        ("qwen3.attention.value_length", U32, c["head_dim"]),
        ("qwen3.attention.layer_norm_rms_epsilon", FLOAT, c["eps"]),
        ("qwen3.rope.freq_base", FLOAT, c["rope_theta"]),
        ("qwen3.vocab_size", U32, c["vocab"]),
    ]


def model_tensors(w, c, kind):
    out = [("token_embd.weight", w["tok"] * c["embed_scale"], kind)]
    for layer in range(c["n_layers"]):
        for ours, theirs in NAMES.items():
            array = w[f"{layer}.{ours}"]
            stored = kind if array.ndim == 2 else gguf.F32
            out.append((f"blk.{layer}.{theirs}.weight", array, stored))
    return out + [("output_norm.weight", w["norm"] / c["embed_scale"], gguf.F32)]


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "tokenizer", "out"):
        ap.add_argument(name)
    ap.add_argument("--type", choices=TYPES, default="q8_0", help="of the matrices; norms stay F32")
    ap.add_argument("--name", default="TriKV reference 6M")
    a = ap.parse_args()
    w = np.load(a.weights)
    c = json.loads(str(w["config"]))
    kind, file_type = TYPES[a.type]
    metadata = model_metadata(c, a.name, file_type) + tokenizer_metadata(a.tokenizer)
    gguf.write(a.out, metadata, model_tensors(w, c, kind))


if __name__ == "__main__":
    main()
