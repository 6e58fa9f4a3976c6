"""The base model from its GGUF file, its tokenizer, batched sampling, and the STEM student.

Matrices stay in GGUF row order: RoPE rotates the interleaved pairs (2i, 2i + 1).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HIDDEN, FFN, HEADS, KV, HD, LAYERS, VOCAB = 576, 1536, 9, 3, 64, 30, 49152
Q, KVD = HEADS * HD, KV * HD
THETA, EPS = 100_000.0, 1e-5
EOT, IM_START, IM_END = 0, 1, 2

# What matrices are multiplied in: bf16 takes a sixth of the speed of fp32 where a CPU has no such instructions.
CPU = torch.cpu.get_capabilities()
DTYPE = torch.bfloat16 if CPU.get("amx_bf16") or CPU.get("avx512_bf16") else torch.float32


# ---------------------------------------------------------------- base weights and tokenizer


def load_gguf(path):
    """All tensors as fp32 torch tensors, and the tokenizer."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    weights = {}
    for t in reader.tensors:
        data = dequantize(t.data, t.tensor_type).astype(np.float32)
        weights[t.name] = torch.from_numpy(np.ascontiguousarray(data.reshape(tuple(int(s) for s in t.shape[::-1]))))
    return weights, tokenizer_of(reader)


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


class Dense:
    """The base model's matrices in `dtype`, fused where it helps: qkv, gate and up."""

    def __init__(self, weights, dtype=DTYPE):
        self.dtype = dtype
        self.embd32 = weights["token_embd.weight"]
        self.embd = self.embd32.to(dtype)
        self.norm = weights["output_norm.weight"]
        self.layers = []
        for n in range(LAYERS):
            w = lambda name: weights[f"blk.{n}.{name}.weight"]
            self.layers.append(
                {
                    "n1": w("attn_norm"),
                    "n2": w("ffn_norm"),
                    "qkv": torch.cat([w("attn_q"), w("attn_k"), w("attn_v")]).to(dtype),
                    "o": w("attn_output").to(dtype),
                    "gu": torch.cat([w("ffn_gate"), w("ffn_up")]).to(dtype),
                    "down": w("ffn_down").to(dtype),
                }
            )


# ---------------------------------------------------------------- pieces


def rope_table(length):
    inv = THETA ** (-torch.arange(0, HD, 2, dtype=torch.float64) / HD)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * inv
    return torch.cos(angle).float(), torch.sin(angle).float()


def rms(x, gain):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * gain


