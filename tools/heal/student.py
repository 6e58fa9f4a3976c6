"""The STEM student: frozen base matrices, low-rank changes, and rows that are linear in what is known of a token.

    U_l[t] = A_l [e(t); p(t)] + R_l[t]

e: the base's embedding; p: learned features, the same in all layers; R: residual rows of some tokens. FFNs that training
changes are rounded to four bits in every step, as a bundle stores them, and A, p and R too, as a recipe does; so are the factors of
low-rank changes, to eight. Gradients pass the rounding unchanged (Bengio et al., arXiv 1308.3432).
"""

import os

import torch
from torch import nn

from model import DEVICE, DTYPE, FFN, HIDDEN, LAYERS, VOCAB, Weights, layer, rms, rope_table

# Which layers have rows; others can be tried by this variable, a list of numbers with commas.
STEM = [int(n) for n in os.environ.get("STEM_LAYERS", "1,2,3,4,5,6,7,8,9,10").split(",")]
FIRST = STEM[0]  # the layers below are the base's own, and are never touched

FEATURES = 256  # learned of every token
# Of attention's low-rank changes; of dense FFNs, gate and up together.
RANKS = {"qkv": 64, "o": 64, "ffn": 72, "down": 64}
# What a run may train alone, by the names of parameters.
TRAINABLE = {"norms": lambda name: name.startswith("norms."), "attention": lambda name: "_qkv_" in name or "_o_" in name}
RANGES = (15.0, 14.5, 15.5, 14.0, 16.0, 13.5, 13.0)


def four_bit_parts(w):
    """Levels q, scale d and minimum m of each block of 32 along the rows of w [out, in], as `q4` of `src/bundle/quant.rs` has them: of
    a few ranges that whose least-squares d and m, both in f16, leave the least error of d q + m. [blocks, 32], twice [blocks, 1]"""
    block = w.reshape(-1, 32)
    least, most, total = block.amin(-1, keepdim=True), block.amax(-1, keepdim=True), block.sum(-1, keepdim=True)
    inverse = lambda d: torch.where(d == 0, 0.0, 1.0 / d)
    level = lambda d, m: ((block - m) * inverse(d)).round().clamp(0, 15)
    best = found = None
    for r in RANGES:
        q = level((most - least) / r, least)
        sum_q, sum_qq, sum_qw = q.sum(-1, keepdim=True), (q * q).sum(-1, keepdim=True), (q * block).sum(-1, keepdim=True)
        det = 32 * sum_qq - sum_q * sum_q
        d = torch.where(det > 0, (32 * sum_qw - sum_q * total) / det, 0.0).half().float()
        m = ((total - d * sum_q) / 32).half().float()
        q = level(d, m)
        error = (d * q + m - block).square().sum(-1, keepdim=True)
        if best is None:
            best, found = error, (q, d, m)
        else:
            found = tuple(torch.where(error < best, new, old) for new, old in zip((q, d, m), found))
            best = torch.minimum(error, best)
    return found


def four_bits(w):
    """w as it is when stored in four bits."""
    q, d, m = four_bit_parts(w)
    return (d * q + m).view(w.shape)


def eight_bit_parts(x):
    """Levels q from -127 to 127 of x [out, in], and a scale d in f16 for each row: [out, in], [out, 1]"""
    d = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-7).half().float()
    return (x / d).round().clamp(-127, 127), d


def eight_bits(x):
    """x as it is when stored in eight bits."""
    q, d = eight_bit_parts(x)
    return q * d


def balanced(a, b):
    """The same product with factors of like size, so that both quantise well."""
    qa, ra = torch.linalg.qr(a.t())  # a = raᵀ qaᵀ
    u, s, v = torch.linalg.svd(b @ ra.t(), full_matrices=False)
    root = s.clamp(min=1e-12).sqrt()
    return root[:, None] * (v @ qa.t()), u * root


class Rounded(torch.autograd.Function):
    """w in four bits and in DTYPE; or by what else, and in what else, is said."""

    @staticmethod
    def forward(ctx, w, dtype=DTYPE, how=None):
        return (how or fused_four_bits)(w).to(dtype)

    @staticmethod
    def backward(ctx, dy):
        return dy.float(), None, None


torch._dynamo.config.recompile_limit = 64  # two kinds of layer, of step, and of model
fused_four_bits = torch.compile(four_bits, dynamic=True)
fused_eight_bits = torch.compile(eight_bits, dynamic=True)
fused_layer = torch.compile(layer, dynamic=False)


