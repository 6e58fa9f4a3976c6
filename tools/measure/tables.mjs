// The tables and sentences of README and docs that come from measured figures, so that README, docs and page say the same.
// What stands between `<!-- figures: NAME -->` and `<!-- end -->` is written anew from the JSON; with --check it only says
// whether it is so already. `run.sh`, `layers.sh` and
// `passes.py` make the JSON.

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");
const read = async (path) => JSON.parse(await readFile(join(root, path), "utf8"));
const edits = await read("www/src/edits/figures.json");
const reach = await read("www/src/edits/reach.json");
const frequency = await read("docs/figures/frequency.json");
const rows = await read("docs/figures/rows.json");
const needle = await read("docs/figures/needle.json").catch((error) => {
  if (error.code !== "ENOENT") throw error;
  return null;
});
const layers = await read("docs/figures/layers.json");
const passes = await read("docs/figures/passes.json");

const two = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
/** Small figures keep a digit; nothing at all is 0. */
const small = (value) => (value === 0 ? "0" : value === null || value === undefined ? "–" : value.toFixed(3));
const percent = (value) => `${Math.round(100 * value)}%`;
const table = (head, body) => [head, head.map(() => "---"), ...body].map((cells) => `| ${cells.join(" | ")} |`).join("\n");

function editsTable() {
  const { swap } = edits;
  const groups = [
    ["all", swap],
    ["the base knows both facts", swap.base_knows],
    ["the model knows both facts", swap.bundle_knows],
    ["names of several tokens", swap.several_tokens],
    ...Object.entries(swap.relations),
  ];
  const body = groups
    .filter(([, group]) => group)
    .map(([name, g]) => [
      name,
      g.n,
      ...[g.es, g.ps, g.ns, g.s, g.exact, g.collateral].map(two),
      small(g.kl_unrelated),
      two(g.kl_subject),
    ]);
  return table(["", "n", "es", "ps", "ns", "s", "exact", "collateral", "kl_unrelated", "kl_subject"], body);
}

function reachTable() {
  const cells = (one) => (one ? [two(one.touched), two(one.es), two(one.exact)] : ["–", "–", "–"]);
  const taught = (kind) => reach.teach?.find((one) => one.kind === kind);
  const body = reach.swap.map((one) => [
    one.kind,
    `${one.n} of ${one.asked}`,
    one.said,
    two(one.es_unedited),
    two(one.true_unedited),
    ...cells(one),
    taught(one.kind)?.n ?? "–",
    ...cells(taught(one.kind)),
  ]);
  const head = ["asked", "n", "said", "es without", "true without"];
  const after = ["touched", "es", "exact"];
  return table([...head, ...after.map((name) => `swap: ${name}`), "taught: n", ...after.map((name) => `taught: ${name}`)], body);
}

function frequencyTable() {
  const body = [];
  for (const [text, report] of Object.entries(frequency)) {
    for (const [by, bins] of [
      ["at the position", report.by_input],
      ["to be predicted", report.by_target],
    ]) {
      for (const bin of bins.filter(({ tokens }) => tokens)) {
        const times = bin.to === null ? `${bin.from} or more` : bin.from === bin.to ? bin.from : `${bin.from}–${bin.to}`;
        body.push([text, by, times, bin.tokens, ...[bin.base_nll, bin.nll, bin.kl, bin.top1_agreement].map(two)]);
      }
    }
  }
  return table(["text", "the token", "times in the counted text", "positions", "NLL dense", "NLL", "KL", "top-1"], body);
}

function rowsTable() {
  const cells = (one) => [one.rows, one.dense, one.rows_centred, one.dense_centred].map(two);
  const body = rows.layers.map((one) => [one.layer, ...cells(one)]);
  const head = ["layer", "rows", "dense up-projection", "rows less their mean", "dense, likewise"];
  return table(head, [...body, ["mean", ...cells(rows)]]);
}

function needleTable() {
  const body = needle.by_distance.map(({ over, to, n, accuracy, base_accuracy }) => [
    to === null ? `more than ${over}` : `${over + 1}–${to}`,
    n,
    two(base_accuracy),
    two(accuracy),
  ]);
  const all = ["all", needle.n, two(needle.base_accuracy), two(needle.accuracy)];
  return table(["tokens between", "rows", "dense", "model"], [...body, all]);
}

/** 3, 4, 5, 8 as 3–5, 8. */
function ranges(numbers) {
  const found = [];
  for (const n of numbers) {
    const last = found.at(-1);
    if (last && last[1] === n - 1) last[1] = n;
    else found.push([n, n]);
  }
  return found.map(([from, to]) => (from === to ? from : `${from}–${to}`)).join(", ");
}

function layersTable() {
  const body = layers.map(({ name, layers: which, factbook, chats, swap }) => [
    `${name}: ${ranges(which)}`,
    `${two(factbook.nll)} / ${two(factbook.kl)} / ${two(factbook.top1_agreement)}`,
    `${two(chats.nll)} / ${two(chats.kl)} / ${two(chats.top1_agreement)}`,
    two(swap.es),
    two(swap.shift),
    two(swap.exact),
    two(swap.kl_subject),
  ]);
  const head = ["STEM layers", "factbook NLL / KL / top-1", "chats NLL / KL / top-1", "es", "shift", "exact", "kl_subject"];
  return table(head, body);
}

function passesTable() {
  const body = passes.sets.map(({ name, layers, es, exact, shift }) => [
    `${name}: ${ranges(layers)}`,
    layers.length,
    ...[es, exact, shift].map(two),
  ]);
  return table(["layers", "how many", "es", "exact", "shift"], body);
}

const share = (group, figure) => (group ? percent(group[figure]) : "none");
const blocks = {
  edits: editsTable,
  reach: reachTable,
  frequency: frequencyTable,
  rows: rowsTable,
  needle: needle ? needleTable : () => "Not measured yet.",
  layers: layersTable,
  passes: passesTable,
  "edits in short": () =>
    `Of ${edits.swap.n} swaps ${share(edits.swap, "exact")} make the new answer the greedy one, of the ` +
    `${edits.swap.base_knows?.n ?? 0} whose two facts the base knows ${share(edits.swap.base_knows, "exact")}.`,
};

const check = process.argv.includes("--check");
const used = new Set();
let stale = false;
for (const path of ["README.md", "docs/edits.md", "docs/model-card.md"]) {
  const old = await readFile(join(root, path), "utf8");
  const text = old.replaceAll(/(<!-- figures: (.+?) -->)(\s)[^]*?(<!-- end -->)/g, (_, begin, name, space, end) => {
    if (!blocks[name]) throw new Error(`${path}: there are no figures ${JSON.stringify(name)}`);
    used.add(name);
    return `${begin}${space}${blocks[name]()}${space}${end}`;
  });
  if (text === old) continue;
  stale = true;
  if (!check) await writeFile(join(root, path), text);
  console.log(`${path}: ${check ? "not" : "now"} in step with the figures`);
}
const unused = Object.keys(blocks).filter((name) => !used.has(name));
if (unused.length > 0) throw new Error(`figures that no page shows: ${unused.join(", ")}`);
process.exitCode = check && stale ? 1 : 0;
