// What happens when: the conversation, the engine and the settings brought together. Knows no elements of the page.

import type { ChatStore } from "./chat-store";
import { type Answer, Conversation, isRunning, type Question } from "./conversation";
import type { EditsStore } from "./edits/store";
import { type EngineClient, type EngineState, GenerationError } from "./engine";
import type { Backend, ChatMessage, GenEvent } from "./protocol";
import { type SettingsStore, sampling } from "./settings";

/** After so long without an end, stopping by force is offered. */
const STOP_PATIENCE_MS = 3000;

const LOADING = "Your message is answered as soon as the model is loaded";

export type Stopping = "no" | "asked" | "stuck";

export type AppEvents = {
  /** Some turn changed, perhaps only its text. */
  changed(): void;
  /** An answer has ended, or something else is worth saying aloud. */
  announce(sentence: string): void;
};

export class App {
  conversation: Conversation;
  /** False once the browser refused to keep the conversation. */
  kept = true;
  stopping: Stopping = "no";
  readonly #engine: EngineClient;
  readonly #settings: SettingsStore;
  readonly #chats: ChatStore;
  readonly #edits: EditsStore;
  readonly #events: AppEvents;
  /** The answer that begins as soon as the model is there. */
  #waiting: Answer | null = null;
  #phase: EngineState["phase"] = "idle";
  /** The engine writes one answer at a time; one in a chat that was left may still be ending. */
  #previous: Promise<void> = Promise.resolve();

  constructor(engine: EngineClient, settings: SettingsStore, chats: ChatStore, edits: EditsStore, events: AppEvents) {
    this.conversation = Conversation.from(chats.own);
    this.#engine = engine;
    this.#settings = settings;
    this.#chats = chats;
    this.#edits = edits;
    this.#events = events;
  }

  /** To be called once the page can show what this brings. */
  start(): void {
    this.#engine.state.watch((state) => this.#engineChanged(state));
  }

  get busy(): boolean {
    const answer = this.conversation.lastAnswer;
    return answer !== null && isRunning(answer);
  }

  load(): void {
    this.#engine.load(this.#settings.value.backend);
  }

