// What an edit does not reach, with the figures of `xylem eval --suite edits`; `figures.json` is what that command printed.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import figures from "./figures.json";
import { section } from "./section";

type Group = {
  n: number;
  es: number;
  ps: number | null;
  exact: number;
  collateral: number | null;
  kl_unrelated: number;
};

export function limitsSection(engine: EngineClient): HTMLElement {
  const { swap, model } = figures;
  const all: Group = swap;
  const several: Group = swap.several_tokens;
  const other = h(
    "p",
    { class: "hint" },
    "Measured with another version of the model; the figures of this one differ.",
  );
  engine.state.watch((state) => {
    other.hidden = state.phase !== "ready" || state.info.modelHash === model;
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
          "likelier of the two.",
      ),
      item(
        "Paraphrases.",
        `In other words than the first prompt the other answer was preferred in ${share(all.ps ?? 0)} of cases.`,
      ),
      item(
        "Names of several tokens.",
        `There ${share(several.exact)} of ${several.n} were said: part of what the model knows of such a name lies in no one row.`,
      ),
      item(
        "Other spellings and languages.",
        "SPAIN, España and Spanish are other tokens with rows of their own. Nothing changes there, to the bit.",
      ),
      item(
        "One fact alone.",
        `A swap takes the rest along: of the other facts of the name ${share(all.collateral ?? 0)} were lost.`,
      ),
      item(
        "What follows from two facts.",
        "That a consequence, or a text that does not name the subject, follows the edit was not measured; do not count on it.",
      ),
      item(
        "What is not in the rows.",
        "The token's embedding, attention and the dense layers still know what the text says, and what the chat already says stays there.",
      ),
    ),
    h(
      "p",
      { class: "hint" },
      `Swaps at strength ${swap.strength} in ${swap.layers.length} layers, both spellings; unrelated text moved by ` +
        `${all.kl_unrelated.toPrecision(1)} nats a token.`,
    ),
  );
}

function item(title: string, text: string): HTMLElement {
  return h("li", {}, h("strong", {}, title), ` ${text}`);
}

function share(value: number): string {
  return `${Math.round(100 * value)}%`;
}
