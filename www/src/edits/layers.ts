// The STEM layers as a strip of switches: one by one, or a range by drag.

import { h } from "../dom";
import { ranges } from "./groups";

/** `id` is the beginning of the ids of the cells, which must be the same at each drawing: the focus stays by them. */
export function layerStrip(
  id: string,
  all: readonly number[],
  chosen: readonly number[],
  set: (layers: number[]) => void,
): HTMLElement {
  const state = new Set(chosen);
  const text = h("span", { class: "hint" });
  const cells = all.map((layer) =>
    h("button", { type: "button", class: "layer", id: `${id}-${layer}`, "aria-label": `Layer ${layer}` }, `${layer}`),
  );
  const show = (layers: ReadonlySet<number>): void => {
    for (const [i, layer] of all.entries()) cells[i]?.setAttribute("aria-pressed", String(layers.has(layer)));
    const shown = all.filter((layer) => layers.has(layer));
    text.textContent = shown.length === all.length ? "All of them" : `Layers ${ranges(shown)}`;
  };
  const done = (layers: number[]): void => {
    // An edit of no layer is no edit.
    if (layers.length === 0) show(state);
    else set(layers);
  };
  const toggle = (layer: number): void => {
    const next = new Set(state);
    if (!next.delete(layer)) next.add(layer);
    done(all.filter((other) => next.has(other)));
  };

  let from = -1;
  let to = -1;
  const dragged = (): Set<number> => new Set(all.slice(Math.min(from, to), Math.max(from, to) + 1));
  const strip = h("div", { class: "layers", role: "group", "aria-label": "Layers" }, ...cells);
  const cellAt = (event: PointerEvent): number => {
    return cells.indexOf(document.elementFromPoint(event.clientX, event.clientY) as HTMLButtonElement);
  };
  strip.addEventListener("pointerdown", (event) => {
    from = to = cellAt(event);
    if (from >= 0) strip.setPointerCapture(event.pointerId);
  });
  strip.addEventListener("pointermove", (event) => {
    const at = cellAt(event);
    if (from < 0 || at < 0 || at === to) return;
    to = at;
    show(dragged());
  });
  strip.addEventListener("pointerup", () => {
    const layer = all[from];
    const range = all.filter((other) => dragged().has(other));
    const one = from === to;
    from = -1;
    if (layer === undefined) return;
    if (one) toggle(layer);
    else done(range);
  });
  strip.addEventListener("pointercancel", () => {
    from = -1;
    show(state);
  });
  for (const [i, cell] of cells.entries()) {
    // The pointer was handled above; this is the keyboard, or a reader of the screen.
    cell.addEventListener("click", (event) => {
      const layer = all[i];
      if (event.detail === 0 && layer !== undefined) toggle(layer);
    });
  }
  show(state);
  return h("div", { class: "setting" }, h("span", { class: "row" }, h("strong", {}, "Layers"), text), strip);
}
