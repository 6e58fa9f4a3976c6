// One question answered twice with the same seed, side by side.

import { h } from "./dom";
import type { EngineClient } from "./engine";
import type { ChatMessage, KnockOut, SamplingSettings } from "./protocol";
import { RunBar, type Say } from "./run-bar";

export type Asking = {
  /** What the model read for the last answer; null in an empty chat. */
  lastPrompt(): ChatMessage[] | null;
  /** A question alone. */
  promptOf(question: string): ChatMessage[];
  sampling(): SamplingSettings;
};

/** How an answer is given. */
export type Way = { edits: string | null; knockOut: KnockOut | null };

/**
 * The field for the question, the button, and both answers. `ways` is asked at each start, and throws if there is
 * nothing to compare.
 */
export function sideBySide(
  engine: EngineClient,
  asking: Asking,
  { id, button, titles, ways }: { id: string; button: string; titles: [string, string]; ways: () => [Way, Way] },
): HTMLElement[] {
  const question = h("textarea", {
    class: "field",
    id: `${id}-question`,
    rows: 2,
    placeholder: "The last question of the chat",
  });
  const sides = titles.map(answer);
  const compare = async (say: Say): Promise<string> => {
    const typed = question.value.trim();
    const messages = typed ? asking.promptOf(typed) : asking.lastPrompt();
    if (!messages) throw new Error("The chat has no question yet; write one above.");
    const both = ways();
    for (const { text } of sides) text.textContent = "";
    let settings = asking.sampling();
    for (const [i, { title, text }] of sides.entries()) {
      say(title);
      const { edits, knockOut } = both[i] as Way;
      const onEvent = (event: { type: string; text?: string }): void => {
        if (event.type === "token") text.append(event.text ?? "");
      };
      const result = await engine.chat(messages, settings, edits, onEvent, "measurement", knockOut);
      if (result.finish === "stopped") throw new Error("stopped");
      text.textContent = result.text;
      settings = { ...settings, seed: result.seed };
    }
    const [first, second] = sides.map(({ text }) => text.textContent);
    return `Seed ${settings.seed}. ${first === second ? "Both answers are the same." : "The answers differ."}`;
  };
  return [
    h("div", { class: "setting" }, h("label", { for: question.id }, "Question"), question),
    new RunBar(button, compare, () => engine.stop()).element,
    h("div", { class: "compare" }, ...sides.map(({ element }) => element)),
  ];
}

function answer(title: string): { title: string; element: HTMLElement; text: HTMLElement } {
  const text = h("p", { class: "compare-text", dir: "auto" });
  return { title, text, element: h("section", { "aria-label": title }, h("h3", {}, title), text) };
}
