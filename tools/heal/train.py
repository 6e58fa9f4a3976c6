"""Distils the dense base into the STEM student.

    train.py --gguf M --init init.pt --data DIR --out RUN --minutes 70

The loss is KL to the base on its full distribution, at every position. A step takes a batch of running text (chats,
encyclopedic text, passages) and one of short facts; two of three of the latter are counterfactual: the student reads
entity a with the rows of b, and must say what the base says of b. The learning rate follows the clock, so that it
reaches zero when the time is up. RUN holds last.pt (resumed from when there) and log.jsonl.
"""

import argparse
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

import engram as ng
import entities as en
from data import ASSISTANT, END, SYSTEM, USER
from export import engram_of, read_recipe
from model import DTYPE, EOT, LAYERS, Dense, dense_forward, load_gguf, rms
from student import FIRST, KlHead, Norm, Student, Swiglu, rotate_c
from truths import Truths

LONG, SHORT = 320, 64
FUSED = {"norm": Norm.apply, "swiglu": Swiglu.apply, "rotate": rotate_c}
MIXTURE = {"chat": 0.35, "wiki": 0.35, "told": 0.2, "passages": 0.1}
KNOWN = """Spain Germany France Italy Japan China Russia Greece Egypt Poland Portugal Sweden Norway Austria Cuba Iran Iraq
Ireland Canada Hungary Denmark Finland Turkey Peru Chile Kenya Thailand England India Mexico""".split()


def pack(docs, length):
    """Rows of (ids, weights), each starting where a document does. Prompts of asked facts count little."""
    rows, ids, weights = [], [], []
    for doc in docs:
        d, prompt = doc["ids"], doc.get("prompt", 1)
        d = d if d[-1] != EOT else d[:-1]
        ids = ids + d + [EOT]
        weights = weights + [0.25] * (prompt - 1) + [1.0] * (len(d) - prompt + 1) + [0.1]  # by what comes next
        if len(ids) > length - 12:
            short = max(0, length - len(ids))
            rows.append((ids[:length] + [EOT] * short, weights[:length] + [0.0] * short))
            ids, weights = [], []
    return rows


def as_chats(tok, docs, rng):
    """Encyclopedic summaries as answers in the chat template."""
    for doc in docs:
        ask = rng.choice(["What is {X}?", "Tell me about {X}.", "Explain {X} to me.", "Write a short summary about {X}.", "{X}"])
        head = (SYSTEM if rng.random() < 0.6 else "") + USER + ask.format(X=doc["title"]) + END + ASSISTANT
        yield {"kind": "told", "ids": tok.encode(head).ids + doc["ids"] + tok.encode(END).ids}


def load(folder, tok, wiki_docs, seed=0):
    """Rows by kind, the held-out ones, and the facts as documents."""
    rng = random.Random(seed)
    docs = {}
    for kind in ("chat", "wiki", "passages", "facts"):
        path = os.path.join(folder, f"{kind}.jsonl")
        docs[kind] = [json.loads(line) for line in open(path) if line.endswith("\n")] if os.path.exists(path) else []
    rng.shuffle(docs["wiki"])
    held = {}
    for kind in ("factbook", "chat"):  # files of their own, which neither this nor init.py trains on
        with open(os.path.join(folder, f"held-{kind}.jsonl")) as f:
            held[kind] = pack([json.loads(line) for line in f], LONG)[:9]
    docs["told"] = list(as_chats(tok, docs["wiki"][wiki_docs:], rng))
    docs["wiki"] = docs["wiki"][:wiki_docs]
    for d in docs.values():
        rng.shuffle(d)
    rows = {k: pack(d, SHORT if k == "facts" else LONG) for k, d in docs.items()}
    return rows, held, docs["facts"]


class Teacher:
    """The base's streams; those of rows seen before come from memory."""

    def __init__(self, dense):
        self.dense, self.memory = dense, {}

    @torch.no_grad()
    def compute(self, ids):
        start = dense_forward(self.dense, ids, 0, FIRST, **FUSED)
        end = dense_forward(self.dense, ids, FIRST, LAYERS, x=start, **FUSED)
        return start, rms(end, self.dense.norm).to(DTYPE)

    def __call__(self, keys, ids):
        missing = [i for i, k in enumerate(keys) if k not in self.memory]
        if missing:
            start, end = self.compute(ids[missing])
            length = ids.shape[1]
            for j, i in enumerate(missing):
                s = slice(j * length, (j + 1) * length)
                self.memory[keys[i]] = (start[s].to(DTYPE), end[s].clone())
        start = torch.cat([self.memory[k][0] for k in keys]).float()
        return start, torch.cat([self.memory[k][1] for k in keys])


