// The figures of a measurement as tables.

import { type Child, h } from "../dom";
import { bytes, count } from "../format";
import type { Measurement } from "./measure";
import type { PartTimes, Spread } from "./protocol";

const spread = ({ median, min, max }: Spread): string =>
  `${median.toFixed(1)} (${min.toFixed(1)} to ${max.toFixed(1)})`;

const PARTS: [name: string, value: (times: PartTimes) => number | null][] = [
  ["All", (t) => t.all_ms],
  ["Row lookup", (t) => t.rows_ms],
  ["Embedding", (t) => t.embed_ms],
  ["Engram layers", (t) => t.engram_ms],
  ["Attention", (t) => t.attention_ms],
  ["FFN of dense layers", (t) => t.dense_ffn_ms],
  ["FFN of STEM layers", (t) => t.stem_ffn_ms],
  ["Head", (t) => t.head_ms],
  ["Candidates", (t) => t.candidates_ms],
  ["Other", (t) => t.other_ms],
  ["A dense FFN", (t) => t.a_dense_ffn_ms],
  ["A STEM FFN", (t) => t.a_stem_ffn_ms],
];

export function tables(m: Measurement): HTMLElement[] {
  return [speed(m), parts(m), resources(m), ...(m.gpu ? [gpu(m)] : [])];
}

function speed(m: Measurement): HTMLElement {
  return facts(`Speed: ${count(m.prompt_tokens)} tokens read, ${count(m.new_tokens)} written, ${count(m.runs)} runs`, [
    ["Writing, tokens a second", spread(m.decode_tokens_per_second)],
    ["Reading, tokens a second", spread(m.prefill_tokens_per_second)],
    ["First token, ms", spread(m.first_token_ms)],
    ["First token of the first run, ms", m.warm_up.first_token_ms.toFixed(1)],
    ["Until the model was ready, ms", m.load_ms.toFixed(0)],
    ["Weights read", `${bytes(m.weight_bytes)} a token, ${bytes(m.weight_bytes_per_second)} a second`],
  ]);
}

function parts(m: Measurement): HTMLElement {
  const { prefill, decode } = m;
  if (!prefill || !decode) return h("p", { class: "hint" }, "This adapter has no timestamps, so parts were not timed.");
  const cell = (value: number | null): string => (value === null ? "" : value.toFixed(3));
  const rows = PARTS.map(([name, value]) => [name, cell(value(prefill)), cell(value(decode))]);
  const ratio = (t: PartTimes): string => t.stem_to_dense_ffn?.toFixed(2) ?? "";
  rows.push(["STEM to dense", ratio(prefill), ratio(decode)]);
  return table("Milliseconds a token", ["Part", "Reading", "Writing"], rows);
}

function resources({ memory, download }: Measurement): HTMLElement {
  const known = (n: number | null): string => (n === null ? "not told" : bytes(n));
  const fetched = (of: { requests: number; bytes: number }): string =>
    `${bytes(of.bytes)} in ${count(of.requests)} requests`;
  return facts("Memory and bytes", [
    ["WebAssembly", bytes(memory.wasm_bytes)],
    ["Rows held in it", bytes(memory.rows_bytes)],
    ["GPU buffers", bytes(memory.gpu_bytes)],
    ["JavaScript heap of this page", known(memory.js_heap_bytes)],
    ["Page and worker in all", known(memory.agent_bytes)],
    ["Fetched until ready", fetched(download.load)],
    ["Fetched in all", fetched(download.all)],
    ["Core, table", `${bytes(download.core_bytes)}, ${bytes(download.table_bytes)}`],
  ]);
}

function gpu({ gpu, decode_tokens_per_second, weight_bytes_per_second }: Measurement): HTMLElement {
  if (!gpu) return h("p");
  const empty = (gpu.dispatches * gpu.dispatch_us) / 1000 + gpu.round_trip_ms;
  const share = (100 * weight_bytes_per_second) / gpu.copy_bytes_per_second;
  return facts("GPU", [
    ["Dispatches", `${count(gpu.dispatches)} a token, ${gpu.dispatches_per_layer.toFixed(1)} a layer`],
    ["Bytes up and back", `${bytes(gpu.upload_bytes)}, ${bytes(gpu.readback_bytes)}`],
    ["Copying", `${bytes(gpu.copy_bytes_per_second)} a second; weights are read at ${share.toFixed(0)}% of that`],
    ["A dispatch, round trip", `${gpu.dispatch_us.toFixed(1)} µs, ${gpu.round_trip_ms.toFixed(2)} ms`],
    [
      "An empty step",
      `${empty.toFixed(2)} ms, ${((empty * decode_tokens_per_second.median) / 10).toFixed(0)}% of a step`,
    ],
  ]);
}

function facts(caption: string, rows: string[][]): HTMLElement {
  return table(caption, null, rows);
}

/** The first cell of each row names it. */
function table(caption: string, head: string[] | null, rows: string[][]): HTMLElement {
  const cells = (row: string[]): Child[] =>
    row.map((text, i) => (i === 0 ? h("th", { scope: "row" }, text) : h("td", {}, text)));
  return h(
    "table",
    { class: "figures" },
    h("caption", {}, caption),
    head && h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...cells(row)))),
  );
}
