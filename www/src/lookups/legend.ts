// The legend of the grid's colours.

import { h } from "../dom";
import type { Kind, Shape } from "./columns";
import { drawMark, type Paint, type Quantity, rampColour } from "./quantities";

const SWATCH = { width: 14, height: 14 } as const;
const RAMP = { width: 120, height: 12 } as const;

/** Colours first, then the shapes of cells: a layer that the quantity says nothing of stays empty. */
export function legendOf({ legend, kinds, others }: Quantity, { engram }: Shape): HTMLElement[] {
  const key = (kind: Kind, label: string): HTMLElement =>
    h("span", { class: `key ${kind}` }, kinds.includes(kind) ? label : `${label}, ${others ?? EMPTY[kind]}`);
  const colours =
    legend.kind === "kinds"
      ? legend.entries.map(({ label, paint }) => h("span", { class: "legend-entry" }, swatch(paint), label))
      : [h("span", { class: "legend-entry" }, legend.from, ramp(), legend.to)];
  const memory = engram.length > 0 ? [key("engram", "Engram layer")] : [];
  return [...colours, key("stem", "STEM layer"), key("dense", "dense layer"), ...memory];
}

/** Why cells of a kind are empty. */
const EMPTY: Partial<Record<Kind, string>> = {
  dense: "has no row",
  engram: "has no FFN",
};

function canvas(width: number, height: number): [HTMLCanvasElement, CanvasRenderingContext2D | null] {
  const element = h("canvas", { width: width * 2, height: height * 2, "aria-hidden": "true" });
  element.style.width = `${width}px`;
  element.style.height = `${height}px`;
  const pen = element.getContext("2d");
  pen?.scale(2, 2);
  return [element, pen];
}

function swatch({ colour, mark }: Paint): HTMLElement {
  const { width, height } = SWATCH;
  const [element, pen] = canvas(width, height);
  if (!pen) return element;
  pen.fillStyle = colour;
  pen.fillRect(0, 0, width, height);
  if (mark) {
    pen.strokeStyle = "#fff";
    pen.lineWidth = 1.6;
    drawMark(pen, mark, 0, 0, width, height);
  }
  return element;
}

function ramp(): HTMLElement {
  const { width, height } = RAMP;
  const [element, pen] = canvas(width, height);
  for (let x = 0; x < width; x += 1) {
    if (!pen) break;
    pen.fillStyle = rampColour(x / (width - 1));
    pen.fillRect(x, 0, 1, height);
  }
  return element;
}