@torch.compile(dynamic=False)
def kl_rows(zs, zt):
    """KL(teacher ‖ student) of each row of logits, and its gradient in the student's."""
    zs, zt = zs.float(), zt.float()
    ls, lt = zs.log_softmax(-1), zt.log_softmax(-1)
    pt = lt.exp()
    return (pt * (lt - ls)).sum(-1), (ls.exp() - pt).to(DTYPE)


class KlHead(torch.autograd.Function):
    """Weighted mean of KL over positions, from the two models' normalised states, in slices."""

    @staticmethod
    def forward(ctx, hs, ht, embd, weight, slice_=6144):
        dh = torch.empty_like(hs)
        total = hs.new_zeros((), dtype=torch.float32)
        share = weight / weight.sum()
        for i in range(0, len(hs), slice_):
            s = slice(i, i + slice_)
            kl, dz = kl_rows(hs[s] @ embd.t(), ht[s] @ embd.t())
            total += (kl * share[s]).sum()
            dh[s] = (dz @ embd) * share[s, None].to(DTYPE)
        ctx.save_for_backward(dh)
        return total

    @staticmethod
    def backward(ctx, dloss):
        (dh,) = ctx.saved_tensors
        return dh * dloss.to(dh.dtype), None, None, None, None


class Tokens:
    """Whose rows each of n positions reads: position `at[i]` that of token `of[i]`, `share[i]` of it."""

    def __init__(self, at, of, share, n):
        self.at, self.of, self.share, self.n = at, of, share, n

    @classmethod
    def own(cls, ids):
        """Each position that of its id; ids [n]."""
        return cls(torch.arange(len(ids), device=ids.device), ids, torch.ones(len(ids), device=ids.device), len(ids))

    def __add__(self, other):
        cat = lambda a, b: torch.cat([a, b.to(a.device)])
        return Tokens(cat(self.at, other.at + self.n), cat(self.of, other.of), cat(self.share, other.share), self.n + other.n)


