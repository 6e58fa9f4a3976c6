// The card of an Engram cell: the n-grams that end at its token, the rows that they hash to, and what these did.

import { h } from "../dom";
import { bytes, count, plural } from "../format";
import { facts, folded, link, NEEDS_CPU, pushes, section, table } from "./card-view";
import type { Place } from "./columns";
import type { Log, Seen } from "./log";
import { shown } from "./quantities";
import type { Card, Collision, HeadRow, Member, Ngram } from "./trace";

/** What a trace says of an n-gram; the engine's card has the rest. */
type Known = {
  tokens: readonly Pick<Member, "id" | "text" | "compressed">[];
  again: readonly number[];
  heads: readonly Pick<HeadRow, "hash" | "others" | "collisions">[];
};

/** Other n-grams that are listed of a row. */
const LISTED = 8;

/** From the engine. */
export function memoryBody(card: Card, pin: (place: Place) => void): HTMLElement[] {
  const { engram: memory } = card;
  if (!memory) return [];
  const { inside } = memory;
  const rows: [string, string][] = [
    ["Norm of the rows", `${memory.norm.toFixed(2)}${memory.edited ? ", edited" : ""}`],
    ...(inside ? did(inside.gate, inside.contribution) : []),
  ];
  const at = (position: number): Place => ({ position, layer: card.layer, engram: true });
  const parts = [facts(rows), ...memory.ngrams.map((ngram) => ngramPart(ngram, (position) => pin(at(position))))];
  if (inside) {
    const hint = "Tokens whose scores the memory raises and lowers most, directly through the head.";
    parts.push(section("What this memory says", h("p", { class: "hint" }, hint), pushes(inside.up, inside.down)));
  } else {
    parts.push(h("p", { class: "note" }, NEEDS_CPU));
  }
  parts.push(folded("Where the rows lie", addresses(memory.ngrams)));
  parts.push(otherHalf("The layer's FFN for this token", () => pin({ ...at(card.position), engram: false })));
  return parts;
}

/** A way from a layer's memory to its FFN, or back. */
export function otherHalf(label: string, go: () => void): HTMLElement {
  return h("p", { class: "card-part" }, link(label, go));
}

/** From a file: the hashes are in the trace, and what else they hit can be seen from the text. */
export function tracedMemory(log: Log, place: Place, token: Seen, pin: (place: Place) => void): HTMLElement[] {
  const at = log.shape.engram.indexOf(place.layer);
  const traced = token.traced?.engram?.[at];
  const order = log.file?.trace.model.engram_order;
  if (!traced || !order) return [h("p", { class: "hint" }, "The file holds no more of this cell.")];
  const rows: [string, string][] = [
    ["Norm of the rows", `${traced.row_norm.toFixed(2)}${traced.edited ? ", edited" : ""}`],
    ...did(traced.gate, traced.contribution),
  ];
  const ngrams = ngramsOf(log.tokens, place.position, at, order);
  return [facts(rows), ...ngrams.map((ngram) => ngramPart(ngram, (position) => pin({ ...place, position })))];
}

function did(gate: number, contribution: number): [string, string][] {
  return [
    ["Gate", gate.toFixed(3)],
    ["The memory added", `${(100 * contribution).toFixed(1)}% of the state`],
  ];
}

