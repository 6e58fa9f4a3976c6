// The worker: holds the engine, so that neither loading nor a slow token ever blocks the page.

import { DeviceArchive } from "./archive";
import { reasonOf } from "./format";
import type { Download, Engine, EngineModule, FromWorker, LoadProgress, Look, ToWorker } from "./protocol";

let engine: Engine | null = null;
const archive = new DeviceArchive();

/** Pages of one piece of the download: between two pieces it can be paused, and the chat goes first. */
const PIECE = 64;
const download: Download = { running: false, problem: null };
let answering: Promise<unknown> = Promise.resolve();

function post(message: FromWorker): void {
  self.postMessage(message);
}

function fail(error: unknown): void {
  const message = reasonOf(error);
  // A trap (a panic, memory exhausted) leaves the engine in no state to go on, and its own words help no reader.
  if (error instanceof WebAssembly.RuntimeError || error instanceof RangeError) {
    post({
      type: "failed",
      message: `The engine broke off (${message}); the tab may be out of memory. Start it again.`,
      fatal: true,
    });
  } else {
    post({ type: "failed", message, fatal: message.startsWith("GPU:") });
  }
}

async function importEngine(): Promise<EngineModule> {
  const url = new URL("./pkg/xylem.js", self.location.href).href;
  let module: EngineModule;
  try {
    // The address is computed, so that the bundler leaves the wasm module to the browser.
    module = (await import(url)) as EngineModule;
    await module.default();
  } catch (cause) {
    const reason = reasonOf(cause);
    throw new Error(`The engine (${url}) could not be started: ${reason}`, { cause });
  }
  return module;
}

function postKept(): void {
  post({ type: "kept", kept: archive.kept(), download: { ...download } });
}

/** Brings the whole table to this device, the frequent tokens first, until it is there or `running` is unset. */
async function downloadTable(engine: Engine): Promise<void> {
  const { tablePages } = engine.info();
  Object.assign(download, { running: true, problem: null });
  postKept();
  try {
    while (download.running) {
      const pages = archive.missing(tablePages, PIECE);
      if (pages.length === 0) break;
      await engine.download(Uint32Array.from(pages));
      postKept();
      await answering;
    }
  } catch (cause) {
    download.problem = reasonOf(cause);
  }
  download.running = false;
  postKept();
}

/** A look that fails is no end of the engine, unless it broke off. */
async function look(call: number, what: Look): Promise<void> {
  try {
    if (!engine) throw new Error("The model is not loaded yet.");
    const value =
      what.name === "trace"
        ? await engine.trace((part) => post({ type: "part", call, part }))
        : await engine.card(what.position, what.layer);
    post({ type: "looked", call, value });
  } catch (error) {
    if (error instanceof WebAssembly.RuntimeError || error instanceof RangeError) throw error;
    post({ type: "unseen", call, message: reasonOf(error) });
  }
}

async function handle(message: ToWorker): Promise<void> {
  switch (message.type) {
    case "load": {
      const module = await importEngine();
      const onProgress = (progress: LoadProgress): void => post({ type: "progress", progress });
      engine = await module.Engine.load(message.manifestUrl, { backend: message.backend }, onProgress, archive);
      post({ type: "loaded", info: engine.info() });
      postKept();
      return;
    }
    case "chat": {
      if (!engine) throw new Error("The model is not loaded yet.");
      const { messages, settings, swaps } = message;
      const answer = engine.chat(messages, settings, swaps, (event) => post({ type: "event", event }));
      answering = answer.catch(() => undefined);
      const result = await answer;
      post({ type: "result", result, info: engine.info() });
      postKept();
      return;
    }
    case "prefetch":
      engine?.prefetch(message.text);
      return;
    case "watch":
      engine?.watch(message.on);
      return;
    case "look":
      await look(message.call, message.look);
      return;
    case "stop":
      engine?.stop();
      return;
    case "forget":
      download.running = false;
      await archive.clear();
      postKept();
      return;
    case "download":
      if (!message.on) download.running = false;
      else if (engine && !download.running) await downloadTable(engine);
  }
}

// A panic inside the engine's own tasks rejects a promise that nobody waits for.
self.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  fail(event.reason);
});
self.addEventListener("message", (event: MessageEvent<ToWorker>) => {
  handle(event.data).catch(fail);
});
