// What the reader may choose. Each number is described once: its bounds serve the panel and the check of stored values.

import type { Backend, SamplingSettings } from "./protocol";
import { Signal } from "./signal";
import { isRecord, read, watchOtherTabs, write } from "./storage";

export type Theme = "auto" | "light" | "dark";

export type Settings = SamplingSettings & {
  system: string;
  backend: Backend;
  theme: Theme;
};

export type NumberKey = "temperature" | "topP" | "topK" | "repetitionPenalty" | "maxTokens";

export type NumberField = {
  key: NumberKey;
  label: string;
  hint: string;
  min: number;
  max: number;
  step: number;
};

export const NUMBER_FIELDS: readonly NumberField[] = [
  {
    key: "temperature",
    label: "Temperature",
    hint: "0 always takes the likeliest token; higher is more varied.",
    min: 0,
    max: 2,
    step: 0.05,
  },
  {
    key: "topP",
    label: "Top-p",
    hint: "Keep the likeliest tokens that hold this share of the probability.",
    min: 0.05,
    max: 1,
    step: 0.05,
  },
  { key: "topK", label: "Top-k", hint: "Keep at most so many tokens; 0 sets no limit.", min: 0, max: 200, step: 1 },
  {
    key: "repetitionPenalty",
    label: "Repetition penalty",
    hint: "Above 1, tokens already written become less likely.",
    min: 1,
    max: 2,
    step: 0.05,
  },
  {
    key: "maxTokens",
    label: "Longest answer",
    hint: "In tokens; about three quarters of a word each.",
    min: 16,
    max: 4096,
    step: 16,
  },
];

const BACKENDS: readonly Backend[] = ["auto", "gpu", "cpu"];
const THEMES: readonly Theme[] = ["auto", "light", "dark"];
const KEY = "settings";
const MAX_SEED = 2 ** 32 - 1;
export const MAX_SYSTEM_CHARACTERS = 8000;

// A small model wanders at the usual 0.7–1.0 and repeats itself without a penalty.
export const DEFAULTS: Settings = {
  temperature: 0.3,
  topP: 0.9,
  topK: 40,
  repetitionPenalty: 1.1,
  maxTokens: 512,
  seed: null,
  system: "",
  backend: "auto",
  theme: "auto",
};

/** The next value that the engine takes: some numbers have to be whole. */
export function clampTo(field: NumberField, value: number): number {
  const fitting = Number.isInteger(field.step) ? Math.round(value) : value;
  return Math.min(field.max, Math.max(field.min, fitting));
}

/** A seed is a whole number of 32 bits; anything else means a new one for every answer. */
export function parseSeed(text: string): number | null {
  const seed = Number(text);
  return /^\d+$/.test(text.trim()) && seed <= MAX_SEED ? seed : null;
}

/** What can be used of a stored value, and the defaults for the rest. */
export function restore(stored: unknown): Settings {
  const settings = { ...DEFAULTS };
  if (!isRecord(stored)) return settings;
  for (const field of NUMBER_FIELDS) {
    const value = stored[field.key];
    if (typeof value === "number" && Number.isFinite(value)) settings[field.key] = clampTo(field, value);
  }
  if (typeof stored.seed === "number") settings.seed = parseSeed(String(stored.seed));
  if (typeof stored.system === "string") settings.system = stored.system.slice(0, MAX_SYSTEM_CHARACTERS);
  settings.backend = BACKENDS.find((backend) => backend === stored.backend) ?? DEFAULTS.backend;
  settings.theme = THEMES.find((theme) => theme === stored.theme) ?? DEFAULTS.theme;
  return settings;
}

/**
 * The settings of all tabs. What a link brings holds for this visit, and is kept only as the reader says so: by a change of
 * it, or as a whole.
 */
export class SettingsStore {
  readonly #now: Signal<Settings>;
  #kept: Settings;
  #borrowed: Partial<Settings> = {};

  constructor() {
    this.#kept = restore(read(KEY));
    this.#now = new Signal(this.#kept);
    watchOtherTabs(KEY, () => {
      this.#kept = restore(read(KEY));
      this.#tell();
    });
  }

  get value(): Settings {
    return this.#now.value;
  }

  /** Those that differ from the reader's own in this visit. */
  get borrowed(): (keyof Settings)[] {
    return Object.keys(this.#borrowed) as (keyof Settings)[];
  }

  watch(watcher: (value: Settings) => void): void {
    this.#now.watch(watcher);
  }

  change(change: Partial<Settings>): void {
    this.#kept = { ...this.#kept, ...change };
    for (const key of Object.keys(change) as (keyof Settings)[]) delete this.#borrowed[key];
    write(KEY, this.#kept);
    this.#tell();
  }

  borrow(settings: Partial<Settings>): void {
    const all = Object.entries({ ...this.#borrowed, ...settings });
    this.#borrowed = Object.fromEntries(all.filter(([key, value]) => value !== this.#kept[key as keyof Settings]));
    this.#tell();
  }

  /** Back to the reader's own. */
  giveBack(): void {
    this.#borrowed = {};
    this.#tell();
  }

  keepBorrowed(): void {
    this.change(this.#borrowed);
  }

  #tell(): void {
    this.#now.set({ ...this.#kept, ...this.#borrowed });
  }
}

/** The part of the settings that the engine takes. */
export function sampling(settings: Settings): SamplingSettings {
  const { temperature, topK, topP, repetitionPenalty, maxTokens, seed } = settings;
  return { temperature, topK, topP, repetitionPenalty, maxTokens, seed };
}
