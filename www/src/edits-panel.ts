// The form for edits: two names and a button, then the list, each edit with a switch and its strength.

import { h, iconButton } from "./dom";
import { type Edit, MAX_EDITS, MAX_NAME_CHARACTERS, MAX_STRENGTH } from "./edits";
import type { EngineState } from "./engine";
import type { Signal } from "./signal";

export function editsPanel(edits: Signal<Edit[]>, state: Signal<EngineState>, again: () => void): HTMLElement {
  const subject = nameField("edit-subject", "Spain");
  const other = nameField("edit-with", "Germany");
  const add = h("button", { type: "submit", class: "button" }, "Add the edit");
  const form = h(
    "form",
    { class: "settings" },
    h("div", { class: "setting" }, h("label", { for: "edit-subject" }, "Where the text says"), subject),
    h("div", { class: "setting" }, h("label", { for: "edit-with" }, "the table answers with the rows of"), other),
    add,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const edit = { subject: subject.value.trim(), with: other.value.trim(), strength: 1, on: true };
    if (!edit.subject || !edit.with || edits.value.length >= MAX_EDITS) return;
    edits.set([...edits.value, edit]);
    subject.value = other.value = "";
    subject.focus();
  });
  const list = h("ul", { class: "edits", "aria-label": "Edits" });
  const askAgain = h(
    "button",
    { type: "button", class: "button quiet", onclick: again },
    "Answer again with these edits",
  );
  const unusable = h("p", { class: "hint" }, "This model has no table, so there is nothing to edit.");
  state.watch((value) => {
    const dense = value.phase === "ready" && value.info.rows === null;
    unusable.hidden = !dense;
    add.disabled = dense;
  });
  edits.watch((value) => {
    list.replaceChildren(...value.map((edit, place) => item(edit, place, edits)));
    askAgain.hidden = value.length === 0;
  });
  return h(
    "div",
    { class: "edits-page" },
    unusable,
    form,
    list,
    askAgain,
    h(
      "p",
      { class: "hint" },
      "An edit counts from the next answer on, in the whole conversation, wherever these very tokens stand. It moves all " +
        "that the rows hold of the name. It does not reach other spellings or languages, nor what attention and the dense " +
        "layers know; what the chat already says stays there too, so a new chat shows an edit best.",
    ),
  );
}

function nameField(id: string, example: string): HTMLInputElement {
  return h("input", { type: "text", class: "field", id, maxlength: MAX_NAME_CHARACTERS, placeholder: example });
}

function item(edit: Edit, place: number, edits: Signal<Edit[]>): HTMLElement {
  const name = `${edit.subject} → ${edit.with}`;
  const change = (what: Partial<Edit>): void =>
    edits.set(edits.value.map((other, i) => (i === place ? { ...other, ...what } : other)));
  const on = h("input", { type: "checkbox", checked: edit.on, onchange: () => change({ on: on.checked }) });
  const strength = h("input", {
    type: "range",
    min: 0,
    max: MAX_STRENGTH,
    step: 0.1,
    value: edit.strength,
    "aria-label": `Strength of ${name}`,
    onchange: () => change({ strength: strength.valueAsNumber }),
  });
  const remove = iconButton("close", `Remove ${name}`, () => edits.set(edits.value.filter((_, i) => i !== place)));
  return h(
    "li",
    {},
    h("label", { class: "edit-switch" }, on, name),
    strength,
    h("span", { class: "hint" }, edit.strength.toFixed(1)),
    remove,
  );
}
