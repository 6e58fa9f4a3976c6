// A worker that lends the engine its thread.

import type { EngineModule, Place } from "./protocol";

self.onmessage = async ({ data }: MessageEvent<Place>) => {
  const { engine, module, memory, worker } = data;
  const team = (await import(engine)) as EngineModule;
  await team.default({ module_or_path: module, memory });
  self.postMessage("joined");
  // It comes back only with the end of this worker.
  team.join?.(worker);
};
