// Which token gets which row, as a table for each spelling of the name.

import { h } from "../dom";
import { type Group, ranges } from "./groups";
import type { Gets, Preview } from "./protocol";

export function previewTables(group: Group, allLayers: readonly number[]): HTMLElement[] {
  return group.previews.map((preview) => {
    const spelling = preview.tokens.map(({ text }) => text).join("");
    return previewTable(preview, allLayers, spelling.startsWith(" ") ? "Within a text" : "Without a space before it");
  });
}

/** A token as text; a space at its beginning would not be seen otherwise. */
export function token(text: string): HTMLElement {
  return h("code", { class: "token" }, text.replaceAll(" ", "␣").replaceAll("\n", "↵"));
}

export function previewTable(preview: Preview, allLayers: readonly number[], caption: string): HTMLElement {
  const rest = allLayers.filter((layer) => !preview.layers.includes(layer));
  const rows = preview.tokens.map(({ text, gets }) =>
    h("tr", {}, h("th", { scope: "row" }, token(text)), h("td", {}, ...source(gets))),
  );
  return h(
    "table",
    { class: "preview" },
    h("caption", {}, caption),
    previewHead("Token", preview.layers, rest),
    h(
      "tbody",
      {},
      ...rows.map((row) => {
        if (rest.length > 0) row.append(h("td", {}, "its own"));
        return row;
      }),
    ),
  );
}

/** Columns: what is changed, in these layers, and in the rest, if there is one. */
export function previewHead(name: string, layers: readonly number[], rest: readonly number[]): HTMLElement {
  return h(
    "thead",
    {},
    h(
      "tr",
      {},
      h("th", { scope: "col" }, name),
      h("th", { scope: "col" }, `${layers.length === 1 ? "Layer" : "Layers"} ${ranges(layers)}`),
      rest.length > 0 && h("th", { scope: "col" }, `Layers ${ranges(rest)}`),
    ),
  );
}

function source(gets: Gets): (Node | string)[] {
  switch (gets.kind) {
    case "own":
      return ["its own"];
    case "token":
      return ["row of ", token(gets.text)];
    case "mean":
      return ["mean of ", ...gets.texts.flatMap((text, i) => (i === 0 ? [token(text)] : [" ", token(text)]))];
    case "values":
      return ["a row that was learned"];
  }
}
