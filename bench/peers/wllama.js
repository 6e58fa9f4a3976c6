// In the page: wllama behind two functions.

import { Wllama } from "/wllama/index.js";

const quiet = { debug() {}, log() {}, warn: console.warn, error: console.error };
const wllama = new Wllama({ default: new URL("/wllama/wasm/wllama.wasm", location.href).href }, { logger: quiet });

window.peer = {
  /** By itself wllama takes half of the cores. With `useCache` the file stays on the device for the next visit. */
  async load({ model, threads, useCache = false }) {
    const began = performance.now();
    await wllama.loadModelFromUrl(model, {
      n_ctx: 1024,
      n_gpu_layers: 0,
      useCache,
      n_threads: threads,
    });
    const ms = performance.now() - began;
    return { ms, threads: wllama.getNumThreads(), multithread: wllama.isMultithread(), isolated: crossOriginIsolated };
  },
  /** The times are those that llama.cpp gives: from the first new token on for the others. */
  async run({ prompt, newTokens }) {
    const { timings, choices } = await wllama.createCompletion({
      prompt,
      max_tokens: newTokens,
      temperature: 0,
      top_k: 1,
      cache_prompt: false,
      ignore_eos: true,
    });
    return {
      prompt_tokens: timings.prompt_n,
      new_tokens: timings.predicted_n,
      first_token_ms: timings.prompt_ms,
      tokens_per_second: ((timings.predicted_n - 1) / timings.predicted_ms) * 1000,
      text: choices[0].text,
    };
  },
  /** Milliseconds from the beginning of the visit to the first token of an answer in the model's own template. */
  async ask(question, newTokens) {
    const messages = [{ role: "user", content: question }];
    const options = { messages, max_tokens: newTokens, temperature: 0, stream: true };
    const visit = { first_token_ms: null, text: "", prompt_tokens: null };
    for await (const { choices, usage, timings } of await wllama.createChatCompletion(options)) {
      const text = choices[0]?.delta?.content;
      if (text) visit.first_token_ms ??= performance.now();
      visit.text += text ?? "";
      visit.prompt_tokens = timings?.prompt_n ?? usage?.prompt_tokens ?? visit.prompt_tokens;
    }
    return visit;
  },
};
