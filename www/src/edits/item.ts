// One entry of the list: a switch, the strength, and under "How" all the rest.

import { h, iconButton } from "../dom";
import { changed, type Group, moved, nameOf, ranges, withLayers, withMethod, without } from "./groups";
import { layerStrip } from "./layers";
import { ngramTable } from "./ngrams";
import { previewTables } from "./preview-table";
import { type Edit, METHODS, type Method, type Occurrence, type Scope } from "./protocol";

const MAX_STRENGTH = 1.5;

const METHOD_NAMES: Record<Method, string> = {
  one_to_one: "One to one",
  pad: "Pad: the last tokens get the rows",
  copy: "Copy: each row to several tokens",
  subset: "Subset: the last of the rows",
  average: "Average: each token the mean",
};

type Place = Occurrence & { end: number };

export type ItemContext = {
  groups: readonly Group[];
  stemLayers: readonly number[];
  engramLayers: readonly number[];
  /** Changes the list as it is by then. */
  set(change: (current: readonly Edit[]) => Edit[]): void;
  /** The entries whose details are shown, by name. */
  open: Set<string>;
  /** Where the tokens stand in what the model last read. */
  occurrences(source: readonly number[]): Promise<Occurrence[]>;
};

export function editItem(group: Group, place: number, context: ItemContext): HTMLElement {
  const id = `edit-${place}`;
  const name = nameOf(group);
  const first = group.edits[0];
  if (!first) return h("li");
  const change = (what: (edit: Edit, i: number) => Edit): void =>
    context.set((current) => changed(current, group, what));

  const on = h("input", {
    type: "checkbox",
    id: `${id}-on`,
    checked: first.on,
    onchange: () => change((edit) => ({ ...edit, on: on.checked })),
  });
  // The slider says its value by itself.
  const amount = h("output", { for: `${id}-strength`, "aria-live": "off" }, first.strength.toFixed(1));
  const strength = h("input", {
    type: "range",
    id: `${id}-strength`,
    min: 0,
    max: Math.max(MAX_STRENGTH, first.strength),
    step: 0.1,
    value: first.strength,
    "aria-label": `Strength of ${name}`,
    oninput: () => {
      amount.textContent = strength.valueAsNumber.toFixed(1);
    },
    onchange: () => change((edit) => ({ ...edit, strength: strength.valueAsNumber })),
  });
  const move = (step: -1 | 1): void => context.set((current) => moved(current, context.groups, group, step));
  const details = h(
    "details",
    { open: context.open.has(name) },
    h("summary", { id: `${id}-how` }, summary(group)),
    h("div", { class: "edit-how" }, ...how(group, id, change, context)),
  );
  details.addEventListener("toggle", () => {
    if (details.open) context.open.add(name);
    else context.open.delete(name);
  });
  return h(
    "li",
    { class: first.on ? "edit" : "edit off" },
    h(
      "div",
      { class: "edit-head" },
      h("label", { class: "edit-switch" }, on, h("span", { dir: "auto" }, name)),
      // Not disabled in earnest at the ends: the entry that has just come there keeps the focus.
      iconButton("up", `Apply ${name} earlier`, () => move(-1), {
        id: `${id}-up`,
        "aria-disabled": String(place === 0),
      }),
      iconButton("down", `Apply ${name} later`, () => move(1), {
        id: `${id}-down`,
        "aria-disabled": String(place === context.groups.length - 1),
      }),
      iconButton("close", `Remove ${name}`, () => context.set((current) => without(current, group)), {
        id: `${id}-remove`,
      }),
    ),
    h("label", { class: "edit-strength" }, h("span", {}, "Strength α"), strength, amount),
    details,
  );
}

function summary(group: Group): string {
  const edit = group.edits.at(-1);
  const preview = group.previews.at(-1);
  if (!edit || !preview) return "";
  const method = "ngrams" in edit.target ? "N-grams" : methodName(edit);
  const layers = edit.layers ? `layers ${ranges(edit.layers)}` : "all layers";
  return `${method}, ${layers}, ${scopeName(edit.scope)} · details`;
}

function methodName({ target }: Edit): string {
  return "tokens" in target ? (METHOD_NAMES[target.tokens.method].split(":")[0] ?? "") : "Learned rows";
}

