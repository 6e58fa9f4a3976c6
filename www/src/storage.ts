// Storage of the browser that may be full, forbidden or hold anything: nothing here throws, and what is read is unknown.

const PREFIX = "xylem.";

/** `localStorage` is that of all tabs; `sessionStorage` is the tab's own, and stays when it is reloaded. */
type Where = "localStorage" | "sessionStorage";

export function read(key: string, where: Where = "localStorage"): unknown {
  try {
    const text = globalThis[where].getItem(PREFIX + key);
    return text === null ? null : JSON.parse(text);
  } catch {
    return null;
  }
}

/** False if the browser would not keep it. */
export function write(key: string, value: unknown, where: Where = "localStorage"): boolean {
  try {
    globalThis[where].setItem(PREFIX + key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Calls `changed` when another tab has written `key`. */
export function watchOtherTabs(key: string, changed: () => void): void {
  addEventListener("storage", (event) => {
    if (event.key === PREFIX + key) changed();
  });
}

export function remove(key: string): void {
  try {
    localStorage.removeItem(PREFIX + key);
  } catch {
    // What cannot be written was never there.
  }
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
