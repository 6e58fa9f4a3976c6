// The page "Edits" of the panel: the form, the list, and what is done with the list as a whole.

import { h, iconButton, keepFocus } from "../dom";
import type { EngineClient, EngineState } from "../engine";
import { reasonOf } from "../format";
import type { EngineInfo } from "../protocol";
import type { Asking } from "../side-by-side";
import { compareSection } from "./compare";
import { EditForm } from "./form";
import { galleryOf } from "./gallery";
import { type Group, groupsOf } from "./groups";
import { editItem, type ItemContext } from "./item";
import { limitsSection } from "./limits";
import { takeOld } from "./migrate";
import { ngramSection } from "./ngrams";
import { OtherModels } from "./other-models";
import type { Edit, Occurrence, Preview } from "./protocol";
import { shareSection } from "./share";
import type { EditsStore } from "./store";
import { teachSection } from "./teach";
import { weighSection } from "./weigh";

export type PanelActions = Asking & {
  /** Asks this in a new chat. */
  ask(question: string): void;
  useCpu(): void;
  /** Answers the last question again. */
  again(): void;
  /** Where tokens stand in what the model last read. */
  occurrences(source: readonly number[]): Promise<Occurrence[]>;
};

export class EditsPanel {
  readonly element: HTMLElement;
  readonly #store: EditsStore;
  readonly #engine: EngineClient;
  readonly #actions: PanelActions;
  readonly #form: EditForm;
  readonly #others: OtherModels;
  readonly #list = h("ul", { class: "edits", "aria-label": "Edits" });
  readonly #problem = h("p", { class: "problem", role: "alert", hidden: true });
  readonly #unusable = h("p", { class: "hint" });
  readonly #undo = iconButton("undo", "Undo the last change of the edits", () => this.#store.undo());
  readonly #redo = iconButton("redo", "Redo the change of the edits", () => this.#store.redo());
  readonly #apply = h("input", { type: "checkbox", id: "edits-apply" });
  readonly #bar: HTMLElement;
  /** To begin with. */
  readonly #first: HTMLElement;
  readonly #open = new Set<string>();
  /** As they are shown. */
  #groups: readonly Group[] = [];
  #drawing = 0;
  #phase: EngineState["phase"] | null = null;

