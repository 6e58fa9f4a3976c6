// One short message above the message field, with at most one thing to do about it.

import { h } from "./dom";

const SHOWN_MS = 10_000;

export class Toast {
  readonly element = h("div", { class: "toast", role: "status", hidden: true });
  #timer = 0;
  #message = "";

  show(message: string, action?: string, onaction?: () => void): void {
    // Saying the same again must not make it stay for ever.
    if (message === this.#message && !onaction) return;
    this.#message = message;
    clearTimeout(this.#timer);
    const act = (): void => {
      this.hide();
      onaction?.();
    };
    const button = action && h("button", { type: "button", class: "button quiet", onclick: act }, action);
    this.element.replaceChildren(h("p", {}, message), button || "");
    this.element.hidden = false;
    this.#timer = setTimeout(() => this.hide(), SHOWN_MS);
  }

  hide(): void {
    clearTimeout(this.#timer);
    this.element.hidden = true;
  }
}
