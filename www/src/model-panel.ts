// What runs in this tab: the model drawn as a trunk of layers, its sizes, and where it is computed.

import { h, keepFocus, s } from "./dom";
import type { EngineState } from "./engine";
import { bytes, count } from "./format";
import type { Backend, EngineInfo } from "./protocol";
import type { SettingsStore } from "./settings";
import { choice } from "./settings-panel";
import type { Signal } from "./signal";

export type ModelActions = {
  setBackend(backend: Backend): void;
  restart(): void;
  unload(): void;
};

const BACKENDS: readonly [Backend, string][] = [
  ["auto", "Automatic"],
  ["gpu", "GPU"],
  ["cpu", "CPU"],
];

export function modelPanel(
  settings: SettingsStore,
  state: Signal<EngineState>,
  device: HTMLElement,
  source: string | null,
  actions: ModelActions,
): HTMLElement {
  const facts = h("div", { class: "facts" });
  const restart = h("button", { type: "button", class: "button quiet", onclick: actions.restart }, "Restart");
  const unload = h("button", { type: "button", class: "button quiet", onclick: actions.unload }, "Unload");
  let shown: EngineInfo | null = null;
  state.watch((value) => {
    keepFocus(
      unload,
      () => {
        unload.disabled = value.phase === "idle";
      },
      () => restart.focus(),
    );
    const info = value.phase === "ready" ? value.info : null;
    if (info === shown && facts.hasChildNodes()) return;
    shown = info;
    facts.replaceChildren(
      ...(info
        ? describe(info, source)
        : [h("p", { class: "hint" }, "What the model is made of appears here once it is loaded.")]),
    );
  });
  return h(
    "div",
    { class: "model" },
    facts,
    device,
    choice(
      "Compute on",
      "backend",
      BACKENDS,
      (value) => actions.setBackend(value),
      settings,
      (value) => value.backend,
    ),
    h(
      "p",
      { class: "hint" },
      "Automatic takes the GPU where the browser offers one, and the CPU where not. A change loads the model anew.",
    ),
    h("div", { class: "row" }, restart, unload),
  );
}

function describe(info: EngineInfo, source: string | null): HTMLElement[] {
  const stem = new Set(info.stemLayers);
  const rows: [string, string][] = [
    ["Model", info.model],
    ["Licence", info.licence],
    ["Computed on", `${info.backend.toUpperCase()}, ${info.adapter}`],
    ["Context", `${count(info.contextLength)} tokens`],
    ["Vocabulary", `${count(info.vocabSize)} tokens`],
    ["Hidden size", count(info.hiddenSize)],
    ["Core weights", bytes(info.coreBytes)],
    ["Knowledge tables", info.tableBytes > 0 ? bytes(info.tableBytes) : "none"],
    ["Memory of the tab", bytes(info.wasmBytes)],
  ];
  if (info.engram) rows.push(["Engram layers", info.engramLayers.join(", ")]);
  if (info.rows) rows.push(["Rows looked up", count(info.rows.lookedUp)]);
  if (info.engram) rows.push(["Rows of n-grams looked up", count(info.engram.lookedUp)]);
  const tables = [info.rows, info.engram].filter((stats) => stats !== null);
  if (tables.length > 0) {
    const fetched = tables.reduce((sum, stats) => sum + stats.bytesFetched, 0);
    const requests = tables.reduce((sum, stats) => sum + stats.requests, 0);
    rows.push(["Fetched of the tables", `${bytes(fetched)} in ${count(requests)} requests`]);
  }
  if (info.gpuBytes > 0) rows.push(["Memory of the GPU", bytes(info.gpuBytes)]);
  if (info.notice) rows.splice(3, 0, ["GPU not used", info.notice]);
  if (source) rows.splice(2, 0, ["From", source]);
  return [
    h(
      "figure",
      { class: "trunk-figure" },
      trunk(info.nLayers, stem, info.engramLayers),
      caption(info.nLayers, stem.size, info.engramLayers),
    ),
    h("dl", {}, ...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  ];
}

function caption(layers: number, stem: number, engram: readonly number[]): HTMLElement {
  return h(
    "figcaption",
    {},
    h("span", { class: "key stem" }, `${stem} of ${layers} layers look their row up in the table`),
    h("span", { class: "key dense" }, `${layers - stem} compute it`),
    engram.length > 0 &&
      h("span", { class: "key engram" }, `before ${engram.length} of them n-grams are looked up in another table`),
  );
}

/** Layers from left (input) to right (output); vessels mark those that read the table, diamonds what stands before one. */
function trunk(layers: number, stem: ReadonlySet<number>, engram: readonly number[]): SVGElement {
  const step = 10;
  const svg = s("svg", {
    class: "trunk",
    viewBox: `0 0 ${layers * step} 56`,
    role: "img",
    "aria-label": `STEM layers: ${[...stem].join(", ") || "none"}${engram.length > 0 ? `; Engram layers: ${engram.join(", ")}` : ""}`,
  });
  for (let layer = 0; layer < layers; layer += 1) {
    const x = layer * step + 1;
    const isStem = stem.has(layer);
    const bar = s(
      "g",
      { class: isStem ? "stem" : "dense" },
      s("title", {}, `Layer ${layer}, ${isStem ? "STEM" : "dense"}`),
    );
    bar.append(s("rect", { x, y: isStem ? 2 : 12, width: step - 2, height: isStem ? 52 : 32, rx: 4 }));
    // The rings of a vessel's wall.
    for (let y = 8; isStem && y < 52; y += 6)
      bar.append(s("path", { d: `M${x} ${y}q${(step - 2) / 2} 3 ${step - 2} 0` }));
    svg.append(bar);
  }
  for (const layer of engram) svg.append(s("path", { class: "engram", d: `M${layer * step} 22l4 6-4 6-4-6z` }));
  return svg;
}
