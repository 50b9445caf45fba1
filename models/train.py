#!/usr/bin/env python3
"""Train the TriKV reference model: a small Qwen3-style language model on public-domain books.

    train.py --train train.bin --val val.bin --tokenizer tokenizer.model --out weights.npz

RMSNorm, QK-norm, half-split RoPE, grouped-query attention, SwiGLU, no biases, tied embedding. Muon
trains the matrices, AdamW the rest, at a rate that decays to nothing as --tokens or --seconds run
out, whichever is sooner. From nothing, short contexts come first, since copying is learned sooner
on them. --state keeps all that a stopped run needs to go on.
Runs on one GPU (PyTorch 2.5 or newer) or on a CPU (PyTorch 1.13 or newer). On a CPU with AVX-512
set ATEN_CPU_CAPABILITY=avx512, and MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ to gigabytes.
"""
import argparse
import json
import math
import os
import time
import numpy as np
import torch
import torch.nn.functional as F
import tasks

EPS, EMBED_SCALE = 1e-6, 25.0
FOREVER = 1e18
SHAPE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "rope_theta")


def options():
    ap = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--train", required=True, help="uint16 token file")
    ap.add_argument("--val", required=True, help="uint16 token file of books not in --train")
    ap.add_argument("--tokenizer", required=True, help="SentencePiece model")
    ap.add_argument("--out", required=True, help="weights, .npz")
    ap.add_argument("--init", help="start from these weights; their shape goes before the options")
    ap.add_argument("--state", help="checkpoint; a run that finds one there goes on from it")
    ap.add_argument("--state-every", type=float, default=300, help="seconds")
    ap.add_argument("--mix", default="prose:45,repeat:20,original:10,number:10,word:10,list:5",
                    help="weights of the kinds of tasks.py")
    ap.add_argument("--most-facts", type=int, default=20, help="in one training sequence")
    ap.add_argument("--answer-weight", type=float, default=4, help="loss of an answer's token")
    ap.add_argument("--stages", default="1024:0.5,2048:0.2,4096:0.3",
                    help="context:share of the run, in order")
    ap.add_argument("--tokens", type=float, default=150e6)
    ap.add_argument("--seconds", type=float, default=FOREVER,
                    help="since the run began, stops included")
    ap.add_argument("--batch-tokens", type=int, default=65536, help="per optimiser step")
    ap.add_argument("--micro-tokens", type=int, default=65536, help="per forward pass")
    ap.add_argument("--evaluate-every", type=float, default=15e6, help="tokens")
    ap.add_argument("--evaluate-sequences", type=int, default=16, help="per task")
    ap.add_argument("--warmup", type=float, default=0.01, help="share of the run")
    ap.add_argument("--constant", type=float, default=0.4, help="share at the full rate")
    ap.add_argument("--lr", type=float, default=0.02, help="Muon, matrices")
    ap.add_argument("--adam-lr", type=float, default=0.004, help="AdamW, embedding and norms")
    ap.add_argument("--weight-decay", type=float, default=0.1)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--threads", type=int, default=os.cpu_count(), help="on a CPU")
    ap.add_argument("--compile", action=argparse.BooleanOptionalAction,
                    default=torch.cuda.is_available(), help="needs a C++ compiler")
    for name, value in dict(d_model=256, n_layers=6, n_heads=8, n_kv_heads=2, head_dim=64,
                            d_ff=704).items():
        ap.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    ap.add_argument("--rope-theta", type=float, default=100000.0)
    a = ap.parse_args()
    if a.init:
        shape = json.loads(str(np.load(a.init)["config"]))
        vars(a).update((name, shape[name]) for name in SHAPE)
    return a


def rms_norm(x, weight):
    xf = x.float()
    return (xf * torch.rsqrt(xf.pow(2).mean(-1, keepdim=True) + EPS) * weight).to(x.dtype)


def rope(x, cos, sin):
    x1, x2 = x.float().chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).to(x.dtype)


def linear(x, weight):
    return F.linear(x, weight.to(x.dtype))  # float32 master weights, bf16 products


