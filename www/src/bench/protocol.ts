// What the engine's measurement takes and gives. Names as in the JSON of `xylem bench speed`.

export type BenchOptions = {
  /** Taken as it is; a built-in text unless given. */
  prompt: string | null;
  /** Read so many tokens, the text over and over; the text once unless given. */
  promptTokens: number | null;
  newTokens: number;
  /** After one that warms up. */
  runs: number;
  /** More of them, whose operations are timed one by one. */
  timedRuns: number;
};

export type Spread = { median: number; min: number; max: number };

/** Milliseconds a token. */
export type PartTimes = {
  tokens: number;
  all_ms: number;
  rows_ms: number;
  embed_ms: number;
  attention_ms: number;
  dense_ffn_ms: number;
  stem_ffn_ms: number;
  engram_ms: number;
  head_ms: number;
  candidates_ms: number;
  other_ms: number;
  a_dense_ffn_ms: number | null;
  a_stem_ffn_ms: number | null;
  stem_to_dense_ffn: number | null;
  stem_with_rows_to_dense_ffn: number | null;
  layers: { stem: boolean; attention_ms: number; ffn_ms: number }[];
};

export type Gpu = {
  dispatches: number;
  dispatches_per_layer: number;
  upload_bytes: number;
  readback_bytes: number;
  copy_bytes_per_second: number;
  dispatch_us: number;
  round_trip_ms: number;
};

export type BenchReport = {
  prompt_tokens: number;
  new_tokens: number;
  runs: number;
  warm_up: { first_token_ms: number; decode_tokens_per_second: number };
  prefill_tokens_per_second: Spread;
  first_token_ms: Spread;
  decode_tokens_per_second: Spread;
  tokens: number[];
  /** Null where nothing was timed. */
  prefill: PartTimes | null;
  decode: PartTimes | null;
  gpu: Gpu | null;
};

export type BenchToken = { type: "token" };

export type BenchMethods = {
  /** Hears of every token. */
  bench(options: BenchOptions, onEvent: (event: BenchToken) => void): Promise<BenchReport>;
};

/** What the worker has fetched, as its browser counts it: nothing for what came from a cache. */
export type Fetched = { requests: number; bytes: number };
