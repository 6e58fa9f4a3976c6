// The text as a run of tokens, each linked with its row of the grid.

import { h } from "../dom";
import type { Log } from "./log";

export type StripEvents = {
  hover(position: number | null): void;
  choose(position: number): void;
};

export class Strip {
  readonly element = h("div", { class: "strip", role: "group", "aria-label": "Text, by tokens", tabindex: 0 });
  readonly #log: Log;
  #spans: HTMLElement[] = [];
  #marked: HTMLElement | null = null;

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

  /** Brings the spans up to date; those that stand already stay. */
  draw(): void {
    const { tokens, promptTokens } = this.#log;
    while (this.#spans.length > tokens.length) this.#spans.pop()?.remove();
    const fresh: HTMLElement[] = [];
    for (const [i, token] of tokens.entries()) {
      const text = token.id < 0 ? "…" : token.text.replaceAll("\n", "⏎\n");
      const kind = i < promptTokens ? "prompt" : "own";
      const span = this.#spans[i];
      if (span) {
        if (span.textContent !== text) span.textContent = text;
        if (span.dataset.kind !== kind) span.dataset.kind = kind;
        continue;
      }
      fresh.push(h("span", { "data-at": i, "data-kind": kind }, text));
    }
    if (fresh.length > 0) {
      this.#spans.push(...fresh);
      this.element.append(...fresh);
    }
  }

  /** Marks the token under the pointer, here or in the grid, and one that is pinned. */
  mark(hovered: number | null, pinned: number | null): void {
    this.#marked?.classList.remove("hovered");
    this.#marked = hovered === null ? null : (this.#spans[hovered] ?? null);
    this.#marked?.classList.add("hovered");
    for (const span of this.element.querySelectorAll(".pinned")) span.classList.remove("pinned");
    if (pinned !== null) this.#spans[pinned]?.classList.add("pinned");
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