class BlockAttention(torch.autograd.Function):
    """Exact causal attention by blocks of rows, for CPUs; backward computes the probabilities
    again, so memory is O(ROWS * n). q [kv head, group, n, dim], scaled; k, v [kv head, n, dim]."""

    ROWS = 128

    @staticmethod
    def blocks(n):
        return [slice(start, min(n, start + BlockAttention.ROWS))
                for start in range(0, n, BlockAttention.ROWS)]

    @staticmethod
    def probabilities(rows, keys, part):
        """Of rows [kv head, group * part, dim] over all keys to the end of part."""
        s = rows @ keys.transpose(1, 2)
        size = part.stop - part.start
        hidden = torch.full((size, size), -math.inf, dtype=s.dtype).triu_(1)
        s.view(len(keys), -1, size, part.stop)[..., part] += hidden
        return s.softmax(-1)

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for part in BlockAttention.blocks(q.shape[2]):
            rows = q[:, :, part].flatten(1, 2)
            p = BlockAttention.probabilities(rows, k[:, :part.stop], part)
            out[:, :, part] = (p @ v[:, :part.stop]).view_as(out[:, :, part])
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), *(torch.zeros_like(x, dtype=torch.float) for x in (k, v))
        for part in BlockAttention.blocks(q.shape[2]):
            rows, drows = (x[:, :, part].flatten(1, 2) for x in (q, dout))
            keys, values = k[:, :part.stop], v[:, :part.stop]
            p = BlockAttention.probabilities(rows, keys, part)
            dv[:, :part.stop] += p.transpose(1, 2) @ drows
            ds = torch._softmax_backward_data(drows @ values.transpose(1, 2), p, -1, p.dtype)
            dq[:, :, part] = (ds @ keys).view_as(dq[:, :, part])
            dk[:, :part.stop] += ds.transpose(1, 2) @ rows
        return dq, dk.to(k.dtype), dv.to(v.dtype)


