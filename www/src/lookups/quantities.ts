// What a cell can show, and in which colours. The scales are safe for the colour-blind: kinds differ in lightness and carry
// a mark, numbers run along viridis, which grows evenly lighter.

import type { Column, Kind } from "./columns";
import type { Seen, SeenEngram } from "./log";
import type { Tier } from "./trace";

export type QuantityId = "tier" | "contribution" | "gate" | "memory" | "time" | "edited";

/** How a cell is painted; null: nothing is known, or there is nothing to know. */
export type Paint = { colour: string; mark: Mark | null };
export type Mark = "slash" | "dot" | "bar";

export type Quantity = {
  id: QuantityId;
  label: string;
  /** One sentence on what it is. */
  hint: string;
  /** Which cells have it. */
  kinds: readonly Kind[];
  /** Why the others have none, where it is not what their kind lacks. */
  others?: string;
  paint(token: Seen, column: Column): Paint | null;
  /** In words. */
  words(token: Seen, column: Column): string;
  legend: Legend;
};

export type Legend =
  | { kind: "kinds"; entries: readonly { label: string; paint: Paint }[] }
  | { kind: "scale"; from: string; to: string };

/** After viridis (van der Walt and Smith, 2015), at nine points. */
const VIRIDIS = [
  [68, 1, 84],
  [71, 44, 122],
  [59, 81, 139],
  [44, 113, 142],
  [33, 144, 141],
  [39, 173, 129],
  [92, 200, 99],
  [170, 220, 50],
  [253, 231, 37],
] as const;
const STEPS = 64;
const RAMP = Array.from({ length: STEPS }, (_, i) => {
  const at = (i / (STEPS - 1)) * (VIRIDIS.length - 1);
  const [low, high] = [VIRIDIS[Math.floor(at)] ?? VIRIDIS[0], VIRIDIS[Math.ceil(at)] ?? VIRIDIS[0]];
  const channel = (c: 0 | 1 | 2): number => Math.round(low[c] + (high[c] - low[c]) * (at % 1));
  return `rgb(${channel(0)} ${channel(1)} ${channel(2)})`;
});

/** The colour at `share` of the scale, from 0 to 1. */
export function rampColour(share: number): string {
  const step = Math.round(Math.min(1, Math.max(0, share)) * (STEPS - 1));
  return RAMP[step] ?? "";
}

/** Where a value stands between two ends, by its logarithm. */
function logShare(value: number, from: number, to: number): number {
  return value <= from ? 0 : Math.log(value / from) / Math.log(to / from);
}

const TIERS: Record<Tier, { label: string; paint: Paint }> = {
  memory: { label: "memory", paint: { colour: "#56b4e9", mark: null } },
  stored: { label: "this device", paint: { colour: "#0072b2", mark: "bar" } },
  fetched: { label: "network", paint: { colour: "#e69f00", mark: "dot" } },
};
const EDIT = { label: "an edit", paint: { colour: "#d55e00", mark: "slash" } } as const;

export function tierLabel(tier: Tier): string {
  return TIERS[tier].label;
}

const ROWS: readonly Kind[] = ["stem", "engram"];
const ALL: readonly Kind[] = ["stem", "dense", "engram"];

/** What is known of the rows of a cell: those of the token, or of its n-grams in one layer. */
function rowsOf(token: Seen, { layer, at }: Column): Pick<SeenEngram, "tier" | "ms" | "edited"> {
  if (at < 0) return { tier: token.tier, ms: token.ms, edited: token.edited.includes(layer) };
  return token.engram[at] ?? { tier: null, ms: null, edited: false };
}

/** A row is looked up once a token, so that all STEM layers of a token came the same way. */
const tier: Quantity = {
  id: "tier",
  label: "Where the row came from",
  hint: "Memory (perhaps fetched ahead a moment before), what this device kept, the network, or an edit laid over it.",
  kinds: ROWS,
  paint: (token, column) => {
    const { tier: from, edited: changed } = rowsOf(token, column);
    if (changed) return EDIT.paint;
    return from === null ? null : TIERS[from].paint;
  },
  words: (token, column) => {
    const { tier: from, edited: changed } = rowsOf(token, column);
    if (from === null) return changed ? "edited" : "not heard";
    return `${changed ? "edited, " : ""}from ${tierLabel(from)}`;
  },
  legend: { kind: "kinds", entries: [...Object.values(TIERS), EDIT] },
};

function added(token: Seen, { layer, at }: Column): number | null {
  return (at < 0 ? token.contribution?.[layer] : token.engram[at]?.contribution) ?? null;
}

const CONTRIBUTION = [0.1, 1] as const;
const contribution: Quantity = {
  id: "contribution",
  label: "Contribution",
  hint: "What the layer's feed-forward block, or its memory of n-grams, added, relative to the state that it was added to.",
  kinds: ALL,
  paint: (token, column) => {
    const value = added(token, column);
    return value === null ? null : { colour: rampColour(logShare(value, ...CONTRIBUTION)), mark: null };
  },
  words: (token, column) => {
    const value = added(token, column);
    return value === null ? "not measured" : `adds ${(100 * value).toFixed(value < 0.1 ? 1 : 0)}% of the state`;
  },
  legend: { kind: "scale", from: "10% of the state", to: "100%" },
};

