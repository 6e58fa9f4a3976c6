// One measurement: a new engine, the time until it is ready, and what it then does. Knows no elements of the page.

import { EngineClient } from "../engine";
import type { Backend, EngineInfo } from "../protocol";
import type { BenchOptions, BenchReport, Fetched } from "./protocol";

/** What is saved: figures, and what they were measured on. */
export type Measurement = BenchReport & {
  model: string;
  model_hash: string;
  backend: string;
  adapter: string;
  notice: string | null;
  browser: string;
  cores: number;
  isolated: boolean;
  /** From starting the worker until the first question could be answered. */
  load_ms: number;
  memory: Memory;
  download: {
    /** Until the model was ready, and in all. */
    load: Fetched;
    all: Fetched;
    core_bytes: number;
    table_bytes: number;
  };
  /** Bytes of weights that the step of one token reads, and what that comes to at the median speed. */
  weight_bytes: number;
  weight_bytes_per_second: number;
};

export type Memory = {
  wasm_bytes: number;
  /** Of table pages, in the wasm memory. */
  rows_bytes: number;
  gpu_bytes: number;
  /** Of this page, where the browser tells. */
  js_heap_bytes: number | null;
  /** Of page and worker, where the browser tells: in an isolated page. */
  agent_bytes: number | null;
};

/** Milliseconds that the browser may take to measure its memory. */
const PATIENCE = 5_000;

type Heap = { memory?: { usedJSHeapSize: number } };
type Agent = { measureUserAgentSpecificMemory?: () => Promise<{ bytes: number }> };

/** Tells what happens, and how much is done, from 0 to 1. */
type Say = (text: string, done?: number) => void;

/** Measures the model at `manifestUrl`; `stop` stops it at any time. */
export class Measuring {
  readonly #engine: EngineClient;
  #stopped: (reason: Error) => void = () => undefined;

  constructor(manifestUrl: string) {
    this.#engine = new EngineClient(manifestUrl);
  }

  /** Ends the worker, in whatever it is. */
  stop(): void {
    this.#stopped(new Error("stopped"));
    this.#engine.unload();
  }

  async run(backend: Backend, options: BenchOptions, say: Say): Promise<Measurement> {
    const stopped = new Promise<never>((_, reject) => {
      this.#stopped = reject;
    });
    try {
      return await Promise.race([this.#run(backend, options, say), stopped]);
    } finally {
      this.#engine.unload();
    }
  }

  async #run(backend: Backend, options: BenchOptions, say: Say): Promise<Measurement> {
    const engine = this.#engine;
    say("Loading the model");
    const began = performance.now();
    await this.#load(backend, say);
    const loadMs = performance.now() - began;
    const load = await engine.fetched();
    const runs = 1 + options.runs + options.timedRuns;
    const total = runs * options.newTokens;
    let tokens = 0;
    say("Reading the prompt", 0);
    const report = await engine.measure("bench", [options], () => {
      tokens += 1;
      say(`Run ${Math.ceil(tokens / options.newTokens)} of ${runs}`, tokens / total);
    });
    const info = await engine.call("info");
    const weightBytes = info.cost.read_bytes;
    return {
      model: info.model,
      model_hash: info.modelHash,
      backend: info.backend,
      adapter: info.adapter,
      notice: info.notice,
      browser: navigator.userAgent,
      cores: navigator.hardwareConcurrency,
      isolated: crossOriginIsolated,
      load_ms: loadMs,
      memory: await memory(info),
      download: {
        load,
        all: await engine.fetched(),
        core_bytes: info.coreBytes,
        table_bytes: info.tableBytes,
      },
      weight_bytes: weightBytes,
      weight_bytes_per_second: weightBytes * report.decode_tokens_per_second.median,
      ...report,
    };
  }

  #load(backend: Backend, say: Say): Promise<void> {
    const ready = new Promise<void>((resolve, reject) => {
      this.#engine.state.watch((state) => {
        if (state.phase === "ready") resolve();
        else if (state.phase === "failed") reject(new Error(state.message));
        else if (state.phase === "loading" && state.progress && state.progress.totalBytes > 0) {
          say("Loading the model", state.progress.loadedBytes / state.progress.totalBytes);
        }
      });
    });
    this.#engine.load(backend);
    return ready;
  }
}

async function memory(info: EngineInfo): Promise<Memory> {
  const heap = (performance as Heap).memory;
  const measured = crossOriginIsolated ? (performance as Agent).measureUserAgentSpecificMemory?.() : undefined;
  // The browser asks every worker, and the engine's threads never come to answer.
  const agent = await Promise.race([measured, new Promise<undefined>((resolve) => setTimeout(resolve, PATIENCE))]);
  return {
    wasm_bytes: info.wasmBytes,
    rows_bytes: (info.rows?.bytesHeld ?? 0) + (info.engram?.bytesHeld ?? 0),
    gpu_bytes: info.gpuBytes,
    js_heap_bytes: heap?.usedJSHeapSize ?? null,
    agent_bytes: agent?.bytes ?? null,
  };
}
