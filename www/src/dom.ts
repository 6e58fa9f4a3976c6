// Small helpers to build the page. Text always goes in as text nodes: there is no innerHTML anywhere.

type Value = string | number | boolean | null | undefined | ((event: never) => void);
export type Child = Node | string | null | undefined | false;

/** An element; `on…` functions become listeners, `true` a bare attribute, `false`, null and undefined none. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, Value> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value as EventListener);
    else setAttribute(element, name, value);
  }
  append(element, children);
  return element;
}

/** An SVG element. */
export function s(tag: string, attributes: Record<string, string | number> = {}, ...children: Child[]): SVGElement {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) setAttribute(element, name, value);
  append(element, children);
  return element;
}

function setAttribute(element: Element, name: string, value: string | number | boolean | null | undefined): void {
  if (value === true) element.setAttribute(name, "");
  else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
}

function append(element: Element, children: Child[]): void {
  element.append(
    ...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false),
  );
}

const PATHS = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7zM9 9h6v6H9zM11 11h2v2h-2z",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  check: "M5 12.5l4.5 4.5L19 7.5",
  redo: "M19 12a7 7 0 1 1-2.2-5.1L19 9M19 4v5h-5",
  edit: "M5 19l1-4L16.5 4.5l3 3L9 18zM14 7l3 3",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  panel: "M4 5h16v14H4zM14.5 5v14",
  help: "M9.3 9.2a2.8 2.8 0 1 1 4 2.5c-.9.5-1.3 1-1.3 2M12 17.2v.1M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  warn: "M12 4l9 16H3zM12 10v4.5M12 17.2v.1",
  undo: "M5 12a7 7 0 1 0 2.2-5.1L5 9M5 4v5h5",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
} as const;

/** A line icon, hidden from assistive technology: the control around it carries the name. */
export function icon(name: keyof typeof PATHS): SVGElement {
  return s(
    "svg",
    { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" },
    s("path", { d: PATHS[name] }),
  );
}

/** A button that shows an icon alone and has `label` as its name and tooltip. */
export function iconButton(
  name: keyof typeof PATHS,
  label: string,
  onclick: () => void,
  attributes: Record<string, Value> = {},
): HTMLButtonElement {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes },
    icon(name),
  );
}

/** Does `change`; if what has the focus within `element` cannot have it any longer, `lost` gives it to another. */
export function keepFocus(element: Element, change: () => void, lost: () => void): void {
  const before = document.activeElement;
  const within = before !== null && element.contains(before);
  change();
  if (!within) return;
  const now = document.activeElement;
  // From what is hidden the browser takes it a moment later only.
  const stays = now === before && before.checkVisibility() && !before.matches(":disabled");
  if (!stays && (now === before || now === document.body)) lost();
}

/** False if the browser does not allow it; over plain HTTP a page has no clipboard. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/** A button that copies what `text` gives and says so for a moment. */
export function copyButton(label: string, text: () => string): HTMLButtonElement {
  const button = iconButton("copy", label, () => {
    void copyText(text()).then((copied) =>
      copied ? show("check", "Copied") : show("warn", "The browser did not allow copying"),
    );
  });
  const show = (name: keyof typeof PATHS, message: string): void => {
    button.replaceChildren(icon(name));
    button.title = message;
    button.setAttribute("aria-label", message);
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.title = label;
      button.setAttribute("aria-label", label);
    }, 1500);
  };
  return button;
}
