// The grid of tokens (down) and layers (across): a canvas as large as its window, which draws the rows in sight alone.

import { h } from "../dom";
import { type Column, columnIndex, firstColumn, isSame, type Kind, type Place, placeIn } from "./columns";
import type { Log } from "./log";
import { drawMark, type Quantity, shown } from "./quantities";

export type GridEvents = {
  /** The cell under the pointer or the cursor; null when the pointer leaves. */
  hover(place: Place | null): void;
  pin(place: Place): void;
};

const ROW = 18;
const HEAD = 26;
/** Of the window's width, what the tokens' text gets, in pixels at most and at least. */
const TEXT_SHARE = 0.28;
const TEXT_LIMITS = [72, 150] as const;
const SCROLLBAR = 10;

export class Grid {
  readonly element: HTMLElement;
  readonly #canvas = h("canvas", { class: "grid-canvas", "aria-hidden": "true" });
  readonly #spacer = h("div", { class: "grid-spacer" });
  readonly #window: HTMLElement;
  readonly #log: Log;
  readonly #events: GridEvents;
  #quantity: Quantity;
  #cursor: Place | null = null;
  #pinned: Place | null = null;
  #hovered: Place | null = null;
  #frame = 0;
  /** Whether the newest token stays in sight. */
  #follow = true;

