// The same question twice with the same seed: without the edits, and with them.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import type { ChatMessage, SamplingSettings } from "../protocol";
import { RunBar, type Say, section } from "./section";
import type { EditsStore } from "./store";

export type Asking = {
  /** What the model read for the last answer; null in an empty chat. */
  lastPrompt(): ChatMessage[] | null;
  /** A question alone. */
  promptOf(question: string): ChatMessage[];
  sampling(): SamplingSettings;
};

export function compareSection(store: EditsStore, engine: EngineClient, asking: Asking): HTMLElement {
  const question = h("textarea", {
    class: "field",
    id: "compare-question",
    rows: 2,
    placeholder: "The last question of the chat",
  });
  const before = answer("Without the edits");
  const after = answer("With the edits");
  const compare = async (say: Say): Promise<string> => {
    const typed = question.value.trim();
    const messages = typed ? asking.promptOf(typed) : asking.lastPrompt();
    if (!messages) throw new Error("The chat has no question yet; write one above.");
    const file = store.fileInUse();
    if (!file) throw new Error("No edit is switched on, so both answers would be the same.");
    before.text.textContent = "";
    after.text.textContent = "";
    let settings = asking.sampling();
    for (const [side, edits] of [
      [before, null],
      [after, file],
    ] as const) {
      say(side.title);
      const result = await engine.chat(
        messages,
        settings,
        edits,
        (event) => {
          if (event.type === "token") side.text.append(event.text);
        },
        "measurement",
      );
      if (result.finish === "stopped") throw new Error("stopped");
      side.text.textContent = result.text;
      settings = { ...settings, seed: result.seed };
    }
    const same = before.text.textContent === after.text.textContent;
    return `Seed ${settings.seed}. ${same ? "Both answers are the same." : "The answers differ."}`;
  };
  const bar = new RunBar("Compare", compare, () => engine.stop());
  return section(
    "Before and after",
    h("div", { class: "setting" }, h("label", { for: "compare-question" }, "Question"), question),
    bar.element,
    h("div", { class: "compare" }, before.element, after.element),
  );
}

function answer(title: string): { title: string; element: HTMLElement; text: HTMLElement } {
  const text = h("p", { class: "compare-text", dir: "auto" });
  return { title, text, element: h("section", { "aria-label": title }, h("h3", {}, title), text) };
}
