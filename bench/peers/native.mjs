// `xylem` and llama.cpp (its prebuilt binary in node-llama-cpp), each run a process of its own.

import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { NEW_TOKENS } from "./arms.mjs";

const run = promisify(execFile);
const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const xylem = process.env.XYLEM ?? here("../../target/release/xylem");

/** Ours on the bundles in `models` (by name), and llama.cpp on the file `base`. */
export function nativeArms({ models, base, threads, gpu }) {
  const arms = Object.entries(models).map(([name, folder]) => ({
    name: `xylem ${name}, ${gpu ? "gpu" : threads}`,
    async run(prompt) {
      const what = ["--bundle", folder, "--prompt", prompt, "--new-tokens", String(NEW_TOKENS)];
      const how = ["--threads", String(threads), "--backend", gpu ? "gpu" : "cpu"];
      const once = ["--runs", "1", "--timed-runs", "0", "--json"];
      const { stdout } = await run(xylem, ["bench", "speed", ...what, ...how, ...once], { maxBuffer: 1 << 24 });
      const report = JSON.parse(stdout);
      return {
        prompt_tokens: report.prompt_tokens,
        new_tokens: report.new_tokens,
        first_token_ms: report.first_token_ms.median,
        tokens_per_second: report.decode_tokens_per_second.median,
        tokens: report.tokens,
        system: report.backend,
      };
    },
  }));
  arms.push({
    name: `llama.cpp, ${gpu ? "vulkan" : threads}`,
    async run(prompt) {
      const options = [base, String(threads), gpu ? "vulkan" : "cpu", String(NEW_TOKENS), prompt];
      const { stdout } = await run("node", [here("llama.mjs"), ...options], { maxBuffer: 1 << 24 });
      return JSON.parse(stdout.slice(stdout.lastIndexOf("\n{") + 1));
    },
  });
  return arms;
}
