// Charts in the page's colours, by uPlot; they follow the width of their place and the theme.

import uPlot from "uplot";
import { h } from "../dom";

export type Series = { label: string; colour: "sap" | "wood" | "ink"; bars?: -1 | 1; dash?: boolean; dots?: boolean };

export type ChartOptions = {
  /** What the chart shows, for those who don't see it. */
  label: string;
  height: number;
  x: string;
  y: string;
  series: readonly Series[];
};

export class Chart {
  readonly element: HTMLElement;
  readonly #place: HTMLElement;
  readonly #options: ChartOptions;
  #plot: uPlot | null = null;
  #data: uPlot.AlignedData;

  constructor(options: ChartOptions) {
    this.#options = options;
    this.#data = [[], ...options.series.map(() => [])];
    this.#place = h("div", { class: "chart-place", role: "img", "aria-label": options.label });
    const keys = options.series.map(({ label, colour, dash, dots }) =>
      h("span", { class: `chart-key ${colour}${dash ? " dash" : ""}${dots ? " dots" : ""}` }, label),
    );
    this.element = h("figure", { class: "chart" }, this.#place, h("figcaption", {}, ...keys));
    new ResizeObserver(() => this.#resize()).observe(this.#place);
    const again = (): void => this.#rebuild();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    new MutationObserver(again).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  /** The values of x, then those of each series; null where there is none. */
  show(...data: (readonly (number | null)[])[]): void {
    this.#data = data as unknown as uPlot.AlignedData;
    if (this.#plot) this.#plot.setData(this.#data);
    else this.#resize();
  }

  #resize(): void {
    const width = this.#place.clientWidth;
    if (width === 0) return;
    if (this.#plot) this.#plot.setSize({ width, height: this.#options.height });
    else this.#build(width);
  }

  #rebuild(): void {
    this.#plot?.destroy();
    this.#plot = null;
    this.#resize();
  }

  #build(width: number): void {
    const style = getComputedStyle(this.#place);
    const colour = (name: string): string => style.getPropertyValue(`--grid-${name}`);
    const axis = (label: string): uPlot.Axis => ({
      label,
      labelSize: 20,
      labelFont: "12px system-ui",
      font: "12px system-ui",
      stroke: colour("ink"),
      grid: { stroke: colour("line"), width: 1 },
      ticks: { stroke: colour("line"), width: 1 },
    });
    const bars = uPlot.paths.bars;
    const series = this.#options.series.map(({ label, colour: name, bars: side, dash, dots }): uPlot.Series => {
      const stroke = colour(name);
      const look: uPlot.Series = { label, stroke, width: side ? 1 : 2, points: { show: false } };
      if (dash) look.dash = [5, 4];
      if (dots) Object.assign(look, { paths: () => null, points: { show: true, size: 9, fill: stroke, stroke } });
      if (side && bars) {
        look.paths = bars({ size: [0.42, 14], align: side });
        look.fill = side < 0 ? stroke : "transparent";
      }
      return look;
    });
    const x: uPlot.Scale = { time: false };
    // Bars stand on both sides of their value, so that the first and the last need room.
    if (series.some(({ paths }) => paths)) x.range = (_, min, max) => [min - 0.7, max + 0.7];
    this.#plot = new uPlot(
      {
        width,
        height: this.#options.height,
        legend: { show: false },
        cursor: { show: false },
        scales: { x },
        axes: [
          { ...axis(this.#options.x), size: 30, labelGap: 0 },
          { ...axis(this.#options.y), size: 48 },
        ],
        series: [{}, ...series],
      },
      this.#data,
      this.#place,
    );
  }
}