class Student(nn.Module):
    def __init__(self, dense, tokens, features=FEATURES, ranks=None, engram=None):
        """`tokens`: the ids that have a residual row. `ranks` of low-rank changes: attention's `qkv` and `o`, the dense FFNs' `ffn`
        (gate and up) and `down`; without a rank a matrix stays the base's own.

        `engram`: Engram layers (`engram.py`), from FIRST on, or none.
        """
        super().__init__()
        ranks = ranks or RANKS
        self.dense, self.engram = dense, engram
        self.still = {}  # of what is not trained, as `kept` has it
        if engram is not None and min(engram.layers) < FIRST:
            raise SystemExit(f"Engram layers {list(engram.layers)}: those below {FIRST} are the base's own")
        self.register_buffer("tokens", torch.as_tensor(tokens, dtype=torch.long))
        slot = torch.full((VOCAB,), len(tokens), dtype=torch.long)
        slot[self.tokens.cpu()] = torch.arange(len(tokens))
        self.register_buffer("slot", slot, persistent=False)
        self.core, self.norms, self.gate, self.down = (nn.ParameterDict() for _ in range(4))
        for n in range(FIRST, LAYERS):
            w = dense.full[n]
            self.norms[f"{n}_attn"] = nn.Parameter(w.norm1.clone())
            self.norms[f"{n}_ffn"] = nn.Parameter(w.norm2.clone())
            if n in STEM:
                self.gate[str(n)] = nn.Parameter(w.ffn[:FFN].clone())
                self.down[str(n)] = nn.Parameter(w.down.clone())
            for name in changed(n):
                if not ranks[name]:
                    continue
                high, wide = getattr(w, name).shape
                self.core[f"{n}_{name}_a"] = nn.Parameter(torch.randn(ranks[name], wide) * wide**-0.5)
                self.core[f"{n}_{name}_b"] = nn.Parameter(torch.zeros(high, ranks[name]))
        self.norms["out"] = nn.Parameter(dense.norm.clone())
        self.features = nn.Parameter(torch.randn(VOCAB, features) * 0.1)
        self.maps = nn.ParameterList([nn.Parameter(torch.zeros(FFN, HIDDEN + features)) for _ in STEM])
        self.rows = nn.Parameter(torch.zeros(len(tokens) + 1, len(STEM) * FFN))  # the last one stays zero
        self.to(DEVICE)

    @classmethod
    def of(cls, dense, state, ranks, engram):
        """The student that has this `state`."""
        student = cls(dense, state["tokens"].tolist(), state["features"].shape[1], ranks, engram)
        student.load_state_dict(state)
        return student

    def train_only(self, parts):
        """Leaves all as it is but for `parts`, of TRAINABLE."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(TRAINABLE[part](name) for part in parts))

    def kept(self, name, parameters, make):
        """What `make` makes of parameters; once only, under this name, if none of them is trained."""
        if any(q.requires_grad for q in parameters):
            return make()
        if name not in self.still:
            with torch.no_grad():
                self.still[name] = make()
        return self.still[name]

    def rounded(self, name, w, *how):
        """A parameter as `Rounded` makes it, `kept` under this name."""
        return self.kept(name, [w], lambda: Rounded.apply(w, *how))

    def load_state_dict(self, *args, **kwargs):
        self.still.clear()  # made of the parameters of before
        return super().load_state_dict(*args, **kwargs)

    def changed_matrix(self, n, name):
        """W + b a in fp32, or none where there is no change."""
        if f"{n}_{name}_b" not in self.core:
            return None
        b, a = (Rounded.apply(self.core[f"{n}_{name}_{factor}"], torch.float32, fused_eight_bits) for factor in "ba")
        return getattr(self.dense.full[n], name) + b @ a

    def matrix(self, n, name):
        """What layer n multiplies with, as a bundle stores it."""
        whole = {"ffn": self.gate, "down": self.down}.get(name, {})
        if str(n) in whole:
            return self.rounded(f"{n}_{name}", whole[str(n)])
        if f"{n}_{name}_b" not in self.core:
            return getattr(self.dense.layers[n], name)
        stored = Rounded.apply if name in ("ffn", "down") else lambda w: w.to(DTYPE)
        factors = [self.core[f"{n}_{name}_{factor}"] for factor in "ab"]
        return self.kept(f"{n}_{name}", factors, lambda: stored(self.changed_matrix(n, name)))

    def weights(self):
        """What the layers from FIRST on multiply with."""
        matrices = lambda n: (self.matrix(n, name) for name in ("qkv", "o", "ffn", "down"))
        return [Weights(self.norms[f"{n}_attn"], self.norms[f"{n}_ffn"], *matrices(n)) for n in range(FIRST, LAYERS)]

    def known(self, tokens):
        """What rows are made of: for each position [e; p] and which residual row, and the residual rows of each STEM layer. All is
        linear, so that a mean of rows is one of these."""
        share, of = tokens.share[:, None], tokens.of
        width = self.features.shape[1]
        features = self.rounded("features", self.features, torch.float32)
        e = self.dense.embd32.new_zeros(tokens.n, HIDDEN).index_add(0, tokens.at, self.dense.embd32[of] * share)
        p = features.new_zeros(tokens.n, width).index_add(0, tokens.at, features.index_select(0, of) * share)
        one = torch.zeros(tokens.n, len(self.rows), device=DEVICE, dtype=DTYPE)
        slot = self.slot[of]
        own = tokens.share * (slot < len(self.tokens))
        one.view(-1).index_add_(0, tokens.at * len(self.rows) + slot, own.to(DTYPE))
        return torch.cat([e, p], -1).to(DTYPE), one, self.rounded("rows", self.rows).split(FFN, 1)

    def up(self, known, i):
        """The rows of the i-th STEM layer, [tokens, FFN]."""
        features, one, rows = known
        return torch.addmm(one @ rows[i], features, self.rounded(f"maps_{i}", self.maps[i]).t())

    def forward(self, x, ids, shape, tokens=None, layer=layer):
        """Normalised last states [tokens, HIDDEN] from the base's stream x before layer FIRST.

        ids: the input tokens [tokens] of texts of several `shape`s, (batch, length), one after the other; tokens: whose
        rows they read, their own if none. N-grams are those of the input.
        """
        cos, sin = rope_table(max(length for _, length in shape))
        known = self.known(Tokens.own(ids) if tokens is None else tokens)
        spans, at = [], 0
        for batch, length in shape:
            spans.append((slice(at, at + batch * length), batch))
            at += batch * length
        if self.engram is not None:
            records = [self.engram.records(ids[s].view(batch, -1)) for s, batch in spans]
        for n, w in zip(range(FIRST, LAYERS), self.weights()):
            if self.engram is not None and n in self.engram.layers:
                x = torch.cat([self.engram(n, x[s], r, batch) for (s, batch), r in zip(spans, records)])
            x = layer(x, w, shape, cos, sin, self.up(known, STEM.index(n)) if n in STEM else None)
        return rms(x, self.norms["out"]).to(DTYPE)


def changed(n):
    """The matrices of layer n that have a low-rank change; a STEM layer's gate and W_d are trained whole."""
    return ("qkv", "o") if n in STEM else ("qkv", "o", "ffn", "down")
