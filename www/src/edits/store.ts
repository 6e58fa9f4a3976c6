// The list of edits: its changes can be undone, and it is kept from visit to visit.

import { reasonOf } from "../format";
import { Signal } from "../signal";
import type { EditsArchive, Kept, OtherList } from "./archive";
import { type Edit, fileOf } from "./protocol";

const MAX_STEPS = 100;
/** As many as a file may hold. */
export const MAX_EDITS = 256;

const NOTHING: Kept = { edits: [], off: false };

export class EditsStore {
  readonly state = new Signal<Kept>(NOTHING);
  /** Why the list is not kept, if it is not. */
  readonly problem = new Signal<string | null>(null);
  readonly #archive: EditsArchive;
  #model: string | null = null;
  #opened: Promise<void> = Promise.resolve();
  #undo: Kept[] = [];
  #redo: Kept[] = [];
  /** Tells the model whose list has changed to the other tabs, which would else write over it. */
  readonly #tabs = new BroadcastChannel("xylem-edits");

  constructor(archive: EditsArchive) {
    this.#archive = archive;
    this.#tabs.addEventListener("message", ({ data }) => {
      if (data === this.#model) void this.#takeOver(data);
    });
  }

  /** The hash of the model that the list is for. */
  get model(): string | null {
    return this.#model;
  }

  get edits(): readonly Edit[] {
    return this.state.value.edits;
  }

  get canUndo(): boolean {
    return this.#undo.length > 0;
  }

  get canRedo(): boolean {
    return this.#redo.length > 0;
  }

  /** Brings back what was kept for a model. Ends when the list is there; an answer must wait for that. */
  open(model: string): Promise<void> {
    if (model !== this.#model) {
      this.#model = model;
      this.#undo = [];
      this.#redo = [];
      this.#opened = this.#restore(model);
    }
    return this.#opened;
  }

  /** What is kept for other models than the one in use. */
  async others(): Promise<OtherList[]> {
    return this.#model === null ? [] : this.#archive.others(this.#model);
  }

  removeOther(model: string): Promise<void> {
    return this.#archive.remove(model);
  }

  putOther({ model, kept }: OtherList): Promise<void> {
    return this.#archive.put(model, kept);
  }

  /** The list as a file, for what is to be done with it. */
  file(edits = this.edits): string {
    return fileOf(this.#model ?? "", edits);
  }

  /** What an answer is to be given with; null for no edits at all. */
  fileInUse(): string | null {
    const { edits, off } = this.state.value;
    return off || !edits.some(({ on }) => on) ? null : this.file();
  }

  setEdits(edits: readonly Edit[]): void {
    // A step to undo is a change.
    if (edits.length === this.edits.length && edits.every((edit, i) => edit === this.edits[i])) return;
    this.#change({ ...this.state.value, edits });
  }

  add(edits: readonly Edit[]): void {
    const all = [...this.edits, ...edits];
    if (all.length > MAX_EDITS) throw new Error(`The list holds at most ${MAX_EDITS} edits.`);
    this.#change({ edits: all, off: false });
  }

  /** Lets the edits with these labels apply. */
  switchOn(labels: ReadonlySet<string>): void {
    const { edits, off } = this.state.value;
    if (!off && edits.every(({ label, on }) => on || !labels.has(label))) return;
    this.#change({ edits: edits.map((edit) => (labels.has(edit.label) ? { ...edit, on: true } : edit)), off: false });
  }

  setOff(off: boolean): void {
    this.#change({ ...this.state.value, off });
  }

  undo(): void {
    this.#step(this.#undo, this.#redo);
  }

  redo(): void {
    this.#step(this.#redo, this.#undo);
  }

  #step(from: Kept[], to: Kept[]): void {
    const next = from.pop();
    if (!next) return;
    to.push(this.state.value);
    this.#set(next);
  }

  #change(next: Kept): void {
    this.#remember();
    this.#set(next);
  }

  #remember(): void {
    this.#undo.push(this.state.value);
    if (this.#undo.length > MAX_STEPS) this.#undo.shift();
    this.#redo = [];
  }

  /** Takes the list that another tab has kept. */
  async #takeOver(model: string): Promise<void> {
    const before = this.state.value;
    const kept = await this.#archive.get(model).catch(() => null);
    // A change made here meanwhile is the newer one.
    if (!kept || model !== this.#model || before !== this.state.value) return;
    this.#remember();
    this.state.set(kept);
  }

  #set(next: Kept): void {
    this.state.set(next);
    if (this.#model === null) return;
    const model = this.#model;
    this.#archive.put(model, next).then(
      () => {
        this.problem.set(null);
        this.#tabs.postMessage(model);
      },
      (cause) => this.problem.set(`The browser does not keep the edits: ${reasonOf(cause)}`),
    );
  }

  async #restore(model: string): Promise<void> {
    let kept: Kept | null = null;
    try {
      kept = await this.#archive.get(model);
    } catch (cause) {
      this.problem.set(`The browser does not keep the edits: ${reasonOf(cause)}`);
    }
    // Another model may have come meanwhile.
    if (this.#model === model) this.state.set(kept ?? NOTHING);
  }
}
