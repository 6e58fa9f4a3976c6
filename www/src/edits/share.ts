// The list as a file, from a file, and as a link.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import { plural, reasonOf } from "../format";
import { type Link, LinkBox, MAX_LINK_CHARACTERS } from "../link-box";
import { type Edit, fileOf } from "./protocol";
import { section } from "./section";
import type { EditsStore } from "./store";

/** As much as the engine reads. */
const MAX_FILE_BYTES = 16 << 20;
const FRAGMENT = "#edits=";

export function shareSection(store: EditsStore, engine: EngineClient): HTMLElement {
  const status = h("p", { class: "hint", role: "status" });
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const link = new LinkBox(
    "Copy a link",
    () => linkOf(store),
    () => download(store),
  );
  const say = (text: string, wrong = ""): void => {
    link.clear();
    status.textContent = text;
    problem.textContent = wrong;
    problem.hidden = wrong === "";
  };
  const file = h("input", {
    type: "file",
    accept: ".json,application/json",
    hidden: true,
    onchange: () => {
      const chosen = file.files?.[0];
      file.value = "";
      if (!chosen) return;
      read(chosen, engine)
        .then((edits) => {
          store.add(edits);
          say(`${plural(edits.length, "edit")} added from ${chosen.name}.`);
        })
        .catch((cause: unknown) => say("", `${chosen.name}: ${reasonOf(cause)}`));
    },
  });
  const saveButton = h(
    "button",
    { type: "button", class: "button quiet", onclick: () => download(store) },
    "Export a file",
  );
  const load = h("button", { type: "button", class: "button quiet", onclick: () => file.click() }, "Import a file");
  store.state.watch(({ edits }) => {
    saveButton.disabled = edits.length === 0;
    link.button.disabled = edits.length === 0;
  });
  return section(
    "Export, import, share",
    h("div", { class: "buttons" }, saveButton, load, link.button),
    file,
    status,
    problem,
    link.element,
    h(
      "p",
      { class: "hint" },
      "A file holds everything and is the one that the command takes with --edits. A link holds recipes only (which name " +
        "gets whose rows), not rows that were learned. Both are for this very version of the model.",
    ),
  );
}

async function read(file: File, engine: EngineClient): Promise<Edit[]> {
  if (file.size > MAX_FILE_BYTES) throw new Error(`a file of more than ${MAX_FILE_BYTES >> 20} MiB is not read`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  return JSON.parse(await engine.call("checkEdits", bytes)) as Edit[];
}

export function download(store: EditsStore): void {
  save(store.file(), "edits.json");
}

/** Gives a file of edits to the reader, with line breaks. */
export function save(file: string, name: string): void {
  const pretty = `${JSON.stringify(JSON.parse(file), null, 2)}\n`;
  const url = URL.createObjectURL(new Blob([pretty], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}

/** The list as a part of a link, null if nothing of it has room there: learned rows have none. */
export function encode(store: EditsStore): { part: string | null } & Pick<Link, "edits" | "taught"> {
  const isTaught = ({ target }: Edit): boolean => "values" in target;
  const edits = store.edits.filter((edit) => !isTaught(edit));
  const taught = [...new Set(store.edits.filter(isTaught).map(({ label }) => label || "a fact without a name"))];
  if (edits.length === 0) return { part: null, edits: 0, taught };
  const bytes = new TextEncoder().encode(fileOf(store.model ?? "", edits));
  const part = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
  return { part, edits: edits.length, taught };
}

/** The file in a part of a link. Of one that holds none, the engine says so. */
export function decode(part: string): Uint8Array {
  if (part.length > MAX_LINK_CHARACTERS) return new Uint8Array();
  try {
    const text = atob(part.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(text, (character) => character.charCodeAt(0));
  } catch {
    return new Uint8Array();
  }
}

function linkOf(store: EditsStore): Link {
  const { part, edits, taught } = encode(store);
  if (part === null) throw new Error("A link has no room for learned rows; export a file.");
  const { origin, pathname, search } = location;
  return { address: `${origin}${pathname}${search}${FRAGMENT}${part}`, edits, taught };
}

/** The file in the page's address, taken out of it; null if there is none. */
export function takeLinked(): Uint8Array | null {
  const { hash } = location;
  if (!hash.startsWith(FRAGMENT)) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return decode(hash.slice(FRAGMENT.length));
}

/** Asks whether the edits of a link should come into the list. Nothing of them applies before. */
export async function offerLinked(
  linked: Uint8Array,
  model: string,
  engine: EngineClient,
  store: EditsStore,
  added: () => void,
): Promise<void> {
  try {
    const edits = JSON.parse(await engine.call("checkEdits", linked)) as Edit[];
    await store.open(model);
    ask(edits, () => {
      store.add(edits);
      added();
    });
  } catch (cause) {
    refuse(reasonOf(cause));
  }
}

function ask(edits: readonly Edit[], add: () => void): void {
  const names = new Set(edits.map(({ label }) => label || "without a name"));
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const take = h("button", { type: "button", class: "button" }, "Add to my edits");
  const dialog = showDialog(
    "This link brings edits",
    [
      h("ul", { class: "linked" }, ...[...names].map((name) => h("li", { dir: "auto" }, name))),
      h(
        "p",
        {},
        "They change which rows answer for these names, in all your chats, until you switch them off under Edits. The " +
          "names are those that the maker of the link gave them; the list under Edits shows what each does.",
      ),
      problem,
    ],
    [take],
  );
  take.addEventListener("click", () => {
    try {
      add();
      dialog.close();
    } catch (cause) {
      problem.textContent = reasonOf(cause);
      problem.hidden = false;
    }
  });
}

function refuse(reason: string): void {
  showDialog("The edits of this link cannot be used", [h("p", { class: "problem" }, reason)], []);
}

function showDialog(title: string, content: HTMLElement[], buttons: HTMLElement[]): HTMLDialogElement {
  const leave = h("button", { type: "button", class: "button quiet", onclick: () => dialog.close() }, "Leave them");
  const dialog = h(
    "dialog",
    { class: "about ask", "aria-labelledby": "ask-title" },
    h("h2", { id: "ask-title" }, title),
    ...content,
    h("div", { class: "buttons" }, ...buttons, leave),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
