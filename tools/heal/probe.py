"""Held-out figures of a student beside the base.

    probe.py --gguf M --recipe DIR --data DATA KIND...     of some documents of each kind: how well texts are copied that training saw, and how often
"""

import argparse
import random

import torch
import torch.nn.functional as F

import engram as ng
from data import documents
from export import read_recipe
from model import DEVICE, DTYPE, Dense, dense_forward, load_gguf, rms
from rows import alone
from student import FIRST, Student, Tokens

KNOWN = """Spain Germany France Italy Japan China Russia Greece Egypt Poland Portugal Sweden Norway Austria Cuba Iran Iraq
Ireland Canada Hungary Denmark Finland Turkey Peru Chile Kenya Thailand England India Mexico""".split()


class Probe:
    """Held-out figures: running text, facts, and swaps of rows."""

    def __init__(self, dense, tok, held):
        self.dense, self.held = dense, held
        prompts = [tok.encode(f"The capital of {n} is").ids for n in KNOWN]
        self.prompts = torch.tensor([p for p in prompts if len(p) == 5], device=DEVICE)
        self.answers = self.logits(self.end(self.prompts), self.prompts)
        the = {tok.encode(w).ids[0] for w in (" the", " a", " located", " not", " in")}
        good = torch.tensor([t not in the for t in self.answers.argmax(-1).tolist()], device=DEVICE)
        self.prompts, self.answers = self.prompts[good], self.answers[good]

    def end(self, ids):
        return rms(dense_forward(self.dense, ids), self.dense.norm).to(DTYPE)

    def logits(self, states, ids):
        return F.linear(states.view(*ids.shape, -1)[:, -1], self.dense.embd).float()

    def student(self, student, ids, rows=None):
        start = dense_forward(self.dense, ids, FIRST)
        return student(start, ids.flatten(), (tuple(ids.shape),), None if rows is None else Tokens.own(rows.flatten()))

    def text(self, student, kind):
        ids, weight = self.held[kind]
        mask = weight[:, :-1].flatten() > 0.5
        pick = lambda h: h.view(*ids.shape, -1)[:, :-1].flatten(0, 1)[mask]
        hs, ht, target = pick(self.student(student, ids)), pick(self.end(ids)), ids[:, 1:].flatten()[mask]
        out = torch.zeros(4, device=DEVICE)
        for s in [slice(i, i + 1024) for i in range(0, len(hs), 1024)]:
            ls = F.linear(hs[s], self.dense.embd).float().log_softmax(-1)
            lt = F.linear(ht[s], self.dense.embd).float().log_softmax(-1)
            out += torch.stack(
                [
                    -ls.gather(1, target[s, None]).sum(),
                    -lt.gather(1, target[s, None]).sum(),
                    (lt.exp() * (lt - ls)).sum(),
                    (ls.argmax(-1) == lt.argmax(-1)).sum(),
                ]
            )
        nll, dense_nll, kl, top1 = (out / len(hs)).tolist()
        return {"nll": nll, "dense_nll": dense_nll, "kl": kl, "top1": top1}

    def facts(self, student):
        say = lambda rows: self.logits(self.student(student, self.prompts, rows), self.prompts)
        true = self.answers.argmax(-1)
        cloze = (say(self.prompts).argmax(-1) == true).float().mean().item()
        rows = self.prompts.clone()
        rows[:, 3] = self.prompts[:, 3].roll(1)
        new = true.roll(1)
        differ = new != true
        p = say(rows).log_softmax(-1)
        margin = (p.gather(1, new[:, None]) - p.gather(1, true[:, None]))[:, 0][differ]
        exact = (p.argmax(-1) == new)[differ].float().mean().item()
        return {
            "cloze": cloze, "swap_margin": margin.mean().item(), "swap_es": (margin > 0).float().mean().item(), "swap_exact": exact,
            "prompts": len(true),
        }  # fmt: skip

    @torch.no_grad()
    def __call__(self, student):
        out = {f"{kind}_{k}": v for kind in self.held for k, v in self.text(student, kind).items()}
        return {k: round(v, 4) for k, v in (out | self.facts(student)).items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("kinds", nargs="+")
    p.add_argument("--gguf", required=True)
    p.add_argument("--recipe", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--documents", type=int, default=20, help="of each kind")
    p.add_argument("--length", type=int, default=200, help="their tokens, at most")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    weights, tok = load_gguf(a.gguf)
    dense = Dense(weights)
    head, state, ranks = read_recipe(a.recipe, dense)
    student = Student.of(dense, state, ranks, ng.engram_of(head.get("engram", {}).get("config"), tok)[0])
    for kind in a.kinds:
        long = [doc["ids"][: a.length] for doc in documents(a.data, kind) if len(doc["ids"]) > 60]
        some = random.Random(a.seed).sample(long, min(a.documents, len(long)))
        held = {kind: tuple(t.to(DEVICE) for t in alone([{"ids": ids} for ids in some]))}
        with torch.no_grad():
            figures = Probe(dense, tok, held).text(student, kind)
        print(kind, len(some), "documents", {k: round(v, 3) for k, v in figures.items()}, flush=True)


if __name__ == "__main__":
    main()
