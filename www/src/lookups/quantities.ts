// What a cell can show, and in which colours. The scales are safe for the colour-blind: kinds differ in lightness and carry
// a mark, numbers run along viridis, which grows evenly lighter.

import type { Seen, Shape } from "./log";
import type { Tier } from "./trace";

export type QuantityId = "tier" | "contribution" | "gate" | "time" | "edited";

/** How a cell is painted; null: nothing is known, or there is nothing to know. */
export type Paint = { colour: string; mark: Mark | null };
export type Mark = "slash" | "dot" | "bar";

export type Quantity = {
  id: QuantityId;
  label: string;
  /** One sentence on what it is. */
  hint: string;
  /** Whether layers without a row have it too. */
  dense: boolean;
  /** Its number in a layer; null where it has none. */
  value(token: Seen, layer: number, shape: Shape): number | null;
  paint(token: Seen, layer: number, shape: Shape): Paint | null;
  /** In words. */
  words(token: Seen, layer: number, shape: Shape): string;
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

const isEdited = (token: Seen, layer: number): boolean => token.edited.includes(layer);

/** A row is looked up once a token, so that all STEM layers of a token came the same way. */
const tier: Quantity = {
  id: "tier",
  label: "Where the row came from",
  hint: "Memory (perhaps fetched ahead a moment before), what this device kept, the network, or an edit laid over it.",
  dense: false,
  value: (token, layer) =>
    isEdited(token, layer) ? 3 : token.tier === null ? null : Object.keys(TIERS).indexOf(token.tier),
  paint: (token, layer) => {
    if (isEdited(token, layer)) return EDIT.paint;
    return token.tier === null ? null : TIERS[token.tier].paint;
  },
  words: (token, layer) => {
    if (token.tier === null) return isEdited(token, layer) ? "edited" : "not heard";
    return `${isEdited(token, layer) ? "edited, " : ""}from ${tierLabel(token.tier)}`;
  },
  legend: { kind: "kinds", entries: [...Object.values(TIERS), EDIT] },
};

const CONTRIBUTION = [0.1, 1] as const;
const contribution: Quantity = {
  id: "contribution",
  label: "Contribution of the FFN",
  hint: "What the layer's feed-forward block added, relative to the state that it was added to.",
  dense: true,
  value: (token, layer) => token.contribution?.[layer] ?? null,
  paint: (token, layer) => {
    const value = token.contribution?.[layer];
    return value === undefined ? null : { colour: rampColour(logShare(value, ...CONTRIBUTION)), mark: null };
  },
  words: (token, layer) => {
    const value = token.contribution?.[layer];
    return value === undefined ? "not measured" : `adds ${(100 * value).toFixed(value < 0.1 ? 1 : 0)}% of the state`;
  },
  legend: { kind: "scale", from: "10% of the state", to: "100%" },
};

const GATE = [0.1, 0.8] as const;
const gate: Quantity = {
  id: "gate",
  label: "How far the gate is open",
  hint: "The effective share of the gate's units that are open.",
  dense: true,
  value: (token, layer) => token.gateOpen?.[layer] ?? null,
  paint: (token, layer) => {
    const value = token.gateOpen?.[layer];
    return value === undefined ? null : { colour: rampColour((value - GATE[0]) / (GATE[1] - GATE[0])), mark: null };
  },
  words: (token, layer) => {
    const value = token.gateOpen?.[layer];
    return value === undefined ? "not measured" : `gate ${(100 * value).toFixed(1)}% open`;
  },
  legend: { kind: "scale", from: "10%", to: "80%" },
};

const TIME = [0.1, 1000] as const;
const time: Quantity = {
  id: "time",
  label: "Fetch time",
  hint: "How long the answer waited for the row.",
  dense: false,
  value: (token) => token.ms,
  paint: (token) => (token.ms === null ? null : { colour: rampColour(logShare(token.ms, ...TIME)), mark: null }),
  words: (token) => (token.ms === null ? "not heard" : `waited ${milliseconds(token.ms)}`),
  legend: { kind: "scale", from: "at once", to: "1 s" },
};

const PLAIN = { label: "as in the table", paint: { colour: "#9ab8a5", mark: null } } as const;
const edited: Quantity = {
  id: "edited",
  label: "Edited or not",
  hint: "Whether an edit changed the row in this layer.",
  dense: false,
  value: (token, layer) => (token.id < 0 ? null : Number(isEdited(token, layer))),
  paint: (token, layer) => (token.id < 0 ? null : isEdited(token, layer) ? EDIT.paint : PLAIN.paint),
  words: (token, layer) => (isEdited(token, layer) ? "edited" : "not edited"),
  legend: { kind: "kinds", entries: [PLAIN, { label: "edited", paint: EDIT.paint }] },
};

export const QUANTITIES: readonly Quantity[] = [tier, contribution, gate, time, edited];

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
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "·") || "∅";
}
