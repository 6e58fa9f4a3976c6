// What stays on this device from one visit to the next: whole files of bundles, and pages of their tables, in IndexedDB.
// The engine checks the hash of all that it gets from here, as if it came over the network.

import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import { reasonOf } from "./format";
import type { Archive, Kept } from "./protocol";

/** What belongs to the bundle last seen at an address. */
type Model = { manifest: Uint8Array; files: string[]; table: string };

interface Schema extends DBSchema {
  /** By the address of the manifest. */
  models: { key: string; value: Model };
  /** By hash, so that versions of a bundle share what did not change. */
  files: { key: string; value: Uint8Array };
  /** By the hash of the table's index, and number. */
  pages: { key: [string, number]; value: Uint8Array };
}

/** Pages are written together after so many milliseconds, or as soon as there are so many. */
const FLUSH_MS = 150;
const FLUSH_PAGES = 256;

/**
 * A store that fails keeps nothing from then on; the model then lives in memory alone. One that is full still gives what it
 * has, and takes more once it was cleared.
 */
export class DeviceArchive implements Archive {
  #db: Promise<IDBPDatabase<Schema> | null>;
  #notice: string | null = null;
  #full = false;
  #table = "";
  /** The files of the bundle in use that are kept or about to be. */
  #files = new Set<string>();
  #waiting = new Map<number, Uint8Array>();
  /** The pages of the table that are kept or about to be, as this tab knows. */
  #have = new Set<number>();
  #timer: ReturnType<typeof setTimeout> | null = null;
  #flushing = false;

  constructor(name = "xylem") {
    this.#db = openDB<Schema>(name, 1, {
      upgrade(db) {
        db.createObjectStore("models");
        db.createObjectStore("files");
        db.createObjectStore("pages");
      },
    }).catch((cause) => this.#fail(cause));
  }

  async manifest(url: string): Promise<Uint8Array | undefined> {
    return (await this.#do((db) => db.get("models", url)))?.manifest;
  }

  /** Makes `files` and `table` what is kept for `url`; what no bundle refers to any more is removed. */
  async begin(url: string, manifest: Uint8Array, files: string[], table: string): Promise<void> {
    this.#table = table;
    this.#files.clear();
    this.#have.clear();
    await this.#do(async (db) => {
      // By itself, so that room is made where there is none to write what comes next.
      const change = db.transaction(["models", "files", "pages"], "readwrite");
      const models = change.objectStore("models");
      await models.delete(url);
      const all = await models.getAll();
      const wanted = new Set([...files, ...all.flatMap((model) => model.files)]);
      const tables = new Set([table, ...all.map((model) => model.table)]);
      const store = change.objectStore("files");
      for (const hash of await store.getAllKeys()) if (!wanted.has(hash)) store.delete(hash);
      const pages = change.objectStore("pages");
      // From table to table: the keys of one follow each other.
      let cursor = await pages.openKeyCursor();
      while (cursor) {
        const [hash] = cursor.key;
        if (!tables.has(hash)) pages.delete(ofTable(hash));
        cursor = await cursor.continue([hash, Number.POSITIVE_INFINITY]);
      }
      await change.done;
    });
    await this.#write((db) => db.put("models", { manifest, files, table }, url));
    await this.#do(async (db) => {
      this.#files = new Set((await db.getAllKeys("files")).filter((hash) => files.includes(hash)));
      this.#have = new Set((await db.getAllKeys("pages", ofTable(table))).map(([, page]) => page));
    });
  }

  async file(hash: string): Promise<Uint8Array | undefined> {
    return this.#do((db) => db.get("files", hash));
  }

  keepFile(hash: string, bytes: Uint8Array): void {
    this.#files.add(hash);
    void this.#write((db) => db.put("files", bytes, hash)).then((written) => {
      if (!written) this.#files.delete(hash);
    });
  }

  /** The pages that are kept, `undefined` for the others. */
  async pages(numbers: Uint32Array): Promise<(Uint8Array | undefined)[]> {
    const found = await this.#do((db) => {
      const pages = db.transaction("pages").store;
      return Promise.all(
        Array.from(numbers, async (page) => {
          const bytes = this.#waiting.get(page) ?? (await pages.get([this.#table, page]));
          // Another tab may have kept it.
          if (bytes) this.#have.add(page);
          return bytes;
        }),
      );
    });
    return found ?? [];
  }

  keepPage(page: number, bytes: Uint8Array): void {
    if (this.#full) return;
    this.#waiting.set(page, bytes);
    this.#have.add(page);
    if (this.#waiting.size >= FLUSH_PAGES) void this.#flush();
    else this.#timer ??= setTimeout(() => void this.#flush(), FLUSH_MS);
  }

  forgetPage(page: number): void {
    this.#have.delete(page);
    void this.#do((db) => db.delete("pages", [this.#table, page]));
  }

  /** At most `limit` of the first `total` pages, the lowest that are not kept; none where nothing can be kept. */
  missing(total: number, limit: number): number[] {
    const pages: number[] = [];
    if (this.#notice !== null) return pages;
    for (let page = 0; page < total && pages.length < limit; page += 1) if (!this.#have.has(page)) pages.push(page);
    return pages;
  }

  kept(): Kept {
    return { files: this.#files.size, pages: this.#have.size, notice: this.#notice };
  }

  /** Removes everything, of all bundles. */
  async clear(): Promise<void> {
    this.#waiting.clear();
    this.#files.clear();
    this.#have.clear();
    await this.#do(async (db) => {
      const change = db.transaction(["models", "files", "pages"], "readwrite");
      for (const name of ["models", "files", "pages"] as const) change.objectStore(name).clear();
      await change.done;
      if (this.#full) this.#notice = null;
      this.#full = false;
    });
  }

  async #flush(): Promise<void> {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    // One at a time: what comes while pages are written must not write these again.
    if (this.#flushing) return;
    this.#flushing = true;
    while (this.#waiting.size > 0) {
      const pages = [...this.#waiting];
      const written = await this.#write(async (db) => {
        const change = db.transaction("pages", "readwrite");
        await Promise.all(pages.map(([page, bytes]) => change.store.put(bytes, [this.#table, page])));
        await change.done;
      });
      for (const [page, bytes] of pages) {
        if (!written) this.#have.delete(page);
        if (this.#waiting.get(page) === bytes) this.#waiting.delete(page);
      }
    }
    this.#flushing = false;
  }

  async #do<T>(work: (db: IDBPDatabase<Schema>) => Promise<T>): Promise<T | undefined> {
    const db = await this.#db;
    if (!db) return undefined;
    try {
      return await work(db);
    } catch (cause) {
      this.#fail(cause);
      return undefined;
    }
  }

  /** Whether it was written: not where there is no room left. */
  async #write(work: (db: IDBPDatabase<Schema>) => Promise<unknown>): Promise<boolean> {
    if (this.#full) return false;
    const written = await this.#do(async (db) => {
      await work(db);
      return true;
    });
    return written === true;
  }

  #fail(cause: unknown): null {
    if (cause instanceof DOMException && cause.name === "QuotaExceededError") {
      this.#full = true;
      this.#notice ??=
        "The browser cannot keep more of the model on this device (there is no room left); the rest is downloaded again next time.";
      return null;
    }
    this.#notice = `The browser cannot keep the model on this device (${reasonOf(cause)}); it is downloaded again next time.`;
    this.#db = Promise.resolve(null);
    this.#files.clear();
    this.#have.clear();
    return null;
  }
}

function ofTable(hash: string): IDBKeyRange {
  return IDBKeyRange.bound([hash, 0], [hash, Number.POSITIVE_INFINITY]);
}
