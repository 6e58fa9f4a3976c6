"""Distils the dense base into the STEM student.

    train.py --gguf M --init init.pt --data DIR --out RUN --minutes 7

The loss is KL to the base on its full distribution, at every position of running text; one row of each step is long, and its second
half is passages of the first, so that attention stays good at finding them. Beside it each step has true facts, as
they are and counterfactual (`truths.py`), whose loss is the cross-entropy of the answers. The learning rate follows the clock, so
that it reaches zero when the time is up, of what is rounded to four bits somewhat earlier. RUN holds last.pt (resumed from when there)
and log.jsonl; with --recipe NAME also the recipe of what was saved last, in RUN/recipe, written before last.pt.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import time

import numpy as np
import torch
import torch.nn.functional as F

import engram as ng
from export import provenance, read_recipe
from export import save as save_recipe
from model import DEVICE, DTYPE, FFN, HIDDEN, VOCAB, Dense, dense_layers, layer, load_gguf, rms, tokenizer
from probe import Probe
from rows import MIXTURE, Order, fetched, held_out, load
from student import FEATURES, FIRST, RANKS, STEM, TRAINABLE, KlHead, Student, Tokens, fused_layer
from truths import Truths

SHORT = 64  # tokens of a row of facts


# ---------------------------------------------------------------- batches of facts, by other processes

_truths = None


def _facts(job):
    """`rows` texts of true facts and as many counterfactual ones, or with `straight` as many true ones again: ids, what
    `Tokens` are made of, and the answers' (place, token, weight). The lengths of all depend on `rows` alone."""
    seed, rows, straight = job
    _truths.rng.seed(seed)
    ids, at, of, share, answers_of = [], [], [], [], []
    for turned in (False, not straight):
        text, whose, mixes, answers = _truths.take(rows, SHORT, turned)
        base = len(ids) * SHORT
        answers_of += [(base + place, token) for place, token in answers]
        for i, token in enumerate(t for row in whose for t in row):
            members = mixes[token - VOCAB] if token >= VOCAB else (token,)
            at += [base + i] * len(members)
            of += members
            share += [1 / len(members)] * len(members)
        ids += text
    place, wanted = zip(*answers_of)
    of_size = lambda values, n, dtype=np.int64: np.pad(np.array(values, dtype), (0, n - len(values)))
    mixed, said = sizes(rows)
    return (
        ids, of_size(at, mixed), of_size(of, mixed), of_size(share, mixed, np.float32),
        of_size(place, said), of_size(wanted, said), of_size([1] * len(wanted), said, np.float32),
    )  # fmt: skip


def sizes(rows):
    """Room for whose rows are read, and for tokens of answers: far more than there are."""
    return 3 * rows * SHORT, rows * SHORT


class Facts:
    """Such batches, made ahead by a few processes. To be made before DEVICE is first used, since it forks."""

    def __init__(self, tok, path, rows, straight, workers):
        global _truths
        self.rows, self.straight = rows, straight
        if not rows or not os.path.exists(path):
            return
        with open(path) as f:
            _truths = Truths(tok, json.load(f), random.Random(0))
        self.pool = multiprocessing.get_context("fork").Pool(workers)
        self.ahead, self.next = [], 0

    def take(self):
        """ids [2 rows · SHORT]; at, of, share of their `Tokens`; place, token, weight of the answers. On the CPU; or nothing."""
        if _truths is None:
            return ()
        while len(self.ahead) < 48:
            self.ahead.append(self.pool.apply_async(_facts, ((self.next, self.rows, self.straight),)))
            self.next += 1
        made = self.ahead.pop(0).get()
        return tuple(torch.as_tensor(x).flatten() for x in made)


# ---------------------------------------------------------------- training


