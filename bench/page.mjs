// The page's own measurement in a browser without a window, a first visit and a second one: node page.mjs FILE.json [cpu|gpu]
// [TOKENS TO READ] [TO WRITE] [RUNS]. The site in `dist` is served from this process, with the headers that allow threads.

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ISOLATED, open, serve } from "./peers/browser.mjs";

const [file, backend = "cpu", read = "200", written = "64", runs = "5"] = process.argv.slice(2);
const closing = [];
const host = await serve({ "/": fileURLToPath(new URL("../dist", import.meta.url)) }, ISOLATED, closing);
const profile = await mkdtemp(join(tmpdir(), "xylem-bench-"));
const context = await open(profile, "--enable-unsafe-webgpu");
const visits = [];
for (let visit = 0; visit < 2; visit += 1) {
  const page = await context.newPage();
  await page.goto(`${host}bench.html`);
  await page.getByLabel("Computes on").selectOption(backend);
  for (const [label, value] of Object.entries({ "Tokens to read": read, "Tokens to write": written, Runs: runs })) {
    await page.getByLabel(label).fill(value);
  }
  await page.getByRole("button", { name: "Measure" }).click();
  await page.getByRole("status").filter({ hasText: "Done." }).waitFor({ timeout: 170_000 });
  const download = page.waitForEvent("download");
  await page.getByRole("link", { name: "Save JSON" }).click();
  visits.push(JSON.parse(await readFile(await (await download).path(), "utf8")));
  await page.close();
}
await context.close();
await rm(profile, { recursive: true, force: true });
for (const close of closing) close();
await writeFile(file, `${JSON.stringify(visits, null, 1)}\n`);
console.table(
  visits.map((v) => ({
    "ready ms": Math.round(v.load_ms),
    "fetched MB": (v.download.load.bytes / 1e6).toFixed(1),
    "decode tokens/s": v.decode_tokens_per_second.median.toFixed(1),
    "prefill tokens/s": v.prefill_tokens_per_second.median.toFixed(1),
    "first ms": v.first_token_ms.median.toFixed(0),
    "wasm MB": (v.memory.wasm_bytes / 1e6).toFixed(0),
    "heap MB": ((v.memory.js_heap_bytes ?? 0) / 1e6).toFixed(1),
    "GPU MB": (v.memory.gpu_bytes / 1e6).toFixed(0),
    "STEM to dense FFN": v.decode?.stem_to_dense_ffn?.toFixed(2),
  })),
);
