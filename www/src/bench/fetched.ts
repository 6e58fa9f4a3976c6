// Counts what this worker fetches. Nothing is counted before somebody asks.

import type { Fetched } from "./protocol";

let counted: Fetched | null = null;
let observer: PerformanceObserver | null = null;

function take(entries: PerformanceEntry[]): void {
  if (!counted) return;
  for (const entry of entries) {
    counted.requests += 1;
    counted.bytes += (entry as PerformanceResourceTiming).transferSize;
  }
}

/** All so far; the first time, as far as the browser still knows. */
export function fetched(): Fetched {
  if (!counted || !observer) {
    counted = { requests: 0, bytes: 0 };
    take(performance.getEntriesByType("resource"));
    observer = new PerformanceObserver((list) => take(list.getEntries()));
    observer.observe({ type: "resource" });
  }
  take(observer.takeRecords());
  return { ...counted };
}
