#!/usr/bin/env python3
"""Forward pass of the reference model in float64 numpy: the judge of every faster implementation.

    reference.py MODEL.gguf TEXT.txt --tokenizer TOKENIZER.model [--tokens 512] [--skip 0]
                 [--record out.npz]

Prints the mean loss (nats per token) of TEXT's tokens skip..skip+tokens with <s> in front.
--record writes ids, losses, and every layer's post-RoPE q and k and its v, shaped
[layer][head][token][head_dim].
Reads any Qwen3 GGUF whose tensors are F32, F16 or Q8_0; needs sentencepiece for the text alone.
"""
import argparse
import numpy as np
import gguf

BLOCK = 512  # query rows at a time, so that the scores of a long context fit in memory


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * weight


def rope(x, theta):
    """Turn the halves (x1, x2) of every head by +position * theta^(-2j/dim)."""
    n, dim = x.shape[-2:]
    angle = np.arange(n)[:, None] * theta ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    x1, x2 = x[..., :dim // 2], x[..., dim // 2:]
    return np.concatenate((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)


def softmax(s):
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def attention(q, k, v):
    """Causal attention of q [head][n][dim] over k, v [kv head][n][dim]."""
    n, dim = q.shape[1:]
    group = len(q) // len(k)
    out = np.empty(q.shape[:2] + v.shape[2:], q.dtype)
    for start in range(0, n, BLOCK):
        end = min(n, start + BLOCK)
        hidden = np.arange(end) > np.arange(start, end)[:, None]
        for head in range(len(q)):
            s = q[head, start:end] @ k[head // group, :end].T / np.sqrt(dim).astype(q.dtype)
            s[hidden] = -np.inf
            out[head, start:end] = softmax(s) @ v[head // group, :end]
    return out


class Model:
    def __init__(self, path, dtype=np.float64):
        file = gguf.Reader(path)
        self.metadata, arch = file.metadata, file.metadata["general.architecture"]
        if arch != "qwen3":
            raise ValueError(f"{path}: architecture {arch}, not qwen3")
        get = lambda key: file.metadata[f"qwen3.{key}"]
        self.layers, self.head_dim = get("block_count"), get("attention.key_length")
        self.heads, self.kv_heads = get("attention.head_count"), get("attention.head_count_kv")
        self.theta = get("rope.freq_base")
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.w = {name: array.astype(dtype) for name, array in file.tensors.items()}
        self.output = self.w.get("output.weight", self.w["token_embd.weight"])

    def split(self, x, heads):
        return x.reshape(len(x), heads, self.head_dim).transpose(1, 0, 2)

    def forward(self, ids, record=None):
        """Logits [n][vocab]; record, if given, gets each layer's (q, k, v) appended."""
        x = self.w["token_embd.weight"][ids]
        for layer in range(self.layers):
            x = self.block(x, layer, record)
        return rms_norm(x, self.w["output_norm.weight"], self.eps) @ self.output.T

    def attend(self, layer, q, k, v):
        return attention(q, k, v)

    def block(self, x, layer, record):
        w = lambda name: self.w[f"blk.{layer}.{name}.weight"]
        norm = lambda y, name: rms_norm(y, w(name), self.eps)
        h = norm(x, "attn_norm")
        q = rope(norm(self.split(h @ w("attn_q").T, self.heads), "attn_q_norm"), self.theta)
        k = rope(norm(self.split(h @ w("attn_k").T, self.kv_heads), "attn_k_norm"), self.theta)
        v = self.split(h @ w("attn_v").T, self.kv_heads)
        if record is not None:
            record.append((q, k, v))
        o = self.attend(layer, q, k, v).transpose(1, 0, 2).reshape(len(x), -1)
        x = x + o @ w("attn_output").T
        h = norm(x, "ffn_norm")
        gate = h @ w("ffn_gate").T
        return x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T


def losses(logits, targets):
    """Negative log-likelihood of each target, nats."""
    top = logits.max(-1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    return total - logits[np.arange(len(targets)), targets]


def main():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("text")
    ap.add_argument("--tokenizer", required=True, help="SentencePiece model")
    ap.add_argument("--tokens", type=int, default=512)
    ap.add_argument("--skip", type=int, default=0)
    ap.add_argument("--record")
    a = ap.parse_args()
    import sentencepiece  # only the text needs it
    text = open(a.text, encoding="utf8", newline="").read()
    encoded = sentencepiece.SentencePieceProcessor(model_file=a.tokenizer).encode(text)
    model, record = Model(a.model), []
    ids = np.array([model.metadata["tokenizer.ggml.bos_token_id"]]
                   + encoded[a.skip:a.skip + a.tokens])
    logits = model.forward(ids[:-1], record)
    loss = losses(logits, ids[1:])
    print(f"tokens {len(loss)} mean loss {loss.mean():.6f} nats")
    if a.record:
        q, k, v = (np.stack(part).astype(np.float32) for part in zip(*record))
        np.savez_compressed(a.record, ids=ids.astype(np.int32), loss=loss, q=q, k=k, v=v)


if __name__ == "__main__":
    main()
