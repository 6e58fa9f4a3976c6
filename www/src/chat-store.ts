// The chat as it stays from visit to visit. All tabs keep theirs in one place, where the next visit finds the last one. A tab
// that would write over the chat of another one leaves that first among the chats that every tab offers; one that is
// reloaded goes on with its own.

import { Conversation, type Turn } from "./conversation";
import { Signal } from "./signal";
import { read, watchOtherTabs, write } from "./storage";

const CHAT = "chat";
const LEFT = "chats";

/** What would come of it at the next visit counts: passing words on an answer's progress do not. */
const same = (a: unknown, b: unknown): boolean => text(a) === text(b);
const text = (chat: unknown): string => JSON.stringify(Conversation.from(chat).turns);
const isEmpty = (chat: unknown): boolean => text(chat) === "[]";

export class ChatStore {
  /** Chats of other tabs, as they were kept. */
  readonly left = new Signal<readonly unknown[]>([]);
  /** What this tab last found or kept. */
  #own: unknown;

  constructor() {
    const own = read(CHAT, "sessionStorage");
    this.#own = isEmpty(own) ? read(CHAT) : own;
    this.#tell();
    watchOtherTabs(LEFT, () => this.#tell());
  }

  get own(): unknown {
    return this.#own;
  }

  /** False if the browser would not keep it; then nothing is written over either. */
  save(turns: readonly Turn[]): boolean {
    write(CHAT, turns, "sessionStorage");
    const there = read(CHAT);
    const others = this.#allLeft().filter((chat) => !same(chat, this.#own));
    if (!isEmpty(there) && ![this.#own, turns, ...others].some((chat) => same(chat, there))) others.push(there);
    if (!this.#write(others) || !write(CHAT, turns)) return false;
    this.#own = structuredClone(turns);
    this.#tell();
    return true;
  }

  /** Makes `chat` this tab's own, and leaves `turns` for it; false if these could not be kept. */
  exchange(turns: readonly Turn[], chat: unknown): boolean {
    if (!isEmpty(turns) && !this.save(turns)) return false;
    this.#own = chat;
    return true;
  }

  /** The tab goes, and its chat may be one that another tab has written over. */
  leave(turns: readonly Turn[]): void {
    const kept = [read(CHAT), ...this.#allLeft()];
    if (!isEmpty(turns) && !kept.some((chat) => same(chat, turns))) this.restore(turns);
  }

  remove(chat: unknown): void {
    this.#write(this.#allLeft().filter((other) => !same(other, chat)));
    this.#tell();
  }

  /** Puts back what was removed. */
  restore(chat: unknown): void {
    this.#write([...this.#allLeft(), chat]);
    this.#tell();
  }

  #allLeft(): unknown[] {
    const left = read(LEFT);
    return Array.isArray(left) ? left : [];
  }

  #write(left: readonly unknown[]): boolean {
    return JSON.stringify(left) === JSON.stringify(this.#allLeft()) || write(LEFT, left);
  }

  #tell(): void {
    this.left.set(this.#allLeft().filter((chat) => !isEmpty(chat) && !same(chat, this.#own)));
  }
}
