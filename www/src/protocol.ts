// What the engine in the worker offers (the wasm module's interface), and the messages between page and worker.

import type { BenchMethods, Fetched } from "./bench/protocol";
import type { EditMethods } from "./edits/protocol";
import type { LookMethods, Tier } from "./lookups/trace";

export type Role = "system" | "user" | "assistant";
export type ChatMessage = { role: Role; content: string };
export type Backend = "auto" | "gpu" | "cpu";

export type LoadProgress = {
  stage: "manifest" | "core" | "compile" | "ready";
  loadedBytes: number;
  totalBytes: number;
};

export type EngineInfo = {
  model: string;
  /** Of this very version: edits are made for it alone. */
  modelHash: string;
  licence: string;
  backend: "gpu" | "cpu";
  adapter: string;
  /** Why the CPU runs although a GPU was wanted. */
  notice: string | null;
  contextLength: number;
  nLayers: number;
  stemLayers: number[];
  engramLayers: number[];
  hiddenSize: number;
  vocabSize: number;
  coreBytes: number;
  tableBytes: number;
  tablePages: number;
  gpuBytes: number;
  cost: Cost;
  wasmBytes: number;
  /** What came of the table so far; null for a model without one. */
  rows: RowStats | null;
  /** The same of the Engram table, whose rows belong to n-grams. */
  engram: RowStats | null;
};

/** Of one token, beside the dense model that this one comes from; names as in `xylem inspect`. */
export type Cost = {
  core: number;
  tables: number;
  row_values_per_token: number;
  dense: number;
  core_bytes: number;
  read_bytes: number;
  dense_bytes: number;
  flops: number;
  dense_flops: number;
};

export type RowStats = {
  /** A row is all that a token has in the table. */
  lookedUp: number;
  /** Found in memory, on this device and with the host; a row that one lookup wants twice counts once. */
  memory: number;
  stored: number;
  fetched: number;
  requests: number;
  bytesFetched: number;
  stallMs: number;
  bytesHeld: number;
  /** Of one record, and of the whole table. */
  recordBytes: number;
  tableBytes: number;
};

export type SamplingSettings = {
  temperature: number;
  topK: number;
  topP: number;
  repetitionPenalty: number;
  maxTokens: number;
  seed: number | null;
};

/** What a step did; told only while somebody watches. */
export type Step = { type: "step"; position: number; tokens: Seen[]; rowsMs: number; forwardMs: number };

/** A token of a step, and how its row was found. */
export type Seen = {
  id: number;
  text: string;
  /** Null for a model without a table. */
  tier: Tier | null;
  ms: number;
  /** The layers in which an edit changed its row. */
  edited: number[];
  /** One a layer; null where the backend can't measure. */
  contribution: number[] | null;
  gateOpen: number[] | null;
  /** One an Engram layer. */
  engram: SeenEngram[];
};

/** What the memory of an Engram layer did with a token, and how its rows were found. */
export type SeenEngram = {
  tier: Tier | null;
  ms: number;
  edited: boolean;
  /** Null where the backend can't measure. */
  contribution: number | null;
  gate: number | null;
};

/** What may take the place of STEM rows; `engram_off` leaves these, and Engram layers add nothing. */
export const INSTEAD = ["zero", "mean", "shuffle", "engram_off"] as const;
export type Instead = (typeof INSTEAD)[number];
/** Rows knocked out for one answer, in these STEM layers (or Engram layers) or in all. */
export type KnockOut = { instead: Instead; layers: number[] | null };

export type GenEvent =
  | { type: "prefill"; done: number; total: number }
  // `text` is what became complete with this token; it may be empty inside a multi-byte character.
  | { type: "token"; id: number; logProb: number; text: string }
  | Step
  | { type: "wait"; reason: string };

export type GenResult = {
  text: string;
  tokens: number[];
  finish: "stop" | "length" | "stopped" | "context";
  promptTokens: number;
  reusedTokens: number;
  generatedTokens: number;
  timeToFirstTokenMs: number;
  tokensPerSecond: number;
  droppedTurns: number;
  seed: number;
};

