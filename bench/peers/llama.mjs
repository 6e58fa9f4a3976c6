// One run of llama.cpp: model, threads, cpu or vulkan, new tokens, prompt. Warms up with a run like it, and prints JSON.

import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [model, threads, device, newTokens, prompt] = process.argv.slice(2);
const llama = await getLlama({
  gpu: device === "vulkan" ? "vulkan" : false,
  build: "never",
  maxThreads: Number(threads),
  logLevel: LlamaLogLevel.error,
});
const devices = await llama.getGpuDeviceNames();
if (device === "vulkan" && devices.length === 0)
  throw new Error("llama.cpp finds no Vulkan device; it passes over CPUs");
const loaded = await llama.loadModel({ modelPath: model, gpuLayers: device === "vulkan" ? "max" : 0 });
const context = await loaded.createContext({ contextSize: 1024, threads: Number(threads) });
const tokens = loaded.tokenize(prompt);

async function run() {
  const sequence = context.getSequence();
  const written = [];
  const began = performance.now();
  let first = 0;
  let busy = process.cpuUsage();
  for await (const token of sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })) {
    if (first === 0) {
      first = performance.now();
      busy = process.cpuUsage();
    }
    written.push(token);
    if (written.length === Number(newTokens)) break;
  }
  const ended = performance.now();
  const { user, system } = process.cpuUsage(busy);
  await sequence.dispose();
  return {
    prompt_tokens: tokens.length,
    new_tokens: written.length,
    first_token_ms: first - began,
    tokens_per_second: ((written.length - 1) / (ended - first)) * 1000,
    tokens: written,
    // How many cores it really kept busy while it wrote.
    busy_cores: (user + system) / 1000 / (ended - first),
  };
}

await run();
const result = await run();
const system = {
  info: llama.systemInfo,
  gpu: llama.gpu,
  devices,
  threads: context.currentThreads,
  release: llama.llamaCppRelease.release,
};
process.stdout.write(`\n${JSON.stringify({ ...result, text: loaded.detokenize(result.tokens), system })}\n`);
process.exit(0);
