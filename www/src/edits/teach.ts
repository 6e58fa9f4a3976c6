// Teaching a fact: rows are looked for that make a wanted answer come. It needs the gradient, and so the CPU.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import { RunBar, type Say } from "../run-bar";
import { MAX_NAME_CHARACTERS } from "./form";
import type { Edit } from "./protocol";
import { section, textField } from "./section";
import type { EditsStore } from "./store";

const STEPS = 20;
const MAX_STEPS = 60;

export function teachSection(store: EditsStore, engine: EngineClient, useCpu: () => void): HTMLElement {
  const [subjectSetting, subject] = textField("teach-subject", "Subject", "Spain");
  const prompts = h("textarea", {
    class: "field",
    id: "teach-prompts",
    rows: 2,
    placeholder: "The capital of Spain is",
  });
  const [answerSetting, answer] = textField("teach-answer", "Wanted end", "Berlin");
  // Both stand in the edit's name, which has its limit too.
  subject.maxLength = answer.maxLength = MAX_NAME_CHARACTERS;
  const steps = h("input", {
    type: "number",
    class: "field small",
    id: "teach-steps",
    min: 1,
    max: MAX_STEPS,
    value: STEPS,
  });
  const teach = async (say: Say): Promise<string> => {
    const lines = prompts.value.split("\n").map((line) => line.trim());
    const most = Math.min(MAX_STEPS, Math.max(1, Math.round(steps.valueAsNumber) || STEPS));
    say("Reading the texts");
    const taught = await engine.measure(
      "teachFact",
      [subject.value.trim(), lines.filter(Boolean), answer.value.trim(), most],
      ({ taken, likely }) => say(`Step ${taken}: the answer has ${percent(likely)}`, taken / most),
    );
    store.add(JSON.parse(taught.edits) as Edit[]);
    return (
      `In ${taught.steps} steps the answer went from ${percent(taught.before)} to ${percent(taught.after)}; the rows moved by ` +
      `${Math.round(100 * taught.change)}% of their length. The edit is in the list.`
    );
  };
  const bar = new RunBar("Teach", teach, () => engine.stop());
  const gpu = h(
    "div",
    { class: "row" },
    h("p", {}, "Teaching needs the CPU backend; the model runs on the GPU now."),
    h("button", { type: "button", class: "button quiet", onclick: useCpu }, "Use the CPU"),
  );
  engine.state.watch((state) => {
    const onGpu = state.phase === "ready" && state.info.backend === "gpu";
    gpu.hidden = !onGpu;
    bar.disabled = state.phase !== "ready" || onGpu || state.info.rows === null;
  });
  return section(
    "Teach a fact",
    h(
      "p",
      { class: "hint" },
      "Looks for a small change of the subject's own rows that makes the answer come, and holds still what the model says of " +
        "it otherwise. It takes seconds a step.",
    ),
    gpu,
    subjectSetting,
    h(
      "div",
      { class: "setting" },
      h(
        "label",
        { for: "teach-prompts" },
        "Beginning of a sentence that names it; the same in other words on lines of their own",
      ),
      prompts,
    ),
    answerSetting,
    h(
      "div",
      { class: "setting" },
      h("div", { class: "row" }, h("label", { for: "teach-steps" }, "Steps at most"), steps),
    ),
    bar.element,
  );
}

function percent(p: number): string {
  return `${(100 * p).toFixed(p < 0.1 ? 2 : 0)}%`;
}
