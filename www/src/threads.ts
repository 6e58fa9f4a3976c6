// The choice of an engine: for several threads where the page may share memory, else for one.

import { reasonOf } from "./format";
import type { EngineModule, Place } from "./protocol";

/** More threads than this were of no use for models of this size: each operation is too short to be shared further. */
const MOST = 4;

async function start(path: string): Promise<{ url: string; module: EngineModule }> {
  const url = new URL(path, self.location.href).href;
  // The address is computed, so that the bundler leaves the wasm module to the browser.
  const module = (await import(url)) as EngineModule;
  await module.default();
  return { url, module };
}

/** The engine for several threads with its workers; null where there is none. `broke` hears of a thread that breaks off at work. */
async function startTeam(broke: (message: string) => void): Promise<EngineModule | null> {
  const workers = Math.min(navigator.hardwareConcurrency, MOST) - 1;
  if (!self.crossOriginIsolated || workers < 1) return null;
  try {
    const { url, module } = await start("./pkg/threads/xylem.js");
    if (!module.recruit) return null;
    const shared = module.recruit(workers);
    for (let worker = 0; worker < workers; worker += 1) {
      const thread = new Worker(new URL("./team.js", self.location.href), { type: "module" });
      let joined = false;
      thread.onmessage = () => {
        joined = true;
      };
      thread.onerror = (event) => {
        // A place that is not taken is no loss but of speed; what a thread has begun is waited for.
        if (joined) broke(event.message);
        else console.warn("A thread of the engine did not start:", event.message);
      };
      thread.postMessage({ engine: url, ...shared, worker } satisfies Place);
    }
    return module;
  } catch (cause) {
    console.warn("The engine for several threads could not be started:", cause);
    return null;
  }
}

/** Starts the engine that suits this page; `broke` hears of a thread of it that breaks off. */
export async function importEngine(broke: (message: string) => void): Promise<EngineModule> {
  const team = await startTeam(broke);
  if (team) return team;
  try {
    return (await start("./pkg/xylem.js")).module;
  } catch (cause) {
    const url = new URL("./pkg/xylem.js", self.location.href).href;
    throw new Error(`The engine (${url}) could not be started: ${reasonOf(cause)}`, { cause });
  }
}
