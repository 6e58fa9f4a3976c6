// The speed of a download over the last seconds, and the time that is left.

const WINDOW_MS = 5000;

export class Rate {
  #samples: { time: number; bytes: number }[] = [];

  add(time: number, bytes: number): void {
    this.#samples.push({ time, bytes });
    while (this.#samples.length > 2 && (this.#samples[0]?.time ?? 0) < time - WINDOW_MS) this.#samples.shift();
  }

  /** Null until half a second was seen. */
  bytesPerSecond(): number | null {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (!first || !last || last.time - first.time < 500) return null;
    return (1000 * (last.bytes - first.bytes)) / (last.time - first.time);
  }
}
