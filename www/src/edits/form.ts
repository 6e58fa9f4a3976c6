// The form for a new edit: a name, and the one whose rows are to answer for it, or several for a mix.

import { h } from "../dom";
import { reasonOf } from "../format";
import { previewTable } from "./preview-table";
import type { Edit, Preview } from "./protocol";

/** After the last key, before what is typed is looked at. */
const PAUSE_MS = 250;
export const MAX_NAME_CHARACTERS = 60;
const MAX_NAMES = 8;

export type FormActions = {
  make(subject: string, others: string[]): Promise<Edit[]>;
  /** What the edit would do within a text. */
  preview(subject: string, others: string[]): Promise<Preview | null>;
  add(edits: Edit[]): void;
};

export class EditForm {
  readonly element: HTMLFormElement;
  readonly #subject = nameField("edit-subject", "Spain");
  readonly #other = nameField("edit-with", "Germany, or a mix: Germany + Italy");
  readonly #add = h("button", { type: "submit", class: "button" }, "Add the edit");
  readonly #problem = h("p", { class: "problem", role: "alert", hidden: true });
  readonly #preview = h("div", { class: "edit-preview", hidden: true });
  readonly #actions: FormActions;
  #typed = 0;

  constructor(actions: FormActions) {
    this.#actions = actions;
    const { make, add } = actions;
    this.#other.maxLength = MAX_NAME_CHARACTERS * 3;
    this.element = h(
      "form",
      { class: "settings" },
      h(
        "p",
        { class: "hint" },
        "Let one name be answered by the rows of another: no training, and no word of the prompt changes. Type a name, or " +
          "mark one in the chat.",
      ),
      h("div", { class: "setting" }, h("label", { for: "edit-subject" }, "Where the text says"), this.#subject),
      h(
        "div",
        { class: "setting" },
        h("label", { for: "edit-with" }, "the table answers with the rows of"),
        this.#other,
      ),
      this.#preview,
      this.#add,
      this.#problem,
    );
    this.element.addEventListener("input", () => this.#look());
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#problem.hidden = true;
      make(this.#subject.value.trim(), this.#others)
        .then((edits) => {
          add(edits);
          this.#subject.value = "";
          this.#other.value = "";
          this.#look();
          this.#subject.focus();
        })
        .catch((cause: unknown) => {
          this.#problem.textContent = reasonOf(cause);
          this.#problem.hidden = false;
        });
    });
  }

  set disabled(disabled: boolean) {
    this.#add.disabled = disabled;
  }

  /** Begins an edit of `subject`. */
  begin(subject: string): void {
    this.#subject.value = subject;
    this.#look();
    this.#other.focus();
  }

  get #others(): string[] {
    return this.#other.value.split("+", MAX_NAMES).map((name) => name.trim());
  }

  /** Shows which token would get which row; of names that can't be used the reason comes with the button. */
  #look(): void {
    clearTimeout(this.#typed);
    const [subject, others] = [this.#subject.value.trim(), this.#others];
    if (!subject || !others.every(Boolean) || this.#add.disabled) {
      this.#preview.hidden = true;
      return;
    }
    const typed = setTimeout(async () => {
      const preview = await this.#actions.preview(subject, others).catch(() => null);
      if (typed !== this.#typed) return;
      this.#preview.replaceChildren(...(preview ? [previewTable(preview, [], "Which token gets which row")] : []));
      this.#preview.hidden = !preview;
    }, PAUSE_MS);
    this.#typed = typed;
  }
}

function nameField(id: string, example: string): HTMLInputElement {
  return h("input", {
    type: "text",
    class: "field",
    id,
    maxlength: MAX_NAME_CHARACTERS,
    placeholder: example,
    required: true,
    autocomplete: "off",
    enterkeyhint: "done",
  });
}
