// Swaps that were found to work by measurement (`xylem edit gallery`), one click each; and one that fails, with why.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import { reasonOf } from "../format";
import data from "./gallery.json";
import type { Edit } from "./protocol";
import { section } from "./section";
import type { EditsStore } from "./store";

type Shown = {
  relation: string;
  subject: string;
  with: string;
  prompt: string;
  question: string;
  old: string;
  new: string;
  before: number[];
  after: number[];
  answers: string[];
  paraphrases: number;
  paraphrasesNew: number;
  klUnrelated: number;
};
type Gallery = {
  model: string;
  known: number;
  asked: number;
  tried: number;
  worked: number;
  works: Shown[];
  fails: (Shown & { knownNew: number; overshot: number[] }) | null;
};

const gallery: Gallery = data;

/** The sentence with which an edit of this name was measured. */
export function knownPrompt(name: string): Shown | undefined {
  return all().find((shown) => `${shown.subject} as ${shown.with}` === name);
}

function all(): Shown[] {
  return gallery.fails ? [...gallery.works, gallery.fails] : gallery.works;
}

/** The section, and a short form of it for a list that is empty. */
export function galleryOf(
  store: EditsStore,
  engine: EngineClient,
  make: (subject: string, others: string[]) => Promise<Edit[]>,
  ask: (question: string) => void,
): { section: HTMLElement; first: HTMLElement } {
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const other = h(
    "p",
    { class: "hint" },
    "These were measured with another version of the model; with this one they may not hold.",
  );
  engine.state.watch((state) => {
    other.hidden = state.phase !== "ready" || state.info.modelHash === gallery.model;
  });
  const attempt = async (shown: Shown): Promise<void> => {
    const made = await make(shown.subject, [shown.with]);
    const labels = new Set(made.map(({ label }) => label));
    // A second click asks again; the edit is in the list already.
    const known = store.edits.some(({ label }) => labels.has(label));
    if (known) store.switchOn(labels);
    else store.add(made);
    ask(shown.question);
  };
  const firstProblem = h("p", { class: "problem", role: "alert", hidden: true });
  const button = (shown: Shown, name: string, text: string, where = problem): HTMLElement =>
    h(
      "button",
      {
        type: "button",
        class: "button quiet",
        "aria-label": name,
        onclick: () => {
          where.hidden = true;
          attempt(shown).catch((cause: unknown) => {
            where.textContent = reasonOf(cause);
            where.hidden = false;
          });
        },
      },
      text,
    );
  const tryIt = (shown: Shown): HTMLElement => button(shown, `Try ${shown.subject} as ${shown.with}`, "Try it");
  const { works, fails } = gallery;
  const first = h(
    "div",
    { class: "edits-first" },
    h("p", {}, "Or try one that works; its question is asked in a new chat:"),
    h(
      "div",
      { class: "buttons" },
      ...works.map((shown) => {
        const name = `${shown.subject} → ${shown.with}`;
        return button(shown, name, name, firstProblem);
      }),
    ),
    firstProblem,
  );
  const whole = section(
    "Edits that work, and one that does not",
    other,
    h("ul", { class: "gallery" }, ...works.map((shown) => h("li", {}, ...card(shown), tryIt(shown)))),
    problem,
    fails && h("h3", {}, "One that fails"),
    fails && h("div", { class: "gallery" }, ...card(fails), h("p", { class: "hint" }, why(fails)), tryIt(fails)),
    h(
      "p",
      { class: "hint" },
      `Found by measurement: of ${gallery.asked} facts the model says ${gallery.known} in running text and in a chat; of ` +
        `${gallery.tried} swaps among these ${gallery.worked} work: greedily, in three of four other wordings, and in a chat. The surest are shown.`,
    ),
  );
  return { section: whole, first };
}

function card(shown: Shown): HTMLElement[] {
  const [oldBefore = 0, newBefore = 0] = shown.before;
  const [oldAfter = 0, newAfter = 0] = shown.after;
  return [
    h("strong", { dir: "auto" }, `${shown.subject} as ${shown.with}`),
    h("p", {}, `${shown.prompt} …`),
    h(
      "p",
      { class: "hint" },
      `${shown.old} ${percent(oldBefore)} → ${percent(oldAfter)}, ${shown.new} ${percent(newBefore)} → ${percent(newAfter)}`,
    ),
  ];
}

function why(shown: Shown & { knownNew: number; overshot: number[] }): string {
  return (
    `The model knows the fact of ${shown.with} itself (${shown.new} ${percent(shown.knownNew)} where the text names it), but ` +
    `its rows under the name ${shown.subject} bring it to ${percent(shown.after[1] ?? 0)} only, and to ` +
    `${percent(shown.overshot[1] ?? 0)} at strength 1.5. What else the model has of ${shown.subject} lies in the token's ` +
    "embedding, in attention and in the dense layers, where no edit of rows reaches."
  );
}

function percent(p: number): string {
  if (p > 0 && p < 0.001) return "<0.1%";
  return `${(100 * p).toFixed(p < 0.1 ? 1 : 0)}%`;
}
