"""Text that the base writes, thousands of texts side by side.

    sampler.py --check        the kernels against their twins in PyTorch; without a GPU in Triton's interpreter (TRITON_INTERPRET=1)

Each text has a slot with a cache of its own, and a slot takes the next prompt soon after its text has ended, so texts of any
lengths and kinds run together. Prompts go through the same steps as what is written after them, one token at a time. On a GPU a step
is one CUDA graph with two kernels of our own, for attention over caches of different lengths and for drawing a token.
"""

import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model import DEVICE, DTYPE, EOT, FFN, HD, HEADS, IM_END, KV, LAYERS, Q, rms, rope_table, rotate

GPU = DEVICE.type == "cuda"
SLOTS = 3072 if GPU else 48  # texts at once; at 512 tokens they take 36 GB in bf16
LEAST = 0.01  # tokens less likely than this share of the likeliest are never drawn
GROUP = HEADS // KV  # query heads of a KV head


class Prompt(NamedTuple):
    """What a text begins with: it gets up to `new` further tokens, and ends at its `turns`-th stop token."""

    kind: str
    ids: list
    new: int
    temperature: float = 0.0  # 0: the likeliest token always
    turns: int = 1
    name: str | None = None


# ---------------------------------------------------------------- the two kernels and their twins


def attend(q, keys, values, pos):
    """Attention of one position a slot: q [slots, HEADS, HD]; keys, values [slots, KV, length, HD] of which a slot has those
    up to pos [slots]. [slots, Q]"""
    far = torch.arange(keys.shape[2], device=pos.device) > pos[:, None]  # [slots, length]
    s = (q.view(-1, KV, GROUP, HD).float() @ keys.float().transpose(-1, -2)) * HD**-0.5
    p = s.masked_fill(far[:, None, None], float("-inf")).softmax(-1)
    return (p @ values.float()).view(-1, Q).to(q.dtype)


def draw(logits, heat, seed):
    """A token a row of logits [slots, VOCAB] at temperature heat [slots], by the Gumbel maximum of those not under LEAST of the
    likeliest."""
    logits = logits.float()
    noise = -(-torch.rand(logits.shape, device=logits.device).clamp(1e-7, 1 - 1e-7).log()).log()
    ceiling = logits.amax(-1, keepdim=True)
    floor = ceiling + heat[:, None] * torch.tensor(LEAST).log()
    return (logits + heat[:, None] * noise).masked_fill(logits < floor, float("-inf")).argmax(-1)


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

