import { h } from "./dom";
import { reasonOf } from "./format";

/** A button that starts something which takes a while, one that stops it, and how far it has come. */
export class RunBar {
  readonly element: HTMLElement;
  readonly #start: HTMLButtonElement;
  readonly #stop: HTMLButtonElement;
  readonly #progress = h("progress", { hidden: true, "aria-label": "Progress" });
  /** Where it stands; too much to be read aloud. */
  readonly #step = h("p", { class: "hint", hidden: true });
  /** How it ended. */
  readonly #status = h("p", { class: "hint", role: "status" });
  readonly #problem = h("p", { class: "problem", role: "alert", hidden: true });

  /** `run` tells how much is done and what to say; it fails with the reason "stopped" if it was stopped. */
  constructor(label: string, run: (say: Say) => Promise<string>, stop: () => void) {
    this.#start = h("button", { type: "button", class: "button quiet", onclick: () => void this.#run(run) }, label);
    this.#stop = h("button", { type: "button", class: "button quiet", hidden: true, onclick: stop }, "Stop");
    this.element = h(
      "div",
      { class: "run" },
      h("div", { class: "row" }, this.#start, this.#stop, this.#progress),
      this.#step,
      this.#status,
      this.#problem,
    );
  }

  set disabled(disabled: boolean) {
    this.#start.disabled = disabled;
  }

  async #run(run: (say: Say) => Promise<string>): Promise<void> {
    this.#running(true);
    this.#problem.hidden = true;
    this.#status.textContent = "";
    try {
      this.#status.textContent = await run((text, done) => {
        this.#step.textContent = text;
        this.#step.hidden = false;
        if (done === undefined) this.#progress.removeAttribute("value");
        else this.#progress.value = done;
      });
    } catch (cause) {
      const reason = reasonOf(cause);
      this.#status.textContent = reason === "stopped" ? "Stopped." : "";
      if (reason !== "stopped") {
        this.#problem.textContent = reason;
        this.#problem.hidden = false;
      }
    }
    this.#running(false);
  }

  #running(running: boolean): void {
    const focused = document.activeElement === this.#start || document.activeElement === this.#stop;
    this.#start.hidden = running;
    this.#stop.hidden = !running;
    this.#progress.hidden = !running;
    this.#step.hidden = true;
    this.#progress.removeAttribute("value");
    if (focused) (running ? this.#stop : this.#start).focus();
  }
}

/** What happens, and how much of it is done, from 0 to 1 if that is known. */
export type Say = (text: string, done?: number) => void;
