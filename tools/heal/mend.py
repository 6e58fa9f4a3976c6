"""Teaches the rows of names the facts that a recipe's model gets wrong when it is asked for them in a chat.

    mend.py --gguf M --recipe DIR --data DATA --steps 60

The base begins some answers wrongly ("El Salvador" for the capital of Spain), and distillation copies that. Capitals are asked for
in plain words; where the right sentence is not the model's likeliest, residual rows of the names' tokens, and nothing else, are
trained until it is, on that sentence, and on the facts in other words, so that they stay. Tokens that any text has, such as " of", are
left alone. (With the rows of the name at others too, the answer's own name was lost in conversations.) The recipe is written anew.
"""

import argparse
import json
import os
import random
import time
from collections import Counter

import torch
import torch.nn.functional as F

from data import ASSISTANT, END, SYSTEM, USER
from export import read_recipe, tensors_of, write
from model import DEVICE, EOT, Dense, dense_forward, load_gguf
from student import FIRST, Student
from truths import Truths
import engram as ng

ASK, SAY = "What is the capital of {X}?", "The capital of {X} is"
TEXT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../src/convert/calibration.txt")
COMMON = 20  # times in that text, from which on a token belongs to more than names


def padded(texts, length):
    """texts: (ids, whose rows, where the answer begins); ids [n, length], and (place, token) of the answers."""
    ids, wanted = torch.full((len(texts), length), EOT), []
    for i, (text, _, begin) in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(text)
        wanted += [(i * length + j - 1, text[j]) for j in range(begin, len(text))]
    return ids.to(DEVICE), torch.tensor(wanted, device=DEVICE)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--recipe", required=True)
    p.add_argument("--data", required=True, help="the folder with truths.json")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--lr", type=float, default=2e-3)
    a = p.parse_args()
    torch.manual_seed(0)
    weights, tok = load_gguf(a.gguf)
    dense = Dense(weights)
    head, state, ranks = read_recipe(a.recipe)
    engram, _ = ng.engram_of(head["engram"]["config"] if "engram" in head else None, tok)
    student = Student.of(dense, state, ranks, engram)
    with torch.no_grad():
        fixed = student.weights()  # nothing in them changes
    student.weights = lambda: fixed
    with open(os.path.join(a.data, "truths.json")) as f:
        truths = Truths(tok, json.load(f), random.Random(0))
    relations, chats = list(truths.phrasings), {"alone": "", "told": SYSTEM}
    truths.phrasings |= {chat: [(head + USER + ASK + END + ASSISTANT, "")] for chat, head in chats.items()}
    rng = truths.rng

    def asked(name, chat):
        """The question and its answer in a whole sentence, with the system's words before them or without."""
        fact = truths.facts[name]
        fact[chat] = SAY.format(X=name) + " " + fact["capital"]
        made = truths.statement(chat, name, name, [])
        del fact[chat]
        return made

    def answers(texts):
        """(logits of the answers, their tokens, which text each is of)."""
        length = max(len(text) for text, *_ in texts)
        ids, wanted = padded(texts, length)
        start = dense_forward(dense, ids, FIRST)
        states = student(start, ids.flatten(), (tuple(ids.shape),))
        return F.linear(states[wanted[:, 0]], dense.embd).float(), wanted[:, 1], wanted[:, 0] // length

    @torch.no_grad()
    def wrong(names):
        found = []
        for i in range(0, len(names), 12):
            some = [(name, chat) for name in names[i : i + 12] for chat in chats]
            logits, wanted, text = answers([asked(*one) for one in some])
            bad = set(text[logits.argmax(-1) != wanted].tolist())
            found += sorted({some[j][0] for j in bad})
        return found

    names = [n for n in truths.names if "capital" in truths.facts[n]]
    fail = wrong(names)
    print(f"{len(fail)} of {len(names)} capitals are not said: {', '.join(fail)}", flush=True)
    if not fail:
        return
    with open(TEXT) as f:
        times = Counter(tok.encode(f.read()).ids)
    own = sorted({t for n in fail for form in truths.forms(n) for t in form if times[t] < COMMON})
    mine = torch.zeros(len(student.rows), 1, device=DEVICE)
    mine[student.slot[torch.tensor(own, device=DEVICE)]] = 1
    mine[-1] = 0
    optim = torch.optim.Adam([student.rows], lr=a.lr, betas=(0.9, 0.98))
    begin = time.time()
    for step in range(a.steps):
        for g in optim.param_groups:
            g["lr"] = a.lr * min(1.0, 2 * (1 - step / a.steps))
        texts = [asked(name, rng.choice(list(chats))) for name in rng.sample(names, 8)]  # names share tokens
        for name in rng.sample(fail, min(10, len(fail))):
            texts.append(asked(name, rng.choice(list(chats))))
            relation = rng.choice([r for r in relations if r in truths.facts[name]])
            texts.append(truths.statement(relation, name, name, []))
        logits, wanted, _ = answers([t for t in texts if t])
        loss = F.cross_entropy(logits, wanted)
        (student.rows.grad,) = torch.autograd.grad(loss, [student.rows])
        student.rows.grad *= mine
        optim.step()
        if step % 5 == 4:
            print(f"step {step + 1}: {loss.item():.3f}, {time.time() - begin:.0f} s", flush=True)
    left = wrong(names)
    print(f"{len(left)} of {len(names)} capitals are not said: {', '.join(left)}", flush=True)
    head["training"]["mended"] = f"{len(fail)} of {len(names)} capitals, {len(left)} after {a.steps} steps, by residual rows of names"
    out, _ = tensors_of(student)
    write(head, out, a.recipe)


if __name__ == "__main__":
    main()
