"""Writes a trained student as a recipe: what to change in the base, as small safetensors files.

    export.py --gguf M --checkpoint RUN/last.pt --log RUN/log.jsonl --out recipe --name NAME [--probe DIR]

Matrices are I8 with one F16 scale per row, W_d with one per 32 columns. With --probe, the figures of the
student with the exported values in place, on the held-out rows of that data folder, go into recipe.json.
"""

import argparse
import hashlib
import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import engram as ng
from model import FFN, HIDDEN, KVD, LAYERS, Q, Dense, load_gguf
from student import FIRST, STEM, Student

BASE = {
    "name": "SmolLM2-135M-Instruct",
    "bytes": 98362432,
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
LIMIT = 15_900_000


# Matrices that one low-rank change is made for: their names in a recipe, and their rows.
PARTS = {"qkv": {"attn_q": Q, "attn_k": KVD, "attn_v": KVD}, "o": {"attn_output": HIDDEN}, "gate": {"ffn_gate": FFN}}


def parts_of(stem):
    """The PARTS of a layer that is STEM or not."""
    return {ours: parts for ours, parts in PARTS.items() if stem or ours != "gate"}


def quantise(x, group=None):
    """I8 and F16 scales, one per row or per `group` columns; and the value they stand for."""
    rows, width = x.shape
    group = group or width
    parts = x.view(rows, width // group, group)
    scale = (parts.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-7).half()
    q = (parts / scale.float()).round().clamp(-127, 127)
    return q.to(torch.int8).view(rows, width), scale[..., 0].contiguous(), (q * scale.float()).view(rows, width)


def balanced(a, b):
    """The same product with factors of like size, so that both quantise well."""
    qa, ra = torch.linalg.qr(a.t())  # a = raᵀ qaᵀ
    u, s, v = torch.linalg.svd(b @ ra.t(), full_matrices=False)
    root = s.clamp(min=1e-12).sqrt()
    return root[:, None] * (v @ qa.t()), u * root


def tensors_of(student, untouched=()):
    """(tensors to write, the student's state with the written values in place). Attention matrices that are `untouched`, named as
    `blk.1.attn_q`, stay the base's own."""
    state = {k: v.clone() for k, v in student.state_dict().items()}
    out = {"stem_tokens": student.tokens.to(torch.int32)}

    def put(name, x, group=None):
        q, scale, value = quantise(x.float(), group)
        out[name], out[name + ".scale"] = q, scale
        return value

    for n in range(FIRST, LAYERS):
        for ours, names in (("attn", "attn_norm"), ("ffn", "ffn_norm")):
            out[f"blk.{n}.{names}.weight"] = state[f"norms.{n}_{ours}"].float()
        for ours, parts in parts_of(n in STEM).items():
            ka, kb = f"core.{n}_{ours}_a", f"core.{n}_{ours}_b"
            a, b = balanced(state[ka], state[kb])
            values = []
            for name, own in zip(parts, b.split(list(parts.values()))):
                if f"blk.{n}.{name}" in untouched:
                    values.append(torch.zeros_like(own))
                    continue
                state[ka] = put(f"blk.{n}.{name}.lora_a", a)
                values.append(put(f"blk.{n}.{name}.lora_b", own.contiguous()))
            state[kb] = torch.cat(values)
        if n in STEM:
            i = n - FIRST
            state[f"down.{n}"] = put(f"blk.{n}.ffn_down.weight", state[f"down.{n}"], 32)
            state[f"maps.{i}"] = put(f"blk.{n}.stem_map", state[f"maps.{i}"])
            cols = slice(i * FFN, (i + 1) * FFN)
            state["rows"][:-1, cols] = put(f"blk.{n}.stem_rows", state["rows"][:-1, cols].contiguous())
    out["output_norm.weight"] = state["norms.out"].float()
    if student.engram is not None:
        out |= ng.tensors_of(student.engram, put, state)
    return out, state


def read_recipe(folder):
    """What a recipe has of this student: its state, with the values as they were rounded, what the recipe says of Engram
    layers, and the STEM layers that the recipe does not have (their rows are zero). Its other STEM layers stay dense."""
    with open(os.path.join(folder, "recipe.json")) as f:
        head = json.load(f)
    common = [n for n in STEM if n in head["stem_layers"]]
    if not common:
        raise SystemExit(f"{folder} has the STEM layers {head['stem_layers']}, this student {STEM}: none in common")
    stored = {}
    for file in head["files"]:
        stored |= load_file(os.path.join(folder, file["file"]))

    def get(name):
        x = stored[name].float()
        if name + ".scale" in stored:
            scale = stored[name + ".scale"].float()
            x = (x.view(*scale.shape, -1) * scale[..., None]).view(x.shape)
        return x

    state = {"tokens": stored["stem_tokens"].long(), "norms.out": get("output_norm.weight")}
    rows = torch.zeros(len(state["tokens"]) + 1, len(STEM) * FFN)
    for n in range(max(FIRST, head["stem_layers"][0]), LAYERS):
        state[f"norms.{n}_attn"], state[f"norms.{n}_ffn"] = get(f"blk.{n}.attn_norm.weight"), get(f"blk.{n}.ffn_norm.weight")
        for ours, parts in parts_of(n in common).items():
            changed = [name for name in parts if f"blk.{n}.{name}.lora_a" in stored]
            if not changed:
                continue
            a = state[f"core.{n}_{ours}_a"] = get(f"blk.{n}.{changed[0]}.lora_a")
            b = [get(f"blk.{n}.{name}.lora_b") if name in changed else torch.zeros(height, len(a)) for name, height in parts.items()]
            state[f"core.{n}_{ours}_b"] = torch.cat(b)
        if n in common:
            i = STEM.index(n)
            state[f"down.{n}"] = get(f"blk.{n}.ffn_down.weight")
            state[f"maps.{i}"] = get(f"blk.{n}.stem_map")
            rows[:-1, i * FFN : (i + 1) * FFN] = get(f"blk.{n}.stem_rows")
    state["rows"] = rows
    config = (head.get("engram") or {}).get("config")
    if config:
        state |= ng.state_of(config, get)
    return {"student": state, "engram": config, "missing": [n for n in STEM if n not in common]}


def engram_of(config, tok):
    """The Engram layers of a `config`, if there is one, and their compressed ids."""
    if not config:
        return None, None
    ids, count = ng.compress(tok)
    if count != config["compressed_vocab"]:
        raise SystemExit(f"{count} compressed ids, the Engram layers have {config['compressed_vocab']}")
    return ng.Engram(config, ids), ids


def write(out, folder):
    """Files of at most LIMIT bytes; a tensor and its scales stay together."""
    os.makedirs(folder, exist_ok=True)
    parts, size = [{}], 0
    for name in [n for n in out if not n.endswith(".scale")]:
        group = {k: out[k].contiguous() for k in (name, name + ".scale") if k in out}
        need = sum(t.numel() * t.element_size() + 200 for t in group.values())
        if size + need > LIMIT:
            parts.append({})
            size = 0
        parts[-1].update(group)
        size += need
    files = []
    for i, part in enumerate(parts):
        path = os.path.join(folder, f"part-{i}.safetensors")
        save_file(part, path)
        os.chmod(path, 0o644)
        data = open(path, "rb").read()
        assert len(data) <= 16_000_000
        files.append({"file": f"part-{i}.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return files


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--log")
    p.add_argument("--out", required=True)
    p.add_argument("--name", default="early-middle-ten")
    p.add_argument("--probe")
    p.add_argument("--untouched", nargs="*", default=[], help="attention matrices to leave as the base has them, such as blk.1.attn_q")
    p.add_argument("--provenance", help="a JSON file that goes into `training`")
    a = p.parse_args()
    weights, tok = load_gguf(a.gguf)
    dense = Dense(weights)
    saved = torch.load(a.checkpoint)
    state = saved.get("student", saved)
    engram, ids = engram_of(saved.get("engram"), tok)
    student = Student(dense, state["tokens"], engram=engram)
    student.load_state_dict(state)
    out, written = tensors_of(student, set(a.untouched))
    training = json.load(open(a.provenance)) if a.provenance else {}
    if a.log:
        lines = [json.loads(line) for line in open(a.log)]
        training["start"], training["end"] = lines[0], lines[-1]
    if a.probe:
        from train import Probe, Teacher, load

        student.load_state_dict(written)
        _, held, _ = load(a.probe, tok, 0)
        training["exported"] = Probe(dense, Teacher(dense), tok, held)(student)
        print(json.dumps(training["exported"]))
    files = write(out, a.out)
    recipe = {
        "format": "xylem-recipe", "version": 1, "name": a.name, "base": BASE, "stem_layers": STEM, "files": files, "training": training,
    }
    if engram is not None:
        recipe["engram"] = ng.head_of(engram.config, ids)
    with open(os.path.join(a.out, "recipe.json"), "w") as f:
        json.dump(recipe, f, indent=1)
    print(sum(f["bytes"] for f in files), "bytes in", len(files), "files")


if __name__ == "__main__":
    main()