def step_loss(student, texts, facts, a):
    """KL on running texts, (ids, weights) [rows, length], the cross-entropy of facts' answers (`Facts.take`), and their weighted sum."""
    dense, shape = student.dense, tuple(tuple(text.shape) for text, _ in texts)
    ids, weight = (torch.cat([t.flatten() for t in some]) for some in zip(*texts))
    tokens, running = Tokens.own(ids), len(ids)
    if facts:
        of_facts, at, of, share, place, wanted, count = facts
        shape += ((2 * a.fact_rows, SHORT),)
        ids, tokens = torch.cat([ids, of_facts]), tokens + Tokens(at, of, share, len(of_facts))
    start = dense_layers(dense, dense.embd[ids].float(), shape, end=FIRST, layer=a.layer)
    target = dense_layers(dense, start[:running], shape[: len(texts)], FIRST, layer=a.layer)
    target = rms(target, dense.norm).to(DTYPE)
    states = student(start, ids, shape, tokens, a.layer)
    kl = KlHead.apply(states[:running], target, dense.embd, weight)
    if not facts:
        return kl, kl.detach(), kl.new_zeros(())
    answers = F.cross_entropy(F.linear(states.index_select(0, running + place), dense.embd).float(), wanted, reduction="none")
    answers = (answers * count).sum() / count.sum()
    return kl + a.truth * answers, kl.detach(), answers.detach()


class Step:
    """`step_loss` and its gradients. On a GPU recorded once as a CUDA graph, since to start its ten thousand kernels one by one takes
    longer than they do; so all steps have equal shapes, and gradients stay where they are."""

    EAGER = 3  # steps before it is recorded, in which everything is compiled

    def __init__(self, student, a):
        self.student, self.a = student, a
        self.params = [q for q in student.parameters() if q.requires_grad]
        self.graph, self.steps, self.side = None, 0, torch.cuda.Stream() if a.graph else None

    def run(self):
        for q in self.params:
            q.grad = None
        loss, *parts = step_loss(self.student, self.texts, self.facts, self.a)
        loss.backward()
        return torch.stack(parts)

    def __call__(self, texts, facts):
        """[KL, cross-entropy of facts], good until the next step."""
        flat = [t for text in texts for t in text] + list(facts)
        if self.steps == 0:
            self.own = [t.to(DEVICE, copy=True) for t in flat]
        else:
            for mine, t in zip(self.own, flat):
                mine.copy_(t, non_blocking=True)
        n = 2 * len(texts)
        self.texts, self.facts = list(zip(self.own[:n:2], self.own[1:n:2])), tuple(self.own[n:])
        self.steps += 1
        if not self.a.graph:
            return self.run()
        if self.steps <= self.EAGER:
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                parts = self.run()
            torch.cuda.current_stream().wait_stream(self.side)
            return parts
        if self.graph is None:
            for q in self.params:
                q.grad = None
            torch.cuda.empty_cache()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.parts = self.run()
        self.graph.replay()
        return self.parts


def rows_of(length, a):
    return round(a.tokens * MIXTURE[length][0] / length)


def grown(state, ranks):
    """The state, and the ranks, of the same student with FEATURES and RANKS, where it has less.

    New features are zero. Their part of the maps is what the residual rows, all layers' together, have most of: where frequent
    tokens needed to go beyond the map. New parts of low-rank changes begin as such changes do, with b zero.
    """
    state, have = {k: v.to(DEVICE) for k, v in state.items()}, state["features"].shape[1]
    if (more := FEATURES - have) > 0:
        _, _, v = torch.svd_lowrank(state["rows"], q=more + 16, niter=3)
        state["features"] = F.pad(state["features"], (0, more))
        for i in range(len(STEM)):
            own = state[f"maps.{i}"]
            size = own[:, HIDDEN:].norm() * (len(STEM) / have) ** 0.5  # v's columns have length 1 over all layers together
            state[f"maps.{i}"] = torch.cat([own, size * v[i * FFN : (i + 1) * FFN, :more]], 1)
    for name in [k for k in state if k.startswith("core.") and k.endswith("_a")]:
        a, b = state[name], name[:-1] + "b"
        if (more := RANKS[name.split("_")[1]] - len(a)) > 0:
            state[name] = torch.cat([a, torch.randn(more, a.shape[1], device=DEVICE) * a.square().mean().sqrt()])
            state[b] = F.pad(state[b], (0, more))
    return state, {name: max(rank, RANKS[name]) if rank else 0 for name, rank in ranks.items()}


