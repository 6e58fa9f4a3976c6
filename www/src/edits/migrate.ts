// Edits that early versions of the page kept in localStorage, as names: "Spain" with the rows of "Germany". They come into the
// list once a model is there that can make them, and are then kept like all others.

import { isRecord, read, remove } from "../storage";
import type { Edit } from "./protocol";
import type { EditsStore } from "./store";

const KEY = "edits";

type Named = { subject: string; with: string; strength: number; on: boolean };

function isNamed(value: unknown): value is Named {
  if (!isRecord(value)) return false;
  const { subject, with: other, strength, on } = value;
  const named = typeof subject === "string" && typeof other === "string";
  return named && typeof strength === "number" && strength >= 0 && strength <= 4 && typeof on === "boolean";
}

/** Brings them into the list, if there are any. What cannot be made is left out: the model may have no rows for it. */
export async function takeOld(
  store: EditsStore,
  make: (subject: string, others: string[]) => Promise<Edit[]>,
): Promise<void> {
  const old = read(KEY);
  if (old === null) return;
  // Taken once, whatever comes of it: another visit would only add them again.
  remove(KEY);
  const all: Edit[] = [];
  for (const { subject, with: other, strength, on } of Array.isArray(old) ? old.filter(isNamed) : []) {
    const made = await make(subject, [other]).catch(() => []);
    all.push(...made.map((edit) => ({ ...edit, strength, on })));
  }
  if (all.length > 0) store.add(all);
}
