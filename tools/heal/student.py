"""The STEM student: frozen base matrices, low-rank changes, rows U_l[t] = A_l e(t) + R_l[t]."""

import torch
import torch.nn.functional as F
from torch import nn

from model import DTYPE, EPS, FFN, HD, HEADS, HIDDEN, KV, LAYERS, Q, VOCAB, rope_table, rotate

STEM = list(range(1, 11))
FIRST = STEM[0]  # the layers below are the base's own, and are never touched

compiled = torch.compile(dynamic=True)


@compiled
def norm_forward(x, gain):
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    return (x * r * gain).to(DTYPE), r


@compiled
def norm_backward(dy, x, r, gain):
    g = dy.float() * gain
    dot = (g * x).mean(-1, keepdim=True)
    return (g - x * (dot * r * r)) * r


@compiled
def norm_gain(dy, x, r):
    return (dy.float() * x * r).sum(0)


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain):
        y, r = norm_forward(x, gain)
        ctx.save_for_backward(x, r, gain)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, r, gain = ctx.saved_tensors
        return norm_backward(dy, x, r, gain), norm_gain(dy, x, r)


@compiled
def swiglu_forward(g, u):
    return (F.silu(g.float()) * u.float()).to(DTYPE)


@compiled
def swiglu_backward(dy, g, u):
    dy, g, u = dy.float(), g.float(), u.float()
    s = torch.sigmoid(g)
    silu = g * s
    return (dy * u * (s + silu * (1 - s))).to(DTYPE), (dy * silu).to(DTYPE)


class Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, u):
        ctx.save_for_backward(g, u)
        return swiglu_forward(g, u)

    @staticmethod
    def backward(ctx, dy):
        return swiglu_backward(dy, *ctx.saved_tensors)


rotate_c = torch.compile(rotate, dynamic=True)


class Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return rotate_c(x, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return rotate_c(dy, cos, -sin), None, None


class LoraLinear(torch.autograd.Function):
    """x Wᵀ + (x aᵀ) bᵀ with a frozen W."""

    @staticmethod
    def forward(ctx, x, w, a, b):
        h = x @ a.t()
        ctx.save_for_backward(x, w, a, b, h)
        return torch.addmm(x @ w.t(), h, b.t())

    @staticmethod
    def backward(ctx, dy):
        x, w, a, b, h = ctx.saved_tensors
        g = dy @ b
        return torch.addmm(dy @ w, g, a), None, g.t() @ x, dy.t() @ h


@compiled
def kl_rows(zs, zt):
    """KL(teacher ‖ student) per row, its gradient in the student's logits, and whether the top-1 agree."""
    zs, zt = zs.float(), zt.float()
    ls, lt = zs.log_softmax(-1), zt.log_softmax(-1)
    pt = lt.exp()
    return (pt * (lt - ls)).sum(-1), (ls.exp() - pt).to(DTYPE)


class KlHead(torch.autograd.Function):
    """Weighted mean of KL over positions, from the two models' normalised states, in slices."""

    @staticmethod
    def forward(ctx, hs, ht, embd, weight, exchange=None, slice_=256):
        dh = torch.empty_like(hs)
        total = hs.new_zeros((), dtype=torch.float32)
        share = weight / weight.sum()
        for i in range(0, len(hs), slice_):
            s = slice(i, i + slice_)
            zt = ht[s] @ embd.t()
            if exchange is not None:  # the teacher's distribution with two ids exchanged
                a, b = exchange[s, :1], exchange[s, 1:]
                za, zb = zt.gather(1, a), zt.gather(1, b)
                zt.scatter_(1, a, zb).scatter_(1, b, za)
            kl, dz = kl_rows(hs[s] @ embd.t(), zt)
            total += (kl * share[s]).sum()
            dh[s] = (dz @ embd) * share[s, None].to(DTYPE)
        ctx.save_for_backward(dh)
        return total

    @staticmethod
    def backward(ctx, dloss):
        (dh,) = ctx.saved_tensors
        return dh * dloss.to(dh.dtype), None, None, None, None, None


class Student(nn.Module):
    def __init__(self, dense, tokens, rank=32, wide=48, engram=None):
        """`tokens`: the ids that have a residual row. `wide`: rank where several matrices share a factor.

        `engram`: Engram layers (`engram.py`), from FIRST on, or none.
        """
        super().__init__()
        self.dense, self.engram = dense, engram
        if engram is not None and min(engram.layers) < FIRST:
            raise SystemExit(f"Engram layers {list(engram.layers)}: those below {FIRST} are the base's own")
        self.register_buffer("tokens", torch.as_tensor(tokens, dtype=torch.long))
        slot = torch.full((VOCAB,), len(tokens), dtype=torch.long)
        slot[self.tokens] = torch.arange(len(tokens))
        self.register_buffer("slot", slot, persistent=False)
        self.core, self.norms, self.down = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.gate = {}
        for n in range(FIRST, LAYERS):
            w = dense.layers[n]
            stem = n in STEM
            self.norms[f"{n}_attn"] = nn.Parameter(w["n1"].clone())
            self.norms[f"{n}_ffn"] = nn.Parameter(w["n2"].clone())
            if stem:
                self.gate[n] = w["gu"][:FFN].contiguous()
                self.down[str(n)] = nn.Parameter(w["down"].float().clone())  # in fp32 it would be the base's own
            # Dense FFNs stay the base's own, so that a bundle holds them at the base's four bits without rounding again.
            shapes = {"qkv": (wide, w["qkv"]), "o": (rank, w["o"])}
            if stem:
                shapes["gate"] = (wide, self.gate[n])
            for name, (r, m) in shapes.items():
                self.core[f"{n}_{name}_a"] = nn.Parameter(torch.randn(r, m.shape[1]) * m.shape[1] ** -0.5)
                self.core[f"{n}_{name}_b"] = nn.Parameter(torch.zeros(m.shape[0], r))
        self.norms["out"] = nn.Parameter(dense.norm.clone())
        self.maps = nn.ParameterList([nn.Parameter(torch.zeros(FFN, HIDDEN)) for _ in STEM])
        self.rows = nn.Parameter(torch.zeros(len(tokens) + 1, len(STEM) * FFN))  # the last one stays zero

    def start_from(self, state):
        """Takes over an earlier student, also one that had changed its dense FFNs: these changes are dropped."""
        state = {k.replace("_gu_", "_gate_") if k.startswith("core.") else k: v for k, v in state.items()}
        mine = self.state_dict()
        self.load_state_dict(mine | {k: v for k, v in state.items() if k in mine})

    def lora(self, x, n, name, w):
        return LoraLinear.apply(x, w, self.core[f"{n}_{name}_a"].to(DTYPE), self.core[f"{n}_{name}_b"].to(DTYPE))

    def table(self, ids):
        """Rows of every STEM layer for the ids [n]: a list of [n, FFN]."""
        e = self.dense.embd[ids]
        r = F.embedding(self.slot[ids], self.rows, padding_idx=len(self.tokens)).to(DTYPE).view(-1, len(STEM), FFN)
        return [torch.addmm(r[:, i], e, self.maps[i].to(DTYPE).t()) for i in range(len(STEM))]

    def layer(self, x, n, batch, length, cos, sin, up=None):
        w = self.dense.layers[n]
        qkv = self.lora(Norm.apply(x, self.norms[f"{n}_attn"]), n, "qkv", w["qkv"])
        qkv = qkv.view(batch, length, HEADS + 2 * KV, HD)
        qk = Rope.apply(qkv[:, :, : HEADS + KV], cos, sin)
        g = HEADS // KV
        q = qk[:, :, :HEADS].transpose(1, 2)
        k = qk[:, :, HEADS:].repeat_interleave(g, 2).transpose(1, 2)
        v = qkv[:, :, HEADS + KV :].repeat_interleave(g, 2).transpose(1, 2)
        att = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch * length, Q)
        x = x + self.lora(att, n, "o", w["o"])
        h = Norm.apply(x, self.norms[f"{n}_ffn"])
        if up is None:
            gu = F.linear(h, w["gu"])
            return x + F.linear(Swiglu.apply(gu[:, :FFN], gu[:, FFN:]), w["down"])
        act = Swiglu.apply(self.lora(h, n, "gate", self.gate[n]), up)
        return x + F.linear(act, self.down[str(n)].to(DTYPE))

    def mixed(self, ids, mixes):
        """As `table`; an id beyond the vocabulary stands for the mean of the rows of a mix, a tuple of ids."""
        members = [mixes[i - VOCAB] if i >= VOCAB else (i,) for i in ids.tolist()]
        plain = sorted({i for m in members for i in m})
        place = {i: n for n, i in enumerate(plain)}
        mean = torch.zeros(len(members), len(plain), dtype=DTYPE)
        for row, m in zip(mean, members):
            for i in m:
                row[place[i]] += 1 / len(m)
        return [mean @ t for t in self.table(torch.tensor(plain))]

    def forward(self, x, row_ids, ids=None, mixes=()):
        """Normalised last states [batch * length, HIDDEN] from the base's stream x before layer FIRST.

        row_ids [batch, length]: whose rows each position reads (see `mixed`); ids: the input tokens, which these are unless
        edited.
        N-grams are those of the input.
        """
        batch, length = row_ids.shape
        if self.engram is not None:
            records = self.engram.records(row_ids if ids is None else ids)
        cos, sin = (t[:length].contiguous() for t in rope_table(length))
        unique, back = row_ids.flatten().unique(return_inverse=True)
        table = self.mixed(unique, mixes) if mixes else self.table(unique)
        for n in range(FIRST, LAYERS):
            if self.engram is not None and n in self.engram.layers:
                x = self.engram(n, x, records, batch)
            up = F.embedding(back, table[n - FIRST]) if n in STEM else None
            x = self.layer(x, n, batch, length, cos, sin, up)
        return Norm.apply(x, self.norms["out"])
