// The edits that the reader made: which entity is answered by the rows of which other. Kept from visit to visit.

import type { Swap } from "./protocol";
import { Signal } from "./signal";
import { isRecord, read, write } from "./storage";

export type Edit = Swap & { on: boolean };

export const MAX_EDITS = 20;
export const MAX_NAME_CHARACTERS = 60;
export const MAX_STRENGTH = 1.5;

export function storedEdits(): Signal<Edit[]> {
  const edits = new Signal<Edit[]>(usableEdits(read("edits")));
  edits.watch((value) => write("edits", value));
  return edits;
}

/** What can be used of a value from elsewhere. */
export function usableEdits(value: unknown): Edit[] {
  return Array.isArray(value) ? value.filter(isEdit).slice(0, MAX_EDITS) : [];
}

function isEdit(value: unknown): value is Edit {
  const isName = (name: unknown): boolean =>
    typeof name === "string" && name.trim() !== "" && name.length <= MAX_NAME_CHARACTERS;
  if (!isRecord(value) || !isName(value.subject) || !isName(value.with)) return false;
  const { on, strength } = value;
  return typeof on === "boolean" && typeof strength === "number" && strength >= 0 && strength <= MAX_STRENGTH;
}

/** Those that are switched on. */
export function swaps(edits: readonly Edit[]): Swap[] {
  return edits.filter(({ on }) => on).map(({ subject, with: other, strength }) => ({ subject, with: other, strength }));
}
