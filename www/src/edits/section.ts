// The parts of the page "Edits" below the list: each folded away until it is wanted.

import type { Child } from "../dom";
import { h } from "../dom";

export function section(title: string, ...children: Child[]): HTMLDetailsElement {
  return h(
    "details",
    { class: "edits-section" },
    h("summary", {}, h("h2", {}, title)),
    h("div", { class: "edits-section-body" }, ...children),
  );
}

export function textField(id: string, label: string, example: string, value = ""): [HTMLElement, HTMLInputElement] {
  const input = h("input", {
    type: "text",
    class: "field",
    id,
    placeholder: example,
    value,
    autocomplete: "off",
    enterkeyhint: "done",
  });
  return [h("div", { class: "setting" }, h("label", { for: id }, label), input), input];
}
