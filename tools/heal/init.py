"""A first student in closed form: rows, what makes them, and W_d.

    init.py --gguf M --data DIR --out init.pt

Rows start as gate²-weighted means of W_u x over text, with one pseudo-count from a sweep of every token after <|endoftext|>.
The map from embeddings is a weighted ridge; the features are the best low-rank part of what it leaves, for all layers
at once; residual rows are what is left of it then. W_d is solved again, layer by layer, towards the base's stream, so that each
layer repairs what the ones before it broke.
"""

import argparse
import json
import os
import time

import torch
import torch.nn.functional as F

import entities as en
from data import documents
from model import DEVICE, DTYPE, EOT, FFN, HIDDEN, VOCAB, Dense, dense_forward, halves, load_gguf, rope_table
from student import FEATURES, FIRST, STEM, Student
from truths import Truths

TEXTS = ("chat", "wiki", "passages")


def calibration_rows(folder, limit, length=256):
    """Documents of each kind, as rows of ids [n, length] that start where a document does."""
    rows = []
    kinds = [k for k in TEXTS if any(True for _ in documents(folder, k))]
    for kind in kinds:
        mine, row = [], []
        for doc in documents(folder, kind):
            row = row + doc["ids"] + [EOT]
            if len(row) >= length:
                mine.append(row[:length])
                row = []
            if len(mine) * length * len(kinds) >= limit:
                break
        rows += mine
    return torch.tensor(rows, device=DEVICE)


def choose_tokens(tok, folder, rows, count):
    """The ids that get a residual row: those of names that facts are taught about, then the most frequent ones."""
    chosen = {i[0] for n in en.COUNTRIES + en.CITIES if len(i := tok.encode(" " + n.removeprefix("the ")).ids) == 1}
    path = os.path.join(folder, "truths.json")
    if os.path.exists(path):
        with open(path) as f:
            chosen |= set(Truths(tok, json.load(f), None).tokens())
    frequent = torch.bincount(rows.flatten(), minlength=VOCAB).argsort(descending=True).tolist()
    return sorted(list(chosen)[:count] + [t for t in frequent if t not in chosen][: max(0, count - len(chosen))])


