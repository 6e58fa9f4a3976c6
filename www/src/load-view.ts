// The card above the message field while there is no model to answer: progress, failure, or an offer to load.

import { h, icon, keepFocus } from "./dom";
import type { EngineState } from "./engine";
import { bytes, duration } from "./format";
import type { LoadProgress } from "./protocol";
import { Rate } from "./rate";

export type LoadActions = {
  load(): void;
  loadOnCpu(): void;
  cancel(): void;
  /** It goes, and had the focus. */
  leave(): void;
};

const STAGES: Record<LoadProgress["stage"], string> = {
  manifest: "Reading the manifest",
  core: "Loading the model",
  compile: "Preparing the kernels",
  ready: "Almost ready",
};
/** The bar is drawn as a bundle of vessels that fill one after the other. */
const VESSELS = 40;

export class LoadView {
  readonly element = h("section", { class: "load", "aria-label": "Model" });
  readonly #title = h("strong");
  readonly #numbers = h("span", { class: "numbers" });
  readonly #vessels: HTMLElement[] = Array.from({ length: VESSELS }, () => h("i"));
  readonly #bar = h(
    "div",
    { class: "vessels", role: "progressbar", "aria-label": "Model download", "aria-valuemin": 0, "aria-valuemax": 100 },
    ...this.#vessels,
  );
  readonly #loading: HTMLElement;
  readonly #actions: LoadActions;
  #rate = new Rate();
  #phase: EngineState["phase"] | null = null;

  constructor(actions: LoadActions) {
    this.#actions = actions;
    const cancel = h("button", { type: "button", class: "button quiet", onclick: () => actions.cancel() }, "Cancel");
    this.#loading = h(
      "div",
      { class: "load-body" },
      h("div", { class: "row" }, h("p", {}, this.#title, this.#numbers), cancel),
      this.#bar,
    );
  }

  /** `canUseCpu`: the CPU would be another way than the one that failed. */
  update(state: EngineState, canUseCpu: boolean): void {
    keepFocus(
      this.element,
      () => this.#update(state, canUseCpu),
      () => {
        if (this.element.hidden) this.#actions.leave();
        else this.element.querySelector("button")?.focus();
      },
    );
  }

  #update(state: EngineState, canUseCpu: boolean): void {
    const changed = state.phase !== this.#phase;
    this.#phase = state.phase;
    this.element.hidden = state.phase === "ready";
    this.element.classList.toggle("bad", state.phase === "failed");
    if (changed && state.phase === "loading") this.#rate = new Rate();
    switch (state.phase) {
      case "loading":
        this.#progress(state.progress);
        if (changed) this.element.replaceChildren(this.#loading);
        break;
      case "failed":
        this.element.replaceChildren(this.#failure(state.message, canUseCpu));
        break;
      case "idle":
        this.element.replaceChildren(this.#offer());
    }
  }

  #progress(progress: LoadProgress | null): void {
    const { stage, loadedBytes, totalBytes } = progress ?? { stage: "manifest", loadedBytes: 0, totalBytes: 0 };
    this.#rate.add(performance.now(), loadedBytes);
    const share = totalBytes > 0 ? Math.min(1, loadedBytes / totalBytes) : 0;
    this.#title.textContent = STAGES[stage];
    this.#numbers.textContent = totalBytes > 0 ? this.#describe(loadedBytes, totalBytes) : "";
    this.#bar.setAttribute("aria-valuenow", String(Math.round(share * 100)));
    for (const [i, vessel] of this.#vessels.entries()) {
      vessel.style.setProperty("--fill", String(Math.min(1, Math.max(0, share * VESSELS - i))));
    }
  }

  #describe(loaded: number, total: number): string {
    const parts = [`${bytes(loaded)} of ${bytes(total)}`];
    const rate = this.#rate.bytesPerSecond();
    if (rate !== null && rate > 0 && loaded < total) {
      parts.push(`${bytes(rate)}/s`, `${duration(Math.max(1, (total - loaded) / rate))} left`);
    }
    return parts.join(" · ");
  }

  #failure(message: string, canUseCpu: boolean): HTMLElement {
    const { load, loadOnCpu } = this.#actions;
    return h(
      "div",
      { class: "row", role: "alert" },
      icon("warn"),
      h("p", {}, message),
      h("button", { type: "button", class: "button", onclick: load }, "Try again"),
      canUseCpu && h("button", { type: "button", class: "button quiet", onclick: loadOnCpu }, "Use the CPU"),
    );
  }

  #offer(): HTMLElement {
    return h(
      "div",
      { class: "row" },
      h(
        "p",
        {},
        h("strong", {}, "The model is not loaded"),
        h("span", { class: "numbers" }, "It runs in this tab; nothing you write leaves it."),
      ),
      h("button", { type: "button", class: "button", onclick: this.#actions.load }, "Load the model"),
    );
  }
}
