// The panel beside the chat: tabs that share one place. On a narrow screen it covers the chat.

import { h, iconButton } from "./dom";
import { read, write } from "./storage";

export type Tab = { id: string; label: string; content: HTMLElement };

const WIDE = matchMedia("(min-width: 64rem)");

export class Panel {
  readonly element: HTMLElement;
  readonly #tabs: { tab: Tab; button: HTMLButtonElement; page: HTMLElement }[];
  readonly #toggleButton: HTMLButtonElement;
  #open: boolean;

  constructor(tabs: Tab[], toggleButton: HTMLButtonElement) {
    this.#toggleButton = toggleButton;
    this.#tabs = tabs.map((tab) => this.#make(tab));
    const list = h(
      "div",
      { class: "tabs", role: "tablist", "aria-label": "Panel" },
      ...this.#tabs.map(({ button }) => button),
    );
    const close = iconButton("close", "Close the panel", () => this.close());
    this.element = h(
      "aside",
      { class: "panel", id: "panel", "aria-label": "Model and settings" },
      h("div", { class: "panel-head" }, list, close),
      ...this.#tabs.map(({ page }) => page),
    );
    toggleButton.setAttribute("aria-controls", "panel");
    this.#open = WIDE.matches && read("panel") !== "closed";
    this.#select(tabs[0]?.id ?? "");
    this.#apply();
    WIDE.addEventListener("change", () => this.#apply());
  }

  get covers(): boolean {
    return this.#open && !WIDE.matches;
  }

  show(id: string): void {
    this.#select(id);
    this.#setOpen(true);
    this.#tabs.find(({ tab }) => tab.id === id)?.button.focus();
  }

  close(): void {
    this.#setOpen(false);
    this.#toggleButton.focus();
  }

  toggle(): void {
    if (this.#open) this.close();
    else this.#setOpen(true);
  }

  #setOpen(open: boolean): void {
    this.#open = open;
    if (WIDE.matches) write("panel", open ? "open" : "closed");
    this.#apply();
    // The focus must not stay in what is covered now.
    if (this.covers) this.#tabs.find(({ page }) => !page.hidden)?.button.focus();
  }

  #apply(): void {
    this.element.hidden = !this.#open;
    this.#toggleButton.setAttribute("aria-expanded", String(this.#open));
    document.body.classList.toggle("panel-open", this.#open);
    // What is covered cannot be reached by keyboard either.
    for (const part of document.querySelectorAll("header.top, main")) part.toggleAttribute("inert", this.covers);
  }

  #make(tab: Tab): { tab: Tab; button: HTMLButtonElement; page: HTMLElement } {
    const button = h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${tab.id}`,
        "aria-controls": `page-${tab.id}`,
        onclick: () => this.#select(tab.id),
      },
      tab.label,
    );
    button.addEventListener("keydown", (event) => this.#arrow(event, tab.id));
    const page = h(
      "div",
      { class: "page", role: "tabpanel", id: `page-${tab.id}`, "aria-labelledby": `tab-${tab.id}` },
      tab.content,
    );
    return { tab, button, page };
  }

  #arrow(event: KeyboardEvent, id: string): void {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (step === 0) return;
    const from = this.#tabs.findIndex(({ tab }) => tab.id === id);
    const next = this.#tabs.at((from + step) % this.#tabs.length);
    if (!next) return;
    event.preventDefault();
    this.#select(next.tab.id);
    next.button.focus();
  }

  #select(id: string): void {
    for (const { tab, button, page } of this.#tabs) {
      const selected = tab.id === id;
      button.setAttribute("aria-selected", String(selected));
      button.tabIndex = selected ? 0 : -1;
      page.hidden = !selected;
    }
  }
}
