// One short message above the message field, with at most one thing to do about it.

import { h, keepFocus } from "./dom";

const SHOWN_MS = 10_000;

export class Toast {
  readonly element = h("div", { class: "toast", role: "status", hidden: true });
  readonly #leave: () => void;
  #timer = 0;
  #message = "";
  /** Where the focus was before it came here. */
  #before: EventTarget | null = null;

  /** `leave` takes the focus where it cannot go back. */
  constructor(leave: () => void) {
    this.#leave = leave;
    this.element.addEventListener("focusin", ({ relatedTarget }) => {
      clearTimeout(this.#timer);
      if (!this.element.contains(relatedTarget as Node | null)) this.#before = relatedTarget;
    });
    this.element.addEventListener("focusout", () => this.#wait());
  }

  show(message: string, action?: string, onaction?: () => void): void {
    // Saying the same again must not make it stay for ever.
    if (message === this.#message && !onaction) return;
    this.#message = message;
    const act = (): void => {
      this.hide();
      onaction?.();
    };
    const button = action && h("button", { type: "button", class: "button quiet", onclick: act }, action);
    keepFocus(
      this.element,
      () => this.element.replaceChildren(h("p", {}, message), button || ""),
      () => (button ? button.focus() : this.#goBack()),
    );
    this.element.hidden = false;
    this.#wait();
  }

  hide(): void {
    clearTimeout(this.#timer);
    keepFocus(
      this.element,
      () => {
        this.element.hidden = true;
      },
      () => this.#goBack(),
    );
  }

  /** It stays as long as somebody is at it. */
  #wait(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (!this.element.contains(document.activeElement)) this.hide();
    }, SHOWN_MS);
  }

  #goBack(): void {
    const before = this.#before;
    if (before instanceof HTMLElement && before.isConnected && before.checkVisibility()) before.focus();
    else this.#leave();
  }
}
