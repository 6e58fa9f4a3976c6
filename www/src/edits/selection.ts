// Words selected in the conversation can become the subject of an edit: a button above the message field offers it.

import { h, icon } from "../dom";

const MAX_CHARACTERS = 60;

export function selectionButton(within: HTMLElement, edit: (name: string) => void): HTMLElement {
  const text = h("span", { dir: "auto" });
  let name = "";
  const button = h(
    "button",
    {
      type: "button",
      class: "button quiet edit-selection",
      hidden: true,
      // A press would take the selection away before the click.
      onpointerdown: (event: PointerEvent) => event.preventDefault(),
      onclick: () => {
        button.hidden = true;
        edit(name);
      },
    },
    icon("edit"),
    text,
  );
  document.addEventListener("selectionchange", () => {
    const selection = document.getSelection();
    const chosen = selection?.toString().trim() ?? "";
    const inside = selection?.anchorNode && selection.focusNode && within.contains(selection.anchorNode);
    const usable =
      inside && within.contains(selection.focusNode) && chosen.length <= MAX_CHARACTERS && !chosen.includes("\n");
    name = usable ? chosen : "";
    button.hidden = name === "";
    text.textContent = `Edit “${name}”`;
  });
  return button;
}
