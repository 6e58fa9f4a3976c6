// Xylem beside other engines on the same machine, in turns. See docs/performance.md.
//
//   node peers.mjs browser|visits|native|gpu --base FILE.gguf --stem BUNDLE --dense BUNDLE
//     [--prompt short,long] [--rounds 3] [--threads one|many] [--wllama @wllama/wllama] [--json FILE]
//     [--link MB/S]   of visits: the host answers after 40 ms, all together no faster than that

import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { inTurns } from "./peers/arms.mjs";
import { browserArms } from "./peers/browser.mjs";
import { nativeArms } from "./peers/native.mjs";
import { showVisits, visits } from "./peers/visits.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    base: { type: "string" },
    stem: { type: "string" },
    dense: { type: "string" },
    prompt: { type: "string", default: "short,long" },
    rounds: { type: "string", default: "3" },
    threads: { type: "string" },
    wllama: { type: "string", default: "@wllama/wllama" },
    json: { type: "string" },
    link: { type: "string" },
  },
});
const [where] = positionals;
const { base, stem, dense, threads, wllama } = values;
if (!["browser", "visits", "native", "gpu"].includes(where) || !base || !(stem || dense)) {
  console.error("usage: node peers.mjs browser|visits|native|gpu --base FILE.gguf [--stem BUNDLE] [--dense BUNDLE] …");
  process.exit(2);
}
const named = { stem, dense };
const models = Object.fromEntries(
  Object.entries(named).flatMap(([name, folder]) => (folder ? [[name, resolve(folder)]] : [])),
);
const prompts = values.prompt.split(",");
const rounds = Number(values.rounds);
const machine = { cpu: cpus()[0].model, cores: cpus().length };

let report;
if (where === "visits") {
  const isolated = threads === "many";
  const bytesPerSecond = values.link && Number(values.link) * 1e6;
  const options = { models, base: resolve(base), wllama, isolated, rounds, bytesPerSecond };
  report = { where, machine, link: bytesPerSecond, ...(await visits(options)) };
} else if (where === "browser") {
  const { arms, browser, close } = await browserArms({ models, base: resolve(base), wllama, threads });
  try {
    const loads = arms.map(({ name, load }) => ({ name, ...load }));
    report = { where, machine, browser, loads, results: await inTurns(arms, prompts, rounds) };
  } finally {
    await close();
  }
} else {
  const many = threads === "one" ? 1 : cpus().length;
  const arms = nativeArms({ models, base: resolve(base), threads: many, gpu: where === "gpu" });
  const system = {};
  for (const arm of arms) {
    const { run } = arm;
    arm.run = async (prompt) => {
      const result = await run(prompt);
      system[arm.name] = result.system;
      return result;
    };
  }
  const results = await inTurns(arms, prompts, rounds);
  report = { where, machine, system, results };
}
if (values.json) writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`);
if (where === "visits") showVisits(report);
else show(report);

function show({ results }) {
  const text = ({ median, min, max }, digits) =>
    `${median.toFixed(digits)} (${min.toFixed(digits)}-${max.toFixed(digits)})`;
  for (const { prompt, arms, ratios } of results) {
    console.log(`\n${prompt} prompt, ${arms[0].runs} rounds`);
    console.table(
      arms.map((arm) => ({
        engine: arm.name,
        read: arm.prompt_tokens,
        written: arm.new_tokens,
        "decode tokens/s": text(arm.decode_tokens_per_second, 1),
        "prefill tokens/s": text(arm.prefill_tokens_per_second, 1),
        "first ms": text(arm.first_token_ms, 0),
      })),
    );
    console.table(
      ratios.map((ratio) => ({
        ours: ratio.ours,
        theirs: ratio.theirs,
        "decode, of medians": ratio.decode.of_medians.toFixed(2),
        "round by round": text(ratio.decode, 2),
        "prefill, of medians": ratio.prefill.of_medians.toFixed(2),
        "round by round ": text(ratio.prefill, 2),
      })),
    );
  }
}
