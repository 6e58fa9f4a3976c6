// What is known of one cell, below the grid: its row's card, and what was expected after its token.

import { h } from "../dom";
import { allLayers, cardBody, cellFacts } from "./card-view";
import type { Place } from "./columns";
import { memoryBody, tracedMemory } from "./engram-card";
import type { Log, Seen } from "./log";
import { NextView } from "./next-view";
import type { Card } from "./trace";

const UNHEARD = "This token was read while nobody watched. Trace the text, and it is known.";

export type CardActions = {
  /** What the engine knows of a cell. */
  ask(place: Place): Promise<Card>;
  /** Goes to another cell. */
  pin(place: Place): void;
  /** The engine has answered; `problem` if it could not. */
  changed(problem: unknown): void;
};

export class CellCards {
  readonly element: HTMLElement;
  readonly #log: Log;
  readonly #actions: CardActions;
  readonly #next = new NextView();
  readonly #card = h("div");
  readonly #expected = h("div");
  readonly #cardBox = h("details", { class: "box", open: true }, h("summary", {}, h("h2", {}, "Row card")), this.#card);
  /** What the engine said of the cell. */
  #told: Card | null = null;
  #asked = 0;
  /** What it was last drawn from. */
  #drawn: unknown[] = [undefined];

  constructor(log: Log, actions: CardActions) {
    this.#log = log;
    this.#actions = actions;
    this.element = h(
      "div",
      { class: "lookups-body" },
      this.#cardBox,
      h("details", { class: "box next-box", open: true }, h("summary", {}, h("h2", {}, "Next token")), this.#expected),
    );
  }

  /** Where the card stands on the screen. */
  get place(): DOMRect {
    return this.#cardBox.getBoundingClientRect();
  }

  /** Whether the engine was asked before the text had been traced: it knows more by now. */
  get isOutdated(): boolean {
    return this.#told?.inside === null;
  }

  /** What was told is of a cell that is no longer looked at. */
  forget(): void {
    this.#told = null;
    this.#asked += 1;
  }

  async ask(place: Place): Promise<void> {
    this.#asked += 1;
    const asked = this.#asked;
    let problem: unknown = null;
    try {
      const told = await this.#actions.ask(place);
      if (asked === this.#asked) this.#told = told;
    } catch (cause) {
      problem = cause;
    }
    if (asked === this.#asked) this.#actions.changed(problem);
  }

  draw(place: Place | null): void {
    const { tokens, shape } = this.#log;
    const token = place && tokens[place.position];
    // While an answer is written the card stays as it is.
    const parts = [place, token, this.#told, token && place.position + 1 < tokens.length];
    if (parts.every((part, i) => part === this.#drawn[i])) return;
    this.#drawn = parts;
    if (place && token && token.id < 0) {
      this.#hint(this.#card, UNHEARD);
      this.#hint(this.#expected, UNHEARD);
      return;
    }
    if (!place || !token) {
      this.#hint(this.#card, "Click a cell: here stands what its row is and what it did.");
      this.#hint(this.#expected, "Click a cell to see what was expected after its token.");
      return;
    }
    const numbers = allLayers(token, shape);
    this.#card.replaceChildren(
      cellFacts(token, place, shape),
      ...this.#body(place, token),
      ...(numbers ? [numbers] : []),
    );
    if (token.traced) {
      if (!this.#expected.contains(this.#next.element)) this.#expected.replaceChildren(this.#next.element);
      this.#next.show(token.traced, place.position + 1 < tokens.length, shape.engram);
    } else {
      this.#hint(
        this.#expected,
        "Trace the text to see what was expected after each token, and which layers spoke for it: the model reads the " +
          "text once more.",
      );
    }
  }

  #hint(box: HTMLElement, text: string): void {
    box.replaceChildren(h("p", { class: "hint" }, text));
  }

  #body(place: Place, token: Seen): HTMLElement[] {
    const { pin } = this.#actions;
    if (this.#told) return place.engram ? memoryBody(this.#told, pin) : cardBody(this.#told, pin);
    if (!this.#log.file) return [h("p", { class: "hint" }, "Looking…")];
    if (place.engram) return tracedMemory(this.#log, place, token, pin);
    return [
      h("p", { class: "hint" }, "The file holds no more of this cell; the numbers of all layers are in the trace."),
    ];
  }
}