  setBackend(backend: Backend): void {
    this.#settings.change({ backend });
    if (this.#engine.state.value.phase !== "idle") this.load();
  }

  unload(): void {
    this.#engine.unload();
    this.#giveUp("The model was unloaded.");
  }

  send(text: string): void {
    if (this.busy) return;
    this.#begin(this.conversation.ask(text));
  }

  regenerate(): void {
    if (this.busy) return;
    const answer = this.conversation.askAgain();
    if (answer) this.#begin(answer);
  }

  editLast(question: Question, text: string): void {
    if (this.busy || question !== this.conversation.lastQuestion) return;
    this.conversation.dropLast();
    this.send(text);
  }

  /** A new conversation; the old one is given back for an undo. */
  newChat(): Conversation {
    const old = this.conversation;
    if (this.busy) this.stop();
    this.conversation = new Conversation();
    this.#changed();
    return old;
  }

  /** Puts an old conversation in place of the present one, whose answer ends. */
  restore(conversation: Conversation): void {
    if (this.busy) this.stop();
    this.conversation = conversation;
    this.#changed();
  }

  /** Opens a chat that another tab left; the present one is left in its place. */
  openLeft(chat: unknown): void {
    this.kept = this.#chats.exchange(this.conversation.turns, chat);
    if (this.kept) this.restore(Conversation.from(chat));
    else this.#events.changed();
  }

  /** The page goes: an answer under way is kept as far as it came. */
  leave(): void {
    if (this.busy) this.#store();
    else this.#chats.leave(this.conversation.turns);
  }

  /** What the model reads for the last answer; null if there is none yet. */
  lastPrompt(): ChatMessage[] | null {
    const answer = this.conversation.lastAnswer;
    return answer && this.conversation.messagesBefore(answer, this.#settings.value.system);
  }

  /** What the model would read for `question` in a new chat. */
  promptOf(question: string): ChatMessage[] {
    const conversation = new Conversation();
    return conversation.messagesBefore(conversation.ask(question), this.#settings.value.system);
  }

  stop(): void {
    const answer = this.conversation.lastAnswer;
    if (!answer || !isRunning(answer)) return;
    if (this.stopping === "stuck") {
      // The engine does not react: its worker is ended, and a new one loads the model again. An answer that waits
      // behind the one that hangs is then given.
      this.load();
    } else if (answer.status === "waiting") {
      this.#waiting = null;
      this.#end(answer, "cut", "Stopped before the answer began.");
    } else {
      this.stopping = "asked";
      this.#engine.stop();
      setTimeout(() => {
        if (this.stopping !== "asked") return;
        this.stopping = "stuck";
        this.#events.changed();
      }, STOP_PATIENCE_MS);
      this.#events.changed();
    }
  }

  #engineChanged(state: EngineState): void {
    if (state.phase === "ready" && this.#phase === "loading") this.#events.announce("The model is loaded.");
    this.#phase = state.phase;
    if (state.phase === "ready" && this.#waiting) {
      const answer = this.#waiting;
      this.#waiting = null;
      this.#enqueue(answer);
    } else if (state.phase === "failed") {
      // The question keeps waiting: another try, or another backend, may still answer it.
      if (this.#waiting) this.#waiting.activity = "Waiting: the model could not be loaded";
    } else if (state.phase === "idle") {
      this.#giveUp("Loading was cancelled.");
    }
    this.#events.changed();
  }

  /** Ends the answer that waits for a model that will not come. */
  #giveUp(reason: string): void {
    const answer = this.#waiting;
    if (!answer) return;
    this.#waiting = null;
    this.#end(answer, "cut", reason);
  }

  #begin(answer: Answer): void {
    this.#store();
    const { phase } = this.#engine.state.value;
    if (phase === "ready") {
      this.#enqueue(answer);
    } else {
      answer.activity = LOADING;
      this.#waiting = answer;
      if (phase !== "loading") this.load();
    }
    this.#events.changed();
  }

  #enqueue(answer: Answer): void {
    const { conversation } = this;
    answer.activity = "Waiting for the last answer to end";
    this.#previous = this.#previous.then(() => this.#generate(conversation, answer));
  }

  async #generate(conversation: Conversation, answer: Answer): Promise<void> {
    if (answer.status !== "waiting") return;
    if (this.#engine.state.value.phase !== "ready") {
      // The engine was started anew while this answer waited behind another.
      answer.activity = LOADING;
      this.#waiting = answer;
      this.#events.changed();
      return;
    }
    const settings = this.#settings.value;
    answer.status = "reading";
    answer.activity = "Reading";
    this.#events.changed();
    const progress = new Progress(answer);
    try {
      const messages = conversation.messagesBefore(answer, settings.system);
      await this.#restoreEdits();
      const {
        text,
        tokens: _,
        ...stats
      } = await this.#engine.chat(messages, sampling(settings), this.#edits.fileInUse(), (event) => {
        progress.take(event);
        this.#events.changed();
      });
      answer.content = text;
      answer.status = "done";
      answer.stats = stats;
      this.#events.announce(stats.finish === "stopped" ? "Stopped." : `Answer complete: ${text}`);
      this.#ended();
    } catch (error) {
      if (!(error instanceof GenerationError)) throw error;
      this.#end(answer, "failed", error.message);
    }
  }

  /** Edits of an earlier visit count from the first answer on. */
  async #restoreEdits(): Promise<void> {
    const state = this.#engine.state.value;
    if (state.phase === "ready") await this.#edits.open(state.info.modelHash);
  }

  #end(answer: Answer, status: "cut" | "failed", reason: string): void {
    answer.status = status;
    answer.reason = reason;
    // A failure is an alert of its own.
    if (status === "cut") this.#events.announce(reason);
    this.#ended();
  }

  #ended(): void {
    this.stopping = "no";
    this.#changed();
  }

  #changed(): void {
    this.#store();
    this.#events.changed();
  }

  #store(): void {
    this.kept = this.#chats.save(this.conversation.turns);
  }
}

/** Turns the engine's events into the text of an answer and a line on its progress. */
class Progress {
  readonly #answer: Answer;
  #tokens = 0;
  #firstToken = 0;

  constructor(answer: Answer) {
    this.#answer = answer;
  }

  take(event: GenEvent): void {
    const answer = this.#answer;
    switch (event.type) {
      case "prefill":
        answer.activity = `Reading, ${event.done} of ${event.total} tokens`;
        break;
      case "wait":
        answer.activity = event.reason;
        break;
      case "token": {
        const now = performance.now();
        this.#firstToken ||= now;
        answer.status = "writing";
        answer.content += event.text;
        const seconds = (now - this.#firstToken) / 1000;
        answer.activity =
          this.#tokens > 3 && seconds > 0 ? `${(this.#tokens / seconds).toFixed(1)} tokens/s` : "Writing";
        this.#tokens += 1;
      }
    }
  }
}