function scopeName(scope: Scope): string {
  if (scope === "row") return "every such token";
  if (scope === "phrase") return "this name";
  return `only at token ${scope.position.join(", ")}`;
}

function how(
  group: Group,
  id: string,
  change: (what: (edit: Edit, place: number) => Edit) => void,
  context: ItemContext,
): HTMLElement[] {
  const edit = group.edits.at(-1);
  const preview = group.previews.at(-1);
  if (!edit || !preview) return [];
  const parts = [scopeField(group, id, change, context)];
  if ("ngrams" in edit.target) {
    const all = context.engramLayers;
    const set = (layers: number[]): void => change((other) => withLayers(other, layers, all));
    return [...parts, layerStrip(`${id}-layer`, all, preview.layers, set), ngramTable(preview)];
  }
  if ("tokens" in edit.target) {
    const { method } = edit.target.tokens;
    const select = h(
      "select",
      { class: "field", id: `${id}-method` },
      ...METHODS.map((value) =>
        h(
          "option",
          { value, selected: value === method, disabled: !preview.methods.includes(value) },
          METHOD_NAMES[value],
        ),
      ),
    );
    select.addEventListener("change", () => {
      const wanted = METHODS.find((value) => value === select.value) ?? method;
      change((other, place) => withMethod(other, group.previews[place], wanted));
    });
    parts.push(
      h("div", { class: "setting" }, h("label", { for: `${id}-method` }, "Which token gets which row"), select),
    );
    parts.push(
      layerStrip(`${id}-layer`, context.stemLayers, preview.layers, (layers) =>
        change((other) => withLayers(other, layers, context.stemLayers)),
      ),
    );
  }
  return [...parts, ...previewTables(group, context.stemLayers)];
}

function scopeField(
  group: Group,
  id: string,
  change: (what: (edit: Edit) => Edit) => void,
  context: ItemContext,
): HTMLElement {
  const edit = group.edits.at(-1);
  const scope = edit?.scope ?? "phrase";
  const current = typeof scope === "string" ? scope : "position";
  const option = (value: string, text: string): HTMLOptionElement =>
    h("option", { value, selected: value === current }, text);
  const select = h(
    "select",
    { class: "field", id: `${id}-scope` },
    option("phrase", "Where the whole name stands"),
    option("row", "Wherever one of its tokens stands"),
    option("position", "At one place of this chat only"),
  );
  const places = h("div", { class: "edit-places" });
  const note = (text: string): void => places.replaceChildren(h("p", { class: "hint" }, text));
  const offer = async (): Promise<void> => {
    const bySource = group.edits.map(async ({ source }) => {
      const places = await context.occurrences(source);
      return places.map((place) => ({ ...place, end: place.position + source.length }));
    });
    const all = (await Promise.all(bySource)).flat();
    // The spelling without a space also stands within the one with it.
    const within = (a: Place, b: Place): boolean => a.position > b.position && a.end <= b.end;
    const found = all.filter((place) => !all.some((other) => within(place, other)));
    if (found.length === 0) {
      note("What the model last read does not have this name with these tokens. Ask about it first.");
      return;
    }
    found.sort((a, b) => a.position - b.position);
    const at = typeof scope === "string" ? -1 : scope.position[0];
    const choices = found.map(({ position, before, after }) => {
      const radio = h("input", {
        type: "radio",
        name: `${id}-place`,
        id: `${id}-place-${position}`,
        checked: position === at,
        onchange: () => change((other) => ({ ...other, scope: { position: [position] } })),
      });
      const name = group.previews.at(-1)?.subject ?? "";
      return h(
        "label",
        {},
        radio,
        h("span", { dir: "auto" }, `… ${before.trimStart()} `, h("strong", {}, name), ` ${after.trimEnd()} …`),
      );
    });
    places.replaceChildren(h("fieldset", {}, h("legend", { class: "hint" }, "At which place"), ...choices));
  };
  const offered = (): void => {
    offer().catch((cause: unknown) => note(cause instanceof Error ? cause.message : String(cause)));
  };
  select.addEventListener("change", () => {
    const { value } = select;
    if (value === "row" || value === "phrase") change((other) => ({ ...other, scope: value }));
    else offered();
  });
  if (current === "position") offered();
  return h("div", { class: "setting" }, h("label", { for: `${id}-scope` }, "Where it applies"), select, places);
}
