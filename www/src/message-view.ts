// One turn of the conversation on the page.

import { type Answer, isRunning, type Question, type Stats } from "./conversation";
import { copyButton, h, icon, iconButton } from "./dom";
import { enterKeyHint, sends } from "./enter";
import { count, duration, plural } from "./format";
import { MarkdownView } from "./markdown";

export type TurnActions = {
  regenerate(): void;
  /** Asks `text` in place of the last question, if that is still this one. */
  editLast(question: Question, text: string): void;
};

export interface TurnView {
  readonly element: HTMLElement;
  /** `last`: of its kind, so that it may be changed; `busy`: an answer is being written. */
  update(last: boolean, busy: boolean): void;
}

export class QuestionView implements TurnView {
  readonly element = h("article", { class: "turn question", "aria-label": "You" });
  readonly #text: HTMLElement;
  readonly #edit: HTMLButtonElement;
  readonly #tools: HTMLElement;
  readonly #question: Question;
  readonly #actions: TurnActions;

  constructor(question: Question, actions: TurnActions) {
    this.#question = question;
    this.#actions = actions;
    this.#text = h("div", { class: "bubble", dir: "auto" }, question.content);
    this.#edit = iconButton("edit", "Edit this message", () => this.edit());
    this.#tools = h(
      "div",
      { class: "tools" },
      copyButton("Copy message", () => question.content),
      this.#edit,
    );
    this.element.append(this.#text, this.#tools);
  }

  update(last: boolean, busy: boolean): void {
    this.#edit.hidden = !last || busy;
    // What is written in the field would take the place of another question.
    if (this.#edit.hidden) this.#close();
  }

  /** Puts a text field in place of the message. */
  edit(): void {
    const field = h("textarea", {
      class: "field",
      rows: 3,
      "aria-label": "Edit your message",
      enterkeyhint: enterKeyHint(),
    });
    field.value = this.#question.content;
    const close = (): void => {
      this.#close();
      this.#edit.focus();
    };
    const send = (): void => {
      const text = field.value.trim();
      if (text) this.#actions.editLast(this.#question, text);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      else if (sends(event)) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const buttons = h(
      "div",
      { class: "row" },
      h("button", { type: "button", class: "button quiet", onclick: close }, "Cancel"),
      h("button", { type: "button", class: "button", onclick: send }, "Send"),
    );
    this.element.classList.add("editing");
    this.element.replaceChildren(field, buttons);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  #close(): void {
    if (!this.element.classList.contains("editing")) return;
    this.element.classList.remove("editing");
    this.element.replaceChildren(this.#text, this.#tools);
  }
}

export class AnswerView implements TurnView {
  readonly element = h("article", { class: "turn answer", "aria-label": "Answer", tabindex: -1 });
  readonly #markdown = new MarkdownView();
  readonly #activity = h("p", { class: "activity" });
  readonly #notes = h("div", { class: "notes" });
  readonly #summary = h("summary");
  readonly #details = h("p", { class: "hint" });
  readonly #stats = h("details", { class: "stats" }, this.#summary, this.#details);
  readonly #regenerate: HTMLButtonElement;
  readonly #tools: HTMLElement;
  readonly #answer: Answer;
  readonly #actions: TurnActions;
  /** What went wrong in an earlier visit is no news. */
  readonly #isNew: boolean;
  #notesShown = "";

  constructor(answer: Answer, actions: TurnActions) {
    this.#answer = answer;
    this.#actions = actions;
    this.#isNew = isRunning(answer);
    this.#regenerate = iconButton("redo", "Answer again", () => actions.regenerate());
    this.#tools = h(
      "div",
      { class: "tools" },
      copyButton("Copy answer", () => answer.content),
      this.#regenerate,
      this.#stats,
    );
    this.element.append(this.#markdown.element, this.#activity, this.#notes, this.#tools);
  }

  update(last: boolean, busy: boolean): void {
    const answer = this.#answer;
    const running = isRunning(answer);
    this.#markdown.update(answer.content);
    this.element.classList.toggle("running", running && answer.status !== "waiting");
    this.element.setAttribute("aria-busy", String(running));
    this.#activity.hidden = !running || (answer.status === "writing" && !answer.activity);
    this.#activity.textContent = answer.activity;
    this.#tools.hidden = running;
    this.#regenerate.hidden = !last || busy;
    this.#showNotes(last && !busy);
    this.#stats.hidden = !answer.stats;
    this.#summary.textContent = answer.stats ? summary(answer.stats) : "";
    this.#details.textContent = answer.stats ? details(answer.stats) : "";
  }

  /** Rebuilds them only on a change, so that a focused button stays and an alert is read once. */
  #showNotes(canRetry: boolean): void {
    const { reason, stats, status, content } = this.#answer;
    const state = JSON.stringify([reason, stats, status, content === "", canRetry]);
    if (state === this.#notesShown) return;
    this.#notesShown = state;
    this.#notes.replaceChildren(...this.#noteList(canRetry));
  }

  #noteList(canRetry: boolean): HTMLElement[] {
    const { reason, stats, status, content } = this.#answer;
    const notes: HTMLElement[] = [];
    if (reason && status === "failed") {
      const retry = h(
        "button",
        { type: "button", class: "button quiet", onclick: () => this.#actions.regenerate() },
        "Try again",
      );
      const role = this.#isNew && "alert";
      notes.push(h("div", { class: "note bad", role }, icon("warn"), h("p", {}, reason), canRetry && retry));
    } else if (reason) {
      notes.push(h("p", { class: "note" }, reason));
    }
    if (stats && stats.droppedTurns > 0) {
      const dropped = stats.droppedTurns === 1 ? "turn was" : `${stats.droppedTurns} turns were`;
      notes.push(
        h(
          "p",
          { class: "note" },
          `The context is full: the oldest ${dropped} left out, and the model no longer knows them.`,
        ),
      );
    }
    const ending = stats && endingOf(stats);
    if (ending) notes.push(h("p", { class: "note" }, ending));
    if (status === "done" && !content && stats?.finish === "stop") {
      notes.push(
        h(
          "p",
          { class: "note" },
          "The model ended its answer at once, without a word. Try again, or ask in another way.",
        ),
      );
    }
    return notes;
  }
}

function endingOf(stats: Stats): string | null {
  switch (stats.finish) {
    case "length":
      return `The answer reached the limit of ${plural(stats.generatedTokens, "token")}. Settings can raise it.`;
    case "context":
      return "The context is full, so the answer ends here. Start a new chat to go on.";
    case "stopped":
      return "You stopped this answer.";
    case "stop":
      return null;
  }
}

function summary(stats: Stats): string {
  const speed = `${stats.tokensPerSecond.toFixed(1)} tokens/s`;
  return `${speed} · first token ${duration(stats.timeToFirstTokenMs / 1000)} · ${plural(stats.generatedTokens, "token")}`;
}

function details(stats: Stats): string {
  return `The prompt had ${plural(stats.promptTokens, "token")}; ${count(stats.reusedTokens)} of them were still known from before. Seed ${stats.seed}.`;
}
