// The laws and the plot of docs/performance.md: node plot.mjs SCALE.json DEPTHS.json OUT.svg
//
// SCALE.json comes from scale.mjs, DEPTHS.json from `xylem bench speed --depths … --json >DEPTHS.json`.

import { readFileSync, writeFileSync } from "node:fs";
import * as vega from "vega";
import { compile } from "vega-lite";

const [scale, depths] = process.argv.slice(2, 4).map((file) => JSON.parse(readFileSync(file, "utf8")));

/** What grows with what, as points `{ x, y }`. */
const series = (name) => scale.filter((entry) => entry.series === name);
const stepMs = (entry) => 1000 / entry.decode_tokens_per_second.median;
const PANELS = [
  {
    title: "context",
    x: "tokens before it",
    points: depths.depths.map((d) => ({ x: d.position, y: d.decode_ms.median })),
  },
  {
    title: "STEM layers, of 30",
    x: "STEM layers",
    points: series("stem").map((e) => ({ x: e.shape.stem, y: stepMs(e) })),
  },
  {
    title: "vocabulary",
    x: "thousand tokens",
    points: series("vocab").map((e) => ({ x: e.shape.vocab / 1e3, y: stepMs(e) })),
  },
  {
    title: "size",
    x: "MB of weights",
    points: series("size").map((e) => ({ x: e.roofline.weight_bytes / 1e6, y: stepMs(e) })),
  },
];

/** Least squares of y = a + b x, and the share of the variance that it explains. */
function line(points) {
  const mean = (of) => points.reduce((sum, point) => sum + of(point), 0) / points.length;
  const [mx, my] = [mean((p) => p.x), mean((p) => p.y)];
  const b = mean((p) => (p.x - mx) * (p.y - my)) / mean((p) => (p.x - mx) ** 2);
  const a = my - b * mx;
  const r2 = 1 - mean((p) => (p.y - a - b * p.x) ** 2) / mean((p) => (p.y - my) ** 2);
  return { a, b, r2 };
}

const laws = Object.fromEntries(PANELS.map(({ title, points }) => [title, line(points)]));
const mb = (bytes) => Math.round(bytes / 1e5) / 10;
console.table(
  scale.map((e) => ({
    series: e.series,
    hidden: e.shape.hidden,
    layers: e.shape.layers,
    stem: e.shape.stem,
    vocab: e.shape.vocab,
    "step ms": Number(stepMs(e).toFixed(2)),
    "prefill ms": Number((1000 / e.prefill_tokens_per_second.median).toFixed(2)),
    "core MB": mb(e.download.core_bytes),
    "tables MB": mb(e.download.tables_bytes),
    "resident MB": mb(e.memory.loaded_resident_bytes ?? 0),
    "GB/s": Number((e.roofline.weight_bytes_per_second / 1e9).toFixed(2)),
  })),
);
console.table(laws);

/** A law's line from the first point to the last. */
const ends = ({ points, title }) => {
  const { a, b } = laws[title];
  const xs = points.map((point) => point.x);
  return [Math.min(...xs), Math.max(...xs)].map((x) => ({ x, y: a + b * x }));
};
const axes = (x) => ({
  x: { field: "x", type: "quantitative", title: x, scale: { zero: true } },
  y: { field: "y", type: "quantitative", title: "ms a step", scale: { zero: true } },
});
const spec = {
  background: "white",
  columns: 2,
  spacing: 30,
  concat: PANELS.map((panel) => ({
    title: panel.title,
    width: 260,
    height: 150,
    layer: [
      { data: { values: ends(panel) }, mark: { type: "line", color: "#8a5322" }, encoding: axes(panel.x) },
      {
        data: { values: panel.points },
        mark: { type: "point", filled: true, color: "#28644a", size: 50 },
        encoding: axes(panel.x),
      },
    ],
  })),
};
const view = new vega.View(vega.parse(compile(spec).spec), { renderer: "none" });
writeFileSync(process.argv[4], await view.toSVG());
