// How time and bytes grow with the number of STEM layers, the vocabulary and the size of the model, on random weights. See
// docs/performance.md.
//
//   node scale.mjs make FOLDER                writes the bundles, 5 GB
//   node scale.mjs measure FOLDER FILE.json   measures each of them

import { execFileSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const xylem = process.env.XYLEM ?? fileURLToPath(new URL("../target/release/xylem", import.meta.url));

/** The shape of SmolLM2-135M but for the vocabulary, STEM in a third of the layers. */
const BASE = { hidden: 576, ffn: 1536, layers: 30, heads: 9, "kv-heads": 3, "head-dim": 64, vocab: 16384, stem: 10 };
/** Of 30M, 360M (as SmolLM2) and 1.1B weights (as TinyLlama) with an embedding of its own size beside. */
const SIZES = [
  { hidden: 256, ffn: 704, layers: 24, heads: 4, "kv-heads": 2, stem: 8 },
  {},
  { hidden: 960, ffn: 2560, layers: 32, heads: 15, "kv-heads": 5, stem: 11 },
  { hidden: 2048, ffn: 5632, layers: 22, heads: 32, "kv-heads": 4, stem: 7 },
];
const SERIES = [
  ...[0, 5, 10, 20, 29].map((stem) => ({ series: "stem", shape: { ...BASE, stem } })),
  ...[4096, 16384, 32768, 65536].map((vocab) => ({ series: "vocab", shape: { ...BASE, vocab } })),
  ...SIZES.map((shape) => ({ series: "size", shape: { ...BASE, ...shape } })),
];

const [what, folder, file] = process.argv.slice(2);
const nameOf = (shape) => Object.values(shape).join("-");

if (what === "make" && folder) {
  for (const { shape } of SERIES) {
    const out = join(folder, nameOf(shape));
    if (existsSync(out)) continue;
    const { stem, ...sizes } = shape;
    // From layer 1 on, or from a tenth of the layers on where there is room.
    const first = Math.min(3, shape.layers - stem);
    const layers = Array.from({ length: stem }, (_, i) => first + i).join(",");
    const options = Object.entries({ ...sizes, context: 8192 }).flatMap(([key, value]) => [`--${key}`, String(value)]);
    execFileSync(xylem, ["random", "--out", out, ...options, "--stem", ...(stem ? [layers] : [])]);
    console.log(out);
  }
} else if (what === "measure" && folder && file) {
  const measured = SERIES.map(({ series, shape }) => {
    const runs = ["--prompt-tokens", "128", "--new-tokens", "24", "--runs", "3", "--timed-runs", "1", "--json"];
    const bundle = join(folder, nameOf(shape));
    const report = execFileSync(xylem, ["bench", "speed", "--bundle", bundle, ...runs], { maxBuffer: 1 << 26 });
    const { tokens: _, ...rest } = JSON.parse(report);
    console.error(`${series} ${nameOf(shape)}: ${rest.decode_tokens_per_second.median.toFixed(1)} tokens/s`);
    return { series, shape, ...rest };
  });
  writeFileSync(file, `${JSON.stringify(measured, null, 1)}\n`);
} else {
  console.error("usage: node scale.mjs make FOLDER | measure FOLDER FILE.json");
  process.exit(2);
}
