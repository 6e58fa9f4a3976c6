// The view of lookups: controls, grid and text, and below them what is known of the pinned cell.

import { h, keepFocus } from "../dom";
import type { EngineClient } from "../engine";
import { bytes, plural, reasonOf } from "../format";
import type { LinkBox } from "../link-box";
import type { EngineInfo } from "../protocol";
import { read, write } from "../storage";
import { CellCards } from "./cell-cards";
import { columnIndex, firstColumn, KIND_NAMES, NO_SHAPE, type Place, placeIn, shapeOf } from "./columns";
import { EXAMPLES } from "./examples";
import { Grid } from "./grid";
import { legendOf } from "./legend";
import { Log } from "./log";
import { Meters } from "./meters";
import { QUANTITIES, type Quantity, type QuantityId, shown, wordsOf } from "./quantities";
import { Strip } from "./strip";
import { MAX_FILE_BYTES, parseTrace, traceJson } from "./trace";

const KEEP_UP_MS = 200;
/** The name of the trace that comes with the page. */
const EXAMPLE = "An example, made beforehand";
/** So much of the card comes into sight when a cell is pinned, in pixels. */
const CARD_IN_SIGHT = 180;

export type ViewActions = {
  /** A link to this state. */
  link: LinkBox;
  tour(): void;
  /** Hears which token is looked at, if one is. */
  looked(position: number | null): void;
};

export class LookupsView {
  readonly element: HTMLElement;
  readonly log = new Log();
  readonly #engine: EngineClient;
  readonly #looked: ViewActions["looked"];
  readonly #grid: Grid;
  readonly #strip: Strip;
  readonly #meters: Meters;
  readonly #readout = h("output", { class: "readout", id: "lookup-readout", "aria-live": "polite" });
  readonly #note = h("p", { class: "note", role: "status", hidden: true });
  /** How far a trace is; too much to be read aloud. */
  readonly #progress = h("p", { class: "note", hidden: true });
  /** Whose text is in view, where it is not the chat's. */
  readonly #source = h("p", { class: "hint", hidden: true });
  readonly #onGpu = h("p", { class: "hint", hidden: true });
  readonly #legend = h("div", { class: "legend" });
  readonly #hint = h("p", { class: "hint" });
  readonly #select: HTMLSelectElement;
  readonly #watch: HTMLInputElement;
  readonly #trace: HTMLButtonElement;
  readonly #export: HTMLButtonElement;
  readonly #back: HTMLButtonElement;
  readonly #another: HTMLButtonElement;
  readonly #empty: HTMLElement;
  readonly #unseen: HTMLElement;
  readonly #body: HTMLElement;
  readonly #cards: CellCards;
  readonly #metersBox: HTMLDetailsElement;
  #info: EngineInfo | null = null;
  #quantity: Quantity = QUANTITIES[0] as Quantity;
  #pinned: Place | null = null;
  #wanted: Place | null = null;
  #hovered: Place | null = null;
  #busy = false;
  #frame = 0;
  #timer = 0;
  #exampleTried = false;
  #example = 0;
  #watching = false;
  /** Whether an answer was written that nobody watched. */
  #missed = false;
  #compared = false;
  /** What the legend was made for. */
  #fitted: unknown = null;

