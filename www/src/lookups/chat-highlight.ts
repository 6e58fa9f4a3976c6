// The token that is looked at, marked in the chat too: in what was asked and in the rendered answer. Where a token of the
// text can't be found for sure in what is shown (markup, parts of characters, turns that were dropped), nothing is marked.

import type { Turn } from "../conversation";
import type { Log } from "./log";

/** The name in `style/lookups.css`. */
const NAME = "lookup-token";
/** How far behind tokens that are not in the text the next one is looked for, in characters for each of them. */
const LOST_CHARACTERS = 8;

/** Characters of a message, from `start` to before `end`. */
export type Span = { start: number; end: number };

/** A text node of a rendered message, or a line of one, and where it stands in the message's source. */
type Piece = { node: Text; from: number; source: number; length: number };

export class ChatHighlight {
  readonly #log: Log;
  readonly #turns: () => readonly Turn[];
  /** Where each token stands: the turn and its characters. For this version of the log and of the answer. */
  #places: ({ turn: number; span: Span } | null)[] = [];
  #version = "";

  constructor(log: Log, turns: () => readonly Turn[]) {
    this.#log = log;
    this.#turns = turns;
  }

  /** Marks the token at `position`, or none. */
  mark(position: number | null): void {
    // Not every browser has them.
    if (!("highlights" in CSS)) return;
    CSS.highlights.delete(NAME);
    if (position === null || this.#log.file) return;
    const ranges = this.#ranges(position);
    if (ranges.length > 0) CSS.highlights.set(NAME, new Highlight(...ranges));
  }

  #ranges(position: number): Range[] {
    const turns = this.#turns();
    const version = `${this.#log.version.value}, ${turns.length} turns, ${turns.at(-1)?.content.length} characters`;
    if (this.#version !== version) {
      this.#version = version;
      this.#places = places(this.#log, turns);
    }
    const place = this.#places[position];
    const text = this.#log.tokens[position]?.text ?? "";
    const turn = place && turns[place.turn];
    if (!turn) return [];
    const article = document.querySelectorAll(".turns > article")[place.turn];
    const element = article?.querySelector(turn.role === "user" ? ".bubble" : ".markdown");
    if (!element) return [];
    const ranges = piecesOf(element, turn.content).flatMap(({ node, from, source, length }) => {
      const start = Math.max(place.span.start, source);
      const end = Math.min(place.span.end, source + length);
      if (start >= end) return [];
      const range = document.createRange();
      range.setStart(node, from + start - source);
      range.setEnd(node, from + end - source);
      return [range];
    });
    return isWithin(ranges.join(""), text) ? ranges : [];
  }
}

/** Of each token of the text where it stands in the conversation, whose last turn is the answer. */
function places(log: Log, turns: readonly Turn[]): ({ turn: number; span: Span } | null)[] {
  const texts = log.tokens.map(({ text }) => text);
  const prompt = texts.slice(0, log.promptTokens);
  const found: ({ turn: number; span: Span } | null)[] = texts.map(() => null);
  const whole = prompt.join("");
  let from = 0;
  const last = turns.length - 1;
  for (const [turn, { content }] of turns.slice(0, last).entries()) {
    const name = content.trim();
    const at = name ? whole.indexOf(name, from) : -1;
    if (at < 0) continue;
    from = at + name.length;
    const shift = content.indexOf(name) - at;
    let end = 0;
    for (const [i, text] of prompt.entries()) {
      const start = end;
      end += text.length;
      if (start >= from) break;
      if (end > at) {
        found[i] = { turn, span: { start: Math.max(start, at) + shift, end: Math.min(end, from) + shift } };
      }
    }
  }
  if (turns[last]?.role === "assistant") {
    const spans = spansIn(turns[last].content, texts.slice(log.promptTokens));
    for (const [i, span] of spans.entries()) {
      if (span) found[log.promptTokens + i] = { turn: last, span };
    }
  }
  return found;
}

/** Where the pieces `texts` of an answer stand in it. Those that are no text by themselves are in no place. */
export function spansIn(answer: string, texts: readonly string[]): (Span | null)[] {
  let at = 0;
  let lost = 0;
  return texts.map((text) => {
    const found = text.includes("\ufffd") || !text ? -1 : answer.indexOf(text, at);
    if (found < 0 || found - at > lost * LOST_CHARACTERS) {
      lost += 1;
      return null;
    }
    lost = 0;
    at = found + text.length;
    return { start: found, end: at };
  });
}

/** The text of a rendered message, in order, as far as it is found in its source. */
function piecesOf(element: Element, source: string): Piece[] {
  const pieces: Piece[] = [];
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  let at = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    // The language and the button of a block of code are the page's own words.
    if (!(node instanceof Text) || node.parentElement?.closest("figcaption")) continue;
    const whole = source.indexOf(node.data, at);
    // Within a list or a quotation the lines of one node have other characters between them.
    const lines = whole >= 0 ? [node.data] : node.data.split("\n");
    let from = 0;
    for (const line of lines) {
      const found = line ? source.indexOf(line, at) : -1;
      if (found >= 0) {
        pieces.push({ node, from, source: found, length: line.length });
        at = found + line.length;
      }
      from += line.length + 1;
    }
  }
  return pieces;
}

/** Whether `shown` is something, and what is left of `text` without its markup. */
function isWithin(shown: string, text: string): boolean {
  let at = 0;
  for (const character of shown) {
    const next = text.indexOf(character, at);
    if (next < 0) return false;
    at = next + character.length;
  }
  return shown.trim() !== "";
}
