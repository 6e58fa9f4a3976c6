"""Writes a trained student as a recipe: what to change in the base, as small safetensors files.

    export.py --gguf M --checkpoint RUN/last.pt --log RUN/log.jsonl --out recipe --name NAME [--probe DATA]

Matrices are I8 with one F16 scale per row, or per group of columns; those that training rounds to four bits are blocks of four bits, as
it left them. With --probe, the figures of the student with the exported values in place, on the held-out rows of that data folder, go
into recipe.json.
"""

import argparse
import hashlib
import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import engram as ng
from model import DEVICE, FFN, HIDDEN, KVD, LAYERS, Q, Dense, load_gguf
from student import FIRST, STEM, Student, changed, eight_bit_parts, four_bit_parts

BASE = {
    "name": "SmolLM2-135M-Instruct",
    "bytes": 98362432,
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
LIMIT = 15_900_000
# Matrices that one low-rank change is made for: their names in a recipe, and their rows.
PARTS = {
    "qkv": {"attn_q": Q, "attn_k": KVD, "attn_v": KVD},
    "o": {"attn_output": HIDDEN},
    "ffn": {"ffn_gate": FFN, "ffn_up": FFN},
    "down": {"ffn_down": HIDDEN},
}
# What training rounds to four bits, of the STEM layers; dense FFNs always are.
STORAGE = {"ffn_gate": "q4", "ffn_down": "q4"}


def in_eight_bits(x, group=None):
    """I8 and F16 scales, one per row or per `group` columns; and the value they stand for."""
    q, d = eight_bit_parts(x.reshape(-1, group or x.shape[1]))
    return q.to(torch.int8).view(x.shape), d.half().view(len(x), -1), (q * d).view(x.shape)


def in_four_bits(x):
    """Two levels a byte, the first in its lower half; F16 scales and minima of each 32 columns; and the value they stand for."""
    q, d, m = four_bit_parts(x)
    levels, parts = q.to(torch.uint8).view(len(x), -1), lambda v: v.half().view(len(x), -1)
    return levels[:, 0::2] | levels[:, 1::2] << 4, parts(d), parts(m), (d * q + m).view(x.shape)


def out_of_four_bits(packed, scale, least):
    """That value."""
    levels = torch.stack([packed & 15, packed >> 4], -1).view(*scale.shape, 32)
    return (levels * scale.float()[..., None] + least.float()[..., None]).view(len(packed), -1)


@torch.no_grad()
def tensors_of(student):
    """(tensors to write, the student's state with the written values in place)."""
    state = {k: v.clone() for k, v in student.state_dict().items()}
    out = {"stem_tokens": student.tokens.to(torch.int32)}

    def put(name, x, group=None):
        out[name], out[name + ".scale"], value = in_eight_bits(x.float(), group)
        return value

    def put_four_bits(name, x):
        out[name], out[name + ".scale"], out[name + ".least"], value = in_four_bits(x.float())
        return value

    state["features"] = put_four_bits("stem_embd", state["features"])
    for n in range(FIRST, LAYERS):
        for ours, name in (("attn", "attn_norm"), ("ffn", "ffn_norm")):
            out[f"blk.{n}.{name}.weight"] = state[f"norms.{n}_{ours}"].float()
        for ours, parts in PARTS.items():
            ka, kb = f"core.{n}_{ours}_a", f"core.{n}_{ours}_b"
            if ka not in state:
                continue
            values = []
            for name, own in zip(parts, state[kb].split(list(parts.values()))):
                value = put(f"blk.{n}.{name}.lora_a", state[ka])
                values.append(put(f"blk.{n}.{name}.lora_b", own))
            state[ka], state[kb] = value, torch.cat(values)
        if n in STEM:
            i = STEM.index(n)
            for ours, name in (("gate", "ffn_gate"), ("down", "ffn_down")):
                state[f"{ours}.{n}"] = put_four_bits(f"blk.{n}.{name}.weight", state[f"{ours}.{n}"])
            state[f"maps.{i}"] = put_four_bits(f"blk.{n}.stem_map", state[f"maps.{i}"])
            cols = slice(i * FFN, (i + 1) * FFN)
            state["rows"][:-1, cols] = put_four_bits(f"blk.{n}.stem_rows", state["rows"][:-1, cols])
    out["output_norm.weight"] = state["norms.out"].float()
    if student.engram is not None:
        out |= ng.tensors_of(student.engram, put, state)
    return {k: v.cpu().contiguous() for k, v in out.items()}, state


def read_recipe(folder, dense):
    """(recipe.json, the student's state, its ranks) of such a recipe, with the values as they were rounded. STEM gates that change in
    low rank, as `xylem heal` may write them, become whole ones."""
    with open(os.path.join(folder, "recipe.json")) as f:
        head = json.load(f)
    stored = {}
    for file in head["files"]:
        stored |= load_file(os.path.join(folder, file["file"]))

    def get(name):
        if name + ".least" in stored:
            return out_of_four_bits(stored[name], stored[name + ".scale"], stored[name + ".least"])
        x = stored[name].float()
        if name + ".scale" in stored:
            scale = stored[name + ".scale"].float()
            x = (x.view(*scale.shape, -1) * scale[..., None]).view(x.shape)
        return x

    state = {"tokens": stored["stem_tokens"].long(), "norms.out": get("output_norm.weight"), "features": get("stem_embd")}
    rows, ranks = [], dict.fromkeys(PARTS, 0)
    for n in range(FIRST, LAYERS):
        state[f"norms.{n}_attn"], state[f"norms.{n}_ffn"] = get(f"blk.{n}.attn_norm.weight"), get(f"blk.{n}.ffn_norm.weight")
        for ours in changed(n):
            parts = [f"blk.{n}.{name}" for name in PARTS[ours]]
            if f"{parts[0]}.lora_a" in stored:
                a = state[f"core.{n}_{ours}_a"] = get(f"{parts[0]}.lora_a")
                state[f"core.{n}_{ours}_b"] = torch.cat([get(f"{part}.lora_b") for part in parts])
                ranks[ours] = len(a)
        if n in STEM:
            name, own = f"blk.{n}.ffn_gate", dense.full[n].ffn[:FFN]
            gate = get(f"{name}.weight") if f"{name}.weight" in stored else own
            if f"{name}.lora_a" in stored:
                gate = gate + (get(f"{name}.lora_b") @ get(f"{name}.lora_a")).to(own.device)
            state[f"gate.{n}"], state[f"down.{n}"] = gate, get(f"blk.{n}.ffn_down.weight")
            state[f"maps.{STEM.index(n)}"] = get(f"blk.{n}.stem_map")
            rows.append(get(f"blk.{n}.stem_rows"))
    state["rows"] = F.pad(torch.cat(rows, 1), (0, 0, 0, 1))
    if "engram" in head:
        state |= ng.state_of(head["engram"]["config"], get)
    return head, state, ranks


def write(head, out, folder):
    """The recipe: `head` with its "files", of at most LIMIT bytes, in which a tensor, its scales and minima stay together."""
    os.makedirs(folder, exist_ok=True)
    groups = []
    for name in [n for n in out if not n.endswith((".scale", ".least"))]:
        group = {k: out[k] for k in (name, name + ".scale", name + ".least") if k in out}
        groups.append((sum(t.numel() * t.element_size() + 200 for t in group.values()), group))
    parts = []  # the largest first, each into the first file with room for it
    for size, group in sorted(groups, key=lambda g: -g[0]):
        for part in parts:
            if part[0] + size <= LIMIT:
                break
        else:
            parts.append(part := [0, {}])
        part[0] += size
        part[1].update(group)
    files = []
    for i, (_, part) in enumerate(parts):
        path = os.path.join(folder, f"part-{i}.safetensors")
        save_file(part, path)
        os.chmod(path, 0o644)
        with open(path, "rb") as f:
            data = f.read()
        assert len(data) <= 16_000_000
        files.append({"file": f"part-{i}.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    with open(os.path.join(folder, "recipe.json"), "w") as f:
        json.dump(head | {"files": files}, f, indent=1, ensure_ascii=False)
    print(sum(f["bytes"] for f in files), "bytes in", len(files), "files")


def save(student, folder, name, training, probe=None):
    """Writes the recipe of a student. With `probe` the student has the written values afterwards, and their figures go into
    recipe.json."""
    out, written = tensors_of(student)
    if probe:
        student.load_state_dict(written)
        training = training | {"exported": probe(student)}
        print(json.dumps(training["exported"]), flush=True)
    head = {
        "format": "xylem-recipe", "version": 1, "name": name, "base": BASE, "stem_layers": STEM, "storage": STORAGE,
        "files": [], "training": training,
    }  # fmt: skip
    if student.engram is not None:
        head["engram"] = ng.head_of(student.engram.config, student.engram.ids.cpu())
    write(head, out, folder)


def provenance(path, log):
    """What `recipe.json` says of a run: the words in `path`, and the first and the last line of the log."""
    training = {}
    if path:
        with open(path) as f:
            training = json.load(f)
    if log:
        with open(log) as f:
            lines = [json.loads(line) for line in f]
        training |= {"start": lines[0], "end": lines[-1]}
    return training


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--log")
    p.add_argument("--out", required=True)
    p.add_argument("--name", required=True)
    p.add_argument("--probe")
    p.add_argument("--provenance", help="a JSON file that goes into `training`")
    a = p.parse_args()
    weights, tok = load_gguf(a.gguf)
    dense = Dense(weights)
    saved = torch.load(a.checkpoint, map_location=DEVICE)
    student = Student.of(dense, saved["student"], saved["ranks"], ng.engram_of(saved["engram"], tok)[0])
    probe = None
    if a.probe:
        from probe import Probe
        from rows import held_out

        probe = Probe(dense, tok, held_out(a.probe))
    save(student, a.out, a.name, provenance(a.provenance, a.log), probe)


if __name__ == "__main__":
    main()
