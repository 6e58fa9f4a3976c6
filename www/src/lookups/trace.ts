// A trace as `docs/trace.md` describes it, and the check of one that comes from a file.

import { isRecord } from "../storage";

export type Tier = "memory" | "stored" | "fetched";

export type Address = { file: string; page: number; slot: number; offset: number; bytes: number };
export type Candidate = { id: number; text: string; probability: number };

export type Next = {
  id: number;
  text: string;
  logit: number;
  probability: number;
  mean_logit: number;
  embedding: number;
  attention: number[];
  ffn: number[];
  /** One an Engram layer; absent where there are none. */
  engram?: number[];
  top: Candidate[];
};

/** What the memory of an Engram layer did with a token. */
export type TracedEngram = {
  /** One a head, those of pairs first. */
  hashes: number[];
  lookup: { tier: Tier; ms: number } | null;
  edited: boolean;
  row_norm: number;
  contribution: number;
  gate: number;
};

export type TracedToken = {
  id: number;
  text: string;
  record: Address | null;
  lookup: { tier: Tier; ms: number } | null;
  edited: number[];
  row_norm: number[];
  contribution: number[];
  gate_open: number[];
  /** The compressed id; absent without Engram layers, as is the next one. */
  compressed?: number;
  engram?: TracedEngram[];
  next: Next;
};

export type TracedModel = {
  name: string;
  hash: string;
  n_layers: number;
  stem_layers: number[];
  engram_layers?: number[];
  /** Tokens of the longest n-gram. */
  engram_order?: number;
  hidden_size: number;
  intermediate_size: number;
  vocab_size: number;
};

export type Trace = {
  format: string;
  version: number;
  model: TracedModel;
  backend: string;
  prompt_tokens: number;
  tokens: TracedToken[];
};

/** Some tokens of a trace that is under way. */
export type TracePart = { position: number; tokens: TracedToken[] };

export type Near = { id: number; text: string; cosine: number };
export type Push = { id: number; text: string; logit: number };
export type Unit = { unit: number; gate: number; up: number; added: number };
export type Row = { layer: number; norm: number; edited: boolean; nearest: Near | null };

/** A token of an n-gram; before the beginning of the text there is none. */
export type Member = { id: number | null; text: string; compressed: number; form: string };
export type Collision = { position: number; text: string };
/** The row of one head; `others` n-grams of the text have it too. */
export type HeadRow = {
  hash: number;
  rows: number;
  record: Address;
  norm: number;
  others: number;
  collisions: Collision[];
};
export type Ngram = { tokens: Member[]; again: number[]; heads: HeadRow[] };
/** What an Engram layer looked up. */
export type Memory = {
  norm: number;
  edited: boolean;
  ngrams: Ngram[];
  /** Null where the GPU computes. */
  inside: { contribution: number; gate: number; up: Push[]; down: Push[] } | null;
};

/** Everything about one cell. */
export type Card = {
  position: number;
  layer: number;
  id: number;
  text: string;
  stem: boolean;
  record: Address | null;
  /** Null where the GPU computes. */
  inside: { contribution: number; gate_open: number; up: Push[]; down: Push[]; units: Unit[] } | null;
  nearest: { compared: number; records: number; rows: Near[] } | null;
  rows: Row[];
  /** Of an Engram layer. */
  engram?: Memory;
};

/** The engine's methods for looks at the text of the last answer. */
export type LookMethods = {
  /** Runs the text again, some tokens at a time. Gives the trace without its tokens. */
  trace(onEvent: (part: TracePart) => void): Promise<Trace>;
  /** Everything about one cell. */
  card(position: number, layer: number): Promise<Card>;
};

export const FORMAT = "xylem-trace";
export const VERSION = 1;
export const MAX_FILE_BYTES = 64 << 20;
const MAX_TOKENS = 20_000;
const MAX_LAYERS = 1024;
const MAX_TEXT = 4096;
const MAX_CANDIDATES = 256;
const MAX_ORDER = 8;
const MAX_HEADS = 448;

const TIERS: readonly Tier[] = ["memory", "stored", "fetched"];

/** Reads a trace from the text of a file; an error says what is wrong with it. */
export function parseTrace(json: string): Trace {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    throw new Error("The file is not JSON.");
  }
  const root = record(value, "the file");
  if (root.format !== FORMAT) throw new Error(`The file is no trace: its format is not “${FORMAT}”.`);
  if (root.version !== VERSION) throw new Error(`The trace has version ${String(root.version)}, not ${VERSION}.`);
  const model = parseModel(record(root.model, "model"));
  const tokens = list(root.tokens, "tokens", MAX_TOKENS).map((token, i) => parseToken(token, `token ${i}`, model));
  return {
    format: FORMAT,
    version: VERSION,
    model,
    backend: text(root.backend, "backend"),
    prompt_tokens: whole(root.prompt_tokens, "prompt_tokens", tokens.length),
    tokens,
  };
}

function parseModel(value: Record<string, unknown>): TracedModel {
  const layers = whole(value.n_layers, "n_layers", MAX_LAYERS);
  const size = (name: string): number => whole(value[name], name, 2 ** 31);
  return {
    name: text(value.name, "name"),
    hash: text(value.hash, "hash"),
    n_layers: layers,
    stem_layers: layerList(value.stem_layers, "stem_layers", layers),
    ...(value.engram_layers === undefined
      ? {}
      : { engram_layers: layerList(value.engram_layers, "engram_layers", layers) }),
    ...(value.engram_order === undefined ? {} : { engram_order: whole(value.engram_order, "engram_order", MAX_ORDER) }),
    hidden_size: size("hidden_size"),
    intermediate_size: size("intermediate_size"),
    vocab_size: size("vocab_size"),
  };
}