def attention(q, k, v):
    """Causal; q [batch, head, n, dim], k and v [batch, kv head, n, dim]."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    grouped = (q / math.sqrt(q.shape[-1])).reshape(k.shape[0] * k.shape[1], -1, *q.shape[2:])
    keys, values = (x.flatten(0, 1).contiguous() for x in (k, v))
    return BlockAttention.apply(grouped, keys, values).view(q.shape)


class Layer(torch.nn.Module):
    def __init__(self, a):
        super().__init__()
        self.head_dim = a.head_dim
        q_size, kv_size = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
        matrix = lambda rows, cols, gain=0.5: torch.nn.Parameter(
            torch.randn(rows, cols) * gain / math.sqrt(cols))
        ones = lambda n: torch.nn.Parameter(torch.ones(n))
        self.q, self.k = matrix(q_size, a.d_model), matrix(kv_size, a.d_model)
        self.v, self.o = matrix(kv_size, a.d_model), matrix(a.d_model, q_size, 0)
        self.gate, self.up = matrix(a.d_ff, a.d_model), matrix(a.d_ff, a.d_model)
        self.down = matrix(a.d_model, a.d_ff, 0)
        self.attn_norm, self.ffn_norm = ones(a.d_model), ones(a.d_model)
        self.q_norm, self.k_norm = ones(a.head_dim), ones(a.head_dim)

    def heads(self, x, weight):
        return linear(x, weight).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def forward(self, x, cos, sin):
        h = rms_norm(x, self.attn_norm)
        q = rope(rms_norm(self.heads(h, self.q), self.q_norm), cos, sin)
        k = rope(rms_norm(self.heads(h, self.k), self.k_norm), cos, sin)
        v = self.heads(h, self.v)
        o = attention(q, k, v)
        x = x + linear(o.transpose(1, 2).flatten(2), self.o)
        h = rms_norm(x, self.ffn_norm)
        return x + linear(F.silu(linear(h, self.gate)) * linear(h, self.up), self.down)


class Net(torch.nn.Module):
    def __init__(self, a, vocab):
        super().__init__()
        self.a = a
        self.tok = torch.nn.Parameter(torch.randn(vocab, a.d_model) * 0.02)
        self.norm = torch.nn.Parameter(torch.ones(a.d_model))
        self.layers = torch.nn.ModuleList(Layer(a) for _ in range(a.n_layers))

    def forward(self, ids, targets):
        """Per-token negative log-likelihood, nats, [batch, n]."""
        dim = self.a.head_dim
        inv_freq = self.a.rope_theta ** (-torch.arange(0, dim, 2, device=ids.device) / dim)
        angle = torch.outer(torch.arange(ids.shape[1], device=ids.device).float(), inv_freq)
        x = (F.embedding(ids, self.tok) * EMBED_SCALE).bfloat16()
        for layer in self.layers:
            x = layer(x, angle.cos(), angle.sin())
        logits = linear(rms_norm(x, self.norm), self.tok).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(),
                               reduction="none").view_as(targets)

    def exported(self):
        """Weights by the names that convert.py knows."""
        return {name.replace("layers.", ""): p.detach().float().cpu().numpy()
                for name, p in self.named_parameters()}

    def restore(self, path):
        saved = np.load(path)
        for name, p in self.named_parameters():
            p.data.copy_(torch.from_numpy(saved[name.replace("layers.", "")]))


def orthogonalise(g, steps=5):
    """Newton-Schulz iteration of Muon: roughly the nearest semi-orthogonal matrix to each of g."""
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    tall = x.size(-2) > x.size(-1)
    x = x.mT.contiguous() if tall else x
    for _ in range(steps):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; matrices of one shape go through it together."""

    def __init__(self, params, lr, weight_decay, orthogonalise, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.orthogonalise = orthogonalise
        by_shape = {}
        for p in self.param_groups[0]["params"]:
            by_shape.setdefault(p.shape, []).append(p)
        self.stacks = [(ps, torch.zeros_like(torch.stack(ps))) for ps in by_shape.values()]

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for params, buffer in self.stacks:
            g = torch.stack([p.grad for p in params])
            buffer.mul_(group["momentum"]).add_(g)
            rows, cols = g.shape[-2:]
            rate = group["lr"] * max(1, rows / cols) ** 0.5
            for p, update in zip(params, self.orthogonalise(g + group["momentum"] * buffer)):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


class Data:
    def __init__(self, a, make):
        self.make, self.device = make, a.device
        self.train_make = tasks.Tasks(a.tokenizer, a.most_facts)
        kinds, shares = zip(*(kind.split(":") for kind in a.mix.split(",")))
        self.kinds, self.shares = kinds, np.array(shares, float) / np.sum(np.array(shares, float))
        self.answer_weight = a.answer_weight
        self.train, self.val = (np.fromfile(path, np.uint16) for path in (a.train, a.val))

    def tensors(self, ids):
        x = torch.from_numpy(np.stack(ids)).to(self.device)
        return x[:, :-1], x[:, 1:]

    def batch(self, rng, count, n):
        """Inputs, targets, and the weight of each target's loss."""
        made = [getattr(self.train_make, kind)(rng, self.train, n + 1)
                for kind in rng.choice(self.kinds, count, p=self.shares)]
        weights = 1 + (self.answer_weight - 1) * np.stack([mask[1:] for _, mask in made])
        weights = torch.from_numpy(weights.astype(np.float32)).to(self.device)
        return *self.tensors([ids for ids, _ in made]), weights


@torch.no_grad()
def evaluate(net, data, context, count):
    """Held-out prose and second showing, nats; recall, percent of answer tokens."""
    result = {}
    for kind in ("prose", "halves", "original", "number", "word", "list"):
        rng, losses, masks = np.random.RandomState(99), [], []
        for _ in range(count):
            ids, mask = getattr(data.make, kind)(rng, data.val, context + 1)
            losses.append(net(*data.tensors([ids]))[0].cpu().numpy())
            masks.append(mask[1:])
        scores = tasks.score(kind, losses, masks)
        result[kind] = round(scores.get("nats", scores.get("tokens", 0)), 4)
    return result


def rate(done, a):
    """Warm-up, plateau, then linearly down to a fiftieth."""
    down = (1 - done) / (1 - a.constant)
    return min(1, (done + 1e-3) / a.warmup) * max(0.02, min(1, down))


def save_weights(a, net, vocab, context):
    config = {name: getattr(a, name) for name in SHAPE}
    config |= {"vocab": vocab, "context": context, "embed_scale": EMBED_SCALE, "eps": EPS}
    with open(a.out + ".new", "wb") as out:
        np.savez(out, config=json.dumps(config), **net.exported())
    os.replace(a.out + ".new", a.out)


class Run:
    """All that changes while training, and how far it has come."""

    def __init__(self, a, net, data, ready):
        self.a, self.net, self.data, self.compiled = a, net, data, ready(net)
        matrices = [p for p in net.layers.parameters() if p.ndim == 2]
        norms = [p for p in net.parameters() if p.ndim == 1]
        self.adam = torch.optim.AdamW([dict(params=[net.tok], weight_decay=a.weight_decay),
                                       dict(params=norms, weight_decay=0)],
                                      a.adam_lr, betas=(0.9, 0.95))
        self.muon = Muon(matrices, a.lr, a.weight_decay, ready(orthogonalise))
        self.rng, self.begin, self.tokens = np.random.RandomState(a.seed), time.time(), 0

    def progress(self):
        return max(self.tokens / self.a.tokens, (time.time() - self.begin) / self.a.seconds)

    def save(self):
        state = dict(net=self.net.state_dict(), adam=self.adam.state_dict(),
                     muon=[buffer for _, buffer in self.muon.stacks],
                     rng=self.rng.get_state(), begin=self.begin, tokens=self.tokens)
        torch.save(state, self.a.state + ".new")
        os.replace(self.a.state + ".new", self.a.state)

    def restore(self):
        state = torch.load(self.a.state, map_location=self.a.device)
        self.net.load_state_dict(state["net"])
        self.adam.load_state_dict(state["adam"])
        for (_, buffer), saved in zip(self.muon.stacks, state["muon"]):
            buffer.copy_(saved)
        self.rng.set_state(state["rng"])
        self.begin, self.tokens = state["begin"], state["tokens"]

    def step(self, context):
        """One update; the mean weighted loss of its batch, left on the device."""
        a, total = self.a, 0
        parts, scale = max(1, a.batch_tokens // a.micro_tokens), rate(self.progress(), a)
        for _ in range(parts):
            count = max(1, a.batch_tokens // parts // context)
            ids, targets, weights = self.data.batch(self.rng, count, context)
            loss = (self.compiled(ids, targets) * weights).sum() / weights.sum() / parts
            loss.backward()
            total = total + loss.detach()
            self.tokens += count * context
        for optimiser, full in (self.adam, a.adam_lr), (self.muon, a.lr):
            for group in optimiser.param_groups:
                group["lr"] = full * scale
            optimiser.step()
        self.net.zero_grad()
        return total


def stages(a):
    """(context, progress at which its stage ends)"""
    end = 0
    for stage in a.stages.split(","):
        context, share = stage.split(":")
        end += float(share)
        yield int(context), min(1, end)


class Log:
    """Saves and evaluates now and then, and says how training goes."""

    def __init__(self, run, context):
        self.run, self.context, self.losses = run, context, []
        self.next_save = time.time() + run.a.state_every
        every = run.a.evaluate_every
        self.next_evaluation = (run.tokens // every + 1) * every

    def add(self, loss):
        run, a = self.run, self.run.a
        self.losses.append(loss)
        if time.time() >= self.next_save or run.progress() >= 1:
            self.save()
        if run.tokens >= self.next_evaluation:
            self.next_evaluation += a.evaluate_every
            result = evaluate(run.net, run.data, self.context, a.evaluate_sequences)
            print(f"tokens {run.tokens}", json.dumps(result), flush=True)

    def save(self):
        run, a = self.run, self.run.a
        self.next_save = time.time() + a.state_every
        save_weights(a, run.net, run.data.make.vocab, self.context)
        if a.state:
            run.save()
        print(f"tokens {run.tokens} seconds {time.time() - run.begin:.0f} progress "
              f"{run.progress():.3f} loss {torch.stack(self.losses).mean().item():.4f}", flush=True)
        self.losses = []


def main():
    a = options()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    torch.set_float32_matmul_precision("high")
    make = tasks.Tasks(a.tokenizer)
    net, data = Net(a, make.vocab).to(a.device), Data(a, make)
    if a.init:
        net.restore(a.init)
    ready = (lambda f: torch.compile(f, dynamic=False)) if a.compile else (lambda f: f)
    run = Run(a, net, data, ready)
    if a.state and os.path.exists(a.state):
        run.restore()
    print("parameters", sum(p.numel() for p in net.parameters()), "tokens", run.tokens, flush=True)
    log = Log(run, max(context for context, _ in stages(a)))
    for context, end in stages(a):
        while run.progress() < end:
            log.add(run.step(context))


if __name__ == "__main__":
    main()
