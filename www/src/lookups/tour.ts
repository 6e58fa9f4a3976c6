// A tour of five short steps. Each points at a part of the page, and can be left at any time.

import { h, iconButton } from "../dom";

export type TourStep = {
  title: string;
  /** Said once the step is prepared. */
  text: () => string;
  /** What it points at. */
  target: string;
  /** To be done before: a quantity to show, a part to open. */
  before?: () => void;
  /** Where it leads on, out of the tour. */
  onward?: { label: string; go: () => void };
};

const NARROW = matchMedia("(max-width: 40rem)");

export class Tour {
  readonly element: HTMLElement;
  readonly #steps: readonly TourStep[];
  readonly #lost: () => void;
  readonly #title = h("h3", { id: "tour-title" });
  readonly #text = h("p");
  readonly #count = h("span", { class: "hint" });
  readonly #back: HTMLButtonElement;
  readonly #next: HTMLButtonElement;
  readonly #onward = h("button", { type: "button", class: "button quiet", onclick: () => this.#leave() });
  #at = 0;
  #opener: Element | null = null;
  #pointed: Element | null = null;
  /** What comes once a step has begun, such as a card, would push its target out of sight. */
  readonly #around = new ResizeObserver(() => this.#reveal());

  /** `lost` gives the focus to something else if what started the tour is gone. */
  constructor(steps: readonly TourStep[], lost: () => void) {
    this.#steps = steps;
    this.#lost = lost;
    this.#back = h("button", { type: "button", class: "button quiet", onclick: () => this.#go(this.#at - 1) }, "Back");
    this.#next = h("button", { type: "button", class: "button", onclick: () => this.#go(this.#at + 1) }, "Next");
    this.element = h(
      "section",
      { class: "tour", role: "dialog", "aria-labelledby": "tour-title", hidden: true },
      h(
        "div",
        { class: "row" },
        this.#count,
        iconButton("close", "Leave the tour", () => this.end()),
      ),
      this.#title,
      this.#text,
      h("div", { class: "row" }, this.#back, this.#onward, this.#next),
    );
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      this.end();
    });
  }

  start(): void {
    this.#opener = document.activeElement;
    this.element.hidden = false;
    this.#go(0);
  }

  end(): void {
    this.element.hidden = true;
    this.#point(null);
    if (this.#opener instanceof HTMLElement && this.#opener.checkVisibility()) this.#opener.focus();
    else this.#lost();
  }

  #go(at: number): void {
    const step = this.#steps[at];
    if (!step) {
      this.end();
      return;
    }
    this.#at = at;
    step.before?.();
    this.#count.textContent = `${at + 1} of ${this.#steps.length}`;
    this.#title.textContent = step.title;
    this.#text.textContent = step.text();
    this.#onward.hidden = !step.onward;
    this.#onward.textContent = step.onward?.label ?? "";
    this.#back.disabled = at === 0;
    this.#next.textContent = at + 1 === this.#steps.length ? "Done" : "Next";
    this.#point(document.querySelector(step.target));
    this.#next.focus();
  }

  #leave(): void {
    const { onward } = this.#steps[this.#at] ?? {};
    this.end();
    onward?.go();
  }

  #point(target: Element | null): void {
    this.#pointed?.classList.remove("pointed");
    this.#pointed = target;
    target?.classList.add("pointed");
    this.#around.disconnect();
    for (let around = target?.parentElement; around; around = around.parentElement) this.#around.observe(around);
    this.#reveal();
  }

  #reveal(): void {
    // Where the panel covers the page, the tour covers the lower half of the panel.
    this.#pointed?.scrollIntoView({ block: NARROW.matches ? "start" : "center" });
  }
}
