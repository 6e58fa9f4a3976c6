"""Goes a part of the way from one recipe to another that was trained on from it.

    mix.py --gguf M --from DIR --to DIR --core 0.6 --tables 0 --data DATA --provenance provenance.json --out recipe

A run may win one skill and lose a little of another; between its beginning and its end the skills needn't change at the same pace
(Wortsman et al., arXiv 2109.01903). The core, all that is multiplied with, and the tables, rows and what they are made of, may go
differently far. DATA has held-out text, figures of which go into recipe.json.
"""

import argparse
import json

import torch
import torch.nn.functional as F

import engram as ng
from export import read_recipe, tensors_of, write
from model import HIDDEN, Dense, load_gguf
from probe import Probe
from rows import held_out
from student import Student, balanced

TABLES = ("features", "maps", "rows", "engram")


def mixed(old, new, core, tables):
    """The state that is so far from old to new. Low-rank changes are mixed as products, since their factors are not unique. Where old
    has fewer features, its others are zero, so that it doesn't matter what its maps make of them."""
    out, have = {}, old["features"].shape[1]
    old = old | {"features": F.pad(old["features"], (0, new["features"].shape[1] - have))}
    old |= {k: torch.cat([old[k], new[k][:, HIDDEN + have :]], 1) for k in old if k.startswith("maps.")}
    for name, value in new.items():
        share = tables if name.startswith(TABLES) else core
        if name == "tokens":
            assert torch.equal(old[name], value), "the recipes have residual rows of different tokens"
            out[name] = value
        elif name.startswith("core.") and name.endswith("_a"):
            b = name[:-1] + "b"
            wide = balanced(torch.cat([old[name], value]), torch.cat([(1 - share) * old[b], share * new[b]], 1))
            out[name], out[b] = wide[0][: len(value)], wide[1][:, : len(value)]  # by falling size: the nearest of that rank
        elif not name.startswith("core."):
            out[name] = torch.lerp(old[name], value, share)
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--from", dest="old", required=True)
    p.add_argument("--to", dest="new", required=True)
    p.add_argument("--core", type=float, default=0.6)
    p.add_argument("--tables", type=float, default=0.0)
    p.add_argument("--without-convolution", action="store_true", help="set the taps of Engram layers' convolutions to zero")
    p.add_argument("--data", required=True)
    p.add_argument("--provenance", help="a JSON file that replaces all but the figures of `training`")
    p.add_argument("--out", required=True)
    a = p.parse_args()
    weights, tok = load_gguf(a.gguf)
    dense = Dense(weights)
    _, old, _ = read_recipe(a.old, dense)
    head, new, ranks = read_recipe(a.new, dense)
    if old.keys() != new.keys():
        raise SystemExit(f"{a.old} and {a.new} change different matrices: {sorted(old.keys() ^ new.keys())}")
    engram, _ = ng.engram_of(head.get("engram", {}).get("config"), tok)
    state = mixed(old, new, a.core, a.tables)
    if a.without_convolution:
        state |= {name: torch.zeros_like(value) for name, value in state.items() if name.startswith("engram.conv.")}
    student = Student.of(dense, state, ranks, engram)
    out, written = tensors_of(student)
    student.load_state_dict(written)
    training = {k: v for k, v in head["training"].items() if k in ("start", "end", "exported")}
    if a.provenance:
        with open(a.provenance) as f:
            training = json.load(f) | training
    training["mixed"] = {"core": a.core, "tables": a.tables} | Probe(dense, tok, held_out(a.data))(student)
    print(json.dumps(training["mixed"]))
    write(head | {"training": training}, out, a.out)


if __name__ == "__main__":
    main()
