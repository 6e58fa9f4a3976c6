// What the table knows and what the core knows: an answer as it is, and one with rows knocked out.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import { INSTEAD, type Instead } from "../protocol";
import { type Asking, sideBySide } from "../side-by-side";

const NAMES: Record<Instead, string> = {
  zero: "zeros: the layer's FFN gives nothing",
  mean: "the mean row: the same for every token",
  shuffle: "another token's row, shuffled",
};
const ALL = "all";

export function knockOuts(engine: EngineClient, asking: Asking, edits: () => string | null): HTMLElement {
  const instead = h(
    "select",
    { class: "field", id: "knock-out-instead" },
    ...INSTEAD.map((value) => h("option", { value }, NAMES[value])),
  );
  instead.value = "shuffle";
  const layers = h("select", { class: "field", id: "knock-out-layers" });
  const body = h(
    "div",
    { class: "knock-outs" },
    h(
      "p",
      { class: "hint" },
      "Take the rows away, and see what is left: the core alone keeps the grammar longer than the facts. Both answers are " +
        "drawn with the same seed.",
    ),
    h("div", { class: "setting" }, h("label", { for: instead.id }, "In place of the rows"), instead),
    h("div", { class: "setting" }, h("label", { for: layers.id }, "In"), layers),
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
  engine.state.watch((state) => {
    if (state.phase !== "ready") return;
    const { stemLayers } = state.info;
    box.hidden = stemLayers.length === 0;
    if (shown === stemLayers.join()) return;
    shown = stemLayers.join();
    layers.replaceChildren(
      h("option", { value: ALL }, `all ${stemLayers.length} STEM layers`),
      ...stemLayers.map((layer) => h("option", { value: String(layer) }, `layer ${layer}`)),
    );
  });
  return box;
}
