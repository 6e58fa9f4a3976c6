// The list of turns: reconciles views with the conversation, follows the newest text unless the reader scrolled away.

import { type Conversation, isRunning, type Turn } from "./conversation";
import { h, icon, keepFocus } from "./dom";
import { AnswerView, QuestionView, type TurnActions, type TurnView } from "./message-view";

const NEAR_END_PX = 80;

export class ChatView {
  readonly element: HTMLElement;
  readonly #list = h("div", { class: "turns", role: "log", "aria-live": "off", "aria-label": "Conversation" });
  readonly #jump: HTMLButtonElement;
  readonly #status = h("p", { class: "sr-only", role: "status" });
  readonly #views = new Map<Turn, TurnView>();
  readonly #conversation: () => Conversation;
  readonly #actions: TurnActions;
  #follow = true;
  #frame = 0;

  /** `welcome` is shown above the turns while there are none. */
  constructor(conversation: () => Conversation, welcome: HTMLElement, actions: TurnActions) {
    this.#conversation = conversation;
    this.#actions = actions;
    this.#jump = h(
      "button",
      { type: "button", class: "jump", hidden: true, onclick: () => this.toEnd() },
      icon("down"),
      "Newest",
    );
    this.element = h("div", { class: "chat" }, welcome, this.#list, this.#status);
    this.element.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // Layout changes (a phone's keyboard, an opened panel) must not lose the end.
    new ResizeObserver(() => this.#keepEnd()).observe(this.element);
  }

  get jumpButton(): HTMLElement {
    return this.#jump;
  }

  /** Draws at the next frame; as many calls as tokens cost one drawing. */
  refresh(): void {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.draw();
    });
  }

  draw(): void {
    // Who asks from within the chat, by a button that goes with the turn that is replaced, stays there.
    keepFocus(
      this.element,
      () => this.#draw(),
      () => [...this.#views.values()].findLast((view) => view instanceof AnswerView)?.element.focus(),
    );
  }

  #draw(): void {
    const { turns, lastAnswer } = this.#conversation();
    const busy = lastAnswer !== null && isRunning(lastAnswer);
    for (const [turn, view] of this.#views) {
      if (turns.includes(turn)) continue;
      view.element.remove();
      this.#views.delete(turn);
    }
    for (const [i, turn] of turns.entries()) {
      const view = this.#views.get(turn) ?? this.#add(turn);
      view.update(i >= turns.length - 2, busy);
    }
    this.element.classList.toggle("empty", turns.length === 0);
    this.#keepEnd();
  }

  /** For screen readers: one sentence, not every token. */
  announce(sentence: string): void {
    this.#status.textContent = sentence;
  }

  editLastQuestion(): void {
    const views = [...this.#views.values()];
    const last = views.findLast((view) => view instanceof QuestionView);
    last?.edit();
  }

  toEnd(): void {
    this.#follow = true;
    this.#keepEnd();
  }

  #add(turn: Turn): TurnView {
    const view = turn.role === "user" ? new QuestionView(turn, this.#actions) : new AnswerView(turn, this.#actions);
    this.#views.set(turn, view);
    this.#list.append(view.element);
    return view;
  }

  #keepEnd(): void {
    // The welcome is read from its beginning.
    if (this.#conversation().turns.length === 0) return;
    if (this.#follow) this.element.scrollTop = this.element.scrollHeight;
  }

  #scrolled(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    this.#follow = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.#jump.hidden = this.#follow || this.#conversation().turns.length === 0;
  }
}
