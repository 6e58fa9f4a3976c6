// Edits that belong together, as the list shows them: one entry for all spellings of a name.

import type { Edit, Method, Preview } from "./protocol";

export type Group = {
  /** Where its edits begin in the list. */
  first: number;
  edits: readonly Edit[];
  previews: readonly Preview[];
};

export function groupsOf(edits: readonly Edit[], previews: readonly Preview[]): Group[] {
  const groups: Group[] = [];
  for (const [i, preview] of previews.entries()) {
    const begins = i === 0 || preview.group !== previews[i - 1]?.group;
    if (begins) groups.push({ first: i, edits: [], previews: [] });
    const group = groups.at(-1);
    const edit = edits[i];
    if (!group || !edit) continue;
    group.edits = [...group.edits, edit];
    group.previews = [...group.previews, preview];
  }
  return groups;
}

/** What its maker called it. Of several spellings the last is the one within a sentence. */
export function nameOf(group: Group): string {
  return group.edits.at(-1)?.label ?? "";
}

/**
 * The list with `change` made to each edit of `group`, which is then of the changed ones. What is drawn may be older than the
 * list: edits are found by what they are, not by their place.
 */
export function changed(edits: readonly Edit[], group: Group, change: (edit: Edit, place: number) => Edit): Edit[] {
  const made = new Map(group.edits.map((edit, place) => [edit, change(edit, place)]));
  group.edits = [...made.values()];
  return edits.map((edit) => made.get(edit) ?? edit);
}

export function without(edits: readonly Edit[], group: Group): Edit[] {
  return edits.filter((edit) => !group.edits.includes(edit));
}

/** The list with `group` before (`step` −1) or behind (1) its neighbour, which is one of `groups`. */
export function moved(edits: readonly Edit[], groups: readonly Group[], group: Group, step: -1 | 1): Edit[] {
  const at = edits.findIndex((edit) => group.edits.includes(edit));
  const beside = edits[step < 0 ? at - 1 : at + group.edits.length];
  const other = groups.find((one) => beside && one.edits.includes(beside));
  if (at < 0 || !other) return [...edits];
  const rest = without(edits, group);
  const to = at + step * other.edits.length;
  return [...rest.slice(0, to), ...group.edits, ...rest.slice(to)];
}

export function withMethod(edit: Edit, preview: Preview | undefined, method: Method): Edit {
  // A spelling of another length may need another method; it keeps the one it has.
  if (!("tokens" in edit.target) || !preview?.methods.includes(method)) return edit;
  return { ...edit, target: { tokens: { ...edit.target.tokens, method } } };
}

export function withLayers(edit: Edit, layers: readonly number[], all: readonly number[]): Edit {
  const { layers: _, ...rest } = edit;
  return layers.length === all.length ? rest : { ...rest, layers: [...layers] };
}

/** `3–7, 9` */
export function ranges(numbers: readonly number[]): string {
  const parts: [number, number][] = [];
  for (const n of numbers) {
    const last = parts.at(-1);
    if (last && n === last[1] + 1) last[1] = n;
    else parts.push([n, n]);
  }
  return parts.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}
