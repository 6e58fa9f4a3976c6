// Meters: how many different rows the text needed, where they came from, what a step takes, and the cost beside the dense
// model.

import type { PartTimes } from "../bench/protocol";
import { h } from "../dom";
import type { EngineClient } from "../engine";
import { bytes, count, plural } from "../format";
import type { EngineInfo, RowStats } from "../protocol";
import { RunBar, type Say } from "../run-bar";
import { section, table } from "./card-view";
import { Chart } from "./chart";
import type { Log } from "./log";
import { milliseconds } from "./quantities";

/** The curve is drawn with at most so many points. */
const POINTS = 400;
/** What is written to time the parts of a step: a warm-up and a plain run go before the timed one. */
const TIMING = { prompt: null, promptTokens: 32, newTokens: 24, runs: 1, timedRuns: 1 } as const;
const RUNS = 3;

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

  constructor(engine: EngineClient) {
    const parts = h("div");
    const time = async (say: Say): Promise<string> => {
      let written = 0;
      say("Writing a text of its own");
      const report = await engine.measure("bench", [TIMING], () => {
        written += 1;
        say("Writing a text of its own", Math.min(1, written / (RUNS * TIMING.newTokens)));
      });
      if (!report.decode) throw new Error("This backend can't time its parts.");
      const { value } = engine.state;
      const engram = value.phase === "ready" && value.info.engramLayers.length > 0;
      parts.replaceChildren(timesOf(report.decode, engram));
      return `${report.decode_tokens_per_second.median.toFixed(1)} tokens a second when nothing is timed.`;
    };
    const bar = new RunBar("Time each part", time, () => engine.stop());
    engine.state.watch((state) => {
      bar.disabled = state.phase !== "ready";
    });
    const hint = "Each operation of a step by itself, on a text that is written for it; the chat stays as it is.";
    this.element.append(
      section("Rows grow slower than the text", this.#curve.element),
      this.#text,
      section("Where the time of a step goes", h("p", { class: "hint" }, hint), bar.element, parts),
    );
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
    if (info?.rows && !log.file) parts.push(origins("Where records came from", "Records", info.rows));
    if (info?.engram && !log.file) parts.push(origins("Where rows of n-grams came from", "Rows", info.engram));
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

/** The parts that the model has; a fast one may take less than the browser's clock shows. */
function timesOf(times: PartTimes, engram: boolean): HTMLElement {
  const stem = times.layers.some((layer) => layer.stem);
  const dense = times.layers.some((layer) => !layer.stem);
  const parts: [string, number, boolean?][] = [
    ["Looking rows up", times.rows_ms, stem || engram],
    ["Embedding", times.embed_ms],
    ["Attention", times.attention_ms],
    ["FFN of dense layers", times.dense_ffn_ms, dense],
    ["FFN of STEM layers", times.stem_ffn_ms, stem],
    ["Engram layers", times.engram_ms, engram],
    ["Head: a score for each token", times.head_ms],
    ["Candidates", times.candidates_ms],
    ["The rest", times.other_ms],
  ];
  const rows = parts
    .filter(([, , there = true]) => there)
    .map(([name, ms]) => [name, milliseconds(ms), `${((100 * ms) / times.all_ms).toFixed(1)}%`]);
  return table(["Part", "A token", "Share"], [...rows, ["All", milliseconds(times.all_ms), ""]]);
}

/** Where rows of a table came from. */
function origins(title: string, unit: string, rows: RowStats): HTMLElement {
  const all = rows.memory + rows.stored + rows.fetched;
  const share = (n: number): string => (all > 0 ? `${((100 * n) / all).toFixed(1)}%` : "–");
  const line = (name: string, n: number): string[] => [name, count(n), share(n), bytes(n * rows.recordBytes)];
  return section(
    title,
    table(
      ["From", unit, "Share", "Bytes used"],
      [line("Memory", rows.memory), line("This device", rows.stored), line("Network", rows.fetched)],
    ),
    h(
      "p",
      { class: "hint" },
      `Since the model was loaded. Pages came in ${plural(rows.requests, "request")} with ${bytes(rows.bytesFetched)}; ` +
        `answers waited ${milliseconds(rows.stallMs)} for them in all. ${bytes(rows.bytesHeld)} of the table's ` +
        `${bytes(rows.tableBytes)} are in memory.`,
    ),
  );
}

function mega(n: number): string {
  return n < 1e5 ? count(n) : `${(n / 1e6).toFixed(1)} M`;
}
