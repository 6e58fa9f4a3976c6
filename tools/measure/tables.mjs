// The tables and sentences of README and docs that come from measured figures, so that README, docs and page say the same.
// What stands between `<!-- figures: NAME -->` and `<!-- end -->` is written anew from the JSON; with --check it only says
// whether it is so already. `run.sh`, `layers.sh`,
// `passes.py` and `tools/heal/layers.py` make the JSON.

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");
const read = async (path) => JSON.parse(await readFile(join(root, path), "utf8"));
const edits = await read("www/src/edits/figures.json");
const reach = await read("www/src/edits/reach.json");
const frequency = await read("docs/figures/frequency.json");
const rows = await read("docs/figures/rows.json");
const needle = await read("docs/figures/needle.json");
const loss = await read("docs/figures/loss.json");
const questions = await read("docs/figures/questions.json");
const knockOuts = await read("docs/figures/knock-outs.json");
const ways = await read("docs/figures/ways.json");
const teach = await read("docs/figures/teach.json");
const layers = await read("docs/figures/layers.json");
const healed = await read("docs/figures/healed.json");
const facts = await read("docs/figures/facts.json");
const passes = await read("docs/figures/passes.json");

const two = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
/** Small figures keep a digit; nothing at all is 0. */
const small = (value) => (value === 0 ? "0" : value === null || value === undefined ? "–" : value.toFixed(3));
/** As `two` rounds, so that sentences say what tables say. */
const percent = (value) => `${(100 * two(value)).toFixed(0)}%`;
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

const lossOf = ({ nll, kl, top1_agreement: top1 }) => [nll, kl, top1].map(two).join(" / ");
const answers = ({ accuracy, exact }) => (exact === undefined ? two(accuracy) : `${two(accuracy)} / ${two(exact)}`);

function lossTable() {
  const body = Object.entries(loss).map(([text, one]) => [
    text,
    one.documents,
    one.tokens,
    ...[one.base_nll, one.nll, one.kl, one.top1_agreement].map(two),
  ]);
  return table(["text", "documents", "tokens", "NLL dense", "NLL", "KL", "top-1"], body);
}

function questionsTable() {
  const body = Object.entries(questions.model).map(([name, one]) => [
    `${name}${one.exact === undefined ? "" : ", choice / exact"}`,
    one.n,
    answers(questions.dense[name]),
    answers(one),
    two(one.chance),
  ]);
  return table(["", "rows", "dense", "model", "chance"], body);
}

function knockOutsTable() {
  const names = {
    none: "nothing: the model",
    mean: "the mean row",
    shuffle: "another token's row",
    zero: "zeros",
    "engram-off": "STEM rows as they are, nothing from Engram",
  };
  const body = Object.entries(knockOuts).map(([way, { factbook, chats, capitals, languages }]) => [
    names[way],
    ...[factbook, chats].map(lossOf),
    ...[capitals, languages].map(answers),
  ]);
  const head = ["in place of the rows", "factbook NLL / KL / top-1", "chats NLL / KL / top-1"];
  return table([...head, "capitals, choice / exact", "languages"], body);
}

function waysTable() {
  const name = (one) => {
    if (one.method) return `\`${one.method}\``;
    if (one.strength !== 1) return `α ${one.strength}`;
    return one === ways.swap ? `α 1, usual method, layers ${ranges(one.layers)}` : `layers ${ranges(one.layers)}`;
  };
  const body = [ways.swap, ...ways.grid].map((one) => [
    name(one),
    ...[one.es, one.ps, one.ns, one.exact, one.several_tokens?.exact, one.collateral].map(two),
    small(one.kl_unrelated),
    two(one.kl_subject),
  ]);
  const head = ["es", "ps", "ns", "exact", "exact, several tokens", "collateral", "kl_unrelated", "kl_subject"];
  return table(["", ...head], body);
}

