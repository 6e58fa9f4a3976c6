// The text as a run of tokens, each linked with its row of the grid.

import { h } from "../dom";
import type { Log, Seen } from "./log";

export type StripEvents = {
  hover(position: number | null): void;
  choose(position: number): void;
};

/** So far from its end, in pixels, the text still counts as read to the end. */
const NEAR_END = 30;

export class Strip {
  readonly element = h("div", { class: "strip", role: "group", "aria-label": "Text, by tokens", tabindex: 0 });
  readonly #log: Log;
  #spans: HTMLElement[] = [];
  /** What each span was made of. */
  #drawn: Seen[] = [];
  #promptTokens = 0;
  #hovered: HTMLElement | null = null;
  #pinned: HTMLElement | null = null;

  constructor(log: Log, events: StripEvents) {
    this.#log = log;
    const at = (event: Event): number | null => {
      const span = event.target instanceof HTMLElement ? event.target.closest<HTMLElement>("[data-at]") : null;
      return span ? Number(span.dataset.at) : null;
    };
    this.element.addEventListener("pointerover", (event) => events.hover(at(event)));
    this.element.addEventListener("pointerleave", () => events.hover(null));
    this.element.addEventListener("click", (event) => {
      const position = at(event);
      if (position !== null) events.choose(position);
    });
  }

  /** Brings the spans up to date; of thousands only those that changed are touched. */
  draw(): void {
    const { tokens, promptTokens } = this.#log;
    // The newest token stays in sight, unless the reader has looked back.
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    const follow = tokens.length < this.#spans.length || scrollHeight - scrollTop - clientHeight < NEAR_END;
    while (this.#spans.length > tokens.length) this.#spans.pop()?.remove();
    this.#drawn.length = Math.min(this.#drawn.length, tokens.length);
    const fresh: HTMLElement[] = [];
    for (const [i, token] of tokens.entries()) {
      if (this.#drawn[i] === token) continue;
      this.#drawn[i] = token;
      const text = token.id < 0 ? "…" : token.text.replaceAll("\n", "⏎\n");
      const span = this.#spans[i];
      if (span) {
        if (span.textContent !== text) span.textContent = text;
        continue;
      }
      const kind = i < promptTokens ? "prompt" : "own";
      fresh.push(h("span", { "data-at": i, "data-kind": kind }, text));
    }
    this.#spans.push(...fresh);
    this.element.append(...fresh);
    if (follow && fresh.length > 0) this.element.scrollTop = this.element.scrollHeight;
    if (promptTokens === this.#promptTokens) return;
    this.#promptTokens = promptTokens;
    for (const [i, span] of this.#spans.entries()) span.dataset.kind = i < promptTokens ? "prompt" : "own";
  }

  /** Marks the token under the pointer, here or in the grid, and one that is pinned. */
  mark(hovered: number | null, pinned: number | null): void {
    this.#hovered?.classList.remove("hovered");
    this.#hovered = hovered === null ? null : (this.#spans[hovered] ?? null);
    this.#hovered?.classList.add("hovered");
    this.#pinned?.classList.remove("pinned");
    this.#pinned = pinned === null ? null : (this.#spans[pinned] ?? null);
    this.#pinned?.classList.add("pinned");
  }

  reveal(position: number): void {
    const span = this.#spans[position];
    if (!span) return;
    const { offsetTop, offsetHeight } = span;
    const { scrollTop, clientHeight } = this.element;
    if (offsetTop < scrollTop || offsetTop + offsetHeight > scrollTop + clientHeight) {
      this.element.scrollTop = offsetTop - clientHeight / 2;
    }
  }
}