  constructor(store: EditsStore, engine: EngineClient, actions: PanelActions) {
    this.#store = store;
    this.#engine = engine;
    this.#actions = actions;
    this.#others = new OtherModels(store);
    this.#form = new EditForm({
      make: (subject, others) => this.make(subject, others),
      preview: async (subject, others) => {
        const previews = await engine.call("previewEdits", store.file(await this.make(subject, others)));
        return previews.at(-1) ?? null;
      },
      add: (edits) => store.add(edits),
    });
    this.#apply.addEventListener("change", () => store.setOff(!this.#apply.checked));
    this.#bar = h(
      "div",
      { class: "edits-bar" },
      h("label", { class: "edit-switch" }, this.#apply, "Edits apply"),
      this.#undo,
      this.#redo,
      h("button", { type: "button", class: "button quiet", onclick: () => actions.again() }, "Answer again"),
    );
    const gallery = galleryOf(store, engine, (subject, others) => this.make(subject, others), actions.ask);
    this.#first = gallery.first;
    this.element = h(
      "div",
      { class: "edits-page" },
      this.#unusable,
      this.#form.element,
      this.#first,
      this.#bar,
      this.#problem,
      this.#list,
      h(
        "div",
        { class: "edits-sections" },
        ngramSection(store, engine),
        gallery.section,
        compareSection(store, engine, actions),
        weighSection(store, engine),
        teachSection(store, engine, actions.useCpu),
        shareSection(store, engine),
        this.#others.element,
        limitsSection(engine),
      ),
    );
    this.element.addEventListener("keydown", (event) => this.#key(event));
    store.state.watch(() => void this.#draw());
    store.problem.watch((problem) => this.#complain(problem));
    engine.state.watch((state) => {
      const dense = state.phase === "ready" && state.info.rows === null;
      this.#unusable.hidden = state.phase === "ready" && !dense;
      this.#unusable.textContent = dense
        ? "This model has no table, so there is nothing to edit."
        : "Edits can be made as soon as the model is loaded.";
      this.#form.disabled = dense || state.phase !== "ready";
      if (state.phase === this.#phase) return;
      this.#phase = state.phase;
      if (state.phase === "ready") void this.#opened(state.info);
      else void this.#draw();
    });
  }

  /** Begins an edit of `subject`. */
  begin(subject: string): void {
    this.#form.begin(subject);
  }

  /** The edits that give `subject` the rows of `others`, in both spellings. */
  async make(subject: string, others: string[]): Promise<Edit[]> {
    const options = { scope: "phrase" as const, strength: 1, layers: null, method: null, atStart: true };
    return JSON.parse(await this.#engine.call("makeEdits", subject, others, options)) as Edit[];
  }

  async #opened({ modelHash, rows }: EngineInfo): Promise<void> {
    await this.#store.open(modelHash);
    void this.#others.refresh();
    if (rows !== null) await takeOld(this.#store, (subject, others) => this.make(subject, others));
    await this.#draw();
  }

  #key(event: KeyboardEvent): void {
    const typing = event.target instanceof HTMLInputElement && event.target.type === "text";
    if (!(event.ctrlKey || event.metaKey) || event.altKey || typing || event.target instanceof HTMLTextAreaElement)
      return;
    const key = event.key.toLowerCase();
    if (key === "z" && !event.shiftKey) this.#store.undo();
    else if (key === "y" || key === "z") this.#store.redo();
    else return;
    event.preventDefault();
  }

  async #draw(): Promise<void> {
    this.#drawing += 1;
    const drawing = this.#drawing;
    const { edits, off } = this.#store.state.value;
    const { value: state } = this.#engine.state;
    const isEmpty = state.phase !== "ready" || edits.length === 0;
    this.#apply.checked = !off;
    this.#list.classList.toggle("off", off);
    keepFocus(
      this.element,
      () => {
        this.#bar.hidden = edits.length === 0 && !this.#store.canUndo && !this.#store.canRedo;
        this.#first.hidden = edits.length > 0;
        this.#undo.disabled = !this.#store.canUndo;
        this.#redo.disabled = !this.#store.canRedo;
        if (isEmpty) this.#list.replaceChildren();
      },
      () => this.#focusBar(),
    );
    if (isEmpty) return;
    try {
      const previews = await this.#engine.call("previewEdits", this.#store.file());
      if (drawing !== this.#drawing) return;
      this.#complain(this.#store.problem.value);
      this.#show(edits, previews, state.info);
    } catch (cause) {
      if (drawing === this.#drawing) this.#complain(reasonOf(cause));
    }
  }

  #show(edits: readonly Edit[], previews: readonly Preview[], info: EngineInfo): void {
    const groups = groupsOf(edits, previews);
    const context: ItemContext = {
      groups,
      stemLayers: info.stemLayers,
      engramLayers: info.engramLayers,
      open: this.#open,
      set: (change) => this.#store.setEdits(change(this.#store.edits)),
      occurrences: (source) => this.#actions.occurrences(source),
    };
    // The control that was just used is drawn anew, and should still have the focus; its entry may have moved.
    const [, from, control] = document.activeElement?.id.match(/^edit-(\d+)(-.*)/) ?? [];
    const shown = this.#groups[Number(from)];
    const to = groups.findIndex(({ edits: [first] }) => first && shown?.edits.includes(first));
    this.#groups = groups;
    keepFocus(
      this.#list,
      () => this.#list.replaceChildren(...groups.map((group, place) => editItem(group, place, context))),
      () => {
        // Of an entry that is gone the next one's control takes it, or the last one's.
        const places = [to < 0 ? Number(from) : to, groups.length - 1];
        const [next] = places.flatMap((place) => document.getElementById(`edit-${place}${control}`) ?? []);
        if (next?.checkVisibility()) next.focus();
        else this.#focusBar();
      },
    );
  }

  /** What was pressed is gone, or can do nothing more. */
  #focusBar(): void {
    const buttons = [this.#undo, this.#redo, this.#apply];
    buttons.find((button) => !button.disabled)?.focus();
  }

  #complain(problem: string | null): void {
    this.#problem.textContent = problem ?? "";
    this.#problem.hidden = problem === null;
  }
}
