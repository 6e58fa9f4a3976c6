// The page that measures the model in this browser.

import { copyButton, h } from "../dom";
import { modelAddress } from "../model-address";
import type { Backend } from "../protocol";
import { RunBar } from "../run-bar";
import { SettingsStore } from "../settings";
import { type Measurement, Measuring } from "./measure";
import { tables } from "./tables";

const BACKENDS: [Backend, string][] = [
  ["auto", "Automatic"],
  ["gpu", "GPU (WebGPU)"],
  ["cpu", "CPU (WebAssembly)"],
];

const address = modelAddress();
const { theme } = new SettingsStore().value;
if (theme !== "auto") document.documentElement.dataset.theme = theme;

const backend = h(
  "select",
  { class: "field", id: "backend" },
  ...BACKENDS.map(([value, label]) => h("option", { value }, label)),
);
const promptTokens = numberField("prompt-tokens", "Tokens to read", 200, 2048);
const newTokens = numberField("new-tokens", "Tokens to write", 64, 512);
const runs = numberField("runs", "Runs", 5, 50);
const results = h("section", { "aria-label": "Figures", class: "results" });

let measuring: Measuring | null = null;
const bar = new RunBar(
  "Measure",
  async (say) => {
    measuring = new Measuring(address.manifestUrl);
    const options = {
      prompt: null,
      promptTokens: promptTokens.value(1),
      newTokens: newTokens.value(2),
      runs: runs.value(1),
      timedRuns: 2,
    };
    const measurement = await measuring.run(backend.value as Backend, options, say);
    show(measurement);
    return `${measurement.backend.toUpperCase()}: ${measurement.adapter}. Done.`;
  },
  () => measuring?.stop(),
);

function show(measurement: Measurement): void {
  const json = `${JSON.stringify(measurement, null, 2)}\n`;
  const link = h("a", { class: "button quiet", download: "xylem-bench.json" }, "Save JSON");
  link.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
  results.replaceChildren(
    ...(measurement.notice ? [h("p", { class: "hint" }, `No GPU: ${measurement.notice}`)] : []),
    ...tables(measurement),
    h(
      "div",
      { class: "row" },
      link,
      copyButton("Copy the JSON", () => json),
    ),
  );
}

function numberField(id: string, label: string, value: number, max: number) {
  const input = h("input", { type: "number", class: "field small", id, min: 1, max, step: 1, value });
  return {
    element: h("div", { class: "row setting-row" }, h("label", { for: id }, label), input),
    /** A whole number within the bounds, whatever was typed. */
    value(least: number): number {
      const wanted = Number.isFinite(input.valueAsNumber) ? Math.round(input.valueAsNumber) : value;
      const used = Math.min(Math.max(wanted, least), max);
      input.value = String(used);
      return used;
    },
  };
}

const root = document.getElementById("bench");
root?.append(
  ...(address.shown ? [h("p", { class: "hint" }, `Model: ${address.shown}`)] : []),
  h("div", { class: "row setting-row" }, h("label", { for: "backend" }, "Computes on"), backend),
  promptTokens.element,
  newTokens.element,
  runs.element,
  bar.element,
  results,
);
