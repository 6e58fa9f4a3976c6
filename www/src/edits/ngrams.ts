// Edits of n-grams: what an Engram layer looks up for several tokens together, for models that have such layers.

import { h } from "../dom";
import type { EngineClient } from "../engine";
import { reasonOf } from "../format";
import { previewHead, token } from "./preview-table";
import type { Edit, Preview } from "./protocol";
import { section, textField } from "./section";
import type { EditsStore } from "./store";

/** As large as a file may hold. */
const MAX_FACTOR = 4;

export function ngramSection(store: EditsStore, engine: EngineClient): HTMLElement {
  const [subjectSetting, subject] = textField("ngram-subject", "Text whose n-grams are answered for", "New York");
  const [withSetting, other] = textField("ngram-with", "Text whose n-grams answer", "Los Angeles");
  const factor = h("input", {
    type: "number",
    class: "field small",
    id: "ngram-factor",
    min: 0,
    max: MAX_FACTOR,
    step: 0.1,
    value: 0,
  });
  const factorSetting = h(
    "div",
    { class: "setting", hidden: true },
    h("label", { for: factor.id }, "Factor: 0 takes its rows away, 2 doubles them"),
    factor,
  );
  const how = h(
    "select",
    {
      class: "field",
      id: "ngram-how",
      onchange: () => {
        const scaled = how.value === "factor";
        withSetting.hidden = scaled;
        factorSetting.hidden = !scaled;
      },
    },
    h("option", { value: "with" }, "the rows of another text"),
    h("option", { value: "factor" }, "its own rows, scaled"),
  );
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const add = async (): Promise<void> => {
    const scaled = how.value === "factor";
    if (scaled && !factor.checkValidity()) throw new Error(`The factor is a number from 0 to ${MAX_FACTOR}.`);
    const answer = scaled ? null : other.value.trim();
    const edits = await engine.call("makeNgramEdit", subject.value.trim(), answer, factor.valueAsNumber);
    store.add(JSON.parse(edits) as Edit[]);
    subject.value = "";
    other.value = "";
    subject.focus();
  };
  const form = h(
    "form",
    { class: "settings" },
    subjectSetting,
    h("div", { class: "setting" }, h("label", { for: how.id }, "Engram layers answer with"), how),
    withSetting,
    factorSetting,
    h("button", { type: "submit", class: "button" }, "Change the n-grams"),
    problem,
  );
  form.noValidate = true;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    problem.hidden = true;
    add().catch((cause: unknown) => {
      problem.textContent = reasonOf(cause);
      problem.hidden = false;
    });
  });
  const box = section(
    "Edit n-grams",
    h(
      "p",
      { class: "hint" },
      "Engram layers look the last two and three tokens up together. An edit answers for the n-grams within a text, such as " +
        "the words of a name, wherever they stand; it needs two tokens or more. Counted from the end, the last n-gram gets " +
        "the rows of the other text's last one. N-grams that share a row by collision keep it.",
    ),
    form,
  );
  box.hidden = true;
  engine.state.watch((state) => {
    if (state.phase === "ready") box.hidden = state.info.engramLayers.length === 0;
  });
  return box;
}

/** Which n-gram gets what. */
export function ngramTable(preview: Preview): HTMLElement {
  const pieces = (texts: readonly string[]): Node[] => texts.map(token);
  const rows = preview.ngrams.map(({ texts, gets, factor }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, ...pieces(texts)),
      h("td", {}, ...(gets ? ["rows of ", ...pieces(gets)] : [`its own times ${factor}`])),
    ),
  );
  return h(
    "table",
    { class: "preview" },
    h("caption", {}, rows.length > 0 ? "By n-gram" : "No n-gram has a counterpart: nothing changes"),
    previewHead("N-gram", preview.layers, []),
    h("tbody", {}, ...rows),
  );
}