/** The engine's methods that the page calls by name. */
export type Methods = EditMethods & LookMethods & BenchMethods & { info(): EngineInfo };

/** The class `Engine` of `pkg/xylem.js`. */
export type Engine = Methods & {
  chat(
    messages: ChatMessage[],
    settings: SamplingSettings,
    edits: string | null,
    knockOut: KnockOut | null,
    onEvent: (event: GenEvent) => void,
  ): Promise<GenResult>;
  download(pages: Uint32Array): Promise<void>;
  /** Brings the rows of a text that may soon be sent into memory. */
  prefetch(text: string): void;
  watch(on: boolean): void;
  stop(): void;
};

/** Keeps files and pages from one visit to the next. It may lose any of them. No promise is rejected. */
export type Archive = {
  manifest(url: string): Promise<Uint8Array | undefined>;
  begin(url: string, manifest: Uint8Array, files: string[], table: string): Promise<void>;
  file(hash: string): Promise<Uint8Array | undefined>;
  keepFile(hash: string, bytes: Uint8Array): void;
  pages(numbers: Uint32Array): Promise<(Uint8Array | undefined)[]>;
  keepPage(page: number, bytes: Uint8Array): void;
  forgetPage(page: number): void;
};

/** What of the model in use is on this device. */
export type Kept = {
  /** Whole files: the core, the tokenizer, the table's index. */
  files: number;
  pages: number;
  /** Why nothing more is kept. */
  notice: string | null;
};

/** How the download of the whole table goes. */
export type Download = { running: boolean; problem: string | null };

/** The module `pkg/xylem.js`. */
/** What the threads of an engine share. */
export type Shared = { module: WebAssembly.Module; memory: WebAssembly.Memory };

/** What a worker starts from that takes the place `worker` in the team of the engine at the address `engine`. */
export type Place = Shared & { engine: string; worker: number };

export type EngineModule = {
  /** Starts the engine: a new one, or one more thread of one that is there. */
  default(start?: { module_or_path: WebAssembly.Module; memory: WebAssembly.Memory }): Promise<unknown>;
  /** Makes places for so many threads more; only where the engine has threads. */
  recruit?(workers: number): Shared;
  /** Works in a place until the worker is ended. */
  join?(worker: number): void;
  Engine: {
    load(
      manifestUrl: string,
      options: { backend: Backend },
      onProgress: (progress: LoadProgress) => void,
      archive: Archive,
    ): Promise<Engine>;
  };
};

export type ToWorker =
  | { type: "load"; manifestUrl: string; backend: Backend }
  // `edits`: a file of edits, or none.
  | {
      type: "chat";
      messages: ChatMessage[];
      settings: SamplingSettings;
      edits: string | null;
      knockOut: KnockOut | null;
    }
  // Any other method of the engine; its result or its refusal has the same `id`, as has each event before.
  | { type: "call"; id: number; method: keyof Methods; args: unknown[] }
  | { type: "prefetch"; text: string }
  | { type: "watch"; on: boolean }
  | { type: "stop" }
  | { type: "forget" }
  // Wants the message of this type.
  | { type: "fetched" }
  | { type: "download"; on: boolean };

export type FromWorker =
  | { type: "progress"; progress: LoadProgress }
  | { type: "loaded"; info: EngineInfo }
  | { type: "event"; event: GenEvent }
  | { type: "kept"; kept: Kept; download: Download }
  | { type: "fetched"; fetched: Fetched }
  | { type: "result"; result: GenResult; info: EngineInfo }
  | { type: "heard"; id: number; event: unknown }
  | { type: "called"; id: number; value: unknown }
  | { type: "refused"; id: number; message: string }
  // `fatal`: the engine cannot be used any more, the worker must be started anew.
  | { type: "failed"; message: string; fatal: boolean };