def begin_with(dense, tok, a):
    """The student of `--init`, and the ranks of its changes."""
    ranks = RANKS | ({"ffn": 0, "down": 0} if a.no_dense_ffn else {})
    if os.path.isdir(a.init):
        head, state, ranks = read_recipe(a.init, dense)
        config = head.get("engram", {}).get("config")
    else:
        saved = torch.load(a.init, map_location=DEVICE)
        state, config = saved.get("student", saved), saved.get("engram")
    if a.engram_layers and not config:
        ids, count = ng.compress(tok)
        config = ng.draw(a.engram_layers, a.engram_tables, a.engram_heads, a.engram_width, ids, count)
    state, ranks = grown(state, ranks)
    student = Student(dense, state["tokens"].tolist(), state["features"].shape[1], ranks, ng.engram_of(config, tok)[0])
    student.load_state_dict(student.state_dict() | {k: v for k, v in state.items() if k in student.state_dict()})
    if a.engram_anew:
        student.engram.table.data.zero_()
    return student, ranks


def calm(optim, sights):
    """Begins Adagrad's sums as if all had been seen `sights`² times, by the first gradient. From nothing it would move what is seen
    for the first time by the whole rate, however weak its gradient, and most n-grams are never seen again."""
    for q in (q for g in optim.param_groups for q in g["params"]):
        seen = q.grad[q.grad.abs().amax(-1) > 0]
        if len(seen):
            optim.state[q]["sum"].fill_((sights**2 * seen.square().mean()).item())


