// The probabilities of two answers as the strength goes from 0 to 1.5, as a chart and as a table.

import uPlot from "uplot";
import { h } from "../dom";
import type { Point } from "./protocol";

const HEIGHT = 200;

const oneDigit = (_: uPlot, ticks: number[]): string[] => ticks.map((tick) => tick.toFixed(1));

export class StrengthChart {
  readonly element: HTMLElement;
  readonly #plot = h("div", { class: "chart-plot", role: "img" });
  readonly #names = [h("span", { class: "chart-old" }), h("span", { class: "chart-new" })] as const;
  readonly #rows = h("tbody");
  readonly #heads = [h("th", { scope: "col" }), h("th", { scope: "col" })] as const;
  readonly #chart: uPlot;
  #points: Point[] = [];
  #answers: readonly string[] = [];

  constructor() {
    const legend = h("p", { class: "chart-legend" }, ...this.#names);
    this.element = h(
      "figure",
      { class: "chart", hidden: true },
      this.#plot,
      legend,
      h(
        "details",
        {},
        h("summary", { class: "hint" }, "As a table"),
        h(
          "table",
          { class: "preview" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Strength α"), ...this.#heads)),
          this.#rows,
        ),
      ),
    );
    // The colours come from the legend, so that they follow the theme.
    const ink = (of: Element) => (): string => getComputedStyle(of).color;
    const axis = {
      stroke: ink(legend),
      grid: { stroke: () => `color-mix(in srgb, ${ink(legend)()} 20%, transparent)` },
      labelSize: 20,
      labelFont: "12px system-ui",
      labelGap: 0,
      font: "12px system-ui",
      values: oneDigit,
    };
    this.#chart = new uPlot(
      {
        width: 320,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, range: [0, 1.5] }, y: { range: [0, 1] } },
        axes: [
          { ...axis, label: "strength α", size: 30, splits: () => [0, 0.5, 1, 1.5] },
          { ...axis, label: "probability", size: 38, splits: () => [0, 0.5, 1] },
        ],
        series: [
          {},
          { stroke: ink(this.#names[0]), width: 2, dash: [6, 4], points: { show: false } },
          { stroke: ink(this.#names[1]), width: 2, points: { show: false } },
        ],
      },
      [[], [], []],
      this.#plot,
    );
    const redraw = (): void => this.#chart.redraw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    new ResizeObserver(([entry]) => {
      const width = entry?.contentRect.width ?? 0;
      if (width > 0) this.#chart.setSize({ width, height: HEIGHT });
    }).observe(this.#plot);
  }

  /** Begins a chart of these two answers. */
  begin(answers: readonly string[]): void {
    this.#answers = answers;
    this.#points = [];
    this.#rows.replaceChildren();
    for (const i of [0, 1] as const) {
      this.#names[i].textContent = answers[i] ?? "";
      this.#heads[i].textContent = `P(${answers[i]})`;
    }
    this.element.hidden = false;
    this.#draw();
  }

  add(point: Point): void {
    this.#points.push(point);
    const [old, other] = this.#probabilities(point);
    this.#rows.append(
      h(
        "tr",
        {},
        h("th", { scope: "row" }, point.strength.toFixed(1)),
        h("td", {}, precise(old)),
        h("td", {}, precise(other)),
      ),
    );
    this.#draw();
  }

  /** In a sentence. */
  get summary(): string {
    const crossed = this.#points.find((point) => {
      const [old, other] = this.#probabilities(point);
      return other > old;
    });
    const [old, other] = this.#answers;
    return crossed
      ? `${other} is the likelier of the two from strength ${crossed.strength.toFixed(1)} on.`
      : `${old} stays the likelier of the two.`;
  }

  #probabilities({ logProbs }: Point): [number, number] {
    return [Math.exp(logProbs[0] ?? -Infinity), Math.exp(logProbs[1] ?? -Infinity)];
  }

  #draw(): void {
    const both = this.#points.map((point) => this.#probabilities(point));
    this.#chart.setData([
      this.#points.map(({ strength }) => strength),
      both.map(([old]) => old),
      both.map(([, other]) => other),
    ]);
    this.#plot.setAttribute(
      "aria-label",
      `Probabilities of the answers by strength. ${this.#points.length ? this.summary : ""}`,
    );
  }
}

function precise(p: number): string {
  return p > 0 && p < 0.001 ? p.toExponential(2) : p.toFixed(4);
}
