// What is known of each token of a text: heard while it was written, filled in by a trace, or read from a file.

import type { EngineInfo, Step } from "../protocol";
import { Signal } from "../signal";
import { NO_SHAPE, type Shape, shapeOf } from "./columns";
import { FORMAT, type Tier, type Trace, type TracedToken, type TracePart, VERSION } from "./trace";

/** What the memory of an Engram layer did with a token. */
export type SeenEngram = {
  tier: Tier | null;
  ms: number | null;
  edited: boolean;
  contribution: number | null;
  gate: number | null;
};

/** One token. What was not heard is null. */
export type Seen = {
  id: number;
  text: string;
  /** Null for a model without a table, and where nobody listened. */
  tier: Tier | null;
  ms: number | null;
  edited: readonly number[];
  contribution: readonly number[] | null;
  gateOpen: readonly number[] | null;
  /** One an Engram layer, or nothing. */
  engram: readonly SeenEngram[];
  /** What the whole trace says; null until it was asked for. */
  traced: TracedToken | null;
};

/** What the steps of the newest answer took, in all. */
export type Times = { steps: number; rowsMs: number; forwardMs: number };

const UNHEARD = {
  id: -1,
  text: "",
  tier: null,
  ms: null,
  edited: [],
  contribution: null,
  gateOpen: null,
  engram: [],
  traced: null,
} as const;

export class Log {
  /** By position. */
  tokens: Seen[] = [];
  shape: Shape = NO_SHAPE;
  promptTokens = 0;
  times: Times = { steps: 0, rowsMs: 0, forwardMs: 0 };
  /** Of the trace that was read from a file. */
  file: { name: string; trace: Trace } | null = null;
  /** What a trace of the text was made with. */
  head: Trace | null = null;
  /** Counts changes; watched by those who draw. */
  readonly version = new Signal(0);

  /** A model was loaded: what was heard of another is gone. */
  model(info: EngineInfo): void {
    this.clear(shapeOf(info.nLayers, info.stemLayers, info.engramLayers));
  }

  clear(shape: Shape = this.shape): void {
    this.tokens = [];
    this.shape = shape;
    this.promptTokens = 0;
    this.times = { steps: 0, rowsMs: 0, forwardMs: 0 };
    this.file = null;
    this.head = null;
    this.#changed();
  }

  /** A step overwrites its positions and all after them; those before are the same text as before. */
  step({ position, tokens, rowsMs, forwardMs }: Step): void {
    // Steps that read the prompt come before those that write the answer.
    if (position < this.promptTokens) this.times = { steps: 0, rowsMs: 0, forwardMs: 0 };
    this.head = null;
    this.tokens.length = Math.min(this.tokens.length, position);
    while (this.tokens.length < position) this.tokens.push({ ...UNHEARD });
    for (const token of tokens) {
      const ms = token.tier === null ? null : token.ms;
      const engram = token.engram.map((memory) => ({ ...memory, ms: memory.tier === null ? null : memory.ms }));
      this.tokens.push({ ...token, ms, engram, traced: null });
    }
    if (position >= this.promptTokens) {
      this.times.steps += 1;
      this.times.rowsMs += rowsMs;
      this.times.forwardMs += forwardMs;
    }
    this.#changed();
  }

  /** So long is the prompt that is being answered. */
  prompt(tokens: number): void {
    if (tokens === this.promptTokens) return;
    this.promptTokens = tokens;
    this.#changed();
  }

  /** Some tokens of a trace of this text. */
  part({ position, tokens }: TracePart): void {
    while (this.tokens.length < position + tokens.length) this.tokens.push({ ...UNHEARD });
    for (const [i, traced] of tokens.entries()) {
      const heard = this.tokens[position + i];
      // How a row was found is known from when it was first looked up: a trace finds all in memory.
      const same = heard?.id === traced.id ? heard : undefined;
      this.tokens[position + i] = seen(traced, same);
    }
    this.#changed();
  }

  /** A trace that was read from a file takes the place of what was heard. */
  open(name: string, trace: Trace): void {
    const { n_layers: layers, stem_layers: stem, engram_layers: engram = [] } = trace.model;
    this.clear(shapeOf(layers, stem, engram));
    this.file = { name, trace };
    this.head = trace;
    this.promptTokens = trace.prompt_tokens;
    this.tokens = trace.tokens.map((token) => seen(token));
    this.#changed();
  }

  /** The whole trace, once every token was traced. */
  whole(head: Trace): Trace | null {
    const tokens = this.tokens.flatMap(({ traced, tier, ms, engram }) => {
      if (!traced) return [];
      const memories = traced.engram?.map((memory, i) => ({ ...memory, lookup: lookupOf(engram[i]) }));
      return [{ ...traced, lookup: lookupOf({ tier, ms }), ...(memories ? { engram: memories } : {}) }];
    });
    if (tokens.length === 0 || tokens.length !== this.tokens.length) return null;
    return { ...head, format: FORMAT, version: VERSION, prompt_tokens: this.promptTokens, tokens };
  }

  get isTraced(): boolean {
    return this.tokens.length > 0 && this.tokens.every(({ traced }) => traced !== null);
  }

  /** `[n]`: how many different rows the first tokens needed. */
  uniqueRows(): number[] {
    const known = new Set<number>();
    return this.tokens.map(({ id }) => known.add(id).size);
  }

  #changed(): void {
    this.version.set(this.version.value + 1);
  }
}

function lookupOf(found: { tier: Tier | null; ms: number | null } | undefined): { tier: Tier; ms: number } | null {
  return found && found.tier !== null ? { tier: found.tier, ms: found.ms ?? 0 } : null;
}

/** What a trace says, with how rows were found when they were first `heard` of. */
function seen(traced: TracedToken, heard?: Seen): Seen {
  const { id, text, edited, contribution, gate_open: gateOpen } = traced;
  const lookup = (heard && lookupOf(heard)) ?? traced.lookup;
  const engram = (traced.engram ?? []).map((memory, i) => {
    const found = lookupOf(heard?.engram[i]) ?? memory.lookup;
    return {
      tier: found?.tier ?? null,
      ms: found?.ms ?? null,
      edited: memory.edited,
      contribution: memory.contribution,
      gate: memory.gate,
    };
  });
  const { tier, ms } = lookup ?? { tier: null, ms: null };
  return { id, text, tier, ms, edited, contribution, gateOpen, engram, traced };
}
