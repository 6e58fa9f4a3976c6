// Rows for `xylem eval --suite needle`: a fact between two pieces of a text, and a sentence that asks for it.
//
//     node tools/measure/needle.mjs --text FILE --out FILE [--distances 100,250,500,1000,2000,4000,7000] [--each 4]
//
// The text may be any; documents in it are separated by a line <|endoftext|>. Distances are in tokens of English, counted
// as 4.4 characters; the suite counts them itself, by the model's own tokens.

import { readFile, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

const CHARACTERS_A_TOKEN = 4.4;
/** Tokens before the fact. */
const LEAD = 100;
/** No one knows these facts: the answer can only come from the text. */
const FACTS = [
  ["The key to the old mill hangs behind the", "clock"],
  ["The name of the miller's dog is", "Oscar"],
  ["The password for the boat house is", "velvet"],
  ["Anna keeps her letters in a box made of", "cedar"],
  ["The last train to the harbour leaves at", "seven"],
  ["The painter mixed his favourite colour from blue and", "silver"],
  ["The baker's daughter moved to", "Toronto"],
  ["The treasure lies under the", "bridge"],
];

const { values } = parseArgs({
  options: {
    text: { type: "string" },
    out: { type: "string" },
    distances: { type: "string", default: "100,250,500,1000,2000,4000,7000" },
    each: { type: "string", default: "4" },
  },
});
if (!values.text || !values.out) throw new Error("--text FILE and --out FILE are needed");
const each = Number(values.each);
if (!(each >= 1 && each <= FACTS.length)) throw new Error(`--each goes from 1 to ${FACTS.length}`);

const whole = (await readFile(values.text, "utf8")).replaceAll("<|endoftext|>", " ").replaceAll(/\s+/g, " ").trim();
const sentences = whole.match(/[^.!?]+[.!?]+\s*/g) ?? [];
if (sentences.length < 2) throw new Error(`${values.text} has no sentences`);

/** Whole sentences from the `start`-th on, to about so many tokens; at the end of the text it begins again. */
function filler(start, tokens) {
  let text = "";
  let at = start;
  for (; text.length < tokens * CHARACTERS_A_TOKEN; at++) text += sentences[at % sentences.length];
  return { text, at };
}

const rows = [];
let at = 0;
for (const distance of values.distances.split(",").map(Number)) {
  if (!(distance > 0)) throw new Error("--distances is a list of numbers");
  for (const [prompt, answer] of FACTS.slice(0, each)) {
    const before = filler(at, LEAD);
    const after = filler(before.at, distance);
    at = after.at;
    const context = `${before.text}${prompt} ${answer}. ${after.text.trim()}`;
    rows.push({
      context,
      cloze_prompt: prompt,
      answers: [answer],
      context_chars: context.length,
      depth: before.text.length / context.length,
    });
  }
}
await writeFile(values.out, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