@torch.no_grad()
def means_of(dense, rows, batch=64):
    """The mean row of every token, for each STEM layer [VOCAB, FFN]; and the stream before the first, [n * length, HIDDEN]."""
    n, length = rows.shape
    cos, sin = rope_table(length)
    start = torch.cat([dense_forward(dense, r, FIRST) for r in rows.split(batch)])
    sweep = torch.stack([torch.full((VOCAB,), EOT, device=DEVICE), torch.arange(VOCAB, device=DEVICE)], 1)
    streams = [(start.clone(), rows, (batch, length)), (dense_forward(dense, sweep, FIRST), sweep, (4096, 2))]
    found = []
    for layer in STEM:
        w = dense.layers[layer]
        top, bottom = torch.full((VOCAB, FFN), 1e-6, device=DEVICE), torch.full((VOCAB, FFN), 1e-6, device=DEVICE)
        for stream, ids, (some, length) in streams:
            flat, whole = ids.flatten(), torch.ones_like(ids)
            if length == 2:
                whole[:, 0] = 0  # of the sweep the token counts, not what stands before it
            for i in range(0, len(flat), some * length):
                s = slice(i, min(i + some * length, len(flat)))
                x, h = halves(stream[s], w, (((s.stop - s.start) // length, length),), cos, sin)
                gate, up = (v.float() for v in F.linear(h, w.ffn).chunk(2, -1))
                gate = F.silu(gate)
                g2 = (gate.square() + 1e-3) * whole.flatten()[s, None]
                top.index_add_(0, flat[s], g2 * up)
                bottom.index_add_(0, flat[s], g2)
                stream[s] = x + F.linear((gate * up).to(DTYPE), w.down).float()
        found.append(top / bottom)
    return found, start


@torch.no_grad()
def fit_rows(dense, student, rows, means, ridge=0.02):
    """The maps, the features and the residual rows; `means` is used up."""
    weight = (torch.bincount(rows.flatten(), minlength=VOCAB).float() + 0.3).sqrt()[:, None]
    e, width = dense.embd32, student.features.shape[1]
    gram = (e * weight).t() @ e
    gram += ridge * gram.diagonal().mean() * torch.eye(HIDDEN, device=DEVICE)
    for i, mean in enumerate(means):
        student.maps[i][:, :HIDDEN] = torch.linalg.solve(gram, (e * weight).t() @ mean).t()
        spread = (weight * (mean - (mean * weight).sum(0) / weight.sum()).square()).sum()
        mean -= e @ student.maps[i][:, :HIDDEN].t()
        print(f"layer {STEM[i]}: the map explains {1 - (weight * mean.square()).sum() / spread:.3f} of the rows", flush=True)
    left, size = means, [r.square().mean().sqrt() for r in means]
    both = torch.empty(VOCAB, len(left) * FFN, device=DEVICE)
    for part, r, z in zip(both.split(FFN, 1), left, size):
        torch.mul(r, weight.sqrt() / z, out=part)
    u, s, v = torch.svd_lowrank(both, q=width + 16, niter=3)
    del both
    features = u[:, :width] * s[:width] / weight.sqrt()
    scale = features.square().mean(0).sqrt() / 0.1
    student.features.copy_(features / scale)
    for i, (residual, z) in enumerate(zip(left, size)):
        own = slice(i * FFN, (i + 1) * FFN)
        student.maps[i][:, HIDDEN:] = v[own, :width] * scale * z
        before = (weight * residual.square()).sum()
        residual -= student.features @ student.maps[i][:, HIDDEN:].t()
        print(f"layer {STEM[i]}: features explain {1 - (weight * residual.square()).sum() / before:.3f} of the rest", flush=True)
        student.rows[:-1, own] = residual[student.tokens]


@torch.no_grad()
def fit_down(dense, student, rows, start, batch=64, ridge=0.02):
    """W_d of each layer, towards the base's stream; positions of huge norm count little."""
    n, length = rows.shape
    cos, sin = rope_table(length)
    flat = rows.flatten()
    teacher, pupil = start.clone(), start
    slices = [slice(i * length, min(i + batch, n) * length) for i in range(0, n, batch)]
    for i, layer in enumerate(STEM):
        begin, w = time.time(), dense.layers[layer]
        table = torch.cat([dense.embd32, student.features], 1) @ student.maps[i].t()  # [VOCAB, FFN]
        table[student.tokens] += student.rows[:-1, i * FFN : (i + 1) * FFN]
        a, b = torch.zeros(FFN, FFN, device=DEVICE), torch.zeros(FFN, HIDDEN, device=DEVICE)
        acts = []
        for s in slices:
            shape = (((s.stop - s.start) // length, length),)
            x, h = halves(teacher[s], w, shape, cos, sin)
            gate, up = F.linear(h, w.ffn).chunk(2, -1)
            teacher[s] = x + F.linear((F.silu(gate.float()) * up.float()).to(DTYPE), w.down).float()
            x, h = halves(pupil[s], w, shape, cos, sin)
            act = F.silu(F.linear(h, w.ffn[:FFN]).float()) * table[flat[s]]
            goal = teacher[s] - x
            size = 1 / (goal.square().sum(-1) + 0.3 * teacher[s].square().sum(-1) + 1.0)
            a += (act * size[:, None]).t() @ act
            b += (act * size[:, None]).t() @ goal
            acts.append(act.to(DTYPE))
            pupil[s] = x
        base = w.down.float()
        reg = ridge * a.diagonal().mean() * torch.eye(FFN, device=DEVICE)
        student.down[str(layer)].copy_(torch.linalg.solve(a + reg, b + reg @ base.t()).t())
        errors = torch.zeros(2, device=DEVICE)
        for s, act in zip(slices, acts):
            act, size = act.float(), teacher[s].square().sum(-1)
            errors[0] += ((pupil[s] + act @ base.t() - teacher[s]).square().sum(-1) / size).sum()
            pupil[s] += act @ student.down[str(layer)].t()
            errors[1] += ((pupil[s] - teacher[s]).square().sum(-1) / size).sum()
        before, after = (errors / len(flat)).tolist()
        print(f"layer {layer}: error of the stream {before:.4f} with the base's W_d, {after:.4f} with its own; {time.time() - begin:.1f} s", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--rows", type=int, default=1199, help="tokens with a residual row")
    p.add_argument("--features", type=int, default=FEATURES, help="learned features of every token")
    p.add_argument("--limit", type=int, default=400_000, help="tokens of text")
    a = p.parse_args()
    torch.manual_seed(0)
    weights, tok = load_gguf(a.gguf)
    dense = Dense(weights)
    rows = calibration_rows(a.data, a.limit)
    student = Student(dense, choose_tokens(tok, a.data, rows, a.rows), a.features)
    means, start = means_of(dense, rows)
    fit_rows(dense, student, rows, means)
    fit_down(dense, student, rows, start)
    torch.save(student.state_dict(), a.out)


if __name__ == "__main__":
    main()
