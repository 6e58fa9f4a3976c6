// Everything that a machine with a real GPU can tell, as JSON: whether the kernels compute rightly there, how fast they are
// beside what the adapter can do at best, and beside llama.cpp's Vulkan backend. See docs/performance.md, "On a GPU".
//
//   node gpu.mjs --base FILE.gguf [--stem BUNDLE] [--dense BUNDLE] [--rounds 5] [--prompt short,long] [--no-tests] > GPU.json
//
// What it does meanwhile is told on the error stream. Ends with 1 if a test failed.

import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  allowNegative: true,
  options: {
    base: { type: "string" },
    stem: { type: "string" },
    dense: { type: "string" },
    prompt: { type: "string", default: "short,long" },
    rounds: { type: "string", default: "5" },
    tests: { type: "boolean", default: true },
  },
});
if (!values.base) {
  console.error("usage: node gpu.mjs --base FILE.gguf [--stem BUNDLE] [--dense BUNDLE] [--no-tests] …");
  process.exit(2);
}
const base = resolve(values.base);
const root = fileURLToPath(new URL("..", import.meta.url));
const xylem = process.env.XYLEM ?? join(root, "target/release/xylem");
const folder = await mkdtemp(join(tmpdir(), "xylem-gpu-"));

/** Eight layers as wide as those of 7 billion weights, with a small vocabulary: what it reads of memory is its layers. */
const LARGE = {
  hidden: 4096,
  ffn: 11008,
  layers: 8,
  heads: 32,
  "kv-heads": 8,
  "head-dim": 128,
  vocab: 512,
  context: 8192,
  stem: "3,4",
};

try {
  const tests = values.tests ? await tested() : null;
  const models = { dense: values.dense ? resolve(values.dense) : at("dense"), large: at("large") };
  if (values.stem) models.stem = resolve(values.stem);
  if (!values.dense) {
    await run(xylem, ["convert", "--base", base, "--layers", "none", "--out", models.dense]);
  }
  const shape = Object.entries(LARGE).flatMap(([name, value]) => [`--${name}`, String(value)]);
  await run(xylem, ["random", "--out", models.large, ...shape]);

  const speed = {};
  for (const [name, bundle] of Object.entries(models)) speed[name] = await measured(bundle);
  const report = {
    adapter: speed.dense.backend,
    tests,
    // Decoding reads every weight once a token: that beside what copying a buffer reads and writes.
    roofline: Object.fromEntries(Object.entries(speed).map(([name, { roofline }]) => [name, roofline])),
    speed,
    peers: await peers(models),
  };
  console.log(JSON.stringify(report, null, 2));
  process.exitCode = tests && !tests.every(({ passed }) => passed) ? 1 : 0;
} finally {
  await rm(folder, { recursive: true, force: true });
}

function at(name) {
  return join(folder, name);
}

/** Each kernel against its twin, whole models, and the real checkpoint against an independent implementation. */
async function tested() {
  const all = [
    ["--lib", "gpu::"],
    ["--test", "reference", "the_gpu"],
  ];
  const results = [];
  for (const what of all) {
    const { code, output } = await run("cargo", ["test", "--release", ...what], { mayFail: true });
    const summary = output.match(/^test result: .*$/gm)?.at(-1) ?? null;
    results.push({ tests: what.join(" "), passed: code === 0 && summary !== null, summary });
  }
  return results;
}

async function measured(bundle) {
  const task = ["--prompt-tokens", "229", "--new-tokens", "64", "--runs", "5", "--timed-runs", "2"];
  const depths = ["--depths", "0,1024,4096"];
  const how = ["--backend", "gpu", "--json"];
  const { output } = await run(xylem, ["bench", "speed", "--bundle", bundle, ...task, ...depths, ...how]);
  const { tokens: _, ...report } = JSON.parse(output);
  return report;
}

/** In turns with llama.cpp, or why that can't be. */
async function peers({ stem, dense }) {
  const json = at("peers.json");
  const bundles = ["--dense", dense, ...(stem ? ["--stem", stem] : [])];
  const options = ["--prompt", values.prompt, "--rounds", values.rounds, "--json", json];
  const command = [fileURLToPath(new URL("peers.mjs", import.meta.url)), "gpu", "--base", base];
  const { code, errors } = await run(process.execPath, [...command, ...bundles, ...options], { mayFail: true });
  if (code === 0) return JSON.parse(await readFile(json, "utf8"));
  // What ended the command that it ran, if that says it, comes last.
  const reason = errors.match(/^Error: .*$/gm)?.at(-1);
  return { failed: reason ?? `peers.mjs ended with ${code}` };
}

/** Runs a command in the project's folder; its error stream goes on to ours. */
function run(command, options, { mayFail = false } = {}) {
  console.error(`> ${command} ${options.join(" ")}`);
  return new Promise((done, fail) => {
    const child = spawn(command, options, { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    let errors = "";
    child.stdout.on("data", (data) => {
      output += data;
    });
    child.stderr.on("data", (data) => {
      errors += data;
      process.stderr.write(data);
    });
    child.on("error", fail);
    child.on("close", (code) => {
      if (code === 0 || mayFail) done({ code, output, errors });
      else fail(new Error(`${command} ${options[0]} ended with ${code}`));
    });
  });
}
