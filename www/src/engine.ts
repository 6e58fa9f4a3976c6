// The page's side of the engine: starts the worker, follows its state, and can always throw it away and start another.

import type { Fetched } from "./bench/protocol";
import type { LookMethods } from "./lookups/trace";
import type {
  Backend,
  ChatMessage,
  Download,
  EngineInfo,
  FromWorker,
  GenEvent,
  GenResult,
  Kept,
  KnockOut,
  LoadProgress,
  Methods,
  SamplingSettings,
  ToWorker,
} from "./protocol";
import { Signal } from "./signal";

export type EngineState =
  | { phase: "idle" }
  | { phase: "loading"; progress: LoadProgress | null }
  | { phase: "ready"; info: EngineInfo }
  | { phase: "failed"; message: string };

/** The generation failed; `fatal` if the engine went down with it. */
export class GenerationError extends Error {
  constructor(
    message: string,
    readonly fatal: boolean,
  ) {
    super(message);
  }
}

const notLoaded = (): GenerationError => new GenerationError("The model is not loaded yet.", false);

type Running = {
  onEvent: (event: GenEvent) => void;
  resolve: (result: GenResult) => void;
  reject: (error: GenerationError) => void;
};

type Call = {
  onEvent: (event: unknown) => void;
  resolve: (value: unknown) => void;
  reject: (error: GenerationError) => void;
};

/** What the engine does one at a time. An answer goes first: it ends a measurement, which never ends an answer. */
type Job = { kind: "answer" | "measurement"; ended: Promise<void> };

type OnEvent<M extends keyof Methods> =
  Parameters<Methods[M]> extends [...unknown[], (event: infer E) => void] ? E : never;
type Args<M extends keyof Methods> =
  Parameters<Methods[M]> extends [...infer A, (event: OnEvent<M>) => void] ? A : Parameters<Methods[M]>;

export class EngineClient {
  readonly state = new Signal<EngineState>({ phase: "idle" });
  /** What of the model is on this device, as last heard. */
  readonly kept = new Signal<(Kept & { download: Download }) | null>(null);
  /** The last complete answer. */
  readonly result = new Signal<GenResult | null>(null);
  /** Hears what happens while an answer is written; of steps only while they are watched. */
  onEvent: (event: GenEvent) => void = () => {};
  #watching = false;
  #worker: Worker | null = null;
  #running: Running | null = null;
  readonly #calls = new Map<number, Call>();
  #lastCall = 0;
  #job: Job | null = null;
  #onFetched: (fetched: Fetched) => void = () => {};

  constructor(readonly manifestUrl: string) {}

