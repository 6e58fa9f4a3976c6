// A link on its way out: to the clipboard, or where the page has none into a field. One that is too long stays here, and a file
// of the edits is offered in its place.

import { copyText, h } from "./dom";
import { count, plural, reasonOf } from "./format";

/**
 * RFC 9110 asks everything that handles addresses to take this many characters. Browsers take more; what lies between them,
 * chat programs and mail, often cuts what is longer, and a cut link brings nothing.
 */
export const MAX_LINK_CHARACTERS = 8000;

export type Link = {
  address: string;
  /** How many edits are in it. */
  edits: number;
  /** The names of those that have no room in a link. */
  taught: readonly string[];
};

export class LinkBox {
  readonly button: HTMLButtonElement;
  /** What became of it. */
  readonly element: HTMLElement;
  readonly #status = h("p", { class: "hint", role: "status" });
  readonly #problem = h("p", { class: "problem", role: "alert", hidden: true });
  readonly #field = h("input", {
    type: "text",
    class: "field",
    readonly: true,
    hidden: true,
    "aria-label": "The link",
  });
  readonly #file: HTMLButtonElement;

  /** `make` throws where there can be no link; `exportEdits` gives the edits as a file. */
  constructor(label: string, make: () => Link, exportEdits: () => void) {
    this.button = h("button", { type: "button", class: "button quiet", onclick: () => void this.#run(make) }, label);
    this.#file = h(
      "button",
      { type: "button", class: "button quiet", hidden: true, onclick: exportEdits },
      "Export the edits as a file",
    );
    this.element = h("div", { class: "link-box" }, this.#status, this.#problem, this.#field, this.#file);
  }

  clear(): void {
    this.#status.textContent = "";
    for (const part of [this.#problem, this.#field, this.#file]) part.hidden = true;
  }

  async #run(make: () => Link): Promise<void> {
    this.clear();
    try {
      const link = make();
      this.#file.hidden = link.taught.length === 0;
      if (link.address.length > MAX_LINK_CHARACTERS) this.#refuse(link);
      else await this.#give(link);
    } catch (cause) {
      this.#complain(reasonOf(cause));
    }
  }

  #refuse({ address, edits }: Link): void {
    const long = `The link would have ${count(address.length)} characters. What is longer than ${count(MAX_LINK_CHARACTERS)} gets cut on the way.`;
    this.#complain(edits > 0 ? `${long} A file has room for the edits.` : long);
    this.#file.hidden = edits === 0;
  }

  async #give({ address, taught }: Link): Promise<void> {
    const lacks =
      taught.length > 0
        ? ` It does not contain what was taught, which has no room in a link: ${taught.join(", ")}.`
        : "";
    if (await copyText(address)) {
      this.#status.textContent = `The link is copied. It has ${plural(address.length, "character")}.${lacks}`;
      return;
    }
    this.#status.textContent = `The browser does not let the page copy. This is the link, to be copied by hand.${lacks}`;
    this.#field.hidden = false;
    this.#field.value = address;
    this.#field.focus();
    this.#field.select();
  }

  #complain(problem: string): void {
    this.#problem.textContent = problem;
    this.#problem.hidden = false;
  }
}
