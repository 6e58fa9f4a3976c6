// The curve of the default model's training: node curve.mjs LOG.jsonl OUT.svg
//
// LOG.jsonl is tools/heal/log.jsonl: what each run of tools/heal/train.py wrote, its lines marked with the run.

import { readFileSync, writeFileSync } from "node:fs";
import * as vega from "vega";
import { compile } from "vega-lite";

const entries = readFileSync(process.argv[2], "utf8").trim().split("\n").map(JSON.parse);
const TEXTS = { factbook: "Factbook", chat: "chats", recall: "passages again" };

/** Tokens of all runs before this one. */
const before = (run) => {
  const ends = new Map(entries.filter((e) => e.run < run).map((e) => [e.run, e.tokens]));
  return [...ends.values()].reduce((sum, tokens) => sum + tokens, 0);
};
const points = (figure) =>
  entries.flatMap((entry) =>
    Object.entries(TEXTS)
      .filter(([text]) => entry[`${text}_${figure}`] !== undefined)
      .map(([text, name]) => ({
        tokens: (before(entry.run) + entry.tokens) / 1e6,
        value: entry[`${text}_${figure}`],
        text: name,
        run: entry.run,
      })),
  );

const panel = (figure, title, scale) => ({
  title,
  width: 620,
  height: 190,
  data: { values: points(figure) },
  mark: { type: "line", point: true },
  encoding: {
    x: { field: "tokens", type: "quantitative", title: "million tokens" },
    y: { field: "value", type: "quantitative", title: null, scale },
    color: {
      field: "text",
      title: null,
      sort: Object.values(TEXTS),
      scale: { range: ["#8a5322", "#28644a", "#5b7fb4"] },
    },
    detail: { field: "run" },
  },
});
const spec = {
  background: "white",
  vconcat: [
    panel("kl", "KL to the base, nats a token", { type: "log", nice: false }),
    panel("top1", "same first choice as the base", { zero: false }),
  ],
};
const view = new vega.View(vega.parse(compile(spec).spec), { renderer: "none" });
writeFileSync(process.argv[3], await view.toSVG());