def warm_up(step, a):
    """Compiles and records the step, on any tokens."""
    begin, some = time.time(), lambda *shape: torch.randint(VOCAB, shape)
    texts = [(ids, torch.ones(ids.shape)) for ids in (some(rows_of(n, a), n) for n in MIXTURE if rows_of(n, a))]
    n, (mixed, said) = 2 * a.fact_rows * SHORT, sizes(a.fact_rows)
    facts = (some(n), torch.arange(mixed) % n, some(mixed), torch.ones(mixed), torch.arange(said), some(said), torch.ones(said))
    while step.steps < Step.EAGER + 5:
        step(texts, facts if a.fact_rows else ())
        if step.steps in (1, Step.EAGER):
            torch.cuda.synchronize()
            print(f"compiled {step.steps} of {Step.EAGER}: {time.time() - begin:.1f} s", flush=True)
    begin, parts = time.time(), step(texts, facts if a.fact_rows else ())
    print(f"recorded: KL and facts {parts.tolist()}, a step takes {time.time() - begin:.3f} s", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--init", required=True, help="what init.py wrote, a checkpoint of an earlier run, or the folder of a recipe")
    p.add_argument("--data", default="data")
    p.add_argument("--out", default="run")
    p.add_argument("--minutes", type=float, default=7)
    p.add_argument("--by", type=float, help="end at this time instead, in seconds since 1970: for a machine that is lent until then")
    p.add_argument("--steps", type=int, default=0, help="so many instead of minutes")
    p.add_argument("--tokens", type=int, default=24576, help=f"of running text in a step, in rows of {list(MIXTURE)}")
    p.add_argument("--fact-rows", type=int, default=32, help=f"of true facts, and of counterfactual ones, in a step, of {SHORT} tokens")
    p.add_argument("--straight", action="store_true", help="all facts as they are, none counterfactual")
    p.add_argument("--truth", type=float, default=0.4, help="weight of facts, beside 1 of running text")
    p.add_argument("--lr", type=float, default=1.0, help="times all rates")
    p.add_argument("--flat", type=float, default=0.33, help="share of the time before the rates fall")
    p.add_argument("--settle", type=float, default=0.1, help="share of the time, at its end, in which what is in four bits stays as it is")
    p.add_argument("--lr-core", type=float, default=1.5e-3)
    p.add_argument("--lr-down", type=float, default=3e-4)
    p.add_argument("--lr-maps", type=float, default=3e-4)
    p.add_argument("--lr-rows", type=float, default=3e-3)
    p.add_argument("--lr-features", type=float, default=4e-3)
    p.add_argument("--calm", type=float, default=3.0, help="sights of a token or n-gram, squared, before its steps grow shorter")
    p.add_argument("--after", help="compile at once, and wait with the rest for this file, while DATA is being written")
    p.add_argument("--only", nargs="+", choices=TRAINABLE, help="train these alone: the gains of norms, attention's low-rank changes")
    p.add_argument("--no-dense-ffn", action="store_true", help="leave the FFNs of dense layers as they are")
    p.add_argument("--engram-layers", type=int, nargs="*", default=[], help="new Engram layers; a run goes on with those it has")
    p.add_argument("--engram-anew", action="store_true", help="begin with empty tables in the Engram layers that there are")
    p.add_argument("--no-convolution", action="store_true", help="leave the taps of Engram layers' convolutions as they are")
    p.add_argument("--engram-tables", type=int, nargs="*", default=[12289, 12289], help="of pairs, triples: least size of a head's table")
    p.add_argument("--engram-heads", type=int, default=8, help="of each order")
    p.add_argument("--engram-width", type=int, default=32, help="of a head's row")
    p.add_argument("--lr-engram", type=float, default=1.5e-3, help="of its projections")
    p.add_argument("--lr-engram-table", type=float, default=2e-2)
    p.add_argument("--probe-minutes", type=float, default=1)
    p.add_argument("--save-minutes", type=float, default=5)
    p.add_argument("--recipe", metavar="NAME", help="also write a recipe of that name, when saving")
    p.add_argument("--provenance", help="a JSON file that goes into its `training`")
    p.add_argument("--workers", type=int, default=6, help="processes that make batches of facts")
    p.add_argument("--eager", action="store_true", help="compile no layer and record no graph: slower, and ready at once")
    p.add_argument("--no-graph", action="store_true", help="start the kernels of a step one by one")
    a = p.parse_args()
    if a.flat + a.settle >= 1:
        raise SystemExit(f"--flat {a.flat} and --settle {a.settle}: together less than 1, so that rates have time to fall")
    a.layer = layer if a.eager else fused_layer
    a.graph = DEVICE.type == "cuda" and not (a.eager or a.no_graph)
    torch.backends.cuda.matmul.allow_tf32 = True
    tok = tokenizer(a.gguf)
    facts = Facts(tok, os.path.join(a.data, "truths.json"), a.fact_rows, a.straight, a.workers)
    torch.manual_seed(0)
    rng = random.Random(0)
    weights, _ = load_gguf(a.gguf)
    dense = Dense(weights)
    os.makedirs(a.out, exist_ok=True)
    student, ranks = begin_with(dense, tok, a)
    # What is rounded to four bits comes to rest a while before the end. At the edge between two levels the rates decide on which side a
    # weight stays, by chance; all else can still make up for how that went.
    rates, rest = {"norms": a.lr_down, "gate": a.lr_down, "down": a.lr_down, "maps": a.lr_maps}, 1 - a.settle
    groups = [{"params": list(getattr(student, k).parameters()), "lr": lr, "end": 1 if k == "norms" else rest} for k, lr in rates.items()]
    groups.append({"params": [student.rows], "lr": a.lr_rows, "end": rest})
    for attention in (False, True):
        some = [q for name, q in student.core.items() if TRAINABLE["attention"](name) == attention]
        groups.append({"params": some, "lr": a.lr_core, "end": 1 if attention else rest})
    if a.only:
        student.train_only(a.only)
    # Of what belongs to single tokens or n-grams most is seen seldom, and Adam would let one sight of it move it as far as a hundred.
    seldom = [{"params": [student.features], "lr": a.lr_features, "end": rest}]
    if student.engram is not None:
        named = list(student.engram.named_parameters())
        if a.no_convolution:
            student.engram.conv.requires_grad_(False)
        groups.append({"params": [q for name, q in named if name != "table"], "lr": a.lr_engram, "end": 1})
        seldom.append({"params": [student.engram.table], "lr": a.lr_engram_table, "end": 1})
    config = student.engram.config if student.engram is not None else None
    trained = lambda some: [g | {"params": own} for g in some if (own := [q for q in g["params"] if q.requires_grad])]
    optims = [torch.optim.Adam(trained(groups), betas=(0.9, 0.98), fused=True)]
    if seldom := trained(seldom):
        optims.append(torch.optim.Adagrad(seldom))
    scheduled = [(g, a.lr * g["lr"]) for o in optims for g in o.param_groups]
    params = [q for g, _ in scheduled for q in g["params"]]

    take_step = Step(student, a)
    if a.graph:
        warm_up(take_step, a)
    found = fetched(a.data)
    while a.after and not os.path.exists(a.after):
        time.sleep(0.5)
    rows = load(a.data, tok, found)
    del found
    orders = {kind: Order(r, kind[1]) for kind, r in rows.items()}
    mixture = {n: {kind: share for kind, share in of.items() if (n, kind) in orders} for n, (_, of) in MIXTURE.items() if rows_of(n, a)}
    probe = Probe(dense, tok, held_out(a.data))
    print({f"{kind} {n}": r[0].numel() for (n, kind), r in rows.items()}, "tokens", flush=True)

    step, tokens, spent = 0, 0, 0.0
    last = os.path.join(a.out, "last.pt")
    if os.path.exists(last):
        saved = torch.load(last, map_location=DEVICE)
        student.load_state_dict(saved["student"])
        for optim, state in zip(optims, saved["optims"]):
            optim.load_state_dict(state)
        step, tokens, spent = saved["step"], saved["tokens"], saved["spent"]
        rng.seed(step)  # not the same text again
        torch.manual_seed(step)
    begin = time.time() - spent
    if a.by:
        a.minutes = (a.by - begin) / 60
    log = open(os.path.join(a.out, "log.jsonl"), "a")
    probed, saved_at, tick, running = float("-inf"), spent, (time.time(), tokens), None

    def save():
        if a.recipe:
            recipe = os.path.join(a.out, "recipe")
            save_recipe(student, recipe + ".new", a.recipe, provenance(a.provenance, log.name))
            shutil.rmtree(recipe, ignore_errors=True)
            os.rename(recipe + ".new", recipe)
        torch.save(
            {
                "student": student.state_dict(), "engram": config, "ranks": ranks, "optims": [o.state_dict() for o in optims],
                "step": step, "tokens": tokens, "spent": time.time() - begin,
            },
            last + ".new",
        )  # fmt: skip
        os.replace(last + ".new", last)

    while True:
        spent = time.time() - begin
        done = min(1.0, step / a.steps if a.steps else spent / (60 * a.minutes))
        if spent - probed > 60 * a.probe_minutes or done >= 1:
            rate = (tokens - tick[1]) / max(1e-9, time.time() - tick[0])
            entry = {"minutes": round(spent / 60, 2), "step": step, "tokens": tokens, "tokens_per_s": round(rate)}
            if running is not None:
                entry |= dict(zip(("train_kl", "train_facts"), (round(x, 4) for x in running.tolist())))
            entry |= probe(student) | {"epochs": {f"{kind} {n}": o.epochs for (n, kind), o in orders.items()}}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(json.dumps(entry), flush=True)
            probed, tick = time.time() - begin, (time.time(), tokens)
        if spent - saved_at > 60 * a.save_minutes or done >= 1:
            saved_at = spent
            save()
        if done >= 1:
            break
        for g, peak in scheduled:
            g["lr"] = peak * min(1.0, (step + 1) / 30) * min(1.0, max(0.0, g["end"] - done) / (g["end"] - a.flat))

        texts = []
        for length, of in mixture.items():
            kinds = rng.choices(list(of), list(of.values()), k=rows_of(length, a))
            some = [orders[length, kind].take(kinds.count(kind)) for kind in of if kind in kinds]
            texts.append(tuple(torch.cat(t) for t in zip(*some)))
        parts = take_step(texts, facts.take())
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        if step == 0:
            for optim in optims[1:]:
                calm(optim, a.calm)
        for optim in optims:
            optim.step()
        running = parts.clone() if running is None else 0.95 * running + 0.05 * parts
        tokens += sum(text.numel() for text, _ in texts) + 2 * a.fact_rows * SHORT
        step += 1
        if step in (1, 2, 5, 10) or step % 100 == 0:
            print(f"step {step}: {tokens} tokens, {spent:.0f} s, KL {running[0].item():.3f}, facts {running[1].item():.3f}", flush=True)


if __name__ == "__main__":
    main()