function parseToken(value: unknown, at: string, model: TracedModel): TracedToken {
  const token = record(value, at);
  const layers = model.n_layers;
  return {
    id: whole(token.id, `${at}: id`),
    text: text(token.text, `${at}: text`),
    record: token.record === null ? null : parseAddress(record(token.record, `${at}: record`), at),
    lookup: token.lookup === null ? null : parseLookup(record(token.lookup, `${at}: lookup`), at),
    edited: layerList(token.edited, `${at}: edited`, layers),
    row_norm: numbers(token.row_norm, `${at}: row_norm`, model.stem_layers.length),
    contribution: numbers(token.contribution, `${at}: contribution`, layers),
    gate_open: numbers(token.gate_open, `${at}: gate_open`, layers),
    ...(token.compressed === undefined ? {} : { compressed: whole(token.compressed, `${at}: compressed`) }),
    ...(token.engram === undefined ? {} : { engram: parseEngram(token.engram, `${at}: engram`, model) }),
    next: parseNext(record(token.next, `${at}: next`), `${at}: next`, model),
  };
}

function parseAddress(value: Record<string, unknown>, at: string): Address {
  const place = (name: string): number => whole(value[name], `${at}: ${name}`);
  return {
    file: text(value.file, `${at}: file`),
    page: place("page"),
    slot: place("slot"),
    offset: place("offset"),
    bytes: place("bytes"),
  };
}

function parseEngram(value: unknown, at: string, model: TracedModel): TracedEngram[] {
  const count = model.engram_layers?.length ?? 0;
  const all = list(value, at, count);
  if (all.length !== count) throw new Error(`In the trace, ${at} has ${all.length} layers, expected ${count}.`);
  return all.map((one) => {
    const { hashes, lookup, edited, row_norm, contribution, gate } = record(one, at);
    if (typeof edited !== "boolean") throw new Error(`In the trace, ${at}: edited is neither true nor false.`);
    return {
      hashes: list(hashes, `${at}: hashes`, MAX_HEADS).map((hash) => whole(hash, `${at}: hashes`)),
      lookup: lookup === null ? null : parseLookup(record(lookup, `${at}: lookup`), at),
      edited,
      row_norm: number(row_norm, `${at}: row_norm`),
      contribution: number(contribution, `${at}: contribution`),
      gate: number(gate, `${at}: gate`),
    };
  });
}

function parseLookup(value: Record<string, unknown>, at: string): { tier: Tier; ms: number } {
  const tier = TIERS.find((name) => name === value.tier);
  if (!tier) throw new Error(`In the trace, ${at}: tier is none.`);
  return { tier, ms: number(value.ms, `${at}: ms`) };
}

function parseNext(value: Record<string, unknown>, at: string, model: TracedModel): Next {
  const { n_layers: layers, engram_layers: engram } = model;
  const field = (name: string): number => number(value[name], `${at}: ${name}`);
  return {
    id: whole(value.id, `${at}: id`),
    text: text(value.text, `${at}: text`),
    logit: field("logit"),
    probability: field("probability"),
    mean_logit: field("mean_logit"),
    embedding: field("embedding"),
    attention: numbers(value.attention, `${at}: attention`, layers),
    ffn: numbers(value.ffn, `${at}: ffn`, layers),
    ...(engram ? { engram: numbers(value.engram, `${at}: engram`, engram.length) } : {}),
    top: list(value.top, `${at}: top`, MAX_CANDIDATES).map((candidate) => {
      const { id, text: piece, probability } = record(candidate, `${at}: top`);
      return {
        id: whole(id, `${at}: top`),
        text: text(piece, `${at}: top`),
        probability: number(probability, `${at}: top`),
      };
    }),
  };
}

function record(value: unknown, at: string): Record<string, unknown> {
  if (!isRecord(value)) throw new Error(`In the trace, ${at} is no object.`);
  return value;
}

function list(value: unknown, at: string, most: number): unknown[] {
  if (!Array.isArray(value) || value.length > most) {
    throw new Error(`In the trace, ${at} is no list of at most ${most}.`);
  }
  return value;
}

function text(value: unknown, at: string): string {
  if (typeof value !== "string" || value.length > MAX_TEXT) throw new Error(`In the trace, ${at} is no short text.`);
  return value;
}

function number(value: unknown, at: string): number {
  if (typeof value !== "number" || !Number.isFinite(value)) throw new Error(`In the trace, ${at} is no number.`);
  return value;
}

function numbers(value: unknown, at: string, count: number): number[] {
  const all = list(value, at, count);
  if (all.length !== count) throw new Error(`In the trace, ${at} has ${all.length} numbers, expected ${count}.`);
  return all.map((one) => number(one, at));
}

function whole(value: unknown, at: string, most = Number.MAX_SAFE_INTEGER): number {
  const n = number(value, at);
  if (!Number.isInteger(n) || n < 0 || n > most) throw new Error(`In the trace, ${at} is out of range.`);
  return n;
}

/** Layers, ascending. */
function layerList(value: unknown, at: string, layers: number): number[] {
  const all = list(value, at, layers).map((layer) => whole(layer, at, layers - 1));
  if (all.some((layer, i) => i > 0 && layer <= (all[i - 1] ?? 0))) {
    throw new Error(`In the trace, ${at} does not ascend.`);
  }
  return all;
}

/** The JSON form, with as many digits as single precision has. */
export function traceJson(trace: Trace): string {
  const short = (_: string, value: unknown): unknown =>
    typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(7)) : value;
  return JSON.stringify(trace, short);
}
