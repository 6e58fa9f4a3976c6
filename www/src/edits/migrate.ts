// Edits that early versions of the page kept in localStorage, as names: "Spain" with the rows of "Germany". They come into the
// list once a model is there that can make them, and are then kept like all others.

import { isRecord, read, remove, write } from "../storage";
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

/** Brings them into the list, if there are any. What cannot be made now stays for another model: this one may have no rows for it. */
export async function takeOld(
  store: EditsStore,
  make: (subject: string, others: string[]) => Promise<Edit[]>,
): Promise<void> {
  const old = read(KEY);
  if (old === null) return;
  // Another tab would add them again.
  remove(KEY);
  const left: Named[] = [];
  for (const named of Array.isArray(old) ? old.filter(isNamed) : []) {
    const { subject, with: other, strength, on } = named;
    try {
      const made = await make(subject, [other]);
      store.add(made.map((edit) => ({ ...edit, strength, on })));
    } catch {
      left.push(named);
    }
  }
  if (left.length > 0) write(KEY, left);
}
