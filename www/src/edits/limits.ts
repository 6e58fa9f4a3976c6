// What an edit does not reach, with measured figures: `figures.json` is what `xylem eval --suite edits` printed, `reach.json`
// what `--suite reach` did.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import figures from "./figures.json";
import reach from "./reach.json";
import { section } from "./section";

type Group = {
  n: number;
  es: number;
  exact: number;
  collateral: number | null;
  kl_unrelated: number;
};

/** A way to ask for an edited fact. Shares are null where nothing was counted. */
type Kind = {
  kind: string;
  n: number;
  touched: number | null;
  es_unedited: number | null;
  es: number | null;
};

type Reach = { model: string; facts: number; known: number; swap: Kind[]; teach?: Kind[]; taught?: number };

/** How the kinds of `src/eval/reach` are called here; another one is called as it is there. */
const NAMES: Record<string, string> = {
  "the sentence itself": "In the sentence that is edited",
  paraphrase: "In other words",
  "small letters": "The name in small letters",
  "capital letters": "The name in CAPITALS",
  adjective: "An adjective for the name",
  French: "In French",
  Spanish: "In Spanish",
  German: "In German",
  "French, English name": "In French, with the English name",
  "Spanish, English name": "In Spanish, with the English name",
  "German, English name": "In German, with the English name",
  "two facts, named": "From two facts, with the name",
  "two facts, not named": "From two facts, without the name",
};

export function limitsSection(engine: EngineClient): HTMLElement {
  const measured: Reach = reach;
  const { swap } = figures;
  const all: Group = swap;
  const known: Group | null = swap.base_knows;
  const several: Group = swap.several_tokens;
  const other = h(
    "p",
    { class: "hint" },
    "Measured with another version of the model; the figures of this one differ.",
  );
  engine.state.watch((state) => {
    other.hidden =
      state.phase !== "ready" || (state.info.modelHash === figures.model && state.info.modelHash === measured.model);
  });
  return section(
    "What an edit does not reach",
    other,
    h(
      "ul",
      { class: "limits" },
      item(
        "Not every swap takes.",
        `Of ${all.n} swaps ${share(all.exact)} made the other answer the one that is said, and ${share(all.es)} made it the ` +
          "likelier of the two" +
          (known
            ? `; of the ${known.n} whose two facts the base model knows, ${share(known.exact)} and ${share(known.es)}.`
            : "."),
      ),
      item(
        "Names of several tokens.",
        `There ${share(several.exact)} of ${several.n} were said: part of what the model knows of such a name lies in no one row.`,
      ),
      item(
        "Other words, spellings and languages.",
        "SPAIN, España and Spanish are other tokens with rows of their own. Where the text has none of the tokens that were " +
          "edited, nothing changes, to the bit. (In French, Spanish and German the base model knows hardly a fact anyway.)",
      ),
      item(
        "What follows from two facts.",
        "A sentence that leads to the fact by another one may keep the old answer, and one that does not name the subject does.",
      ),
      item(
        "One fact alone.",
        `A swap takes the rest along: of the other facts of the name ${share(all.collateral ?? 0)} were lost.`,
      ),
      item(
        "What is not in the rows.",
        "The token's embedding, attention and the dense layers still know what the text says, and what the chat already says stays there.",
      ),
    ),
    reachTable(measured),
    h("p", { class: "hint" }, counted(measured)),
    h(
      "p",
      { class: "hint" },
      `Swaps at strength ${swap.strength} in ${swap.layers.length} layers, both spellings; unrelated text moved by ` +
        `${all.kl_unrelated.toPrecision(1)} nats a token.`,
    ),
  );
}

function reachTable({ swap, teach }: Reach): HTMLElement {
  const taught = (kind: string): Kind | undefined => teach?.find((one) => one.kind === kind);
  return h(
    "table",
    { class: "preview" },
    h("caption", {}, "How often the new answer is the likelier one, before and with the edit"),
    h(
      "thead",
      {},
      h("tr", {}, ...["Asked", "Swap", ...(teach ? ["Taught"] : [])].map((name) => h("th", { scope: "col" }, name))),
    ),
    h(
      "tbody",
      {},
      ...swap.map((one) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, NAMES[one.kind] ?? one.kind),
          h("td", {}, reached(one)),
          teach && h("td", {}, reached(taught(one.kind))),
        ),
      ),
    ),
  );
}

function counted({ facts, known, taught }: Reach): string {
  const lessons = taught ? `, and of which ${taught} were taught` : "";
  return (
    `Of ${facts} facts the base model knows ${known}, which were swapped${lessons}. Counted is where it also knows both ` +
    "answers when asked in this way."
  );
}

function reached(one: Kind | undefined): string {
  if (!one || one.es === null || one.es_unedited === null) return "–";
  const shares = one.touched === 0 ? `unchanged (${share(one.es)})` : `${share(one.es_unedited)} → ${share(one.es)}`;
  return `${shares} of ${one.n}`;
}

function item(title: string, text: string): HTMLElement {
  return h("li", {}, h("strong", {}, title), ` ${text}`);
}

function share(value: number): string {
  return `${Math.round(100 * value)}%`;
}
