// The conversation: plain data.

import type { ChatMessage, GenResult } from "./protocol";
import { isRecord } from "./storage";

export type Stats = Omit<GenResult, "text" | "tokens">;

/** Where an answer stands. `cut` and `failed`: it ended before its time, and `reason` says why; what is there stays. */
export type Status = "waiting" | "reading" | "writing" | "done" | "cut" | "failed";

export type Question = { role: "user"; content: string };
export type Answer = {
  role: "assistant";
  content: string;
  status: Status;
  /** One line on what is happening now. */
  activity: string;
  reason: string | null;
  stats: Stats | null;
};
export type Turn = Question | Answer;

export function isRunning(answer: Answer): boolean {
  return answer.status === "waiting" || answer.status === "reading" || answer.status === "writing";
}

export function newAnswer(): Answer {
  return { role: "assistant", content: "", status: "waiting", activity: "", reason: null, stats: null };
}

/** Questions and answers in turn, a question first. */
export class Conversation {
  turns: Turn[] = [];

  /** What can be used of turns that were kept. */
  static from(stored: unknown): Conversation {
    const conversation = new Conversation();
    if (!Array.isArray(stored)) return conversation;
    for (const [i, value] of stored.entries()) {
      const turn = restoreTurn(value, i % 2 === 0 ? "user" : "assistant");
      if (!turn) break;
      conversation.turns.push(turn);
    }
    return conversation;
  }

  get lastAnswer(): Answer | null {
    const turn = this.turns.at(-1);
    return turn?.role === "assistant" ? turn : null;
  }

  get lastQuestion(): Question | null {
    return this.turns.findLast((turn) => turn.role === "user") ?? null;
  }

  ask(text: string): Answer {
    // A question that was never answered (the page was closed just then) gives way to the new one.
    if (this.turns.at(-1)?.role === "user") this.turns.pop();
    const answer = newAnswer();
    this.turns.push({ role: "user", content: text }, answer);
    return answer;
  }

  /** Replaces the last answer with an empty one. */
  askAgain(): Answer | null {
    if (this.turns.at(-1)?.role === "assistant") this.turns.pop();
    if (this.turns.at(-1)?.role !== "user") return null;
    const answer = newAnswer();
    this.turns.push(answer);
    return answer;
  }

  /** Takes the last question and its answer away. */
  dropLast(): void {
    if (this.turns.at(-1)?.role === "assistant") this.turns.pop();
    if (this.turns.at(-1)?.role === "user") this.turns.pop();
  }

  /** What the engine is to continue: all turns before `answer`, but no question that got no word for an answer. */
  messagesBefore(answer: Answer, system: string): ChatMessage[] {
    const before = this.turns.slice(0, this.turns.indexOf(answer));
    const messages: ChatMessage[] = system.trim() ? [{ role: "system", content: system }] : [];
    for (const [i, { role, content }] of before.entries()) {
      // The model would take an empty turn for how it is to answer.
      const reply = role === "user" ? before[i + 1] : before[i];
      if (reply?.content !== "") messages.push({ role, content });
    }
    return messages;
  }
}

function restoreTurn(value: unknown, role: "user" | "assistant"): Turn | null {
  if (!isRecord(value) || value.role !== role || typeof value.content !== "string") return null;
  if (role === "user") return { role, content: value.content };
  const status = ENDED.find((name) => name === value.status) ?? "cut";
  const reason = typeof value.reason === "string" ? value.reason : null;
  return {
    role,
    content: value.content,
    status,
    activity: "",
    reason: status === "done" || reason ? reason : "The page was reloaded before the answer was complete.",
    stats: restoreStats(value.stats),
  };
}

const ENDED = ["done", "cut", "failed"] as const;
const FINISHES = ["stop", "length", "stopped", "context"] as const;

function restoreStats(value: unknown): Stats | null {
  if (!isRecord(value)) return null;
  const finish = FINISHES.find((name) => name === value.finish);
  const number = (key: string): number => (typeof value[key] === "number" ? value[key] : 0);
  if (!finish) return null;
  return {
    finish,
    promptTokens: number("promptTokens"),
    reusedTokens: number("reusedTokens"),
    generatedTokens: number("generatedTokens"),
    timeToFirstTokenMs: number("timeToFirstTokenMs"),
    tokensPerSecond: number("tokensPerSecond"),
    droppedTurns: number("droppedTurns"),
    seed: number("seed"),
  };
}