if triton:

    @triton.jit
    def _attend(q, keys, values, pos, out, length, scale, KV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
        slot, head = tl.program_id(0), tl.program_id(1)
        n = tl.load(pos + slot) + 1
        row, d = tl.arange(0, 16), tl.arange(0, D)
        at_q = ((slot * KV + head) * G + row)[:, None] * D + d[None, :]
        of_q = (row < G)[:, None] & (d >= 0)[None, :]
        x = tl.load(q + at_q, mask=of_q, other=0.0)  # [16, D]: products have at least 16 rows
        first = (slot * KV + head).to(tl.int64) * length * D
        most = tl.full([16], float("-inf"), tl.float32)
        total = tl.zeros([16], tl.float32)
        acc = tl.zeros([16, D], tl.float32)
        for start in range(0, n, BLOCK):
            at = start + tl.arange(0, BLOCK)
            near = at < n
            k = tl.load(keys + first + at[None, :] * D + d[:, None], mask=near[None, :] & (d >= 0)[:, None], other=0.0)
            s = tl.where(near[None, :], tl.dot(x, k) * scale, float("-inf"))
            more = tl.maximum(most, tl.max(s, 1))
            p = tl.exp(s - more[:, None])
            fade = tl.exp(most - more)
            total = total * fade + tl.sum(p, 1)
            v = tl.load(values + first + at[:, None] * D + d[None, :], mask=near[:, None] & (d >= 0)[None, :], other=0.0)
            acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v)
            most = more
        tl.store(out + at_q, (acc / total[:, None]).to(out.dtype.element_ty), mask=of_q)

    @triton.jit
    def _draw(logits, heat, seed, out, least, vocab, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        temperature = tl.load(heat + row)
        mine = logits + row.to(tl.int64) * vocab
        most = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            most = tl.maximum(most, tl.load(mine + at, mask=at < vocab, other=float("-inf")).to(tl.float32))
        floor = tl.max(most, 0) + temperature * least
        best = tl.full([BLOCK], float("-inf"), tl.float32)
        token = tl.zeros([BLOCK], tl.int32)
        own = tl.load(seed) + row * 7919
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = tl.load(mine + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
            u = tl.minimum(tl.maximum(tl.rand(own, at), 1e-7), 1.0 - 1e-7)
            z = tl.where(z < floor, float("-inf"), z - temperature * tl.log(-tl.log(u)))
            token = tl.where(z > best, at, token)
            best = tl.maximum(best, z)
        top = tl.max(best, 0)
        tl.store(out + row, tl.max(tl.where(best == top, token, -1), 0).to(tl.int64))


def attend_kernel(q, keys, values, pos):
    """`attend` by the kernel."""
    out = torch.empty(len(q), Q, dtype=q.dtype, device=q.device)
    _attend[(len(q), KV)](q, keys, values, pos, out, keys.shape[2], HD**-0.5, KV, GROUP, HD, 64)
    return out


def draw_kernel(logits, heat, seed):
    """`draw` by the kernel, from the noise of seed [1]."""
    out = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    _draw[(len(logits),)](logits, heat, seed, out, torch.tensor(LEAST).log().item(), logits.shape[1], 2048)
    return out


# ---------------------------------------------------------------- a step


def before(x, norm, qkv, cos, sin):
    """Query heads [slots, HEADS, HD], and what goes into the caches [slots, KV, HD]."""
    y = F.linear(rms(x, norm).to(DTYPE), qkv).view(-1, HEADS + 2 * KV, HD)
    qk = rotate(y[:, : HEADS + KV], cos, sin)
    return qk[:, :HEADS].contiguous(), qk[:, HEADS:].contiguous(), y[:, HEADS + KV :].contiguous()


def after(x, mixed, o, norm, ffn, down):
    """The stream x [slots, HIDDEN] after a layer whose attention gave mixed [slots, Q]."""
    x = x + F.linear(mixed, o).float()
    gate, up = F.linear(rms(x, norm).to(DTYPE), ffn).split(FFN, -1)
    return x + F.linear((F.silu(gate.float()) * up.float()).to(DTYPE), down).float()


class Slots:
    def __init__(self, dense, slots, length):
        zeros = lambda *shape, dtype=torch.long: torch.zeros(shape, dtype=dtype, device=DEVICE)
        self.dense, self.length = dense, length
        self.caches = [[zeros(slots, KV, length, HD, dtype=DTYPE) for _ in range(LAYERS)] for _ in range(2)]
        self.ids = zeros(slots, length)  # a slot's prompt, and what was written after it
        self.pos, self.begin, self.end, self.turns = zeros(slots), zeros(slots), zeros(slots), zeros(slots)
        self.heat = zeros(slots, dtype=torch.float32)
        self.done = torch.ones(slots, dtype=torch.bool, device=DEVICE)
        self.seed, self.every = zeros(1, dtype=torch.int32), torch.arange(slots, device=DEVICE)
        self.cos, self.sin = rope_table(length)
        self.before, self.after, self.attend, self.draw, self.graph = before, after, attend, draw, None
        if GPU:
            self.before, self.after = (torch.compile(f, dynamic=False) for f in (before, after))
            self.attend, self.draw = attend_kernel, draw_kernel

    def once(self):
        dense, pos = self.dense, self.pos
        x, cos, sin = dense.embd[self.ids[self.every, pos]].float(), self.cos[pos], self.sin[pos]
        for w, keys, values in zip(dense.layers, *self.caches):
            q, k, v = self.before(x, w.norm1, w.qkv, cos, sin)
            keys[self.every, :, pos], values[self.every, :, pos] = k, v
            x = self.after(x, self.attend(q, keys, values, pos), w.o, w.norm2, w.ffn, w.down)
        new = self.draw(F.linear(rms(x, dense.norm).to(DTYPE), dense.embd), self.heat, self.seed)
        self.seed += 1
        next_ = (pos + 1).clamp(max=self.length - 1)
        new = torch.where(next_ < self.begin, self.ids[self.every, next_], new)
        stop = ((new == EOT) | (new == IM_END)) & (next_ >= self.begin) & ~self.done
        self.turns.copy_(torch.where(stop & (new == EOT), 0, self.turns - stop.long()))
        self.ids[self.every, next_] = torch.where(self.done, self.ids[self.every, next_], new)
        pos.copy_(torch.where(self.done, pos, next_))
        self.done |= (self.turns <= 0) | (pos + 1 >= self.end)

    @torch.no_grad()
    def steps(self, n):
        if GPU and self.graph is None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.once()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.once()
            n -= 1
        for _ in range(n):
            self.graph.replay() if self.graph else self.once()

    def take(self, slots, prompts):
        """Puts prompts into free slots."""
        at = torch.tensor(slots, device=DEVICE)
        ids = torch.zeros(len(slots), self.length, dtype=torch.long)
        for row, prompt in zip(ids, prompts):
            row[: len(prompt.ids)] = torch.tensor(prompt.ids)
        put = lambda values, dtype=torch.long: torch.tensor(values, dtype=dtype, device=DEVICE)
        self.ids[at], self.pos[at] = ids.to(DEVICE), 0
        self.begin[at] = put([len(p.ids) for p in prompts])
        self.end[at] = put([min(self.length, len(p.ids) + p.new) for p in prompts])
        self.turns[at], self.heat[at] = put([p.turns for p in prompts]), put([p.temperature for p in prompts], torch.float32)
        self.done[at] = False


@torch.no_grad()
def write(dense, prompts, over, slots=SLOTS, length=512, every=16, seed=0):
    """(prompt, ids) of every text, prompt and stop token included, as they end; prompts is an iterator. When it is `over()`, what is
    not at its end is given as far as it has come. Prompts that leave no room are left out."""
    some = Slots(dense, slots, length)
    some.seed += seed
    held, prompts = [None] * slots, (p for p in prompts if 0 < len(p.ids) < length)
    while True:
        stop = over()
        done = torch.ones_like(some.done) if stop else some.done
        free = done.nonzero()[:, 0]
        texts, ends, free = some.ids[free].to(torch.int32).cpu().numpy(), some.pos[free].tolist(), free.tolist()
        finished = [(held[slot], ids[: end + 1].tolist()) for slot, ids, end in zip(free, texts, ends) if held[slot]]
        for slot in free:
            held[slot] = None
        new = [] if stop else [(slot, p) for slot, p in zip(free, prompts)]
        if new:
            for slot, p in new:
                held[slot] = p
            some.take(*zip(*new))
        going = any(held)
        if going:
            some.steps(every)  # runs on while the texts are looked at
        yield from finished
        if not going:
            return


def check():
    torch.manual_seed(0)
    pos = torch.tensor([0, 1, 62, 63, 64, 65, 127, 190, 191], device=DEVICE)
    keys, values = (torch.randn(len(pos), KV, 192, HD, device=DEVICE).to(DTYPE) for _ in range(2))
    q = torch.randn(len(pos), HEADS, HD, device=DEVICE).to(DTYPE) * 3
    worst = (attend_kernel(q, keys, values, pos).float() - attend(q, keys, values, pos).float()).abs().max().item()
    assert worst < (2e-2 if DTYPE == torch.bfloat16 else 1e-5), worst
    logits = torch.randn(600, 5000, device=DEVICE) * 0.5
    logits[:, 17], logits[:, 4999] = 8.0, 7.0
    heat = torch.full((len(logits),), 0.8, device=DEVICE)
    heat[400:] = 0.0
    for one in (draw, draw_kernel):
        drawn = one(logits, heat, torch.tensor([5], dtype=torch.int32, device=DEVICE))
        assert (drawn[400:] == 17).all()
        rest = drawn[:400]
        assert ((rest == 17) | (rest == 4999)).all()  # all others are under LEAST
        share, wanted = (rest == 4999).float().mean().item(), 1 / (1 + torch.tensor(1 / 0.8).exp().item())
        assert abs(share - wanted) < 0.09, (share, wanted)
    print(f"attention within {worst:.1e}; draws as often as they should be")


if __name__ == "__main__":
    if "--check" in sys.argv:
        check()
