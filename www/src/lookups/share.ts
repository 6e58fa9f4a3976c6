// The state in the address, so that a link brings another reader to the same cell: question, settings, edits, colours, pinned
// cell.

import { DEFAULTS, restore, type Settings, sampling } from "../settings";
import type { Place } from "./columns";

/** What a link says. It may come from anybody: nothing of it is sent or loaded without the reader. */
export type Shared = {
  question: string;
  settings: Pick<Settings, (typeof SHARED)[number]>;
  /** What can be used of it, the edits' own code decides. Null for none. */
  edits: string | null;
  show: string | null;
  cell: Place | null;
};

const SHARED = ["temperature", "topP", "topK", "repetitionPenalty", "maxTokens", "seed", "system"] as const;
const MAX_QUESTION = 8000;
const MAX_PLACE = 1e6;

export function toHash({ question, settings, edits, show, cell }: Shared): string {
  const parts = new URLSearchParams({ ask: question });
  const chosen = Object.fromEntries(
    SHARED.filter((key) => settings[key] !== DEFAULTS[key]).map((key) => [key, settings[key]]),
  );
  if (Object.keys(chosen).length > 0) parts.set("settings", JSON.stringify(chosen));
  if (edits !== null) parts.set("edits", edits);
  if (show) parts.set("show", show);
  if (cell) parts.set("cell", `${cell.position}.${cell.layer}${cell.engram ? ".engram" : ""}`);
  return `#${parts}`;
}

/** Null for an address that says nothing usable. */
export function fromHash(hash: string): Shared | null {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const question = parts.get("ask")?.trim().slice(0, MAX_QUESTION);
  if (!question) return null;
  const settings = restore(parse(parts.get("settings")));
  const cell = (parts.get("cell") ?? "").split(".");
  const [position, layer] = cell.slice(0, 2).map(Number);
  const isPlace = (value: number | undefined): value is number =>
    Number.isInteger(value) && (value ?? -1) >= 0 && (value ?? 0) < MAX_PLACE;
  return {
    question,
    settings: { ...sampling(settings), system: settings.system },
    edits: parts.get("edits"),
    show: parts.get("show"),
    cell: isPlace(position) && isPlace(layer) ? { position, layer, engram: cell[2] === "engram" } : null,
  };
}

function parse(json: string | null): unknown {
  if (!json) return null;
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}
