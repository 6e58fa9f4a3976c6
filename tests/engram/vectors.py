#!/usr/bin/env python3
"""Test vectors for the compressed token ids, the Engram hash and an Engram layer, from their published definition.

Needs NumPy and nothing else. Writes vectors.json beside itself; with a tokenizer.json as argument, also the figures
for that whole vocabulary, under the name of its folder:

    python3 tests/engram/vectors.py [tokenizer.json]
"""

import hashlib
import json
import pathlib
import sys
import unicodedata

import numpy as np

# The characters with the property White_Space.
SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


def byte_of():
    """GPT-2's characters that stand for bytes."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    table = {chr(b): b for b in plain}
    rest = [b for b in range(256) if b not in plain]
    table.update({chr(256 + i): b for i, b in enumerate(rest)})
    return table


BYTES = byte_of()
CHARS = {b: c for c, b in BYTES.items()}


def written(text):
    """A text as byte-level BPE writes it in a vocabulary."""
    data = text if isinstance(text, bytes) else text.encode()
    return "".join(CHARS[b] for b in data)


def decoded(token, special):
    if special:
        return token
    return bytes(BYTES[c] for c in token).decode("utf-8", errors="replace")


def key(token, special):
    text = decoded(token, special)
    if "\ufffd" in text:
        return token
    s = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    s = "".join(c for c in s if not unicodedata.category(c).startswith("M"))
    s = "".join(c.lower() for c in s)
    out = ""
    for c in s:
        if c in " \t\r\n":
            c = " "
            if out.endswith(" "):
                continue
        out += c
    s = " " if out == " " else out.strip(SPACE).replace("\ue000", " ")
    return s or text


def compress(tokens):
    """The ids of (token, special) pairs, and how many there are."""
    known = {}
    return [known.setdefault(key(*t), len(known)) for t in tokens], len(known)


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def draw(layers, tables, heads, seed, count):
    """Multipliers and primes of each layer."""
    half = max(1, (int(np.iinfo(np.int64).max) // count) // 2)
    seen, out = set(), []
    for layer in layers:
        rng = np.random.default_rng(seed + 10007 * layer)
        multipliers = 2 * rng.integers(0, half, size=len(tables) + 1, dtype=np.int64) + 1
        primes = []
        for size in tables:
            found, candidate = [], size
            while len(found) < heads:
                if is_prime(candidate) and candidate not in seen:
                    seen.add(candidate)
                    found.append(candidate)
                candidate += 1
            primes.append(found)
        out.append({"layer": layer, "multipliers": [int(m) for m in multipliers], "primes": primes})
    return out


def hashes(layer, ids, pad):
    """[n, heads]: the hash of each head at each position."""
    m = np.array(layer["multipliers"], dtype=np.int64)
    ids = np.array(ids, dtype=np.int64)
    shifted = [np.concatenate([np.full(k, pad, dtype=np.int64), ids])[: len(ids)] for k in range(len(m))]
    mix, columns = shifted[0] * m[0], []
    for k, primes in enumerate(layer["primes"], 1):
        mix = np.bitwise_xor(mix, shifted[k] * m[k])
        columns += [np.mod(mix, p) for p in primes]
    return np.stack(columns, axis=1).tolist()


def case(ids, count, pad_token, layers, tables, heads, seed, tokens):
    drawn = draw(layers, tables, heads, seed, count)
    pad, compressed = ids[pad_token], [ids[t] for t in tokens]
    return {
        "layers": layers, "tables": tables, "heads": heads, "seed": seed, "pad_token": pad_token,
        "drawn": drawn, "tokens": tokens, "hashes": [hashes(l, compressed, pad) for l in drawn],
    }


def layer(x, e, w, dilation, eps=1e-5):
    """x [T, hidden] plus what the layer makes of the head rows e [T, width], in double precision."""
    norm = lambda v, gain: v / np.sqrt(np.mean(v * v, axis=-1, keepdims=True) + eps) * gain
    k, v = e @ w["key"].T, e @ w["value"].T
    s = np.sum(norm(x, w["query_norm"]) * norm(k, w["key_norm"]), axis=-1, keepdims=True) / np.sqrt(x.shape[1])
    v = v / (1 + np.exp(-np.sign(s) * np.sqrt(np.maximum(np.abs(s), 1e-6))))
    taps = len(w["conv"])
    padded = np.concatenate([np.zeros(((taps - 1) * dilation, x.shape[1])), norm(v, w["conv_norm"])])
    conv = sum(w["conv"][j] * padded[j * dilation : j * dilation + len(x)] for j in range(taps))
    return x + v + conv / (1 + np.exp(-conv))


def forward(hidden=32, width=32, taps=4, dilation=3, length=14):
    rng = np.random.default_rng(7)
    draw = lambda *shape: np.round(rng.normal(size=shape), 3)
    w = {
        "key": draw(hidden, width) / 4, "value": draw(hidden, width) / 4, "conv": draw(taps, hidden),
        "query_norm": 1 + draw(hidden) / 4, "key_norm": 1 + draw(hidden) / 4, "conv_norm": 1 + draw(hidden) / 4,
    }
    x, e = draw(length, hidden), draw(length, width)
    e[5] = 0  # a token without rows
    flat = lambda v: np.round(v, 6).flatten().tolist()
    return {"dilation": dilation, "x": flat(x), "e": flat(e), "out": flat(layer(x, e, w, dilation))} | {k: flat(v) for k, v in w.items()}


TEXTS = [
    "a", "A", " a", " A", "á", "Á", "\u00e1", "a\u0301", " a ", "\ta\n", "\uff21", "\u24b6", "é", "E", "\u1e17",
    " ", "  ", "\n", "\n\n", "\t", " \n ", "\r\n", "\u3000", "\u00a0", "\v", "\f", "\u0085", "\u2003", "\u2028", "",
    "the", "The", " the", " THE", "ThE", "the end", "the  end", "the \n\t end", " The\rEnd ", "the\u00a0end",
    "ﬁ", "fi", "FI", "ﬃ", "ß", "ẞ", "ss", "Σ", "σ", "ς", "ΑΣ", "ας", "İ", "i", "I", "ı", "i\u0307", "ſ", "K", "k",
    "½", "1⁄2", "²", "2", "①", "1", "Ⅳ", "iv", "™", "tm", "…", "...", "カ", "ｶ", "ガ", "ｶﾞ", "か\u3099", "が",
    "각", "\u1100\u1161\u11a8", "ㄱ", "ᄀ", "नि", "न", "ด้", "ด", "אֱ", "א", "بِ", "ب", "\u0301", "\u0302", "\u0301\u0302",
    "\u20dd", "\u0e31", "\ue000", " \ue000 ", "\ue000a", "🙂", " 🙂", "👩\u200d🔬", "\u200b", "\ufeff", "æ", "Æ", "ø", "Ø",
    "ö", "o", "ñ", "n", "ç", "c", "Ђ", "ђ", "Ѐ", "е", "й", "и", "Å", "Å", "å", "\u1e9b\u0323", "s", "ŉ", "ʼn", "ǆ", "dž", "ǅ",
    "\ufb4f", "\ufdfa", "\u2126", "Ω", "ω", "\x00", "\x1c", "\x1c\x1f", "\x1f a", "!", "！", "_", "▁", "Hello, World", "hello, world",
]
PARTS = [b"\xc3", b"\xa9", b"\xe2\x82", b"a\xc3", b"A\xc3", b"\xff", b"\xf0\x9f\x99", b"\xc3 ", "\ufffd".encode()]
SPECIAL = ["<|im_start|>", "<|IM_START|>", "<|pad|>", "  <|x|> "]


def main():
    texts = list(dict.fromkeys(TEXTS))
    tokens = [(written(t), False) for t in texts + PARTS if t] + [(t, True) for t in SPECIAL]
    ids, count = compress(tokens)
    n = len(tokens)
    walk = [(i * i * 31 + 7 * i) % n for i in range(60)]
    generator = [
        {"seed": s, "end": e, "values": [int(v) for v in np.random.default_rng(s).integers(0, e, size=6, dtype=np.int64)]}
        for s in [0, 1, 10007, 150105, 2**31 - 1, 2**32, 2**40 + 12345]
        for e in [2**33, 3 * 2**45 + 1, 2**62 + 2**61 + 5]
    ]
    out = {
        "tokens": [[t, s] for t, s in tokens], "ids": ids, "count": count, "generator": generator,
        "cases": [
            case(ids, count, n - 2, [1, 15], [1000, 1000], 4, 0, walk),
            case(ids, count, 0, [0, 1, 2], [97, 5000, 89], 2, 2**33 + 1, walk[::-1]),
        ],
    }
    out["forward"] = forward()
    for path in map(pathlib.Path, sys.argv[1:]):
        file = json.loads(path.read_text())
        special = {t["id"] for t in file["added_tokens"]}
        vocab = {i: t for t, i in file["model"]["vocab"].items()}
        vocab.update({t["id"]: t["content"] for t in file["added_tokens"]})
        ids, count = compress([(vocab[i], i in special) for i in range(len(vocab))])
        data = np.array(ids, dtype="<u4").tobytes()
        walk = [(i * i * 7919 + 104729 * i) % len(ids) for i in range(40)]
        out["vocabulary"] = {
            "count": count, "sha256": hashlib.sha256(data).hexdigest(),
            "case": case(ids, count, 2, [2, 15], [98561, 98561], 8, 0, walk),
        }
    target = pathlib.Path(__file__).with_name("vectors.json")
    target.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")).replace('],[', '],\n[') + "\n")
    print(f"{target}: {n} tokens, {out['count']} ids")


main()
