"""How much of what a name means passes through the up-projections of a set of layers of the dense base.

    passes.py --gguf M --out docs/figures/passes.json

Two sentences that differ in a name of one token run side by side ("The city that is the capital of Spain is called", and the
same of Germany). In the layers of the set, and at the name alone, the FFN of the first gets the second's up-projection
output: what a swap of rows would do if rows knew all that their layer computes for the name in this very sentence. So it says
what a set of layers could carry at best without training that moves knowledge into it, for any set, without a conversion.

Facts and pairs are those of `xylem eval --suite reach` whose names have one token, where the base finds the right end likelier
than the other one for both names. Ends count by their first token. es: share in which the other name's end is then the
likelier one; exact: share in which it is the first choice; shift: what is added to log P(new) - log P(true), in nats.
"""
import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
sys.path.insert(0, os.path.join(ROOT, "tools/heal"))
from model import DEVICE, FFN, LAYERS, Dense, attention, load_gguf, rms, rope_table  # noqa: E402

SETS = {
    "ten early-middle layers": range(3, 13),
    "every third": range(2, 30, 3),
    "fourteen from the first on": range(1, 15),
    "ten later layers": range(13, 23),
    "the last ten": range(20, 30),
    "half of the layers": range(1, 30, 2),
    "the first half": range(1, 16),
    "twenty from the first on": range(1, 21),
    "all but the first": range(1, 30),
}


def cases(suite, tok):
    """For each fact the pairs as (prompt ids, name's place, other name's id, first ids of the true and the new end)."""
    entities = suite["entities"]
    for fact, sentence in suite["facts"].items():
        found = []
        for i, entity in enumerate(entities):
            own = sentence["end"].format(**entity)
            other = next(e for e in entities[i + 1 :] + entities[:i] if sentence["end"].format(**e) != own)
            names = [tok.encode(" " + e["name"]).ids for e in (entity, other)]
            ends = [tok.encode(" " + sentence["end"].format(**e)).ids[0] for e in (entity, other)]
            ids = tok.encode(sentence["prompt"].format(**entity)).ids
            if max(map(len, names)) == 1 and ends[0] != ends[1] and ids.count(names[0][0]) == 1:
                found.append((ids, ids.index(names[0][0]), names[1][0], *ends))
        yield fact, found


@torch.no_grad()
def log_probs(dense, ids, swapped=(), place=0):
    """Log-probabilities after ids [2n, length]. In layers `swapped` the first half gets, at `place` [n], the up-projection
    output of the second half."""
    batch, length = ids.shape
    half = batch // 2
    cos, sin = rope_table(length)
    x = dense.embd32[ids.flatten()]
    for n, w in enumerate(dense.full):
        att = attention(F.linear(rms(x, w.norm1), w.qkv), batch, length, cos, sin)
        x = x + F.linear(att, w.o)
        gate, up = F.linear(rms(x, w.norm2), w.ffn).chunk(2, -1)
        up = up.reshape(batch, length, FFN)
        if n in swapped:
            rows = torch.arange(half, device=DEVICE)
            up[rows, place] = up[half + rows, place]
        x = x + F.linear(F.silu(gate) * up.view(-1, FFN), w.down)
    last = rms(x.view(batch, length, -1)[:, -1], dense.norm)
    return F.linear(last, dense.embd32).log_softmax(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--suite", default=os.path.join(ROOT, "src/eval/reach/countries.json"))
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    weights, tok = load_gguf(args.gguf)
    dense = Dense(weights)
    with open(args.suite) as f:
        suite = json.load(f)
    assert LAYERS == len(dense.full)
    facts = []
    for fact, found in cases(suite, tok):
        lengths = {len(ids) for ids, *_ in found}
        assert len(lengths) <= 1, "names of one token leave a sentence its length"
        ids = torch.tensor([ids for ids, *_ in found], device=DEVICE)
        place, other, true, new = (torch.tensor([c[i] for c in found], device=DEVICE) for i in (1, 2, 3, 4))
        others = ids.clone()
        others[torch.arange(len(found)), place] = other
        both = torch.cat([ids, others])
        own = log_probs(dense, both)
        margin = own.gather(1, torch.cat([new, new])[:, None])[:, 0] - own.gather(1, torch.cat([true, true])[:, None])[:, 0]
        half = len(found)
        known = (margin[:half] < 0) & (margin[half:] > 0)
        facts.append((both[known.repeat(2)], place[known], true[known], new[known], margin[:half][known]))
        print(fact, int(known.sum()), "of", half, file=sys.stderr)
    report = {"cases": sum(len(f[1]) for f in facts), "sets": []}
    for name, layers in SETS.items():
        es = exact = shift = 0.0
        for both, place, true, new, before in facts:
            swapped = log_probs(dense, both, set(layers), place)[: len(place)]
            margin = swapped.gather(1, new[:, None])[:, 0] - swapped.gather(1, true[:, None])[:, 0]
            es += (margin > 0).sum().item()
            exact += (swapped.argmax(-1) == new).sum().item()
            shift += (margin - before).sum().item()
        one = {k: v / report["cases"] for k, v in (("es", es), ("exact", exact), ("shift", shift))}
        report["sets"].append({"name": name, "layers": list(layers), **one})
        print(name, one, file=sys.stderr)
    with open(args.out, "w") as f:
        json.dump(report, f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    main()
