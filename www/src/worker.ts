// The worker: holds the engine, so that neither loading nor a slow token ever blocks the page.

import { DeviceArchive } from "./archive";
import type { Engine, EngineModule, FromWorker, LoadProgress, ToWorker } from "./protocol";

let engine: Engine | null = null;
const archive = new DeviceArchive();

function post(message: FromWorker): void {
  self.postMessage(message);
}

function fail(error: unknown): void {
  const message = error instanceof Error ? error.message : String(error);
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
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`The engine (${url}) could not be started: ${reason}`, { cause });
  }
  return module;
}

async function handle(message: ToWorker): Promise<void> {
  switch (message.type) {
    case "load": {
      const module = await importEngine();
      const onProgress = (progress: LoadProgress): void => post({ type: "progress", progress });
      engine = await module.Engine.load(message.manifestUrl, { backend: message.backend }, onProgress, archive);
      post({ type: "loaded", info: engine.info() });
      return;
    }
    case "chat": {
      if (!engine) throw new Error("The model is not loaded yet.");
      const { messages, settings, swaps } = message;
      const result = await engine.chat(messages, settings, swaps, (event) => post({ type: "event", event }));
      post({ type: "result", result, info: engine.info() });
      return;
    }
    case "stop":
      engine?.stop();
      return;
    case "forget":
      await archive.clear();
      post({ type: "kept", kept: await archive.kept() });
      return;
    case "kept":
      post({ type: "kept", kept: await archive.kept() });
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