class Order:
    """Rows of one kind in a fresh order every epoch."""

    def __init__(self, rows, name, rng):
        self.rows, self.name, self.rng, self.queue, self.epochs = rows, name, rng, [], 0

    def take(self, n):
        out = []
        while len(out) < n:
            if not self.queue:
                self.queue = list(range(len(self.rows)))
                self.rng.shuffle(self.queue)
                self.epochs += 1
            out.append(self.queue.pop())
        ids = torch.tensor([self.rows[i][0] for i in out])
        weights = torch.tensor([self.rows[i][1] for i in out])
        return [(self.name, i) for i in out], ids, weights


class Counterfactuals:
    """Statements about one entity b, read as if they were about a.

    A name's tokens get the rows of b as it stands within a sentence, dealt out by `entities.deal`.
    """

    def __init__(self, tok, facts, rng):
        self.rng, self.forms, self.docs = rng, {}, {"country": {}, "city": {}}
        for kind, names in (("country", en.COUNTRIES), ("city", en.CITIES)):
            for name in names:
                self.forms[name] = en.forms(lambda text: tok.encode(text).ids, name)
                self.docs[kind][name] = []
        for doc in facts:
            for named in self.docs.values():
                if doc.get("name") in named and self.places(doc["ids"], doc["name"]):
                    named[doc["name"]].append(doc)
        self.docs = {kind: {n: d for n, d in named.items() if len(d) > 2} for kind, named in self.docs.items()}
        self.single = {kind: [n for n in named if len(self.forms[n][0]) == 1] for kind, named in self.docs.items()}

    def places(self, ids, name):
        return en.places(ids, self.forms[name])

    def pair(self, doc, a, b):
        """(what the base reads, what the student reads, whose rows, [(place in the first, place in the second, weight)])."""
        told, read, rows, pairs = doc["ids"], [], [], []
        prompt, at = doc.get("prompt", 1), 0
        swapped = self.forms[b][0]

        def keep(upto):
            nonlocal at
            while at < upto:
                pairs.append((at, len(read), 1.0 if at >= prompt - 1 else 0.25))
                read.append(told[at])
                rows.append(told[at])
                at += 1

        for where, length, inner in self.places(told, b):
            keep(where)
            if len(self.forms[a][0]) > 1 or len(swapped) > 1:
                pairs[-1:] = []  # what comes next has another first token
            name = self.forms[a][0 if inner else 1]
            read.extend(name)
            rows.extend(en.deal(name, swapped))
            at += length
            pairs.append((at - 1, len(read) - 1, 1.0 if at >= prompt else 0.25))
        keep(len(told))
        return told, read, rows, pairs

    def take(self, n, length=SHORT):
        """n rows of several statements: ids that the base reads and the student reads, rows, and what to compare."""
        batch, compare = [[], [], []], []
        while len(batch[0]) < n:
            kind = "country" if self.rng.random() < 0.75 or len(self.single["city"]) < 30 else "city"
            among = self.single[kind] if self.rng.random() < 0.5 else list(self.docs[kind])
            a, b = self.rng.sample(among, 2)
            first = [self.forms[x][0][0] if len(self.forms[a][0]) == len(self.forms[b][0]) == 1 else 0 for x in (a, b)]
            docs = [d for d in self.docs[kind][b] if not self.places(d["ids"], a)]
            self.rng.shuffle(docs)
            lines, here = [[], [], []], []
            for doc in docs[:8]:
                *ids, pairs = self.pair(doc, a, b)
                if max(len(ids[0]) + len(lines[0]), len(ids[1]) + len(lines[1])) >= length:
                    continue
                here += [(len(lines[0]) + i, len(lines[1]) + j, w) for i, j, w in pairs]
                for line, part in zip(lines, ids):
                    line.extend(part + [EOT])
            if not here:
                continue
            row = len(batch[0])
            compare += [(row * length + i, row * length + j, w, *first) for i, j, w in here]
            for all_rows, line in zip(batch, lines):
                all_rows.append((line + [EOT] * length)[:length])
        told, read, rows = (torch.tensor(x) for x in batch)
        compare = torch.tensor(compare, dtype=torch.float64)
        return told, read, rows, compare


