"""Engram layers of the student: rows of n-grams, added before attention (arXiv 2601.07372, and its demonstration).

What ids, hashes and operations are is defined in `src/engram` and `src/cpu/engram.rs`; the same vectors check both:

    engram.py ../../tests/engram/vectors.json
"""

import hashlib
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model import DEVICE, EOT, EPS, HIDDEN, VOCAB

SPACE = "\ue000"


def compress(tok):
    """The compressed id of each token, and how many there are."""
    from tokenizers import Regex, normalizers as nz

    normal = nz.Sequence(
        [
            nz.NFKC(), nz.NFD(), nz.StripAccents(), nz.Lowercase(), nz.Replace(Regex(r"[ \t\r\n]+"), " "),
            nz.Replace(Regex(r"^ $"), SPACE), nz.Strip(), nz.Replace(SPACE, " "),
        ]
    )
    known, ids = {}, []
    for token in range(VOCAB):
        text = tok.decode([token], skip_special_tokens=False)
        key = tok.id_to_token(token) if "\ufffd" in text else normal.normalize_str(text) or text
        ids.append(known.setdefault(key, len(known)))
    return np.array(ids, dtype="<u4"), len(known)


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def draw(layers, tables, heads, width, ids, count, seed=0, kernel=4, pad=EOT):
    """The `config` of a bundle's Engram layers. `tables`: of each order from 2 on, the least size of a head's table."""
    half = (int(np.iinfo(np.int64).max) // count) // 2
    used, out = set(), []
    for layer in layers:
        rng = np.random.default_rng(seed + 10007 * layer)
        multipliers = 2 * rng.integers(0, half, size=len(tables) + 1, dtype=np.int64) + 1
        primes = []
        for size in tables:
            found = []
            while len(found) < heads:
                if is_prime(size) and size not in used:
                    used.add(size)
                    found.append(size)
                size += 1
            primes.append(found)
        out.append({"layer": layer, "multipliers": multipliers.tolist(), "primes": primes})
    return {"layers": out, "head_width": width, "kernel": kernel, "compressed_vocab": count, "pad": int(ids[pad]), "seed": seed}


def layer_forward(x, e, key, value, query_norm, key_norm, conv_norm, conv, batch, dilation, eps=EPS):
    """x [batch * length, hidden] plus what the layer makes of the head rows e [batch * length, width]."""
    norm = lambda v, gain: v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps) * gain
    hidden = x.shape[-1]
    k, v = F.linear(e, key), F.linear(e, value)
    s = (norm(x, query_norm) * norm(k, key_norm)).sum(-1, keepdim=True) * hidden**-0.5
    v = v * torch.sigmoid(s.sign() * s.abs().clamp(min=1e-6).sqrt())
    u = norm(v, conv_norm).view(batch, -1, hidden).transpose(1, 2)
    u = F.pad(u, ((len(conv) - 1) * dilation, 0))
    y = F.conv1d(u, conv.t()[:, None].contiguous(), groups=hidden, dilation=dilation)
    return x + v + F.silu(y).transpose(1, 2).reshape(-1, hidden)


class Engram(nn.Module):
    """All Engram layers of a student. New ones change nothing: their tables are zero."""

    def __init__(self, config, ids):
        super().__init__()
        self.config = config
        self.layers = {layer["layer"]: i for i, layer in enumerate(config["layers"])}
        self.order = len(config["layers"][0]["multipliers"])
        self.register_buffer("ids", torch.from_numpy(np.asarray(ids).astype(np.int64)), persistent=False)
        primes = [p for layer in config["layers"] for heads in layer["primes"] for p in heads]
        first = np.concatenate([[0], np.cumsum(primes)])
        self.register_buffer("first", torch.from_numpy(first[:-1].reshape(len(self.layers), -1)), persistent=False)
        self.table = nn.Parameter(torch.zeros(int(first[-1]), config["head_width"]))
        width = self.first.shape[1] * config["head_width"]
        make = lambda shape, scale: nn.ParameterList([nn.Parameter(torch.randn(shape) * scale) for _ in self.layers])
        ones = lambda: nn.ParameterList([nn.Parameter(torch.ones(HIDDEN)) for _ in self.layers])
        self.key, self.value = (make((HIDDEN, width), width**-0.5) for _ in range(2))
        self.query_norm, self.key_norm, self.conv_norm = ones(), ones(), ones()
        self.conv = make((config["kernel"], HIDDEN), 0.0)
        self.to(DEVICE)

    def records(self, ids):
        """The records of all heads for the text ids [batch, length]: [layers, batch * length, heads]."""
        compressed = self.ids[ids]
        padded = F.pad(compressed, (self.order - 1, 0), value=self.config["pad"])
        back = [padded[:, self.order - 1 - k : padded.shape[1] - k] for k in range(self.order)]
        out = []
        for layer, first in zip(self.config["layers"], self.first):
            mix, hashes = back[0] * layer["multipliers"][0], []
            for k, primes in enumerate(layer["primes"], 1):
                mix = mix ^ (back[k] * layer["multipliers"][k])
                hashes += [mix % p for p in primes]
            out.append(torch.stack(hashes, -1).flatten(0, 1) + first)
        return torch.stack(out)

    def forward(self, n, x, records, batch):
        """The stream x [batch * length, hidden] with layer n's part added."""
        i = self.layers[n]
        e = self.table.index_select(0, records[i].flatten()).view(len(x), -1)
        names = ("key", "value", "query_norm", "key_norm", "conv_norm", "conv")
        return layer_forward(x, e, *(getattr(self, name)[i] for name in names), batch, self.order)


