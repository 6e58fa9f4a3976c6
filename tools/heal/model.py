"""The base model from its GGUF file, its tokenizer, and one layer of a forward pass.

Matrices stay in GGUF row order: RoPE rotates the interleaved pairs (2i, 2i + 1).
"""

import time
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

HIDDEN, FFN, HEADS, KV, HD, LAYERS, VOCAB = 576, 1536, 9, 3, 64, 30, 49152
Q, KVD = HEADS * HD, KV * HD
THETA, EPS = 100_000.0, 1e-5
EOT, IM_START, IM_END, NEWLINE = 0, 1, 2, 198
FIRST_WORD = 17  # the tokens before it are marks, of the template and others

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def product_seconds(dtype):
    a, b = (torch.ones(1024, HIDDEN, dtype=dtype, device=DEVICE) for _ in range(2))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b.t()
        times.append(time.perf_counter() - start)
    return min(times)


# What matrices are multiplied in. CPUs that have bf16 instructions may still be slower with them.
FAST = DEVICE.type == "cuda" or product_seconds(torch.bfloat16) < product_seconds(torch.float32)
DTYPE = torch.bfloat16 if FAST else torch.float32


# ---------------------------------------------------------------- base weights and tokenizer


def load_gguf(path):
    """All tensors in fp32 on DEVICE, and the tokenizer."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    weights = {}
    for t in reader.tensors:
        data = dequantize(t.data, t.tensor_type).astype(np.float32)
        data = torch.from_numpy(np.ascontiguousarray(data.reshape(tuple(int(s) for s in t.shape[::-1]))))
        weights[t.name] = data.to(DEVICE)
    return weights, tokenizer_of(reader)


def tokenizer(path):
    """The tokenizer alone."""
    from gguf import GGUFReader

    return tokenizer_of(GGUFReader(path))


def tokenizer_of(reader):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, kinds) if k == 3])
    return tok


class Weights(NamedTuple):
    """What one layer multiplies with. `ffn`: gate and up, one above the other, or a STEM layer's gate alone."""

    norm1: torch.Tensor  # [HIDDEN]
    norm2: torch.Tensor  # [HIDDEN]
    qkv: torch.Tensor  # [Q + 2 KVD, HIDDEN]
    o: torch.Tensor  # [HIDDEN, Q]
    ffn: torch.Tensor  # [2 FFN or FFN, HIDDEN]
    down: torch.Tensor  # [HIDDEN, FFN]


class Dense:
    """The base model: its matrices in DTYPE, and `full` as they are stored."""

    def __init__(self, weights):
        self.embd32 = weights["token_embd.weight"]
        self.embd = self.embd32.to(DTYPE)
        self.norm = weights["output_norm.weight"]
        self.full, self.layers = [], []
        for n in range(LAYERS):
            w = lambda name: weights[f"blk.{n}.{name}.weight"]
            full = Weights(
                w("attn_norm"), w("ffn_norm"), torch.cat([w("attn_q"), w("attn_k"), w("attn_v")]), w("attn_output"),
                torch.cat([w("ffn_gate"), w("ffn_up")]), w("ffn_down"),
            )  # fmt: skip
            self.full.append(full)
            self.layers.append(Weights(*full[:2], *(m.to(DTYPE) for m in full[2:])))


# ---------------------------------------------------------------- pieces


@lru_cache
def rope_table(length):
    inv = THETA ** (-torch.arange(0, HD, 2, dtype=torch.float64) / HD)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * inv
    return torch.cos(angle).float().to(DEVICE), torch.sin(angle).float().to(DEVICE)


def rms(x, gain):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * gain


def rotate(x, cos, sin):
    """x [..., T, heads, HD]; cos, sin [T, HD / 2]."""
    a, b = x.float().unflatten(-1, (HD // 2, 2)).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attention(qkv, batch, length, cos, sin):
    """Causal attention of a fused qkv [batch * length, Q + 2 KVD]."""
    qkv = qkv.view(batch, length, HEADS + 2 * KV, HD)
    qk = rotate(qkv[:, :, : HEADS + KV], cos[:length], sin[:length])
    q = qk[:, :, :HEADS].transpose(1, 2)
    k = qk[:, :, HEADS:].repeat_interleave(HEADS // KV, 2).transpose(1, 2)
    v = qkv[:, :, HEADS + KV :].repeat_interleave(HEADS // KV, 2).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(batch * length, Q)


def halves(x, w, shape, cos, sin):
    """The stream x [tokens, HIDDEN] in fp32 after attention, and the FFN's normalised input. The tokens are those of texts
    of several `shape`s, (batch, length), one after the other."""
    qkv, at, parts = F.linear(rms(x, w.norm1).to(DTYPE), w.qkv), 0, []
    for batch, length in shape:
        parts.append(attention(qkv[at : at + batch * length], batch, length, cos, sin))
        at += batch * length
    x = x + F.linear(torch.cat(parts), w.o).float()
    return x, rms(x, w.norm2).to(DTYPE)


def layer(x, w, shape, cos, sin, up=None):
    """One layer. `up` [tokens, FFN]: the rows of a STEM layer, in the place of an up-projection."""
    x, h = halves(x, w, shape, cos, sin)
    gate = F.linear(h, w.ffn)
    if up is None:
        gate, up = gate.chunk(2, -1)
    return x + F.linear((F.silu(gate.float()) * up.float()).to(DTYPE), w.down).float()


@torch.no_grad()
def dense_layers(dense, x, shape, start=0, end=LAYERS, layer=layer):
    """The base's stream after layers [start, end), from x before them, of texts of several `shape`s as in `halves`."""
    cos, sin = rope_table(max(length for _, length in shape))
    for n in range(start, end):
        x = layer(x, dense.layers[n], shape, cos, sin)
    return x


def dense_forward(dense, ids, end=LAYERS):
    """The base's stream after the first `end` layers of ids [batch, length]."""
    return dense_layers(dense, dense.embd[ids.flatten()].float(), (tuple(ids.shape),), end=end)
