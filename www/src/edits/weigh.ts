// How the answer tips: the two answers weighed at each strength of an edit, and what else the edits move.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import { RunBar, type Say } from "../run-bar";
import { StrengthChart } from "./chart";
import { knownPrompt } from "./gallery";
import { type Group, groupsOf, nameOf } from "./groups";
import { section, textField } from "./section";
import type { EditsStore } from "./store";

/** 0 to 1.5. */
const STRENGTHS = Float32Array.from({ length: 16 }, (_, i) => i / 10);

export function weighSection(store: EditsStore, engine: EngineClient): HTMLElement {
  const which = h("select", { class: "field", id: "weigh-edit" });
  const [promptSetting, prompt] = textField("weigh-prompt", "Beginning of a sentence", "The capital of Spain is");
  const [oldSetting, old] = textField("weigh-old", "One end", "as without the edit");
  const [newSetting, other] = textField("weigh-new", "Another end", "as with the edit");
  const chart = new StrengthChart();
  let groups: Group[] = [];
  let chosen = "";
  const fill = (): void => {
    const group = groups[which.selectedIndex];
    const name = group ? nameOf(group) : "";
    if (name === chosen) return;
    chosen = name;
    const known = knownPrompt(name);
    prompt.value = known?.prompt ?? (group ? `${group.previews[0]?.subject} is` : "");
    old.value = known?.old ?? "";
    other.value = known?.new ?? "";
  };
  which.addEventListener("change", fill);
  const refresh = async (): Promise<void> => {
    const { edits } = store;
    const previews = edits.length > 0 ? await engine.call("previewEdits", store.file()) : [];
    if (edits !== store.edits) return;
    groups = groupsOf(edits, previews);
    const selected = Math.max(
      0,
      groups.findIndex((group) => nameOf(group) === chosen),
    );
    which.replaceChildren(...groups.map((group, i) => h("option", { selected: i === selected }, nameOf(group))));
    fill();
  };
  store.state.watch(() => void refresh().catch(() => undefined));

  const weigh = async (say: Say): Promise<string> => {
    const group = groups[which.selectedIndex];
    if (!group) throw new Error("There is no edit to weigh; add one above.");
    const numbers = Uint32Array.from(group.edits, (_, i) => group.first + i);
    const typed = [old.value.trim(), other.value.trim()];
    const answers = typed.every(Boolean) ? typed : [];
    if (answers.length > 0) chart.begin(answers);
    let done = 0;
    say("Asking without the edit, then with it");
    await engine.measure("weighAnswers", [prompt.value.trim(), answers, store.file(), numbers, STRENGTHS], (event) => {
      if (event.type === "answers") {
        [old.value = "", other.value = ""] = event.answers;
        chart.begin(event.answers);
        return;
      }
      done += 1;
      chart.add(event);
      say(`Strength ${event.strength.toFixed(1)}`, done / STRENGTHS.length);
    });
    return chart.summary;
  };
  const bar = new RunBar("Weigh the answers", weigh, () => engine.stop());
  return section(
    "How the answer tips",
    h("div", { class: "setting" }, h("label", { for: "weigh-edit" }, "Edit whose strength goes from 0 to 1.5"), which),
    promptSetting,
    h("div", { class: "pair" }, oldSetting, newSetting),
    h(
      "p",
      { class: "hint" },
      "Leave both ends empty to take what the model says itself, without the edit and with it.",
    ),
    bar.element,
    chart.element,
    h("h3", {}, "What else moves"),
    ...reachPart(store, engine),
  );
}

/** The unrelated texts, always the same, and how far the edits move them. */
function reachPart(store: EditsStore, engine: EngineClient): HTMLElement[] {
  const rows = h("tbody");
  const table = h(
    "table",
    { class: "preview moves", hidden: true },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "Text that no edit is about"),
        h("th", { scope: "col" }, "KL, nats a token"),
      ),
    ),
    rows,
  );
  const measure = async (say: Say): Promise<string> => {
    const file = store.fileInUse();
    if (!file) throw new Error("No edit is switched on, so nothing moves.");
    rows.replaceChildren();
    table.hidden = false;
    let largest = 0;
    let done = 0;
    say("Reading");
    await engine.measure("measureReach", [file], ({ text, kl }) => {
      done += 1;
      largest = Math.max(largest, kl ?? 0);
      const value = kl === null ? "0, untouched" : kl.toPrecision(2);
      rows.append(h("tr", {}, h("td", { dir: "auto" }, shortened(text)), h("td", {}, value)));
      say(`${done} of 6 texts`, done / 6);
    });
    return largest === 0
      ? "None of these texts moves."
      : `The furthest moves by ${largest.toPrecision(2)} nats a token.`;
  };
  const bar = new RunBar("Measure", measure, () => engine.stop());
  return [
    h(
      "p",
      { class: "hint" },
      "KL(without ‖ with all edits that are on) of what the model says after each token; untouched: none of its tokens is changed, so all is the same to the bit.",
    ),
    bar.element,
    table,
  ];
}

function shortened(text: string): string {
  const plain = text
    .replaceAll(/<\|[^|]*\|>/g, " ")
    .replaceAll(/\s+/g, " ")
    .trim();
  return plain.length > 70 ? `${plain.slice(0, 70)}…` : plain;
}