  constructor(log: Log, quantity: Quantity, events: GridEvents) {
    this.#log = log;
    this.#quantity = quantity;
    this.#events = events;
    this.#window = h(
      "div",
      {
        class: "grid-window",
        tabindex: 0,
        role: "application",
        "aria-roledescription": "grid of tokens and layers",
        "aria-label": "Lookups: tokens down, layers across. Arrow keys move, Enter pins a cell",
        "aria-describedby": "lookup-readout",
      },
      this.#canvas,
      this.#spacer,
    );
    this.element = h("div", { class: "grid" }, this.#window);
    this.#window.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#window.addEventListener("keydown", (event) => this.#key(event));
    this.#window.addEventListener("focus", () => this.#move(this.#cursor ?? this.#pinned ?? this.#first()));
    this.#canvas.addEventListener("pointermove", (event) => this.#hover(this.#at(event)));
    this.#canvas.addEventListener("pointerleave", () => this.#hover(null));
    this.#canvas.addEventListener("click", (event) => {
      const place = this.#at(event);
      if (place) this.#choose(place);
    });
    new ResizeObserver(() => this.refresh()).observe(this.#window);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.refresh());
  }

  focus(): void {
    this.#window.focus();
  }

  set quantity(quantity: Quantity) {
    this.#quantity = quantity;
    this.refresh();
  }

  /** Marks a cell that was pinned, or none, and brings it into sight. */
  set pinned(place: Place | null) {
    this.#pinned = place;
    if (place) {
      this.#cursor = place;
      this.#reveal(place.position);
    }
    this.refresh();
  }

  /** Marks a token that is hovered elsewhere. */
  highlight(position: number | null): void {
    this.#hovered = position === null ? null : { position, layer: -1, engram: false };
    this.refresh();
  }

  reveal(position: number): void {
    this.#reveal(position);
    this.refresh();
  }

  /** Draws at the next frame, however often it is called; nothing is drawn while it is hidden. */
  refresh(): void {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#window.clientWidth > 0) this.#draw();
    });
  }

  /** To be called when the log has changed. */
  changed(): void {
    const count = this.#log.tokens.length;
    if (this.#cursor && this.#cursor.position >= count) this.#cursor = null;
    if (this.#pinned && this.#pinned.position >= count) this.#pinned = null;
    if (count === 0) this.#follow = true;
    this.refresh();
  }

  #first(): Place {
    const { tokens, shape } = this.#log;
    return placeIn(shape, Math.max(0, tokens.length - 1), firstColumn(shape));
  }

  #scrolled(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.#window;
    this.#follow = scrollHeight - scrollTop - clientHeight < 2 * ROW;
    this.refresh();
  }

  #reveal(position: number): void {
    const { scrollTop, clientHeight } = this.#window;
    const [top, bottom] = [position * ROW, (position + 1) * ROW];
    if (top < scrollTop) this.#window.scrollTop = top;
    else if (bottom > scrollTop + clientHeight - HEAD) this.#window.scrollTop = bottom - clientHeight + HEAD;
  }

  #hover(place: Place | null): void {
    if (isSame(place, this.#hovered)) return;
    this.#hovered = place;
    this.#events.hover(place ?? this.#cursor);
    this.refresh();
  }

  #choose(place: Place): void {
    this.#cursor = place;
    this.#pinned = place;
    this.#events.pin(place);
    this.refresh();
  }

  /** Moves the cursor `columns` to the right of `place`. */
  #move(place: Place, columns = 0): void {
    const { tokens, shape } = this.#log;
    if (tokens.length === 0) return;
    const clamp = (value: number, most: number): number => Math.min(Math.max(0, value), most);
    const column = clamp(columnIndex(shape, place) + columns, shape.columns.length - 1);
    const cursor = placeIn(shape, clamp(place.position, tokens.length - 1), column);
    this.#cursor = cursor;
    this.#reveal(cursor.position);
    this.#events.hover(cursor);
    this.refresh();
  }

  #key(event: KeyboardEvent): void {
    const from = this.#cursor ?? this.#first();
    const to = (position: number): Place => ({ ...from, position });
    const { position } = from;
    const page = Math.max(1, Math.floor((this.#window.clientHeight - HEAD) / ROW) - 1);
    const last = this.#log.tokens.length - 1;
    switch (event.key) {
      case "ArrowUp":
        this.#move(to(position - 1));
        break;
      case "ArrowDown":
        this.#move(to(position + 1));
        break;
      case "ArrowLeft":
        this.#move(from, -1);
        break;
      case "ArrowRight":
        this.#move(from, 1);
        break;
      case "PageUp":
        this.#move(to(position - page));
        break;
      case "PageDown":
        this.#move(to(position + page));
        break;
      case "Home":
        this.#move(to(0));
        break;
      case "End":
        this.#move(to(last));
        break;
      case "Enter":
      case " ":
        if (last >= 0) this.#choose(from);
        break;
      default:
        return;
    }
    event.preventDefault();
  }

  /** The cell at the pointer; on a token's text the first that looks something up. */
  #at(event: PointerEvent | MouseEvent): Place | null {
    const box = this.#canvas.getBoundingClientRect();
    const { shape } = this.#log;
    const { columns } = shape;
    const [x, y] = [event.clientX - box.left, event.clientY - box.top - HEAD];
    const position = Math.floor((y + this.#window.scrollTop) / ROW);
    if (y < 0 || position < 0 || position >= this.#log.tokens.length || columns.length === 0) return null;
    const { left, cell } = this.#columns();
    const column = x < left ? firstColumn(shape) : Math.min(columns.length - 1, Math.floor((x - left) / cell));
    return placeIn(shape, position, column);
  }

  #columns(): { left: number; cell: number } {
    const width = this.#window.clientWidth - SCROLLBAR;
    const left = Math.round(Math.min(TEXT_LIMITS[1], Math.max(TEXT_LIMITS[0], width * TEXT_SHARE)));
    return { left, cell: Math.min(26, (width - left) / Math.max(1, this.#log.shape.columns.length)) };
  }

  #draw(): void {
    const { tokens, shape } = this.#log;
    const height = HEAD + tokens.length * ROW;
    // The canvas stands before the spacer and stays in sight.
    const { clientWidth, clientHeight } = this.#window;
    this.#spacer.style.height = `${Math.max(0, height - clientHeight)}px`;
    if (this.#follow && this.#pinned === null) this.#window.scrollTop = this.#window.scrollHeight;
    const ratio = devicePixelRatio;
    const [width, high] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
    if (this.#canvas.width !== width || this.#canvas.height !== high) {
      this.#canvas.width = width;
      this.#canvas.height = high;
      this.#canvas.style.width = `${clientWidth}px`;
      this.#canvas.style.height = `${clientHeight}px`;
    }
    const pen = this.#canvas.getContext("2d");
    if (!pen) return;
    const colours = palette(this.#window);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, clientWidth, clientHeight);
    const { left, cell } = this.#columns();
    const first = Math.floor(this.#window.scrollTop / ROW);
    const last = Math.min(tokens.length, first + Math.ceil((clientHeight - HEAD) / ROW) + 1);
    pen.font = `12px ${colours.mono}`;
    pen.textBaseline = "middle";
    for (let position = first; position < last; position += 1) {
      const token = tokens[position];
      if (!token) continue;
      const y = HEAD + position * ROW - this.#window.scrollTop;
      this.#row(pen, colours, position, y, left, cell);
      for (const [i, column] of shape.columns.entries()) {
        this.#cell(pen, colours, column, position, left + i * cell, y, cell);
      }
    }
    this.#head(pen, colours, left, cell, clientWidth);
  }

  #row(pen: CanvasRenderingContext2D, colours: Palette, position: number, y: number, left: number, cell: number): void {
    const token = this.#log.tokens[position];
    if (!token) return;
    const width = left + cell * this.#log.shape.columns.length;
    if (this.#hovered?.position === position || this.#pinned?.position === position) {
      pen.fillStyle = colours.soft;
      pen.fillRect(0, y, width, ROW);
    }
    // Where the model's own text begins.
    if (position === this.#log.promptTokens && position > 0) {
      pen.fillStyle = colours.line;
      pen.fillRect(0, y - 0.5, width, 1);
    }
    pen.fillStyle = position < this.#log.promptTokens ? colours.muted : colours.ink;
    pen.save();
    pen.beginPath();
    pen.rect(4, y, left - 10, ROW);
    pen.clip();
    pen.fillText(token.id < 0 ? "…" : shown(token.text), 4, y + ROW / 2 + 0.5);
    pen.restore();
  }

  #cell(
    pen: CanvasRenderingContext2D,
    colours: Palette,
    column: Column,
    position: number,
    x: number,
    y: number,
    cell: number,
  ): void {
    const token = this.#log.tokens[position];
    if (!token) return;
    const paint = this.#quantity.kinds.includes(column.kind) ? this.#quantity.paint(token, column) : null;
    const wide = cell - (cell > 6 ? 1 : 0.5);
    pen.fillStyle = paint?.colour ?? colours.empty;
    const { top, high } = fillShape(pen, column.kind, x, y, wide, ROW);
    if (paint?.mark && cell >= 5) {
      pen.strokeStyle = "#fff";
      pen.lineWidth = 1.4;
      // In a diamond there is less room.
      const inset = column.kind === "engram" ? wide / 5 : 0;
      drawMark(pen, paint.mark, x + inset, top + inset, wide - 2 * inset, high - 2 * inset);
    }
    const isAt = (place: Place | null): boolean =>
      place?.position === position && place.layer === column.layer && place.engram === (column.kind === "engram");
    if (isAt(this.#pinned) || isAt(this.#hovered) || (isAt(this.#cursor) && document.activeElement === this.#window)) {
      pen.strokeStyle = colours.ink;
      pen.lineWidth = isAt(this.#pinned) ? 2.5 : 1.5;
      pen.strokeRect(x - 0.5, y + 0.5, wide + 1, ROW - 1);
    }
  }

  /** The layers' numbers, and which of them read a table. */
  #head(pen: CanvasRenderingContext2D, colours: Palette, left: number, cell: number, width: number): void {
    pen.fillStyle = colours.ground;
    pen.fillRect(0, 0, width, HEAD);
    pen.font = `11px ${colours.mono}`;
    const every = cell > 17 ? 1 : 5;
    for (const [i, { kind, layer }] of this.#log.shape.columns.entries()) {
      const x = left + i * cell;
      pen.fillStyle = { stem: colours.sap, engram: colours.wood, dense: colours.muted }[kind];
      if (kind === "engram") fillShape(pen, kind, x, HEAD - 11, cell - 1, 11);
      else pen.fillRect(x, kind === "stem" ? HEAD - 9 : HEAD - 5, cell - 1, kind === "stem" ? 7 : 3);
      if (kind !== "engram" && layer % every === 0) {
        pen.fillStyle = colours.muted;
        pen.fillText(String(layer), x, 9);
      }
    }
    pen.fillStyle = colours.muted;
    pen.fillText("layer", 4, 9);
  }
}

/** STEM cells are as high as their row, dense ones half as high; those of n-grams are diamonds. */
function fillShape(
  pen: CanvasRenderingContext2D,
  kind: Kind,
  x: number,
  y: number,
  wide: number,
  row: number,
): { top: number; high: number } {
  const [top, high] = kind === "dense" ? [y + row / 4 + 1, row / 2 - 2] : [y + 1, row - 2];
  if (kind !== "engram") {
    pen.fillRect(x, top, wide, high);
    return { top, high };
  }
  pen.beginPath();
  pen.moveTo(x + wide / 2, top);
  pen.lineTo(x + wide, top + high / 2);
  pen.lineTo(x + wide / 2, top + high);
  pen.lineTo(x, top + high / 2);
  pen.fill();
  return { top, high };
}

type Palette = Record<"ink" | "muted" | "line" | "soft" | "sap" | "wood" | "ground" | "empty" | "mono", string>;

/** The colours of the theme, as registered properties give them: resolved. */
function palette(element: HTMLElement): Palette {
  const style = getComputedStyle(element);
  const of = (name: string): string => style.getPropertyValue(`--grid-${name}`);
  return {
    ink: of("ink"),
    muted: of("muted"),
    line: of("line"),
    soft: of("soft"),
    sap: of("sap"),
    wood: of("wood"),
    ground: of("ground"),
    empty: of("empty"),
    mono: style.getPropertyValue("--mono") || "monospace",
  };
}
