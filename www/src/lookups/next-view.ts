// The prediction after a token: its candidates, and which layers spoke for the one that was taken.

import { h } from "../dom";
import { section } from "./card-view";
import { Chart, type Series } from "./chart";
import { shown, signed } from "./quantities";
import type { TracedToken } from "./trace";

export class NextView {
  readonly element = h("div", { class: "next" });
  readonly #plain = attribution([]);
  readonly #withMemory = attribution([{ label: "memory of n-grams (dot)", colour: "ink", dots: true }]);

  /** `isNext`: whether the token that is explained stands in the text. */
  show(token: TracedToken, isNext: boolean, engramLayers: readonly number[]): void {
    const { next } = token;
    const share = (value: number): string =>
      value < 1e-4 ? "<0.01%" : `${(100 * value).toFixed(value < 0.01 ? 2 : 1)}%`;
    const chart = engramLayers.length > 0 ? this.#withMemory : this.#plain;
    const candidates = next.top.map(({ id, text, probability }) => {
      const meter = h("meter", {
        min: 0,
        max: 1,
        value: probability,
        "aria-label": `${shown(text)}: ${share(probability)}`,
      });
      return h(
        "li",
        { class: id === next.id ? "taken" : null },
        h("bdi", { class: "token" }, shown(text)),
        meter,
        h("span", { class: "value" }, share(probability)),
      );
    });
    const layers = next.ffn.map((_, layer) => layer);
    const memory = layers.map((layer) => next.engram?.[engramLayers.indexOf(layer)] ?? null);
    const parts: [name: string, layer: number, value: number][] = [
      ...next.ffn.map((value, layer): [string, number, number] => ["feed-forward block", layer, value]),
      ...next.attention.map((value, layer): [string, number, number] => ["attention", layer, value]),
      ...engramLayers.map((layer): [string, number, number] => ["memory of n-grams", layer, memory[layer] ?? 0]),
    ];
    const [best] = parts.toSorted((a, b) => b[2] - a[2]);
    const total = next.logit - next.mean_logit;
    this.element.replaceChildren(
      section(
        "Candidates",
        h(
          "p",
          { class: "hint" },
          `After “${shown(token.text)}” ${isNext ? "came" : "the likeliest is"} “${shown(next.text)}”, with ${share(next.probability)}.`,
        ),
        h("ol", { class: "candidates" }, ...candidates),
      ),
      section(
        "Where it was decided",
        h(
          "p",
          { class: "hint" },
          `What each layer adds directly to the score of “${shown(next.text)}”, above the mean of all tokens. The embedding ` +
            `adds ${signed(next.embedding)}; together it makes ${signed(total)}.` +
            (best ? ` Most comes from the ${best[0]} of layer ${best[1]}: ${signed(best[2])}.` : ""),
        ),
        chart.element,
      ),
    );
    const series: (number | null)[][] = [next.ffn, next.attention];
    if (engramLayers.length > 0) series.push(memory);
    chart.show(layers, ...series);
  }
}

function attribution(more: readonly Series[]): Chart {
  return new Chart({
    label: "Direct logit attribution by layer",
    height: 190,
    x: "layer",
    y: "adds to the score",
    series: [
      { label: "feed-forward block", colour: "sap", bars: -1 },
      { label: "attention (outlined)", colour: "wood", bars: 1 },
      ...more,
    ],
  });
}
