// Meters: how many different rows the text needed, where they came from, what a step takes, and the cost beside the dense
// model.

import { h } from "../dom";
import { bytes, count } from "../format";
import type { EngineInfo, RowStats } from "../protocol";
import { section, table } from "./card-view";
import { Chart } from "./chart";
import type { Log } from "./log";
import { milliseconds } from "./quantities";

/** The curve is drawn with at most so many points. */
const POINTS = 400;

export class Meters {
  readonly element = h("div", { class: "meters" });
  readonly #curve = new Chart({
    label: "Different rows needed, by tokens of the text",
    height: 170,
    x: "tokens",
    y: "different rows",
    series: [
      { label: "different rows", colour: "sap" },
      { label: "as many as tokens", colour: "wood", dash: true },
    ],
  });
  readonly #text = h("div");

  constructor() {
    this.element.append(section("Rows grow slower than the text", this.#curve.element), this.#text);
  }

  show(log: Log, info: EngineInfo | null): void {
    const unique = log.uniqueRows();
    const stride = Math.max(1, Math.ceil(unique.length / POINTS));
    const at = unique.map((_, i) => i).filter((i) => i % stride === 0 || i === unique.length - 1);
    const x = at.map((i) => i + 1);
    this.#curve.show(
      x,
      at.map((i) => unique[i] ?? 0),
      x,
    );
    const parts: HTMLElement[] = [];
    if (info?.rows && !log.file) {
      // Of a model with two tables it isn't known how much of the bytes is whose.
      const record = info.engram ? null : info.tableBytes / Math.max(1, info.vocabSize);
      const held = `${bytes(info.rows.bytesHeld)} of the table's ${bytes(info.tableBytes)} are in memory.`;
      parts.push(origins("Where records came from", "Records", info.rows, record, info.engram ? "" : held));
    }
    if (info?.engram && !log.file) {
      const { engram } = info;
      const held = `${bytes(engram.bytesHeld)} of their table are in memory.`;
      parts.push(origins("Where rows of n-grams came from", "Rows", engram, null, held));
    }
    const { steps, rowsMs, forwardMs } = log.times;
    if (steps > 0 && !log.file) {
      parts.push(
        section(
          "Time of a step",
          table(
            ["Part", "Mean"],
            [
              ["Looking its row up", milliseconds(rowsMs / steps)],
              ["The layers", milliseconds(forwardMs / steps)],
            ],
          ),
          h("p", { class: "hint" }, `Means over the ${count(steps)} tokens of the last answer.`),
        ),
      );
    }
    if (info && !log.file) {
      const { cost } = info;
      const distinct = unique.at(-1) ?? 0;
      const active = cost.core + distinct * cost.row_values_per_token;
      const less = (now: number, before: number): string => `${(100 * (1 - now / before)).toFixed(1)}%`;
      parts.push(
        section(
          "Beside the dense model",
          table(
            ["Of a token", "This model", "Dense", "Saved"],
            [
              ["Operations", mega(cost.flops), mega(cost.dense_flops), less(cost.flops, cost.dense_flops)],
              ["Weights read", mega(cost.core), mega(cost.dense), less(cost.core, cost.dense)],
              ["Row values", mega(cost.row_values_per_token), "0", ""],
              [
                "Bytes of the core",
                bytes(cost.core_bytes),
                bytes(cost.dense_bytes),
                less(cost.core_bytes, cost.dense_bytes),
              ],
            ],
          ),
          h(
            "p",
            { class: "hint" },
            `The text so far has used ${mega(active)} parameters: the core's, and ${count(distinct)} records of the table's ` +
              `${mega(cost.tables)}.${info.gpuBytes > 0 ? ` The GPU holds ${bytes(info.gpuBytes)}.` : ""}`,
          ),
        ),
      );
    }
    this.#text.replaceChildren(...parts);
  }
}

/** Where rows of a table came from; `record` are the bytes of one, where they are known. */
function origins(title: string, unit: string, rows: RowStats, record: number | null, held: string): HTMLElement {
  const all = rows.memory + rows.stored + rows.fetched;
  const share = (n: number): string => (all > 0 ? `${((100 * n) / all).toFixed(1)}%` : "–");
  const line = (name: string, n: number): string[] => [
    name,
    count(n),
    share(n),
    ...(record === null ? [] : [bytes(n * record)]),
  ];
  return section(
    title,
    table(
      ["From", unit, "Share", ...(record === null ? [] : ["Bytes used"])],
      [line("Memory", rows.memory), line("This device", rows.stored), line("Network", rows.fetched)],
    ),
    h(
      "p",
      { class: "hint" },
      `Since the model was loaded. Pages came in ${count(rows.requests)} requests with ${bytes(rows.bytesFetched)}; ` +
        `answers waited ${milliseconds(rows.stallMs)} for them in all. ${held}`,
    ),
  );
}

function mega(n: number): string {
  return n < 1e5 ? count(n) : `${(n / 1e6).toFixed(1)} M`;
}
