// The worker: holds the engine, so that neither loading nor a slow token ever blocks the page.

import { DeviceArchive } from "./archive";
import { fetched } from "./bench/fetched";
import { reasonOf } from "./format";
import type { Download, Engine, FromWorker, LoadProgress, ToWorker } from "./protocol";
import { importEngine } from "./threads";

let engine: Engine | null = null;
const archive = new DeviceArchive();

/** Pages of one piece of the download: between two pieces it can be paused, and the chat goes first. */
const PIECE = 64;
const download: Download = { running: false, problem: null };
let answering: Promise<unknown> = Promise.resolve();

/** What the download waits for. */
function goesFirst(work: Promise<unknown>): void {
  answering = Promise.allSettled([answering, work]);
}

function post(message: FromWorker): void {
  self.postMessage(message);
}

/** A trap (a panic, memory exhausted) leaves the engine in no state to go on. */
function isTrap(error: unknown): boolean {
  return error instanceof WebAssembly.RuntimeError || error instanceof RangeError;
}

function isFatal(error: unknown): boolean {
  return isTrap(error) || reasonOf(error).startsWith("GPU:");
}

function fail(error: unknown): void {
  const message = reasonOf(error);
  // The words of a trap help no reader.
  if (isTrap(error)) {
    post({
      type: "failed",
      message: `The engine broke off (${message}); the tab may be out of memory. Start it again.`,
      fatal: true,
    });
  } else {
    post({ type: "failed", message, fatal: isFatal(error) });
  }
}

function postKept(): void {
  post({ type: "kept", kept: archive.kept(), download: { ...download } });
}

/** Whether pieces are being brought, be it the last one after a pause. */
let bringing = false;

/** Brings the whole table to this device, the frequent tokens first, until it is there or `running` is unset. */
async function downloadTable(engine: Engine): Promise<void> {
  const { tablePages } = engine.info();
  bringing = true;
  try {
    while (download.running) {
      const pages = archive.missing(tablePages, PIECE);
      if (pages.length === 0) break;
      await engine.download(Uint32Array.from(pages));
      postKept();
      await answering;
    }
  } finally {
    bringing = false;
  }
}

/** Downloads in one tab at a time; where there are no locks, in each that is told to. */
async function downloadAlone(engine: Engine): Promise<void> {
  Object.assign(download, { running: true, problem: null });
  postKept();
  try {
    if (navigator.locks) {
      await navigator.locks.request("xylem-download", { ifAvailable: true }, async (lock) => {
        if (!lock) throw new Error("another tab is downloading.");
        await downloadTable(engine);
      });
    } else {
      await downloadTable(engine);
    }
  } catch (cause) {
    download.problem = reasonOf(cause);
  }
  download.running = false;
  postKept();
}

/** A call that fails is no end of the engine, unless it broke off. */
async function call(engine: Engine, { id, method, args }: Extract<ToWorker, { type: "call" }>): Promise<void> {
  try {
    const onEvent = (event: unknown): void => post({ type: "heard", id, event });
    // The page's side has the types of each method; one that tells of nothing does not mind a listener.
    const run = engine[method] as (...args: unknown[]) => unknown;
    const called = Promise.resolve(run.call(engine, ...args, onEvent));
    goesFirst(called);
    post({ type: "called", id, value: await called });
  } catch (error) {
    if (isFatal(error)) throw error;
    post({ type: "refused", id, message: reasonOf(error) });
  }
}

async function handle(message: ToWorker): Promise<void> {
  switch (message.type) {
    case "load": {
      const module = await importEngine((message) => fail(new WebAssembly.RuntimeError(message)));
      const onProgress = (progress: LoadProgress): void => post({ type: "progress", progress });
      engine = await module.Engine.load(message.manifestUrl, { backend: message.backend }, onProgress, archive);
      post({ type: "loaded", info: engine.info() });
      postKept();
      return;
    }
    case "chat": {
      if (!engine) throw new Error("The model is not loaded yet.");
      const { messages, settings, edits, knockOut } = message;
      const answer = engine.chat(messages, settings, edits, knockOut, (event) => post({ type: "event", event }));
      goesFirst(answer);
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
    case "call": {
      if (!engine) throw new Error("The model is not loaded yet.");
      await call(engine, message);
      return;
    }
    case "stop":
      engine?.stop();
      return;
    case "fetched":
      post({ type: "fetched", fetched: fetched() });
      return;
    case "forget":
      download.running = false;
      await archive.clear();
      postKept();
      return;
    case "download":
      if (!message.on) download.running = false;
      else if (bringing) download.running = true;
      else if (engine && !download.running) await downloadAlone(engine);
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
