"""Running text as rows of equal lengths: what `train.py` learns from, and what is held out to measure with."""

import gc
import random

import numpy as np
import torch

from data import ASSISTANT, END, OFTEN, QUESTIONS, SYSTEM, USER, documents
from model import DEVICE, EOT, FIRST_WORD, NEWLINE, VOCAB

RECALL = 4096  # tokens of a row whose second half is passages of its first
# Of each length of a row, its share of the running text, and how often it has which kind. Chats begin with the same token always,
# other texts with any, and what stands first is what all heads attend to when they look for nothing: so these have more beginnings.
MIXTURE = {
    RECALL: (0.1, {"recall": 1.0}),
    512: (0.33, {"chat": 0.6, "asked": 0.32, "told": 0.08}),
    256: (0.29, {"passages": 0.62, "wiki": 0.1, "articles": 0.08, "novels": 0.05, "speeches": 0.08, "essays": 0.07}),
    128: (0.28, {"passages": 0.26, "scraps": 0.32, "glosses": 0.17, "dictionary": 0.15, "wiki": 0.05, "facts": 0.05}),
}
KINDS = tuple(dict.fromkeys(kind for _, of in MIXTURE.values() for kind in of if kind != "recall"))
WHOLE = ("recall", "chat", "asked", "told", "facts")  # documents of all other kinds are cut to what a row holds, and `estranged`
OF_RECALL = ("novels", "articles", "wiki", "passages", "asked")  # what such rows are made of


def pack(docs, length):
    """Rows of ids and weights, [n, length], each starting where a document does. Prompts of asked facts count little."""
    rows, shares = [], []
    ids, weights, at = np.full(length, EOT), np.zeros(length, np.float32), 0
    for doc in docs:
        d, prompt = doc["ids"], doc.get("prompt", 1)
        d = d[: length - at] if d[-1] != EOT else d[:-1][: length - at]
        ids[at : at + len(d)] = d
        weights[at : at + len(d)] = 1.0  # of what comes next
        weights[at : at + min(len(d), prompt - 1)] = 0.25
        weights[at + len(d) : at + len(d) + 1] = 0.1
        at += len(d) + 1
        if at > length - 12:
            rows.append(ids)
            shares.append(weights)
            ids, weights, at = np.full(length, EOT), np.zeros(length, np.float32), 0
    return torch.from_numpy(np.array(rows)), torch.from_numpy(np.array(shares))


def chopped(docs, length):
    """Documents of at most so many tokens, out of longer ones."""
    for doc in docs:
        for at in range(0, len(doc["ids"]), length):
            yield {"ids": doc["ids"][at : at + length]}


def recall_rows(docs, rng, most):
    """At most so many rows of ids [n, RECALL]: documents, and then passages out of them in another order. None ends with EOT, behind
    which the base looks for nothing that stood before."""
    rows, row, half = [], [], RECALL // 2
    for doc in docs:
        row += [t for t in doc["ids"] if t != EOT] + [NEWLINE]
        while len(row) >= half and len(rows) < most:
            first, row, again = row[:half], row[half:], []
            while len(again) < half:
                at = rng.randrange(half - 96)
                again += [NEWLINE] + first[at : at + rng.randrange(24, 96)]
            rows.append(first + again[:half])
    return torch.tensor(rows, dtype=torch.long).view(-1, RECALL)


def alone(docs):
    """As `pack`, each document in a row of its own."""
    docs = [doc["ids"] for doc in docs]
    length = max(map(len, docs))
    ids = [d + [EOT] * (length - len(d)) for d in docs]
    return torch.tensor(ids), torch.tensor([[1.0] * (len(d) - 1) + [0.0] * (length - len(d) + 1) for d in docs])


def as_chats(tok, docs, rng):
    """Encyclopedic summaries as answers in the chat template."""
    for doc in docs:
        head = (SYSTEM if rng.random() < 0.6 else "") + USER + rng.choice(QUESTIONS).format(X=doc["title"]) + END + ASSISTANT
        yield {"kind": "told", "ids": tok.encode(head).ids + doc["ids"] + tok.encode(END).ids}


def held_out(folder):
    """By kind, documents that neither `load` nor init.py reads: ids and weights on DEVICE. Of the passages that come again, in a row
    made of the first kind, those count alone."""
    found = {kind: alone(documents(folder, f"held-{kind}")) for kind in ("factbook", "chat")}
    ids = recall_rows(documents(folder, "held-factbook"), random.Random(0), 1)
    found["recall"] = ids, (torch.arange(RECALL) >= RECALL // 2).float().expand(ids.shape)
    return {kind: tuple(t.to(DEVICE) for t in of) for kind, of in found.items()}


def fetched(folder):
    """The documents, by kind, of those that the base doesn't write."""
    return {kind: list(documents(folder, kind)) for kind in KINDS if kind not in OFTEN and kind != "facts"}


def load(folder, tok, found=None, seed=0):
    """Rows by length and kind, on DEVICE. `found`: what `fetched` read already."""
    rng = random.Random(seed)
    gc.disable()  # millions of numbers, none of them in a cycle: looking for some takes a third of the time
    found = found or fetched(folder)
    docs = {kind: found[kind] if kind in found else list(documents(folder, kind)) for kind in KINDS}
    rng.shuffle(docs["wiki"])
    told = len(docs["wiki"]) // 5
    docs["told"], docs["wiki"] = list(as_chats(tok, docs["wiki"][:told], rng)), docs["wiki"][told:]
    for d in docs.values():
        rng.shuffle(d)
    recall = torch.cat([recall_rows(docs[kind], rng, 400) for kind in OF_RECALL])
    put = lambda tensors: tuple(t.to(DEVICE) for t in tensors)
    rows, halves = {}, {kind: [n for n, (_, of) in MIXTURE.items() if kind in of] for kind in docs}
    for n, (_, of) in MIXTURE.items():
        for kind in of if n != RECALL else ():
            mine = docs[kind][halves[kind].index(n) :: len(halves[kind])]  # in rows of one length only
            if mine:
                rows[n, kind] = put(pack(mine if kind in WHOLE else chopped(mine, n - 2), n))
    rows[RECALL, "recall"] = put((recall, torch.ones(recall.shape)))
    gc.enable()
    return {kind: r for kind, r in rows.items() if len(r[0])}


def estranged(ids, share=0.25, often=0.06):
    """Rows [n, length], in a share of which some tokens are any others: text that comes again is not the same, and rare tokens stand
    in it. What the base makes of them is to be learned like all else."""
    changed = (torch.rand(len(ids), 1, device=DEVICE) < share) & (torch.rand(ids.shape, device=DEVICE) < often)
    return torch.where(changed, torch.randint_like(ids, FIRST_WORD, VOCAB), ids)


class Order:
    """Rows of one kind in a fresh order every epoch, `estranged` where the kind isn't in WHOLE."""

    def __init__(self, rows, kind):
        self.rows, self.queue, self.epochs = rows, torch.zeros(0, dtype=torch.long, device=DEVICE), 0
        self.strange = kind not in WHOLE

    def take(self, n):
        while len(self.queue) < n:
            self.queue = torch.cat([self.queue, torch.randperm(len(self.rows[0]), device=DEVICE)])
            self.epochs += 1
        some, self.queue = self.queue[:n], self.queue[n:]
        ids, weights = (t[some] for t in self.rows)
        return estranged(ids) if self.strange else ids, weights