  load(backend: Backend): void {
    this.#end("The engine was restarted.");
    const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "xylem" });
    // A worker that was thrown away may still have messages under way.
    const current = (): boolean => this.#worker === worker;
    worker.addEventListener("message", (event: MessageEvent<FromWorker>) => {
      if (current()) this.#receive(event.data);
    });
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      if (current()) this.#crash(event.message || "The worker's script could not be loaded.");
    });
    this.#worker = worker;
    this.state.set({ phase: "loading", progress: null });
    this.#post({ type: "load", manifestUrl: this.manifestUrl, backend });
  }

  /** Ends the worker, which gives all its memory back to the system. */
  unload(): void {
    this.#end("The model was unloaded.");
    this.state.set({ phase: "idle" });
  }

  /** An answer, or one that is only wanted to be compared with another. */
  chat(
    messages: ChatMessage[],
    settings: SamplingSettings,
    edits: string | null,
    onEvent: (event: GenEvent) => void,
    kind: Job["kind"] = "answer",
    knockOut: KnockOut | null = null,
  ): Promise<GenResult> {
    return this.#alone(kind, () => {
      // The model may have been unloaded while this waited.
      if (this.state.value.phase !== "ready") return Promise.reject(notLoaded());
      return new Promise((resolve, reject) => {
        this.#running = { onEvent, resolve, reject };
        this.#post({ type: "chat", messages, settings, edits, knockOut });
      });
    });
  }

  /** Whether the answer that is being written is only wanted to be compared with another. */
  get comparing(): boolean {
    return this.#job?.kind === "measurement";
  }

  /** Says what may be sent soon, so that its rows come while it is written. */
  prefetch(text: string): void {
    if (this.state.value.phase === "ready") this.#post({ type: "prefetch", text });
  }

  /** Whether steps are told; switched off it costs nothing. */
  watch(on: boolean): void {
    this.#watching = on;
    this.#post({ type: "watch", on });
  }

  /** A method of the engine that needs no more than a moment. */
  call<M extends keyof Methods>(method: M, ...args: Args<M>): Promise<Awaited<ReturnType<Methods[M]>>> {
    return this.#call(method, args, () => undefined) as Promise<Awaited<ReturnType<Methods[M]>>>;
  }

  /** A method that tells of what it finds, and gives way to an answer by itself. */
  look<M extends keyof LookMethods>(
    method: M,
    args: Args<M>,
    onEvent: (event: OnEvent<M>) => void,
  ): Promise<Awaited<ReturnType<Methods[M]>>> {
    return this.#call(method, args, onEvent as (event: unknown) => void) as Promise<Awaited<ReturnType<Methods[M]>>>;
  }

  /** A method that takes a while, tells of what it finds, and can be stopped. */
  measure<M extends keyof Methods>(
    method: M,
    args: Args<M>,
    onEvent: (event: OnEvent<M>) => void,
  ): Promise<Awaited<ReturnType<Methods[M]>>> {
    const run = (): Promise<unknown> => this.#call(method, args, onEvent as (event: unknown) => void);
    return this.#alone("measurement", run) as Promise<Awaited<ReturnType<Methods[M]>>>;
  }

  #call(method: keyof Methods, args: unknown[], onEvent: (event: unknown) => void): Promise<unknown> {
    if (this.state.value.phase !== "ready") {
      return Promise.reject(notLoaded());
    }
    return new Promise((resolve, reject) => {
      this.#lastCall += 1;
      this.#calls.set(this.#lastCall, { onEvent, resolve, reject });
      this.#post({ type: "call", id: this.#lastCall, method, args });
    });
  }

  async #alone<T>(kind: Job["kind"], run: () => Promise<T>): Promise<T> {
    while (this.#job) {
      if (kind === "measurement" && this.#job.kind === "answer") {
        throw new GenerationError("An answer is being written; try again when it is complete.", false);
      }
      if (this.#job.kind === "answer") throw new GenerationError("Another answer is still being written.", false);
      this.stop();
      await this.#job.ended;
    }
    let end: () => void = () => undefined;
    this.#job = { kind, ended: new Promise((resolve) => (end = resolve)) };
    try {
      return await run();
    } finally {
      this.#job = null;
      end();
    }
  }

  /** What the worker has fetched so far. */
  fetched(): Promise<Fetched> {
    return new Promise((resolve) => {
      this.#onFetched = resolve;
      this.#post({ type: "fetched" });
    });
  }

  stop(): void {
    this.#post({ type: "stop" });
  }

  /** Begins or pauses the download of the whole table; what has come stays. */
  download(on: boolean): void {
    this.#post({ type: "download", on });
  }

  /** Removes what is kept on this device; the model in memory stays. */
  forget(): void {
    this.#post({ type: "forget" });
  }

  #post(message: ToWorker): void {
    this.#worker?.postMessage(message);
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case "progress":
        this.state.set({ phase: "loading", progress: message.progress });
        return;
      case "loaded":
        if (this.#watching) this.watch(true);
        this.state.set({ phase: "ready", info: message.info });
        return;
      case "event":
        this.onEvent(message.event);
        this.#running?.onEvent(message.event);
        return;
      case "kept":
        this.kept.set({ ...message.kept, download: message.download });
        return;
      case "fetched":
        this.#onFetched(message.fetched);
        return;
      case "result": {
        const running = this.#running;
        this.#running = null;
        this.state.set({ phase: "ready", info: message.info });
        this.result.set(message.result);
        running?.resolve(message.result);
        return;
      }
      case "heard":
        // That rows are waited for may be told of any method, and is said of answers only.
        if ((message.event as { type?: unknown }).type !== "wait") this.#calls.get(message.id)?.onEvent(message.event);
        return;
      case "called":
      case "refused": {
        const call = this.#calls.get(message.id);
        this.#calls.delete(message.id);
        if (message.type === "called") call?.resolve(message.value);
        else call?.reject(new GenerationError(message.message, false));
        return;
      }
      case "failed": {
        const running = this.#running;
        if (!running || message.fatal) this.#crash(message.message);
        else {
          this.#running = null;
          running.reject(new GenerationError(message.message, false));
        }
      }
    }
  }

  #crash(message: string): void {
    this.#end(message);
    this.state.set({ phase: "failed", message });
  }

  #end(reason: string): void {
    this.#worker?.terminate();
    this.#worker = null;
    this.kept.set(null);
    const running = this.#running;
    this.#running = null;
    running?.reject(new GenerationError(reason, true));
    for (const call of this.#calls.values()) call.reject(new GenerationError(reason, true));
    this.#calls.clear();
  }
}