/** The n-grams that end at `position`, with what a traced text says of them; `at` is the place of the Engram layer. */
function ngramsOf(tokens: readonly Seen[], position: number, at: number, order: number): Known[] {
  const hashes = (i: number): readonly number[] => tokens[i]?.traced?.engram?.[at]?.hashes ?? [];
  const key = (end: number, n: number): string =>
    Array.from({ length: n }, (_, back) => tokens[end - back]?.traced?.compressed ?? "").join();
  const words = (end: number, n: number): string =>
    tokens
      .slice(Math.max(0, end - n + 1), end + 1)
      .map(({ text }) => text)
      .join("");
  const perOrder = hashes(position).length / (order - 1);
  const others = tokens.map((_, i) => i).filter((i) => i !== position);
  return Array.from({ length: order - 1 }, (_, i) => {
    const n = i + 2;
    const own = key(position, n);
    const heads = Array.from({ length: perOrder }, (_, head) => {
      const slot = i * perOrder + head;
      const hash = hashes(position)[slot] ?? 0;
      const hits = new Map<string, Collision>();
      for (const other of others) {
        const name = key(other, n);
        if (hashes(other)[slot] === hash && name !== own && !hits.has(name)) {
          hits.set(name, { position: other, text: words(other, n) });
        }
      }
      return { hash, others: hits.size, collisions: [...hits.values()].slice(0, LISTED) };
    });
    const members = Array.from({ length: n }, (_, k) => tokens[position - n + 1 + k]).map((token) => ({
      id: token?.id ?? null,
      text: token?.text ?? "",
      compressed: token?.traced?.compressed ?? 0,
    }));
    return { tokens: members, again: others.filter((other) => key(other, n) === own), heads };
  });
}

function ngramPart(ngram: Ngram | Known, go: (position: number) => void): HTMLElement {
  const { tokens, again, heads } = ngram;
  const names = ["two", "three"];
  const size = names[tokens.length - 2] ?? String(tokens.length);
  const parts: HTMLElement[] = [
    h(
      "ol",
      { class: "pieces", "aria-label": `The last ${size} tokens` },
      ...tokens.map((member) =>
        h(
          "li",
          {},
          h("bdi", { class: "token" }, member.id === null ? "beginning" : shown(member.text)),
          h("span", { class: "value" }, formOf(member)),
        ),
      ),
    ),
    h(
      "p",
      { class: "hint" },
      again.length === 0
        ? "Nowhere else in this text."
        : `In this text at ${plural(again.length, "other place")} too, with the same rows: `,
      ...again.slice(0, LISTED).flatMap((position) => link(`token ${position}`, () => go(position))),
    ),
    table(
      ["Head", "Row", ...("norm" in (heads[0] ?? {}) ? ["Norm"] : []), "Hit by others"],
      heads.map((head, i) => [
        String(i + 1),
        "rows" in head ? `${count(head.hash)} of ${count(head.rows)}` : count(head.hash),
        ...("norm" in head ? [head.norm.toFixed(2)] : []),
        head.others === 0 ? "none" : count(head.others),
      ]),
    ),
  ];
  const hits = heads.flatMap(({ collisions }, i) =>
    collisions.map(({ position, text }) =>
      h(
        "li",
        {},
        h("span", { class: "value" }, `head ${i + 1}`),
        h("bdi", { class: "token" }, shown(text)),
        link(`token ${position}`, () => go(position)),
      ),
    ),
  );
  if (hits.length > 0) {
    const all = heads.reduce((sum, { others }) => sum + others, 0);
    const some = all > hits.length ? `, ${hits.length} of ${count(all)}` : "";
    parts.push(folded(`Collisions in this text${some}`, h("ul", { class: "pieces" }, ...hits)));
  }
  return section(`The last ${size} tokens`, ...parts);
}

/** What a token counts as: its compressed form, where that is known. */
function formOf(member: Pick<Member, "id" | "compressed"> & { form?: string }): string {
  const number = `id ${count(member.compressed)}`;
  return member.form && member.id !== null ? `as “${shown(member.form)}”, ${number}` : number;
}

function addresses(ngrams: readonly Ngram[]): HTMLElement {
  const rows = ngrams.flatMap(({ tokens, heads }) =>
    heads.map(({ record }, i) => [
      `${tokens.length} tokens, head ${i + 1}`,
      `${count(record.offset)} to ${count(record.offset + record.bytes - 1)} of ${record.file} (${bytes(record.bytes)})`,
    ]),
  );
  return table(["Row of", "Bytes"], rows);
}