function teachTable() {
  const body = ["swap", "teach"].map((way) => {
    const one = teach[way];
    const shares = [one.es, one.ps, one.ns, one.s, one.exact, one.several_tokens?.exact].map(two);
    return [way, ...shares, small(one.kl_unrelated), two(one.kl_subject)];
  });
  const head = ["es", "ps", "ns", "s", "exact", "exact, several tokens", "kl_unrelated", "kl_subject"];
  return table(["", ...head], body);
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

const bin = ({ over, to }) => (to === null ? `more than ${over}` : `${over + 1}–${to}`);

function needleTable() {
  const body = needle.by_distance.map(({ n, accuracy, base_accuracy, ...ends }) => [
    bin(ends),
    n,
    two(base_accuracy),
    two(accuracy),
  ]);
  const all = ["all", needle.n, two(needle.base_accuracy), two(needle.accuracy)];
  return table(["tokens between", "rows", "dense", "model"], [...body, all]);
}

/** How many of the table's parameters take part, by the length of the text. */
function activeTable() {
  const millions = (tokens) => ((tokens * needle.row_values) / 1e6).toFixed(1);
  const body = needle.by_length.map(({ n, distinct_tokens: distinct, ...ends }) => [
    bin(ends),
    n,
    Math.round(distinct),
    millions(distinct),
  ]);
  return table(["tokens of the text", "rows", "distinct tokens", "their rows' values, millions"], body);
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
    ...[factbook, chats].map(lossOf),
    ...[swap.es, swap.shift, swap.exact, swap.kl_subject].map(two),
  ]);
  return table(["STEM layers", "factbook NLL / KL / top-1", "chats NLL / KL / top-1", "es", "shift", "exact", "kl_subject"], body);
}

const logged = (line, kind) => [line[`${kind}_nll`], line[`${kind}_kl`], line[`${kind}_top1`]].map(two).join(" / ");

/** From the logs of `tools/heal/layers.py`, as is the next. */
function factsTable() {
  const body = facts.map((line) => [
    line.name,
    line.tokens.toLocaleString("en"),
    logged(line, "factbook"),
    logged(line, "chat"),
    ...[line.cloze, line.swap_es, line.swap_exact].map(two),
  ]);
  return table(["", "tokens", "factbook NLL / KL / top-1", "chats NLL / KL / top-1", "cloze", "swaps: es", "exact"], body);
}

function healedTable() {
  const body = healed.map(({ name, layers: which, healed: line }) => [
    `${name}: ${ranges(which)}`,
    logged(line, "factbook"),
    logged(line, "chat"),
    two(line.recall_kl),
    two(line.cloze),
  ]);
  return table(["STEM layers", "factbook NLL / KL / top-1", "chats NLL / KL / top-1", "recall KL", "cloze"], body);
}

function passesTable() {
  const body = passes.sets.map(({ name, layers, es, exact, shift }) => [
    `${name}: ${ranges(layers)}`,
    layers.length,
    ...[es, exact, shift].map(two),
  ]);
  return table(["layers", "how many", "es", "exact", "shift"], body);
}

/** What the default model can do, in words. */
function modelInShort() {
  const { factbook, chats } = loss;
  const right = (name) => [questions.dense, questions.model].map((of) => percent(of[name].accuracy));
  const [capitals, languages] = ["capitals", "languages"].map(right);
  const asked = ["capitals", "languages"].map((name) => questions.model[name].n).reduce((a, b) => a + b);
  const said = ({ capitals, languages }) => [capitals, languages].reduce((sum, { exact, n }) => sum + Math.round(exact * n), 0);
  const [found, foundByBase] = [needle.accuracy, needle.base_accuracy].map((accuracy) => Math.round(accuracy * needle.n));
  return [
    `KL(base ‖ model) is ${two(chats.kl)} nats a token on chats, where the most likely token is the base's at ${percent(chats.top1_agreement)} of`,
    `positions, and ${two(factbook.kl)} and ${percent(factbook.top1_agreement)} on texts about countries, which begin with any word. The base finds the right capital among`,
    `four in ${capitals[0]} of cases, this model in ${capitals[1]}; of languages ${languages.join(" and ")}. With one mean row for every token it says`,
    `${said(knockOuts.mean) || "none"} of ${asked} capitals and languages that were asked, with its rows ${said(questions.model)}. What stands up to thousands of tokens back it finds`,
    `again about as well as its base does: ${found} of ${needle.n} questions, the base ${foundByBase}.`,
  ].join("\n");
}

const share = (group, figure) => (group ? percent(group[figure]) : "none");
const blocks = {
  edits: editsTable,
  reach: reachTable,
  frequency: frequencyTable,
  rows: rowsTable,
  needle: needleTable,
  active: activeTable,
  loss: lossTable,
  questions: questionsTable,
  "knock-outs": knockOutsTable,
  ways: waysTable,
  teach: teachTable,
  layers: layersTable,
  healed: healedTable,
  facts: factsTable,
  passes: passesTable,
  "model in short": modelInShort,
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
