// The list of edits from one visit to the next, in IndexedDB, for each model its own: tokens and layers of another model
// mean something else.

import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import { isRecord } from "../storage";
import type { Edit } from "./protocol";

/** `off`: none applies, whatever their own switches say. */
export type Kept = { edits: readonly Edit[]; off: boolean };

/** The list of a model that is not the one in use. */
export type OtherList = { model: string; kept: Kept };

interface Schema extends DBSchema {
  /** By the model's hash. */
  lists: { key: string; value: Kept };
}

export class EditsArchive {
  readonly #db: Promise<IDBPDatabase<Schema>>;

  constructor(name = "xylem-edits") {
    this.#db = openDB<Schema>(name, 1, {
      upgrade(db) {
        db.createObjectStore("lists");
      },
    });
    // Each use says that there is none.
    this.#db.catch(() => undefined);
  }

  async get(model: string): Promise<Kept | null> {
    const kept: unknown = await (await this.#db).get("lists", model);
    // The engine checks the edits themselves at every use.
    if (!isRecord(kept) || !Array.isArray(kept.edits)) return null;
    return { edits: kept.edits as Edit[], off: kept.off === true };
  }

  async put(model: string, kept: Kept): Promise<void> {
    await (await this.#db).put("lists", kept, model);
  }

  /** The lists of all models but one, as far as they hold something. */
  async others(model: string): Promise<OtherList[]> {
    const models = (await (await this.#db).getAllKeys("lists")).filter((other) => other !== model);
    const lists = await Promise.all(models.map(async (other) => ({ model: other, kept: await this.get(other) })));
    return lists.filter((list): list is OtherList => list.kept !== null && list.kept.edits.length > 0);
  }

  async remove(model: string): Promise<void> {
    await (await this.#db).delete("lists", model);
  }
}