  constructor(engine: EngineClient, actions: ViewActions) {
    this.#engine = engine;
    this.#looked = actions.looked;
    this.#meters = new Meters(engine);
    this.#grid = new Grid(this.log, this.#quantity, {
      hover: (place) => this.#hover(place),
      pin: (place) => this.#choose(place),
    });
    this.#strip = new Strip(this.log, {
      hover: (position) => {
        this.#grid.highlight(position);
        this.#hover(position === null ? null : this.#firstOf(position));
      },
      choose: (position) => this.#choose(this.#pinned ? { ...this.#pinned, position } : this.#firstOf(position)),
    });
    this.#select = h(
      "select",
      { class: "field", id: "quantity", onchange: () => this.show(this.#select.value) },
      ...QUANTITIES.map(({ id, label }) => h("option", { value: id }, label)),
    );
    this.#watch = h("input", {
      type: "checkbox",
      checked: read("watch") !== false,
      onchange: () => {
        write("watch", this.#watch.checked);
        this.updateWatch();
      },
    });
    const button = (label: string, onclick: () => void): HTMLButtonElement =>
      h("button", { type: "button", class: "button quiet", onclick }, label);
    this.#trace = button("Trace the text", () => void this.#runTrace());
    this.#export = button("Export", () => void this.#save());
    this.#back = button("Back to the chat", () => this.#close());
    this.#another = button("Another example", () => void this.openExample(true, 1));
    const openFile = (): HTMLButtonElement => button("Open a trace…", () => file.click());
    const file = h("input", {
      type: "file",
      accept: ".json,application/json",
      hidden: true,
      "aria-label": "Trace file",
    });
    file.addEventListener("change", () => {
      const [chosen] = file.files ?? [];
      if (chosen) void this.open(chosen);
      file.value = "";
    });
    this.#empty = h(
      "div",
      { class: "lookups-empty" },
      h(
        "p",
        {},
        "Ask something, and watch: each token of the text becomes a line here, each of the model's layers a column.",
      ),
      h(
        "div",
        { class: "row wrap" },
        button("Show an example", () => void this.openExample()),
        openFile(),
      ),
      h("p", { class: "hint" }, "A trace that was exported can be dropped here too."),
    );
    this.#unseen = h(
      "div",
      { class: "lookups-empty", hidden: true },
      h("p", {}, "The last answer was written while nobody watched. The model can read the text again, to show it."),
      h(
        "div",
        { class: "row wrap" },
        button("Show the last answer", () => void this.#runTrace()),
        openFile(),
      ),
    );
    this.#cards = new CellCards(this.log, {
      ask: ({ position, layer }) => engine.call("card", position, layer),
      pin: (place) => this.pin(place),
      changed: (problem) => {
        if (problem !== null) this.#say(reasonOf(problem));
        this.#draw();
      },
    });
    this.#metersBox = h(
      "details",
      { class: "box", ontoggle: () => this.#drawMeters() },
      h("summary", {}, h("h2", {}, "Meters")),
      this.#meters.element,
    );
    this.#body = h(
      "div",
      { class: "lookups-body" },
      this.#strip.element,
      this.#grid.element,
      this.#readout,
      h("div", { class: "row wrap actions" }, this.#trace, this.#export, openFile(), this.#another, this.#back),
    );
    this.element = h(
      "div",
      { class: "lookups" },
      h(
        "div",
        { class: "row wrap" },
        h("label", { class: "switch" }, this.#watch, "Watch answers"),
        button("Tour", actions.tour),
        actions.link.button,
        file,
      ),
      actions.link.element,
      h(
        "div",
        { class: "setting" },
        h("div", { class: "row colours" }, h("label", { for: "quantity" }, "Colours show"), this.#select),
        this.#hint,
      ),
      this.#legend,
      this.#source,
      this.#empty,
      this.#unseen,
      this.#body,
      this.#onGpu,
      this.#note,
      this.#progress,
      this.#cards.element,
      this.#metersBox,
    );
    this.#drop();
    this.show(String(read("quantity")));
    engine.onEvent = (event) => {
      if (event.type !== "step" && event.type !== "prefill") return;
      if (this.log.file?.name === EXAMPLE) this.#close();
      if (this.log.file) return;
      if (event.type === "step") {
        this.log.step(event);
      } else {
        this.#compared = engine.comparing;
        // What nobody watches may be another text than the one before.
        if (!this.#watching && this.log.tokens.length > 0) this.log.clear();
        this.log.prompt(event.total);
      }
    };
    engine.result.watch((result) => {
      this.#missed = result !== null && this.log.tokens.length === 0;
      if (this.#wanted && result) this.pin(this.#wanted);
      this.#draw();
    });
    engine.state.watch((state) => {
      const info = state.phase === "ready" ? state.info : null;
      const isNew = info && (info.model !== this.#info?.model || this.log.shape.layers === 0);
      if (state.phase === "loading" || state.phase === "idle") {
        this.#forget();
        this.#missed = false;
      }
      this.#info = info;
      if (info && isNew && !this.log.file) this.log.model(info);
      this.#draw();
    });
    this.log.version.watch(() => this.#changed());
    // It comes into sight with a size, and goes out of it with none.
    new ResizeObserver(() => this.updateWatch()).observe(this.element);
    new MutationObserver(() => this.#grid.refresh()).observe(document.documentElement, {
      attributeFilter: ["data-theme"],
    });
  }

  get quantity(): QuantityId {
    return this.#quantity.id;
  }

  get pinned(): Place | null {
    return this.#pinned;
  }

  /** Colours the grid by the quantity with this name, if there is one. */
  show(id: string): void {
    this.#quantity = QUANTITIES.find((quantity) => quantity.id === id) ?? this.#quantity;
    write("quantity", this.#quantity.id);
    this.#select.value = this.#quantity.id;
    this.#hint.textContent = this.#quantity.hint;
    this.#legend.replaceChildren(...legendOf(this.#quantity, this.log.shape));
    this.#grid.quantity = this.#quantity;
    this.#hover(this.#hovered);
  }

  /** Pins this cell of the next answer, as soon as it is there. */
  want(place: Place): void {
    this.#wanted = place;
  }

  /** Pins a cell, or waits for it. */
  pin(place: Place): void {
    if (!this.log.tokens[place.position] || columnIndex(this.log.shape, place) < 0) {
      this.#wanted = place;
      return;
    }
    this.#wanted = null;
    this.#pinned = place;
    this.#cards.forget();
    this.#grid.pinned = place;
    this.#strip.reveal(place.position);
    this.#hover(place);
    this.#draw();
    if (!this.log.file) void this.#cards.ask(place);
  }

  /** Pins a cell that the reader chose, and lets the beginning of its card be seen, if there is room beside the grid. */
  #choose(place: Place): void {
    this.pin(place);
    const page = this.element.parentElement;
    if (!page) return;
    const view = page.getBoundingClientRect();
    const grid = this.#grid.element.getBoundingClientRect();
    const top = Math.min(this.#cards.place.top + CARD_IN_SIGHT - view.bottom, grid.top - view.top);
    const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth";
    if (top > 0) page.scrollBy({ top, behavior });
  }

  /** Reads a trace from a file, which may hold anything. */
  async open(file: File): Promise<void> {
    try {
      if (file.size > MAX_FILE_BYTES) throw new Error("The file is too large for a trace.");
      this.#open(file.name, await file.text());
    } catch (cause) {
      this.#say(reasonOf(cause));
    }
  }

  /** Runs the text again for all that a trace tells, unless that takes the weights once more. */
  traceIfCheap(): void {
    const { log } = this;
    if (this.#info?.backend === "cpu" && log.file === null && log.tokens.length > 0 && !log.isTraced)
      void this.#runTrace();
  }

  /** Shows a trace that comes with the page, made beforehand, or one `further` on; the next answer takes its place. */
  async openExample(wanted = true, further = 0): Promise<void> {
    this.#exampleTried = true;
    const next = (this.#example + further) % EXAMPLES.length;
    try {
      const { default: trace } = (await import(new URL(`./${EXAMPLES[next]}`, import.meta.url).href)) as {
        default: unknown;
      };
      if (this.log.tokens.length > 0 && this.log.file?.name !== EXAMPLE) return;
      this.#example = next;
      this.#open(EXAMPLE, JSON.stringify(trace));
    } catch (cause) {
      if (wanted) this.#say(`The example could not be shown: ${reasonOf(cause)}`);
    }
  }

  #open(name: string, json: string): void {
    const trace = parseTrace(json);
    this.#forget();
    this.log.open(name, trace);
    this.#keepUp();
    this.#say("");
  }

  #close(): void {
    this.#forget();
    this.log.clear(this.#info ? shapeOf(this.#info.nLayers, this.#info.stemLayers, this.#info.engramLayers) : NO_SHAPE);
    this.#keepUp();
    this.#say("");
  }

  #forget(): void {
    this.#pinned = null;
    this.#hovered = null;
    this.#cards.forget();
    this.#grid.pinned = null;
    this.#looked(null);
  }

  /** Steps are told only while somebody sees it. An answer that begins at once needs this as soon as the view is shown. */
  updateWatch(): void {
    const watching = this.#watch.checked && this.element.checkVisibility();
    if (watching !== this.#watching) {
      this.#watching = watching;
      this.#engine.watch(watching);
    }
    this.#draw();
  }

  /** Whose text is in view; nothing if it is that of the chat. */
  #sourceText(): string {
    const { file, tokens } = this.log;
    if (!file)
      return this.#compared && tokens.length > 0
        ? "The text in view is the last one of a comparison, not the chat's."
        : "";
    if (file.name === EXAMPLE) return `${EXAMPLE}; your own question takes its place.`;
    const { model, backend } = file.trace;
    return `${file.name}: ${plural(tokens.length, "token")} of ${model.name}, computed on ${backend}.`;
  }

  /** The token's first cell that looks something up. */
  #firstOf(position: number): Place {
    return placeIn(this.log.shape, position, firstColumn(this.log.shape));
  }

  #say(sentence: string): void {
    this.#note.textContent = sentence;
    this.#note.hidden = !sentence;
  }

  #hover(place: Place | null): void {
    this.#hovered = place;
    this.#looked(place?.position ?? this.#pinned?.position ?? null);
    this.#strip.mark(place?.position ?? null, this.#pinned?.position ?? null);
    const token = place && this.log.tokens[place.position];
    const words = token
      ? this.#words(place)
      : "Point at a cell, or move with the arrow keys. A click, or Enter, opens its card.";
    // It is read aloud whenever it is set.
    if (this.#readout.textContent !== words) this.#readout.textContent = words;
  }

  #words(place: Place): string {
    const token = this.log.tokens[place.position];
    if (!token) return "";
    const { shape } = this.log;
    const column = shape.columns[columnIndex(shape, place)];
    if (!column) return "";
    const name = token.id < 0 ? "a token from before" : shown(token.text);
    return `${name} · layer ${place.layer}, ${KIND_NAMES[column.kind]} · ${wordsOf(this.#quantity, token, column)}`;
  }

  async #runTrace(): Promise<boolean> {
    if (this.#busy) return false;
    this.#busy = true;
    this.#say(this.#isOnGpu ? "Loading the weights for the CPU, then tracing…" : "Tracing…");
    this.#draw();
    let done = false;
    try {
      const head = await this.#engine.look("trace", [], (part) => {
        if (this.log.file) return;
        this.log.part(part);
        this.#say("");
        this.#progress.hidden = false;
        this.#progress.textContent = `Tracing: ${part.position + part.tokens.length} of ${plural(this.log.tokens.length, "token")}`;
      });
      this.log.head = head;
      if (!this.log.file) this.log.promptTokens = head.prompt_tokens;
      done = this.log.isTraced;
      this.#say(done ? "" : "The trace gave way to an answer.");
    } catch (cause) {
      this.#say(reasonOf(cause));
    }
    this.#busy = false;
    this.#progress.hidden = true;
    this.#keepUp();
    // Now it can be seen what the cell's layer computed.
    if (done && this.#pinned && this.#cards.isOutdated && !this.log.file) void this.#cards.ask(this.#pinned);
    return done;
  }

  /** Whether the text in view was run by a GPU. */
  get #isOnGpu(): boolean {
    return this.#info?.backend === "gpu" && this.log.file === null;
  }

  async #save(): Promise<void> {
    if (!this.log.head || !this.log.isTraced) await this.#runTrace();
    const { head } = this.log;
    const whole = head && this.log.whole(head);
    if (!whole) return;
    const url = URL.createObjectURL(new Blob([traceJson(whole)], { type: "application/json" }));
    h("a", { href: url, download: "trace.json" }).click();
    URL.revokeObjectURL(url);
  }

  #drop(): void {
    const { element } = this;
    element.addEventListener("dragover", (event) => {
      event.preventDefault();
      element.classList.add("dropping");
    });
    for (const name of ["dragleave", "drop"])
      element.addEventListener(name, () => element.classList.remove("dropping"));
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      const [file] = event.dataTransfer?.files ?? [];
      if (file) void this.open(file);
    });
  }

  /** While an answer is written the view keeps up in steps, so that drawing takes little of the answer's time. */
  #changed(): void {
    this.#timer ||= setTimeout(() => this.#keepUp(), KEEP_UP_MS);
  }

  #keepUp(): void {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#grid.changed();
    if (this.#hovered) this.#hover(this.#hovered);
    this.#draw();
  }

  /** At the next frame, and only if somebody sees it. */
  #draw(): void {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      const { log } = this;
      this.#fit();
      const some = log.tokens.length > 0;
      keepFocus(
        this.element,
        () => this.#offer(some),
        () => (some ? this.#grid.focus() : this.#select.focus()),
      );
      const source = this.#sourceText();
      if (this.#source.textContent !== source) this.#source.textContent = source;
      this.#source.hidden = !source;
      this.#onGpu.hidden = !this.#isOnGpu || log.isTraced || (!some && !this.#missed);
      if (this.#info && !this.#onGpu.hidden) {
        this.#onGpu.textContent =
          "The GPU doesn't show its layers. To trace the text, the CPU runs it once more, with the weights loaded a second " +
          `time (${bytes(this.#info.coreBytes)} of memory, until the model is unloaded); its numbers differ from the GPU's by ` +
          "rounding. Where rows come from, how long they take and which are edited is seen without that.";
      }
      if (!this.element.checkVisibility()) {
        this.#looked(null);
        return;
      }
      // While the model loads there is something to look at.
      if (!some && !this.#info && !this.#exampleTried) void this.openExample(false);
      this.#strip.draw();
      this.#grid.refresh();
      this.#strip.mark(this.#hovered?.position ?? null, this.#pinned?.position ?? null);
      this.#cards.draw(this.#pinned);
      this.#drawMeters();
    });
  }

  /** Shows what can be done; `some`: there are tokens in view. */
  #offer(some: boolean): void {
    const { log } = this;
    this.#unseen.hidden = some || !this.#missed || this.#busy;
    this.#empty.hidden = some || this.#missed;
    this.#body.hidden = !some;
    this.#cards.element.hidden = !some;
    this.#back.hidden = !log.file;
    this.#another.hidden = log.file?.name !== EXAMPLE;
    const cannot = this.#busy || log.file !== null || !this.#info || !some;
    this.#trace.disabled = cannot || log.isTraced;
    this.#export.disabled = this.#busy || !some || (log.file === null && !this.#info);
  }

  /** The legend and the choice of quantities, once it is known which kinds of layers there are. */
  #fit(): void {
    if (this.#fitted === this.log.shape) return;
    this.#fitted = this.log.shape;
    const { columns } = this.log.shape;
    for (const option of this.#select.options) {
      const quantity = QUANTITIES.find(({ id }) => id === option.value);
      option.hidden = columns.length > 0 && !columns.some(({ kind }) => quantity?.kinds.includes(kind));
      option.disabled = option.hidden;
    }
    const chosen = this.#select.selectedOptions[0];
    this.show(chosen?.hidden ? (QUANTITIES[0]?.id ?? "") : this.#quantity.id);
  }

  #drawMeters(): void {
    if (this.#metersBox.open) this.#meters.show(this.log, this.#info);
  }
}
