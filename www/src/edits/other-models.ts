// Edits that were made for other models, such as an earlier version of this one: they mean nothing here, but are not lost.

import { h } from "../dom";
import { plural, reasonOf } from "../format";
import type { OtherList } from "./archive";
import { fileOf } from "./protocol";
import { section } from "./section";
import { save } from "./share";
import type { EditsStore } from "./store";

const SHOWN_NAMES = 3;
const SHOWN_HASH = 8;

export class OtherModels {
  readonly element: HTMLElement;
  readonly #store: EditsStore;
  readonly #title = h("strong");
  readonly #list = h("ul", { class: "other-models" });
  readonly #problem = h("p", { class: "problem", role: "alert", hidden: true });

  constructor(store: EditsStore) {
    this.#store = store;
    this.element = section(
      "Edits for other models",
      h(
        "p",
        { class: "hint" },
        "They were made for another model, or another version of this one, where tokens and rows are others. Here they don't " +
          "apply. A file of them is taken by the model that they were made for.",
      ),
      h("p", {}, this.#title),
      this.#list,
      this.#problem,
    );
    this.element.hidden = true;
  }

  /** To be called once the list of the model in use is open. */
  async refresh(): Promise<void> {
    try {
      const lists = await this.#store.others();
      const count = lists.reduce((sum, { kept }) => sum + kept.edits.length, 0);
      this.#title.textContent = `${plural(count, "edit")} for ${plural(lists.length, "other model")}`;
      this.#list.replaceChildren(...lists.map((list) => this.#item(list)));
      this.element.hidden = lists.length === 0;
    } catch (cause) {
      this.#complain(reasonOf(cause));
      this.element.hidden = false;
    }
  }

  #item(list: OtherList): HTMLElement {
    const { model, kept } = list;
    const names = [...new Set(kept.edits.map(({ label }) => label))];
    const more = names.length > SHOWN_NAMES ? `, and ${names.length - SHOWN_NAMES} more` : "";
    const short = model.slice(0, SHOWN_HASH);
    const button = (label: string, onclick: () => void): HTMLButtonElement =>
      h("button", { type: "button", class: "button quiet", onclick }, label);
    const undo = button("Undo", () => this.#change(this.#store.putOther(list), item, show));
    const item = h("li");
    const show = (): HTMLElement => {
      const exported = button("Export a file", () => save(fileOf(model, kept.edits), `edits-${short}.json`));
      const remove = button("Delete", () => this.#change(this.#store.removeOther(model), item, gone));
      const which = `${plural(kept.edits.length, "edit")} for the model ${short}: `;
      item.replaceChildren(
        h("p", {}, which, h("span", { dir: "auto" }, `${names.slice(0, SHOWN_NAMES).join(", ")}${more}`)),
        h("div", { class: "buttons" }, exported, remove),
      );
      return exported;
    };
    const gone = (): HTMLElement => {
      item.replaceChildren(h("p", {}, `The edits for the model ${short} are deleted.`), undo);
      return undo;
    };
    show();
    return item;
  }

  /** Shows what came of a change, and gives the focus to what can be done next. */
  #change(changed: Promise<void>, item: HTMLElement, show: () => HTMLElement): void {
    this.#problem.hidden = true;
    changed.then(
      () => {
        const focused = item.contains(document.activeElement);
        const next = show();
        if (focused) next.focus();
      },
      (cause: unknown) => this.#complain(reasonOf(cause)),
    );
  }

  #complain(problem: string): void {
    this.#problem.textContent = problem;
    this.#problem.hidden = false;
  }
}