const GATE = [0.1, 0.8] as const;
const gate: Quantity = {
  id: "gate",
  label: "How far the gate is open",
  hint: "The gate of the feed-forward block: the effective share of its units that are open.",
  kinds: ["stem", "dense"],
  paint: (token, { layer }) => {
    const value = token.gateOpen?.[layer];
    return value === undefined ? null : { colour: rampColour((value - GATE[0]) / (GATE[1] - GATE[0])), mark: null };
  },
  words: (token, { layer }) => {
    const value = token.gateOpen?.[layer];
    return value === undefined ? "not measured" : `gate ${(100 * value).toFixed(1)}% open`;
  },
  legend: { kind: "scale", from: "10%", to: "80%" },
};

const memory: Quantity = {
  id: "memory",
  label: "Engram gate",
  hint: "How much of what was looked up for the last tokens together is let through: the gate of an Engram layer, from 0 to 1.",
  kinds: ["engram"],
  others: "has no such gate",
  paint: (token, { at }) => {
    const value = token.engram[at]?.gate ?? null;
    return value === null ? null : { colour: rampColour(value), mark: null };
  },
  words: (token, { at }) => {
    const value = token.engram[at]?.gate ?? null;
    return value === null ? "not measured" : `gate ${value.toFixed(3)}`;
  },
  legend: { kind: "scale", from: "0", to: "1" },
};

const TIME = [0.1, 1000] as const;
const time: Quantity = {
  id: "time",
  label: "Fetch time",
  hint: "How long the answer waited for the row.",
  kinds: ROWS,
  paint: (token, column) => {
    const { ms } = rowsOf(token, column);
    return ms === null ? null : { colour: rampColour(logShare(ms, ...TIME)), mark: null };
  },
  words: (token, column) => {
    const { ms } = rowsOf(token, column);
    return ms === null ? "not heard" : `waited ${milliseconds(ms)}`;
  },
  legend: { kind: "scale", from: "at once", to: "1 s" },
};

const PLAIN = { label: "as in the table", paint: { colour: "#9ab8a5", mark: null } } as const;
const edited: Quantity = {
  id: "edited",
  label: "Edited or not",
  hint: "Whether an edit changed the row in this layer.",
  kinds: ROWS,
  paint: (token, column) => {
    if (token.id < 0) return null;
    return rowsOf(token, column).edited ? EDIT.paint : PLAIN.paint;
  },
  words: (token, column) => (rowsOf(token, column).edited ? "edited" : "not edited"),
  legend: { kind: "kinds", entries: [PLAIN, { label: "edited", paint: EDIT.paint }] },
};

export const QUANTITIES: readonly Quantity[] = [tier, contribution, gate, memory, time, edited];

/** What a cell says of `quantity`, or why it says nothing. */
export function wordsOf(quantity: Quantity, token: Seen, column: Column): string {
  if (quantity.kinds.includes(column.kind)) return quantity.words(token, column);
  switch (column.kind) {
    case "dense":
      return quantity === memory ? "no memory of n-grams" : "no row: the layer computes it";
    case "stem":
      return "no memory of n-grams";
    case "engram":
      return "no feed-forward block";
  }
}

export function milliseconds(ms: number): string {
  if (ms === 0) return "0 ms";
  return ms < 1 ? `${ms.toFixed(2)} ms` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

/** Draws the mark of a kind into a box; the pen's colour is the caller's. */
export function drawMark(pen: CanvasRenderingContext2D, mark: Mark, x: number, y: number, w: number, h: number): void {
  const [midX, midY] = [x + w / 2, y + h / 2];
  pen.beginPath();
  switch (mark) {
    case "slash":
      pen.moveTo(x + 1.5, y + h - 2);
      pen.lineTo(x + w - 1.5, y + 2);
      break;
    case "bar":
      pen.moveTo(x + 1.5, midY);
      pen.lineTo(x + w - 1.5, midY);
      break;
    case "dot":
      pen.arc(midX, midY, Math.max(1, w / 6), 0, 2 * Math.PI);
      break;
  }
  pen.stroke();
}

/** A token as one sees it. */
export function shown(text: string): string {
  const marked = text
    .replaceAll("\n", "⏎")
    .replaceAll("\t", "⇥")
    .replace(/^ +/, (spaces) => "·".repeat(spaces.length));
  if (marked === "") return "∅";
  // Nothing that draws ink: its characters by their numbers.
  if (!/[^\p{Z}\p{C}]/u.test(marked)) return Array.from(marked, codeOf).join(" ");
  return marked;
}

function codeOf(character: string): string {
  return `U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A number with a sign that is as wide as a plus. */
export function signed(value: number, plus = "", digits = 2): string {
  return `${value < 0 ? "−" : plus}${Math.abs(value).toFixed(digits)}`;
}
