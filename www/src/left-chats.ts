// The chats that other tabs left, to be opened or deleted.

import type { ChatStore } from "./chat-store";
import { Conversation } from "./conversation";
import { h, iconButton } from "./dom";

export type LeftActions = {
  open(chat: unknown): void;
  /** A chat was removed, which had the focus; `undo` puts it back. */
  removed(undo: () => void): void;
};

export function leftChats(chats: ChatStore, actions: LeftActions): HTMLElement {
  const list = h("ul", { class: "left-chats" });
  const element = h(
    "section",
    { "aria-labelledby": "left-title" },
    h("h3", { id: "left-title" }, "From other tabs"),
    list,
  );
  chats.left.watch((left) => {
    element.hidden = left.length === 0;
    list.replaceChildren(...left.map((chat) => item(chat)).reverse());
  });
  function item(chat: unknown): HTMLElement {
    const title = titleOf(chat);
    const remove = (): void => {
      chats.remove(chat);
      actions.removed(() => chats.restore(chat));
    };
    return h(
      "li",
      {},
      h("button", { type: "button", class: "example", dir: "auto", onclick: () => actions.open(chat) }, title),
      iconButton("close", `Delete the chat “${title}”`, remove),
    );
  }
  return element;
}

const MAX_TITLE = 80;

function titleOf(chat: unknown): string {
  const title = Conversation.from(chat).turns[0]?.content ?? "";
  return title.length > MAX_TITLE ? `${title.slice(0, MAX_TITLE)}…` : title;
}