def with_rows_for(state, tokens):
    """The student's state with residual rows, zero at first, for more tokens."""
    have = set(state["tokens"].tolist())
    more = torch.tensor([t for t in tokens if t not in have], dtype=torch.long)
    rows = torch.cat([state["rows"][:-1], torch.zeros(len(more) + 1, state["rows"].shape[1])])
    return state | {"tokens": torch.cat([state["tokens"], more]), "rows": rows}


class Probe:
    """Held-out figures: running text, facts, and swaps of rows."""

    def __init__(self, dense, teacher, tok, held):
        self.dense, self.teacher, self.held = dense, teacher, held
        self.prompts = [tok.encode(f"The capital of {n} is").ids for n in KNOWN]
        keep = [i for i, p in enumerate(self.prompts) if len(p) == 5]
        self.prompts = torch.tensor([self.prompts[i] for i in keep])
        self.answers = self.last(self.prompts)
        dense_top = self.answers.argmax(-1)
        the = {tok.encode(w).ids[0] for w in (" the", " a", " located", " not", " in")}
        good = torch.tensor([t.item() not in the for t in dense_top])
        self.prompts, self.answers = self.prompts[good], self.answers[good]

    def last(self, ids):
        _, end = self.teacher.compute(ids)
        return F.linear(end.view(*ids.shape, -1)[:, -1], self.dense.embd).float()

    @torch.no_grad()
    def text(self, student, kind):
        ids = torch.tensor([r[0] for r in self.held[kind]])
        mask = torch.tensor([r[1] for r in self.held[kind]])[:, :-1].flatten() > 0.5
        keys = [("held", kind, i) for i in range(len(ids))]
        start, ht = self.teacher(keys, ids)
        hs = student(start, ids)
        pick = lambda h: h.view(*ids.shape, -1)[:, :-1].flatten(0, 1)[mask]
        hs, ht, target = pick(hs), pick(ht), ids[:, 1:].flatten()[mask]
        out = torch.zeros(4)
        for s in [slice(i, i + 256) for i in range(0, len(hs), 256)]:
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

    @torch.no_grad()
    def facts(self, student):
        start, _ = self.teacher.compute(self.prompts)
        say = lambda rows: F.linear(student(start, rows, self.prompts).view(*rows.shape, -1)[:, -1], self.dense.embd).float()
        true = self.answers.argmax(-1)
        cloze = (say(self.prompts).argmax(-1) == true).float().mean().item()
        rows = self.prompts.clone()
        rows[:, 3] = self.prompts[:, 3].roll(1)
        new = true.roll(1)
        swapped = say(rows)
        differ = new != true
        p = swapped.softmax(-1)
        es = (p.gather(1, new[:, None]) > p.gather(1, true[:, None]))[:, 0][differ].float().mean().item()
        exact = (swapped.argmax(-1) == new)[differ].float().mean().item()
        margin = (p.gather(1, new[:, None]).log() - p.gather(1, true[:, None]).log())[differ].mean().item()
        return {"cloze": cloze, "swap_margin": margin, "swap_es": es, "swap_exact": exact, "prompts": len(true)}

    def __call__(self, student):
        out = {f"{kind}_{k}": v for kind in self.held for k, v in self.text(student, kind).items()}
        return {k: round(v, 4) for k, v in (out | self.facts(student)).items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--init", required=True, help="what init.py wrote, a checkpoint of an earlier run, or the folder of a recipe")
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--minutes", type=float, default=70)
    p.add_argument("--wiki-docs", type=int, default=4000)
    p.add_argument("--long-jobs", type=int, default=1)
    p.add_argument("--long-rows", type=int, default=2, help="rows of a long job")
    p.add_argument("--short-rows", type=int, default=6, help="rows of the job of facts")
    p.add_argument("--swaps", type=int, default=2, help="of three jobs of facts, how many are counterfactual")
    p.add_argument("--truth", type=float, default=0.15, help="weight of a job of true facts, beside 1 of running text")
    p.add_argument("--lr-core", type=float, default=6e-4)
    p.add_argument("--lr-down", type=float, default=1e-4)
    p.add_argument("--lr-maps", type=float, default=1e-4)
    p.add_argument("--lr-rows", type=float, default=2e-3)
    p.add_argument("--engram-layers", type=int, nargs="*", default=[], help="new Engram layers; a run goes on with those it has")
    p.add_argument("--engram-tables", type=int, nargs="*", default=[12289, 12289], help="of pairs, triples: least size of a head's table")
    p.add_argument("--engram-heads", type=int, default=8, help="of each order")
    p.add_argument("--engram-width", type=int, default=32, help="of a head's row")
    p.add_argument("--lr-engram", type=float, default=6e-4, help="of its projections; the tables' is five times as much")
    p.add_argument("--probe-minutes", type=float, default=5)
    p.add_argument("--workers", type=int, default=2, help="threads, each with one job at a time")
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = random.Random(0)
    os.makedirs(a.out, exist_ok=True)
    weights, tok = load_gguf(a.gguf)
    dense = Dense(weights)
    saved = read_recipe(a.init) if os.path.isdir(a.init) else torch.load(a.init)
    if saved.get("missing"):
        raise SystemExit(f"{a.init} lacks the STEM layers {saved['missing']}: `init.py --recipe {a.init}` makes them")
    state, config = saved.get("student", saved), saved.get("engram")
    if a.engram_layers and not config:
        ids, count = ng.compress(tok)
        config = ng.draw(a.engram_layers, a.engram_tables, a.engram_heads, a.engram_width, ids, count)
    engram, _ = engram_of(config, tok)
    path = os.path.join(a.data, "truths.json")
    truths = Truths(tok, json.load(open(path)), rng) if os.path.exists(path) else None
    if truths:
        state = with_rows_for(state, truths.tokens())
    student = Student(dense, state["tokens"], engram=engram)
    student.start_from(state)
    rates = {"core": a.lr_core, "norms": a.lr_down, "down": a.lr_down, "maps": a.lr_maps}
    groups = [{"params": list(getattr(student, k).parameters()), "lr": lr} for k, lr in rates.items()]
    groups.append({"params": [student.rows], "lr": a.lr_rows})
    if engram is not None:
        groups.append({"params": [q for name, q in engram.named_parameters() if name != "table"], "lr": a.lr_engram})
        groups.append({"params": [engram.table], "lr": 5 * a.lr_engram})
    optim = torch.optim.Adam(groups, betas=(0.9, 0.98), fused=True)
    peaks = [g["lr"] for g in groups]

    rows, held, facts = load(a.data, tok, a.wiki_docs)
    orders = {k: Order(r, k, rng) for k, r in rows.items() if r}
    swaps = Counterfactuals(tok, facts, rng)
    teacher = Teacher(dense)
    probe = Probe(dense, teacher, tok, held)
    print({k: f"{len(r)} rows" for k, r in rows.items()}, {k: len(t) for k, t in swaps.docs.items()}, flush=True)

    step, tokens, spent = 0, 0, 0.0
    last = os.path.join(a.out, "last.pt")
    if os.path.exists(last):
        saved = torch.load(last)
        student.load_state_dict(saved["student"])
        optim.load_state_dict(saved["optim"])
        step, tokens, spent = saved["step"], saved["tokens"], saved["spent"]
        rng.seed(step)  # not the same text again
    begin = time.time() - spent
    log = open(os.path.join(a.out, "log.jsonl"), "a")
    running, probed, saved_at, tick = {}, -1e9, spent, (time.time(), tokens)

    def save():
        torch.save(
            {"student": student.state_dict(), "engram": config, "optim": optim.state_dict(), "step": step, "tokens": tokens, "spent": time.time() - begin},
            last + ".new",
        )
        os.replace(last + ".new", last)

    params = [q for g in groups for q in g["params"]]

    def work(job):
        """Loss and gradients of one job."""
        kind, share, keys, ids, *rest = job
        if kind in ("true", "turned"):
            rows, mixes, wanted = rest
            with torch.no_grad():
                start = dense_forward(dense, ids, 0, FIRST, **FUSED)
            logits = F.linear(student(start, rows, ids, mixes)[wanted[:, 0]], dense.embd).float()
            loss = F.cross_entropy(logits, wanted[:, 1])
            return loss.item(), torch.autograd.grad(loss * share, params)
        if kind == "swap":
            read, rows, compare = rest
            _, target = teacher.compute(ids)
            with torch.no_grad():
                start = dense_forward(dense, read, 0, FIRST, **FUSED)
            there, here = compare[:, 0].long(), compare[:, 1].long()
            state, target, weight, exchange = student(start, rows, read)[here], target[there], compare[:, 2].float(), compare[:, 3:].long()
        else:
            start, target = teacher(keys, ids)
            state, weight, exchange = student(start, ids), rest[0].flatten(), None
        loss = KlHead.apply(state, target, dense.embd, weight, exchange)
        return loss.item(), torch.autograd.grad(loss * share, params)

    pool = ThreadPoolExecutor(a.workers, initializer=torch.set_num_threads, initargs=(1,))
    while True:
        spent = time.time() - begin
        done = min(1.0, spent / (60 * a.minutes))
        if spent - probed > 60 * a.probe_minutes or done >= 1:
            probed = spent
            rate = (tokens - tick[1]) / max(1e-9, time.time() - tick[0])
            entry = {"minutes": round(spent / 60, 2), "step": step, "tokens": tokens, "tokens_per_s": round(rate)}
            entry |= {f"train_{k}": round(v, 4) for k, v in running.items()} | probe(student)
            entry |= {"epochs": {k: o.epochs for k, o in orders.items()}}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(json.dumps(entry), flush=True)
            tick = (time.time(), tokens)
            rows, _, facts = load(a.data, tok, a.wiki_docs)
            for k, r in rows.items():  # what has been written meanwhile
                if k in ("chat", "facts") and len(r) > 1.05 * len(orders[k].rows if k in orders else []):
                    orders[k] = Order(r, f"{k} {len(r)}", rng)
                    swaps = Counterfactuals(tok, facts, rng)
                    print(k, len(r), {k: len(t) for k, t in swaps.docs.items()}, flush=True)
        if spent - saved_at > 420 or done >= 1:
            saved_at = spent
            save()
        if done >= 1:
            break
        # up in 20 steps, then flat, then down to zero over the last two thirds
        rate = min(1.0, (step + 1) / 20) * min(1.0, (1 - done) / 0.67)
        for g, peak in zip(optim.param_groups, peaks):
            g["lr"] = peak * rate

        jobs = []
        for kind in rng.choices(list(MIXTURE), list(MIXTURE.values()), k=a.long_jobs):
            jobs.append((kind, 1 / a.long_jobs, *orders[kind].take(a.long_rows)))
        if truths:
            for kind in ("true", "turned"):
                ids, whose, mixes, wanted = truths.take(a.short_rows, SHORT, kind == "turned")
                jobs.append((kind, a.truth, None, torch.tensor(ids), torch.tensor(whose), mixes, torch.tensor(wanted)))
        elif step % 3 < a.swaps and len(swaps.single["country"]) > 30:
            jobs.append(("swap", 0.75, None, *swaps.take(a.short_rows)))
        elif "facts" in orders:
            jobs.append(("facts", 0.5, *orders["facts"].take(a.short_rows)))
        rng.shuffle(jobs)
        # one thread a job: they wait for each other once a step, not at every operation
        results = [work(j) for j in jobs] if step < 8 else list(pool.map(work, jobs))
        for job, (loss, _) in zip(jobs, results):
            running[job[0]] = 0.95 * running.get(job[0], loss) + 0.05 * loss
            tokens += job[3].numel()
        for i, q in enumerate(params):
            parts = [grads[i] for _, grads in results if grads[i] is not None]
            q.grad = parts[0]
            for other in parts[1:]:
                q.grad += other
        del results
        optim.step()
        optim.zero_grad(set_to_none=True)
        step += 1
        if step in (1, 2, 5, 10) or step % 25 == 0:
            print(f"step {step}: {tokens} tokens, {spent / 60:.1f} min,", {k: round(v, 3) for k, v in running.items()}, flush=True)


if __name__ == "__main__":
    main()
