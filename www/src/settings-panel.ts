// The form for the settings. Every change counts from the next answer on.

import { h, keepFocus } from "./dom";
import {
  clampTo,
  DEFAULTS,
  MAX_SYSTEM_CHARACTERS,
  NUMBER_FIELDS,
  type NumberField,
  parseSeed,
  type Settings,
  type SettingsStore,
  type Theme,
} from "./settings";

const THEMES: readonly [Theme, string][] = [
  ["auto", "As the system"],
  ["light", "Light"],
  ["dark", "Dark"],
];

export function settingsPanel(settings: SettingsStore): HTMLElement {
  const set = (change: Partial<Settings>): void => settings.change(change);
  const reset = (): void => {
    // The backend is not on this page, and a reset must not load the model anew.
    settings.change({ ...DEFAULTS, backend: settings.value.backend });
  };
  const form = h(
    "form",
    { class: "settings" },
    borrowedNote(settings),
    systemPrompt(settings, set),
    ...NUMBER_FIELDS.map((field) => numberField(field, settings, set)),
    seed(settings, set),
    choice(
      "Appearance",
      "theme",
      THEMES,
      (value) => set({ theme: value }),
      settings,
      (value) => value.theme,
    ),
    h("button", { type: "button", class: "button quiet", onclick: reset }, "Reset to defaults"),
    h("p", { class: "hint" }, h("a", { href: "./bench.html" }, "How fast is it here?"), " A page that measures it."),
  );
  form.addEventListener("submit", (event) => event.preventDefault());
  return form;
}

/** Says that a link brought settings, and what can be done about it. */
function borrowedNote(settings: SettingsStore): HTMLElement {
  const button = (label: string, onclick: () => void): HTMLElement =>
    h("button", { type: "button", class: "button quiet", onclick }, label);
  const text = h("p", { class: "hint" });
  const element = h(
    "div",
    { class: "setting" },
    text,
    h(
      "div",
      { class: "buttons" },
      button("Back to mine", () => settings.giveBack()),
      button("Keep them", () => settings.keepBorrowed()),
    ),
  );
  settings.watch(() => {
    const { borrowed } = settings;
    keepFocus(
      element,
      () => {
        element.hidden = borrowed.length === 0;
      },
      () => document.getElementById("set-system")?.focus(),
    );
    const names = borrowed.map((key) => NAMES[key] ?? NUMBER_FIELDS.find((field) => field.key === key)?.label);
    text.textContent = `A link brought these, for this visit: ${names.join(", ")}.`;
  });
  return element;
}

const NAMES: Partial<Record<keyof Settings, string>> = { system: "System prompt", seed: "Seed" };

type Set = (change: Partial<Settings>) => void;

function systemPrompt(settings: SettingsStore, set: Set): HTMLElement {
  const field = h("textarea", {
    class: "field",
    id: "set-system",
    rows: 3,
    maxlength: MAX_SYSTEM_CHARACTERS,
    placeholder: "The model's own",
    "aria-describedby": "hint-system",
  });
  field.addEventListener("input", () => set({ system: field.value }));
  settings.watch(({ system }) => {
    if (field.value !== system) field.value = system;
  });
  return h(
    "div",
    { class: "setting" },
    h("label", { for: "set-system" }, "System prompt"),
    field,
    h(
      "p",
      { class: "hint", id: "hint-system" },
      "Put before the whole conversation: who the model is to be, how it is to write.",
    ),
  );
}

function numberField(field: NumberField, settings: SettingsStore, set: Set): HTMLElement {
  const { key, label, hint, min, max, step } = field;
  const bounds = { min, max, step };
  const exact = h("input", {
    ...bounds,
    type: "number",
    class: "field small",
    id: `set-${key}`,
    inputmode: "decimal",
    enterkeyhint: "done",
    "aria-describedby": `hint-${key}`,
  });
  const slider = h("input", { ...bounds, type: "range", "aria-label": label, "aria-describedby": `hint-${key}` });
  slider.addEventListener("input", () => set({ [key]: slider.valueAsNumber }));
  exact.addEventListener("change", () => {
    const value = exact.valueAsNumber;
    set({ [key]: Number.isFinite(value) ? clampTo(field, value) : DEFAULTS[key] });
  });
  settings.watch((value) => {
    slider.value = exact.value = String(value[key]);
  });
  return h(
    "div",
    { class: "setting" },
    h("div", { class: "row" }, h("label", { for: `set-${key}` }, label), exact),
    slider,
    h("p", { class: "hint", id: `hint-${key}` }, hint),
  );
}

function seed(settings: SettingsStore, set: Set): HTMLElement {
  const field = h("input", {
    type: "text",
    class: "field small",
    id: "set-seed",
    inputmode: "numeric",
    enterkeyhint: "done",
    placeholder: "new",
    "aria-describedby": "hint-seed",
  });
  field.addEventListener("change", () => set({ seed: parseSeed(field.value) }));
  settings.watch((value) => {
    field.value = value.seed === null ? "" : String(value.seed);
  });
  return h(
    "div",
    { class: "setting" },
    h("div", { class: "row" }, h("label", { for: "set-seed" }, "Seed"), field),
    h(
      "p",
      { class: "hint", id: "hint-seed" },
      "The same whole number gives the same answer again; empty draws a new one each time.",
    ),
  );
}

/** Radio buttons in a row. */
export function choice<T extends string>(
  legend: string,
  name: string,
  options: readonly (readonly [T, string])[],
  onchange: (value: T) => void,
  settings: SettingsStore,
  current: (settings: Settings) => T,
): HTMLElement {
  const inputs = options.map(([value, label]) => {
    const input = h("input", { type: "radio", name, value, onchange: () => onchange(value) });
    return { value, input, label: h("label", {}, input, h("span", {}, label)) };
  });
  settings.watch((value) => {
    for (const option of inputs) option.input.checked = option.value === current(value);
  });
  return h(
    "fieldset",
    { class: "setting choice" },
    h("legend", {}, legend),
    h("div", { class: "segments" }, ...inputs.map(({ label }) => label)),
  );
}
