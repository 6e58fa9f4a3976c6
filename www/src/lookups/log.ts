// What is known of each token of a text: heard while it was written, filled in by a trace, or read from a file.

import type { EngineInfo, Step } from "../protocol";
import { Signal } from "../signal";
import { FORMAT, type Tier, type Trace, type TracedToken, type TracePart, VERSION } from "./trace";

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
  /** What the whole trace says; null until it was asked for. */
  traced: TracedToken | null;
};

/** The layers of the model in question. */
export type Shape = { layers: number; stem: ReadonlySet<number>; engram: readonly number[] };

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
  traced: null,
} as const;

export class Log {
  /** By position. */
  tokens: Seen[] = [];
  shape: Shape = { layers: 0, stem: new Set(), engram: [] };
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
    this.clear({ layers: info.nLayers, stem: new Set(info.stemLayers), engram: info.engramLayers });
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
      this.tokens.push({ ...token, ms, traced: null });
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
      const known = heard?.id === traced.id && heard.tier !== null;
      const lookup = known ? { tier: heard.tier, ms: heard.ms } : traced.lookup;
      this.tokens[position + i] = seen(traced, lookup?.tier ?? null, lookup?.ms ?? null);
    }
    this.#changed();
  }

  /** A trace that was read from a file takes the place of what was heard. */
  open(name: string, trace: Trace): void {
    const { n_layers: layers, stem_layers: stem, engram_layers: engram = [] } = trace.model;
    this.clear({ layers, stem: new Set(stem), engram });
    this.file = { name, trace };
    this.head = trace;
    this.promptTokens = trace.prompt_tokens;
    this.tokens = trace.tokens.map((token) => seen(token, token.lookup?.tier ?? null, token.lookup?.ms ?? null));
    this.#changed();
  }

  /** The whole trace, once every token was traced. */
  whole(head: Trace): Trace | null {
    const tokens = this.tokens.flatMap(({ traced, tier, ms }) =>
      traced ? [{ ...traced, lookup: tier === null ? null : { tier, ms: ms ?? 0 } }] : [],
    );
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

function seen(traced: TracedToken, tier: Tier | null, ms: number | null): Seen {
  const { id, text, edited, contribution, gate_open: gateOpen } = traced;
  return { id, text, tier, ms, edited, contribution, gateOpen, traced };
}
