// The card of a pinned cell: the token's record, what the layer did, the rows like its row, its rows in other layers.

import { type Child, h } from "../dom";
import { bytes, count } from "../format";
import { columnIndex, KIND_NAMES, type Kind, type Place, type Shape } from "./columns";
import { otherHalf } from "./engram-card";
import type { Seen } from "./log";
import { milliseconds, shown, signed, tierLabel } from "./quantities";
import type { Card, Near, Push } from "./trace";

export const NEEDS_CPU = "The GPU doesn't show what the layer computed. Trace the text, and the CPU will.";

const KINDS: Record<Kind, string> = {
  stem: "its up-projection is a row of the table",
  dense: "its up-projection is computed",
  engram: "the last tokens together find rows of a second table",
};

/** What the page knows of the cell by itself. */
export function cellFacts(token: Seen, place: Place, shape: Shape): HTMLElement {
  const column = shape.columns[columnIndex(shape, place)];
  const kind = column?.kind ?? "dense";
  const memory = column && kind === "engram" ? token.engram[column.at] : undefined;
  const rows: [string, string][] = [
    ["Token", `${shown(token.text)} (number ${count(token.id)}, position ${place.position})`],
    ["Layer", `${place.layer}, ${KIND_NAMES[kind]}: ${KINDS[kind]}`],
  ];
  const { tier, ms } = kind === "engram" ? (memory ?? { tier: null, ms: null }) : token;
  if (tier !== null) {
    const what = kind === "engram" ? "Its rows came from" : "Its record came from";
    rows.push([what, `${tierLabel(tier)}, waited ${milliseconds(ms ?? 0)}`]);
  }
  if (kind !== "engram" && token.edited.length > 0) rows.push(["Edited in layers", token.edited.join(", ")]);
  return facts(rows);
}

/** The numbers of all layers for one token. */
export function allLayers(token: Seen, shape: Shape): HTMLElement | null {
  const { contribution, gateOpen, traced } = token;
  if (!contribution || !gateOpen) return null;
  const percent = (value: number | undefined): string => (value === undefined ? "–" : `${(100 * value).toFixed(1)}%`);
  const score = (value: number | undefined): string => (value === undefined ? "–" : signed(value));
  const rows = shape.columns.map(({ layer, kind, at }) => {
    if (kind !== "engram") {
      return [
        `${layer}${kind === "stem" ? " STEM" : ""}`,
        percent(contribution[layer]),
        percent(gateOpen[layer]),
        score(traced?.next.ffn[layer]),
        score(traced?.next.attention[layer]),
      ];
    }
    const memory = token.engram[at];
    const [added, gate] = [memory?.contribution ?? undefined, memory?.gate ?? undefined];
    return [`${layer} Engram`, percent(added), percent(gate), score(traced?.next.engram?.[at]), "–"];
  });
  const memories = shape.engram.length > 0;
  return folded(
    "All layers of this token",
    h(
      "p",
      { class: "hint" },
      `What the FFN${memories ? " or the memory" : ""} added relative to the state, how far its gate was open, and what it and ` +
        "the attention add to the score of the next token (once the text is traced).",
    ),
    table(["Layer", "Added", "Gate", memories ? "It says" : "FFN says", "Attention says"], rows),
  );
}

