// Edits as the engine takes and gives them. `docs/edits.md` describes the file; only what the page handles is spelt out.

export const METHODS = ["one_to_one", "pad", "copy", "subset", "average"] as const;
export type Method = (typeof METHODS)[number];

export type Scope = "row" | "phrase" | { position: number[] };

export type Recipe = { ids: number[]; method: Method; pad?: number };

/** One edit of a file. */
export type Edit = {
  on: boolean;
  label: string;
  scope: Scope;
  source: number[];
  target:
    | { tokens: Recipe }
    | { values: { dtype: string; rows: number; base64: string } }
    | { ngrams: { ids: number[] } | { factor: number } };
  strength: number;
  layers?: number[];
};

/** Whose rows a token gets. */
export type Gets =
  | { kind: "own" }
  | { kind: "token"; text: string }
  | { kind: "mean"; texts: string[] }
  | { kind: "values"; n: number };

/** What an edit does, token by token. Edits of one `group` change spellings of one name alike. */
export type Preview = {
  group: number;
  subject: string;
  with: string | null;
  tokens: { text: string; gets: Gets }[];
  methods: Method[];
  /** Of an edit of n-grams: these get the rows of others, or their own times a factor. */
  ngrams: { texts: string[]; gets: string[] | null; factor: number | null }[];
  layers: number[];
};

export type MakeOptions = {
  scope: Scope;
  strength: number;
  layers: number[] | null;
  method: Method | null;
  atStart: boolean;
};

/** A place in the prompt, counted in tokens, with some text around it. */
export type Occurrence = { position: number; before: string; after: string };

/** What is heard while the answers are weighed, or the unrelated texts read. */
export type Point = { type: "point"; strength: number; logProbs: number[] };
/** Two ends that the engine found itself: what it says without the edit and with it. */
export type Answers = { type: "answers"; answers: string[] };
export type ReadText = { type: "text"; text: string; kl: number | null };

export type TeachStep = { type: "step"; taken: number; likely: number };
/** `edits` is JSON; `before` and `after` are probabilities, `change` a share of the rows' length. */
export type Taught = { edits: string; steps: number; before: number; after: number; change: number };

/** The engine's methods for edits. A `file` is JSON, and lists of edits come back as JSON arrays. */
export type EditMethods = {
  makeEdits(subject: string, others: string[], options: MakeOptions): string;
  /** Gives `subject`'s n-grams the rows of those of `other`, or with null `factor` times their own. */
  makeNgramEdit(subject: string, other: string | null, factor: number): string;
  previewEdits(file: string): Preview[];
  checkEdits(file: Uint8Array): string;
  findOccurrences(messages: { role: string; content: string }[], maxTokens: number, source: Uint32Array): Occurrence[];
  weighAnswers(
    prompt: string,
    answers: string[],
    file: string,
    which: Uint32Array,
    strengths: Float32Array,
    onEvent: (event: Point | Answers) => void,
  ): Promise<void>;
  measureReach(file: string, onEvent: (event: ReadText) => void): Promise<void>;
  teachFact(
    subject: string,
    prompts: string[],
    answer: string,
    steps: number,
    onEvent: (event: TeachStep) => void,
  ): Promise<Taught>;
};

/** The file that holds `edits`, which were made for the model with this hash. Only edits of n-grams need version 2. */
export function fileOf(model: string, edits: readonly Edit[]): string {
  const version = edits.some(({ target }) => "ngrams" in target) ? 2 : 1;
  return JSON.stringify({ format: "xylem-edits", version, model, edits });
}