def engram_of(config, tok):
    """The Engram layers of a `config`, if there is one, and their compressed ids."""
    if not config:
        return None, None
    ids, count = compress(tok)
    if count != config["compressed_vocab"]:
        raise SystemExit(f"{count} compressed ids, the Engram layers have {config['compressed_vocab']}")
    return Engram(config, ids), ids


def head_of(config, ids):
    """What `recipe.json` says of the layers."""
    return {"config": config, "ids_sha256": hashlib.sha256(np.asarray(ids).astype("<u4").tobytes()).hexdigest()}


def spans(config):
    """(name in a recipe, rows of the table) of each head."""
    at = 0
    for layer in config["layers"]:
        for head, prime in enumerate(p for heads in layer["primes"] for p in heads):
            yield f"blk.{layer['layer']}.engram_rows.{head}", slice(at, at + prime)
            at += prime


NAMES = ("key", "value", "query_norm", "key_norm", "conv_norm", "conv")


def tensors_of(engram, put, state, prefix="engram."):
    """Writes the layers with `put(name, values, group)` into a recipe, and what it gives back into `state`."""
    plain = {}
    for n, i in engram.layers.items():
        for name in NAMES:
            value = state[f"{prefix}{name}.{i}"]
            if name in ("key", "value"):
                state[f"{prefix}{name}.{i}"] = put(f"blk.{n}.engram_{name}.weight", value, 32)
            else:
                plain[f"blk.{n}.engram_{name}.weight"] = value.float().flatten()
    for name, span in spans(engram.config):
        state[f"{prefix}table"][span] = put(name, state[f"{prefix}table"][span].contiguous())
    return plain


def state_of(config, get, prefix="engram."):
    """The state of the layers in a recipe whose tensors `get` gives."""
    state = {f"{prefix}table": torch.cat([get(name) for name, _ in spans(config)])}
    for i, layer in enumerate(config["layers"]):
        for name in NAMES:
            value = get(f"blk.{layer['layer']}.engram_{name}.weight")
            state[f"{prefix}{name}.{i}"] = value.view(config["kernel"], HIDDEN) if name == "conv" else value
    return state


def check(path):
    """Hashes and a layer against the vectors."""
    with open(path) as f:
        vectors = json.load(f)
    v = vectors["forward"]
    t = {k: torch.tensor(x, dtype=torch.float64) for k, x in v.items() if k != "dilation"}
    mat = lambda k: t[k].view(-1, 32)
    got = layer_forward(
        mat("x"), mat("e"), mat("key"), mat("value"), t["query_norm"], t["key_norm"], t["conv_norm"], mat("conv"), 1, v["dilation"]
    )
    worst = (got - mat("out")).abs().max().item()
    assert worst < 2e-6, worst
    for case in vectors["cases"]:
        ids = np.array(vectors["ids"])
        config = draw(case["layers"], case["tables"], case["heads"], 32, ids, vectors["count"], case["seed"], pad=case["pad_token"])
        assert config["layers"] == case["drawn"]
        engram = Engram(config, ids)
        found = engram.records(torch.tensor([case["tokens"]], device=DEVICE)) - engram.first[:, None]
        assert found.tolist() == case["hashes"]
    print(f"the layer within {worst:.1e}, all hashes equal")


if __name__ == "__main__":
    check(sys.argv[1])
