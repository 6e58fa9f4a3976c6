// The field for the next message, with one button that sends, or stops the running answer.

import type { Stopping } from "./app";
import { h, icon, keepFocus } from "./dom";
import { enterKeyHint, isTouch, sends } from "./enter";

export type ComposerActions = {
  send(text: string): void;
  stop(): void;
  /** The message as far as it is written, when the writer pauses. */
  draft(text: string): void;
  editLast(): void;
};

/** So long without a key is a pause. */
const PAUSE_MS = 250;

export class Composer {
  readonly element: HTMLElement;
  readonly #field: HTMLTextAreaElement;
  readonly #button: HTMLButtonElement;
  readonly #actions: ComposerActions;
  #busy = false;
  #stopping: Stopping = "no";
  #pause = 0;
  /** What was put into the field last, and is not the reader's own. */
  #filled = "";
  /** What the reader had written before. */
  readonly #aside: string[] = [];

  constructor(actions: ComposerActions) {
    this.#actions = actions;
    this.#field = h("textarea", {
      class: "composer-field",
      rows: 1,
      dir: "auto",
      placeholder: "Ask something",
      "aria-label": "Message",
      enterkeyhint: enterKeyHint(),
      autocomplete: "off",
    });
    this.#field.addEventListener("input", () => {
      this.#written();
      clearTimeout(this.#pause);
      this.#pause = setTimeout(() => actions.draft(this.#field.value.trim()), PAUSE_MS);
    });
    this.#field.addEventListener("keydown", (event) => this.#key(event));
    this.#button = h("button", { type: "submit", class: "send" });
    this.element = h("form", { class: "composer" }, this.#field, this.#button);
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#busy) actions.stop();
      else this.#send();
    });
    this.#showButton();
  }

  setBusy(busy: boolean, stopping: Stopping): void {
    // Called for every token: a button that is redrawn while the mouse holds it down gets no click.
    if (busy === this.#busy && stopping === this.#stopping) return;
    this.#busy = busy;
    this.#stopping = stopping;
    this.#showButton();
  }

  /**
   * Puts a text into the field, for the reader to send. What was written there comes back after it, or at once by what is
   * given; null if nothing was.
   */
  fill(text: string): (() => void) | null {
    const written = this.#field.value;
    const isOwn = written.trim() !== "" && written !== this.#filled && written !== text;
    if (isOwn) this.#aside.push(written);
    this.#filled = text;
    this.#set(text);
    if (!isOwn) return null;
    return () => {
      const at = this.#aside.lastIndexOf(written);
      if (at < 0) return;
      this.#aside.splice(at, 1);
      this.#set(written);
    };
  }

  focus(): void {
    this.#field.focus();
  }

  /** As `focus`, but not where a keyboard would come up over the page. */
  takeFocus(): void {
    if (!isTouch()) this.#field.focus();
  }

  #send(): void {
    const text = this.#field.value.trim();
    if (!text || this.#busy) return;
    clearTimeout(this.#pause);
    // The button stops the answer from here on; with no text and no answer it could do nothing.
    this.#actions.send(text);
    this.#set(this.#aside.pop() ?? "");
  }

  #key(event: KeyboardEvent): void {
    if (sends(event)) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "ArrowUp" && this.#field.value === "" && !this.#busy) {
      event.preventDefault();
      this.#actions.editLast();
    }
  }

  #showButton(): void {
    const stop = { no: "Stop (Esc)", asked: "Stopping…", stuck: "Stop by force; the model is then loaded anew" };
    const label = this.#busy ? stop[this.#stopping] : "Send (Enter)";
    this.#button.replaceChildren(icon(this.#busy ? "stop" : "send"));
    this.#button.setAttribute("aria-label", label);
    this.#button.title = label;
    this.#enable();
  }

  #enable(): void {
    keepFocus(
      this.#button,
      () => {
        this.#button.disabled = this.#busy ? this.#stopping === "asked" : this.#field.value.trim() === "";
      },
      () => this.takeFocus(),
    );
  }

  #set(text: string): void {
    this.#field.value = text;
    this.#written();
  }

  /** The field has another text. */
  #written(): void {
    this.#enable();
    // Grows with its text up to the limit in the style sheet.
    this.#field.style.height = "auto";
    this.#field.style.height = `${this.#field.scrollHeight}px`;
  }
}
