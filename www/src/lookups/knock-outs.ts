// What the tables know and what the core knows: an answer as it is, and one with rows knocked out.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import { INSTEAD, type Instead } from "../protocol";
import { type Asking, sideBySide } from "../side-by-side";

const NAMES: Record<Instead, string> = {
  zero: "zeros: the layer's FFN gives nothing",
  mean: "the mean row: the same for every token",
  shuffle: "another token's row, shuffled",
  engram_off: "Engram off: n-grams add nothing",
};
const ALL = "all";

export function knockOuts(engine: EngineClient, asking: Asking, edits: () => string | null): HTMLElement {
  const instead = h("select", { class: "field", id: "knock-out-instead", onchange: () => offerLayers() });
  const layers = h("select", { class: "field", id: "knock-out-layers" });
  const body = h(
    "div",
    { class: "knock-outs" },
    h(
      "p",
      { class: "hint" },
      "Take the rows away, and see what is left: what the tables knew is gone, what the rest of the model knows stays. Both " +
        "answers are drawn with the same seed.",
    ),
    h("div", { class: "setting" }, h("label", { for: instead.id }, "In place of the rows"), instead),
    h("div", { class: "setting" }, h("label", { for: layers.id }, "In which layers"), layers),
    ...sideBySide(engine, asking, {
      id: "knock-out",
      button: "Knock out",
      titles: ["As it is", "Knocked out"],
      ways() {
        const chosen = layers.value === ALL ? null : [Number(layers.value)];
        const knockOut = { instead: instead.value as Instead, layers: chosen };
        return [
          { edits: edits(), knockOut: null },
          { edits: edits(), knockOut },
        ];
      },
    }),
  );
  const box = h("details", { class: "box" }, h("summary", {}, h("h2", {}, "Knock-outs")), body);
  let shown = "";
  let known: Record<"stem" | "engram", readonly number[]> = { stem: [], engram: [] };
  function offerLayers(): void {
    const [kind, all] =
      instead.value === "engram_off" ? (["Engram", known.engram] as const) : (["STEM", known.stem] as const);
    layers.replaceChildren(
      h("option", { value: ALL }, all.length === 1 ? `the ${kind} layer` : `all ${all.length} ${kind} layers`),
      ...(all.length > 1 ? all.map((layer) => h("option", { value: String(layer) }, `layer ${layer}`)) : []),
    );
  }
  engine.state.watch((state) => {
    if (state.phase !== "ready") return;
    const { stemLayers: stem, engramLayers: engram } = state.info;
    box.hidden = stem.length + engram.length === 0;
    const key = `${stem.join()};${engram.join()}`;
    if (shown === key) return;
    shown = key;
    known = { stem, engram };
    const possible = INSTEAD.filter((value) => (value === "engram_off" ? engram : stem).length > 0);
    instead.replaceChildren(...possible.map((value) => h("option", { value }, NAMES[value])));
    instead.value = possible.includes("shuffle") ? "shuffle" : (possible[0] ?? "");
    offerLayers();
  });
  return box;
}
