// The form for a new edit: a name, and the one whose rows are to answer for it, or several for a mix.

import { h } from "../dom";
import { reasonOf } from "../format";
import type { Edit } from "./protocol";

const MAX_NAME_CHARACTERS = 60;
const MAX_NAMES = 8;

export class EditForm {
  readonly element: HTMLFormElement;
  readonly #subject = nameField("edit-subject", "Spain");
  readonly #other = nameField("edit-with", "Germany, or a mix: Germany + Italy");
  readonly #add = h("button", { type: "submit", class: "button" }, "Add the edit");
  readonly #problem = h("p", { class: "problem", role: "alert", hidden: true });

  constructor(make: (subject: string, others: string[]) => Promise<Edit[]>, add: (edits: Edit[]) => void) {
    this.#other.maxLength = MAX_NAME_CHARACTERS * 3;
    this.element = h(
      "form",
      { class: "settings" },
      h("div", { class: "setting" }, h("label", { for: "edit-subject" }, "Where the text says"), this.#subject),
      h(
        "div",
        { class: "setting" },
        h("label", { for: "edit-with" }, "the table answers with the rows of"),
        this.#other,
      ),
      this.#add,
      this.#problem,
    );
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      const others = this.#other.value.split("+", MAX_NAMES).map((name) => name.trim());
      this.#problem.hidden = true;
      make(this.#subject.value.trim(), others)
        .then((edits) => {
          add(edits);
          this.#subject.value = "";
          this.#other.value = "";
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
    this.#other.focus();
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
  });
}