export function cardBody(card: Card, pin: (place: Place) => void): HTMLElement[] {
  const parts: HTMLElement[] = [];
  const rows: [string, string][] = [];
  if (card.record) {
    const { file, page, slot, offset, bytes: length } = card.record;
    rows.push(
      ["Record", `slot ${count(slot)} on page ${count(page)}`],
      ["Bytes", `${count(offset)} to ${count(offset + length - 1)} of ${file} (${bytes(length)})`],
    );
  }
  const own = card.rows.find(({ layer }) => layer === card.layer);
  if (own) rows.push(["Norm of the row", `${own.norm.toFixed(2)}${own.edited ? ", edited" : ""}`]);
  if (card.inside) {
    const { contribution, gate_open: open } = card.inside;
    rows.push(
      ["The FFN added", `${(100 * contribution).toFixed(1)}% of the state`],
      ["Gate open", `${(100 * open).toFixed(1)}%`],
    );
  }
  parts.push(facts(rows));
  if (card.nearest) {
    const { compared, records, rows: near } = card.nearest;
    const scope =
      compared === records
        ? `of all ${count(records)} rows of this layer`
        : `of the ${count(compared)} rows in memory; the table has ${count(records)}`;
    parts.push(
      section(
        "What else is known as this",
        h("p", { class: "hint" }, `The most similar rows by cosine, ${scope}.`),
        near.length > 0 ? list(near.map(nearItem)) : h("p", { class: "hint" }, "None."),
      ),
    );
  }
  if (card.inside) {
    const { up, down, units } = card.inside;
    parts.push(
      section(
        "What this contribution says",
        h("p", { class: "hint" }, "Tokens whose scores it raises and lowers most, directly through the head."),
        pushes(up, down),
      ),
      folded(
        "The strongest units",
        table(
          ["Unit", "Gate", card.stem ? "Row" : "Up", "Added"],
          units.map(({ unit, gate, up: value, added }) => [
            String(unit),
            ...[gate, value, added].map((number) => signed(number, "", 3)),
          ]),
        ),
      ),
    );
  } else {
    parts.push(h("p", { class: "note" }, NEEDS_CPU));
  }
  if (card.rows.length > 0) {
    const cells = card.rows.map(({ layer, norm, edited, nearest }) => [
      layer === card.layer
        ? `${layer} (this)`
        : link(String(layer), () => pin({ position: card.position, layer, engram: false })),
      `${norm.toFixed(2)}${edited ? " edited" : ""}`,
      nearest ? `${shown(nearest.text)} ${nearest.cosine.toFixed(2)}` : "–",
    ]);
    parts.push(folded("Its rows in all STEM layers", table(["Layer", "Norm", "Most similar"], cells)));
  }
  if (card.engram) {
    const { position, layer } = card;
    parts.push(otherHalf("The layer's memory of n-grams for this token", () => pin({ position, layer, engram: true })));
  }
  return parts;
}

export function facts(rows: readonly [string, string][]): HTMLElement {
  return h(
    "dl",
    { class: "pairs" },
    ...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

export function section(title: string, ...children: Child[]): HTMLElement {
  return h("section", { class: "card-part" }, h("h3", {}, title), ...children);
}

/** A section that is opened on demand. */
export function folded(title: string, ...children: Child[]): HTMLElement {
  return h("details", { class: "card-part" }, h("summary", {}, title), ...children);
}

export function table(head: readonly string[], rows: readonly (readonly Child[])[]): HTMLElement {
  return h(
    "table",
    { class: "figures" },
    h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell))))),
  );
}

function list(items: readonly HTMLElement[], label?: string): HTMLElement {
  return h("ul", { class: "pieces", "aria-label": label }, ...items);
}

function nearItem({ text, cosine }: Near): HTMLElement {
  return piece(text, cosine.toFixed(2));
}

/** Tokens whose scores a part raises and lowers. */
export function pushes(up: readonly Push[], down: readonly Push[]): HTMLElement {
  return h("div", { class: "pushes" }, list(up.map(pushItem), "raised"), list(down.map(pushItem), "lowered"));
}

/** A button that leads to another cell. */
export function link(label: string, onclick: () => void): HTMLElement {
  return h("button", { type: "button", class: "link", onclick }, label);
}

function pushItem({ text, logit }: Push): HTMLElement {
  return piece(text, signed(logit, "+"));
}

function piece(text: string, value: string): HTMLElement {
  return h("li", {}, h("bdi", { class: "token" }, shown(text)), h("span", { class: "value" }, value));
}