def rotate(x, cos, sin):
    """x [..., T, heads, HD]; cos, sin [T, HD / 2]."""
    a, b = x.float().unflatten(-1, (HD // 2, 2)).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attention(qkv, batch, length, cos, sin, rotate=rotate):
    """Causal attention of a fused qkv [batch * length, Q + 2 KVD]."""
    qkv = qkv.view(batch, length, HEADS + 2 * KV, HD)
    qk = rotate(qkv[:, :, : HEADS + KV], cos[:length], sin[:length])
    q = qk[:, :, :HEADS].transpose(1, 2)
    k = qk[:, :, HEADS:].repeat_interleave(HEADS // KV, 2).transpose(1, 2)
    v = qkv[:, :, HEADS + KV :].repeat_interleave(HEADS // KV, 2).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(batch * length, Q)


# Plain versions; training passes compiled ones.
def _norm(x, gain):
    return rms(x, gain).to(DTYPE)


def _swiglu(g, u):
    return (F.silu(g.float()) * u.float()).to(g.dtype)


def dense_layer(x, w, batch, length, cos, sin, norm=_norm, swiglu=_swiglu, rotate=rotate):
    """One layer of the base; x is the fp32 residual stream [batch * length, HIDDEN]."""
    dtype = w["qkv"].dtype
    att = attention(F.linear(norm(x, w["n1"]).to(dtype), w["qkv"]), batch, length, cos, sin, rotate)
    x = x + F.linear(att, w["o"]).float()
    gu = F.linear(norm(x, w["n2"]).to(dtype), w["gu"])
    return x + F.linear(swiglu(gu[:, :FFN], gu[:, FFN:]), w["down"]).float()


@torch.no_grad()
def dense_forward(dense, ids, start=0, end=LAYERS, x=None, norm=_norm, swiglu=_swiglu, rotate=rotate):
    """Residual stream after layers [start, end) of ids [batch, length]."""
    batch, length = ids.shape
    cos, sin = rope_table(length)
    if x is None:
        x = dense.embd[ids.flatten()].float()
    for n in range(start, end):
        x = dense_layer(x, dense.layers[n], batch, length, cos, sin, norm, swiglu, rotate)
    return x


# ---------------------------------------------------------------- sampling


@torch.no_grad()
def generate(dense, prompts, max_new, temperature=0.0, top_k=80, stop=(EOT, IM_END), turns=1, generator=None):
    """Continues prompts, all of one length [B][L]; returns the new ids of each, its stop token included.

    A text ends at its `turns`-th stop token, or at the end of text.
    """
    ids = torch.tensor(prompts)
    batch, plen = ids.shape
    total = plen + max_new
    cos, sin = rope_table(total)
    keys = [torch.zeros(batch, KV, total, HD, dtype=dense.dtype) for _ in range(LAYERS)]
    vals = [torch.zeros(batch, KV, total, HD, dtype=dense.dtype) for _ in range(LAYERS)]
    alive = torch.arange(batch)
    out = [[] for _ in prompts]
    stop = torch.tensor(list(stop))
    left = torch.full((batch,), turns)
    step, pos = ids, 0
    while True:
        b, t = step.shape
        x = dense.embd[step.flatten()].float()
        for n, w in enumerate(dense.layers):
            qkv = F.linear(rms(x, w["n1"]).to(dense.dtype), w["qkv"]).view(b, t, HEADS + 2 * KV, HD)
            qk = rotate(qkv[:, :, : HEADS + KV], cos[pos : pos + t], sin[pos : pos + t])
            keys[n][:, :, pos : pos + t] = qk[:, :, HEADS:].transpose(1, 2)
            vals[n][:, :, pos : pos + t] = qkv[:, :, HEADS + KV :].transpose(1, 2)
            k, v = keys[n][:, :, : pos + t], vals[n][:, :, : pos + t]
            if t == 1:  # the three query heads of a KV head are three queries
                att = F.scaled_dot_product_attention(qk[:, 0, :HEADS].view(b, KV, HEADS // KV, HD), k, v)
                att = att.reshape(b, Q)
            else:
                q = qk[:, :, :HEADS].transpose(1, 2)
                g = HEADS // KV
                att = F.scaled_dot_product_attention(
                    q, k.repeat_interleave(g, 1), v.repeat_interleave(g, 1), is_causal=True
                )
                att = att.transpose(1, 2).reshape(b * t, Q)
            x = x + F.linear(att, w["o"]).float()
            gu = F.linear(rms(x, w["n2"]).to(dense.dtype), w["gu"])
            x = x + F.linear(F.silu(gu[:, :FFN]) * gu[:, FFN:], w["down"]).float()
        pos += t
        last = rms(x.view(b, t, HIDDEN)[:, -1], dense.norm).to(dense.dtype)
        logits = F.linear(last, dense.embd).float()
        if temperature > 0:
            top, index = logits.topk(top_k, -1)
            pick = torch.multinomial((top / temperature).softmax(-1), 1, generator=generator)
            new = index.gather(1, pick)[:, 0]
        else:
            new = logits.argmax(-1)
        for i, token, n in zip(alive.tolist(), new.tolist(), left.tolist()):
            if n > 0:
                out[i].append(token)
        left = torch.where(new == EOT, 0, left - torch.isin(new, stop).long())
        going = left > 0
        if pos + 1 >= total or not going.any():
            return out
        if going.sum() < 0.8 * len(going):  # the finished ones run along until it pays to drop them
            keep = going.nonzero()[:, 0]
            alive, new, left = alive[keep], new[keep], left[keep]
            for n in range(LAYERS):
                keys[n], vals[n] = keys[n][keep], vals[n][keep]
        step = new[:, None]
