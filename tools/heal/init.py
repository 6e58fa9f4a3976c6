"""A first student, in closed form and layer by layer: rows, their linear map, and W_d.

    init.py --gguf M --data *.jsonl --out init.pt [--recipe DIR]

Rows start as gate²-weighted means of W_u x over the calibration text, with one pseudo-count from a sweep of every
token after <|endoftext|>; the map from embeddings to rows is a weighted ridge; W_d is solved again towards the base's
residual stream, so that each layer repairs what the ones before it broke. With --recipe only those of the first layers
that the recipe lacks are made so; the others are the recipe's.
"""

import argparse
import json
import random
import time
from collections import Counter

import torch
import torch.nn.functional as F

import entities as en
from export import read_recipe
from model import EOT, FFN, HIDDEN, VOCAB, Dense, attention, dense_forward, load_gguf, rms, rope_table
from student import STEM, Student


def single_tokens(tok, names):
    """Ids of the names that are one token after a space."""
    ids = [tok.encode(" " + n.removeprefix("the ")).ids for n in names]
    return sorted({i[0] for i in ids if len(i) == 1})


def calibration_rows(files, limit, length=256):
    """Documents of each file in turn, as rows of ids [n, length] that start where a document does."""
    rows = []
    for path in files:
        docs = [json.loads(line)["ids"] for line in open(path)]
        random.Random(0).shuffle(docs)
        mine, row = [], []
        for ids in docs:
            row = row + ids + [EOT]
            if len(row) >= length:
                mine.append(row[:length])
                row = []
            if len(mine) * length * len(files) >= limit:
                break
        rows += mine
    return torch.tensor(rows)


def choose_tokens(tok, files, count):
    """The ids that get a residual row: single-token entities, then the most frequent ones."""
    seen = Counter()
    for path in files:
        for line in open(path):
            doc = json.loads(line)
            seen.update(doc["ids"] if doc["kind"] != "wiki" else doc["ids"][:40])
    chosen = single_tokens(tok, en.COUNTRIES + en.CITIES)
    chosen += [t for t, _ in seen.most_common(count * 2) if t not in set(chosen)]
    return sorted(chosen[:count])


def halves(x, w, batch, length, cos, sin):
    """Stream after attention, and the FFN's normalised input."""
    x = x + F.linear(attention(F.linear(rms(x, w["n1"]).to(w["o"].dtype), w["qkv"]), batch, length, cos, sin), w["o"]).float()
    return x, rms(x, w["n2"]).to(w["o"].dtype)


