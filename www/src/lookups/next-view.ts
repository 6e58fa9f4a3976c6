// The prediction after a token: its candidates, and which layers spoke for the one that was taken.

import { h } from "../dom";
import { section } from "./card-view";
import { Chart } from "./chart";
import { shown } from "./quantities";
import type { TracedToken } from "./trace";

export class NextView {
  readonly element = h("div", { class: "next" });
  readonly #chart = new Chart({
    label: "Direct logit attribution by layer",
    height: 190,
    x: "layer",
    y: "adds to the score",
    series: [
      { label: "FFN", colour: "sap", bars: -1 },
      { label: "attention (outlined)", colour: "wood", bars: 1 },
    ],
  });

  /** `isNext`: whether the token that is explained stands in the text. */
  show(token: TracedToken, isNext: boolean, engramLayers: readonly number[]): void {
    const { next } = token;
    const share = (value: number): string => `${(100 * value).toFixed(value < 0.01 ? 2 : 1)}%`;
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
    const parts = [...next.ffn.map((value, layer) => ["FFN", layer, value] as const)]
      .concat(next.attention.map((value, layer) => ["attention", layer, value] as never))
      .concat((next.engram ?? []).map((value, i) => ["memory of n-grams", engramLayers[i] ?? i, value] as never))
      .toSorted((a, b) => b[2] - a[2]);
    const [best] = parts;
    const memory = (next.engram ?? [])
      .map((value, i) => `, the memory of n-grams of layer ${engramLayers[i]} ${value.toFixed(2)}`)
      .join("");
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
            `adds ${next.embedding.toFixed(2)}${memory}; together it makes ${total.toFixed(2)}.` +
            (best ? ` Most comes from the ${best[0]} of layer ${best[1]}: ${best[2].toFixed(2)}.` : ""),
        ),
        this.#chart.element,
      ),
    );
    this.#chart.show(layers, [...next.ffn], [...next.attention]);
  }
}