@torch.no_grad()
def fit(dense, student, rows, layers=STEM, batch=16, ridge_map=0.02, ridge_down=0.02):
    n, length = rows.shape
    cos, sin = rope_table(length)
    flat = rows.flatten()
    slices = [slice(i * length, min(i + batch, n) * length) for i in range(0, n, batch)]
    start = torch.cat([dense_forward(dense, rows[i : i + batch], 0, STEM[0]) for i in range(0, n, batch)])
    teacher, pupil = start, start.clone()

    ids = torch.arange(VOCAB)
    sweep_ids = torch.stack([torch.full_like(ids, EOT), ids], 1)
    sweep = torch.cat([dense_forward(dense, part, 0, STEM[0]) for part in sweep_ids.split(4096)])
    count = torch.bincount(flat, minlength=VOCAB).float()
    weight = (count + 0.3).sqrt()
    gram = (dense.embd32 * weight[:, None]).t() @ dense.embd32
    gram += ridge_map * gram.diagonal().mean() * torch.eye(HIDDEN)

    for i, layer in enumerate(layers):
        t0 = time.time()
        w = dense.layers[layer]
        top, bottom = torch.full((VOCAB, FFN), 1e-6), torch.full((VOCAB, FFN), 1e-6)
        for part in range(0, 2 * VOCAB, 8192):  # the sweep: one pseudo-count for every token
            s = slice(part, part + 8192)
            x, h = halves(sweep[s], w, len(sweep[s]) // 2, 2, cos, sin)
            gu = F.linear(h, w["gu"])
            g, u = F.silu(gu[:, :FFN].float()), gu[:, FFN:].float()
            t = sweep_ids.flatten()[s][1::2]
            g2 = g[1::2].square() + 1e-3
            top[t] += g2 * u[1::2]
            bottom[t] += g2
            sweep[s] = x + F.linear((g * u).to(dense.dtype), w["down"]).float()
        mids = []
        for s in slices:  # the calibration text, as the teacher reads it
            x, h = halves(teacher[s], w, (s.stop - s.start) // length, length, cos, sin)
            gu = F.linear(h, w["gu"])
            g, u = F.silu(gu[:, :FFN].float()), gu[:, FFN:].float()
            g2 = g.square() + 1e-3
            top.index_add_(0, flat[s], g2 * u)
            bottom.index_add_(0, flat[s], g2)
            mids.append(x + F.linear((g * u).to(dense.dtype), w["down"]).float())
        teacher = torch.cat(mids)
        mean = top / bottom
        cross = (mean * weight[:, None]).t() @ dense.embd32  # [FFN, HIDDEN]
        student.maps[i].copy_(torch.linalg.solve(gram, cross.t()).t())
        student.rows[:-1, i * FFN : (i + 1) * FFN] = (mean - dense.embd32 @ student.maps[i].t())[student.tokens]
        total = (weight[:, None] * (mean - (mean * weight[:, None]).sum(0) / weight.sum()).square()).sum()
        left = (weight[:, None] * (mean - dense.embd32 @ student.maps[i].t()).square()).sum()

        # W_d towards the teacher's stream; positions of huge norm count little
        table = dense.embd32 @ student.maps[i].t()
        table[student.tokens] += student.rows[:-1, i * FFN : (i + 1) * FFN]
        a, b, acts, afters = torch.zeros(FFN, FFN), torch.zeros(FFN, HIDDEN), [], []
        for s in slices:
            x, h = halves(pupil[s], w, (s.stop - s.start) // length, length, cos, sin)
            act = F.silu(F.linear(h, w["gu"][:FFN]).float()) * table[flat[s]]
            goal = teacher[s] - x
            size = 1 / (goal.square().sum(-1) + 0.3 * teacher[s].square().sum(-1) + 1.0)
            a += (act * size[:, None]).t() @ act
            b += (act * size[:, None]).t() @ goal
            acts.append(act.to(torch.bfloat16))  # to save memory
            afters.append(x)
        base = w["down"].float()
        reg = ridge_down * a.diagonal().mean() * torch.eye(FFN)
        student.down[str(layer)].copy_(torch.linalg.solve(a + reg, b + reg @ base.t()).t())
        before = 0.0
        err = norm = 0.0
        for s, act, x in zip(slices, acts, afters):
            act = act.float()
            d0 = (x + act @ base.t() - teacher[s]).square().sum(-1)
            pupil[s] = x + act @ student.down[str(layer)].t()
            d1 = (pupil[s] - teacher[s]).square().sum(-1)
            q = teacher[s].square().sum(-1)
            before, err, norm = before + (d0 / q).sum().item(), err + (d1 / q).sum().item(), norm + len(q)
        print(
            f"layer {layer}: map explains {1 - left / total:.3f} of the rows; relative error of the stream "
            f"{before / norm:.4f} with the base's W_d, {err / norm:.4f} with the new one; {time.time() - t0:.0f} s",
            flush=True,
        )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--rows", type=int, default=1024, help="tokens with a residual row")
    p.add_argument("--recipe", help="an earlier recipe, whose layers are kept")
    p.add_argument("--limit", type=int, default=70_000, help="calibration tokens")
    a = p.parse_args()
    torch.manual_seed(0)
    weights, tok = load_gguf(a.gguf)
    dense = Dense(weights)
    earlier = read_recipe(a.recipe) if a.recipe else None
    layers = earlier["missing"] if earlier else STEM
    if layers != STEM[: len(layers)]:
        raise SystemExit(f"{a.recipe} lacks the layers {layers}, which are not the first of {STEM}")
    student = Student(dense, earlier["student"]["tokens"] if earlier else choose_tokens(tok, a.data, a.rows))
    if earlier:
        student.start_from(earlier["student"])
    fit(dense, student, calibration_rows(a.data, a.limit), layers)
    torch.save(student.state_dict(), a.out)


if __name__ == "__main__":
    main()
