// Stands in for `pkg/xylem.js` where a test needs what the real engine cannot be made to do: a set text, a slow download,
// a crash, a lost GPU. Which of them, the folder of the manifest says: `?model=fake/crash`.

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const INFO = {
  model: "Fake 1M",
  modelHash: "fake",
  licence: "Apache-2.0",
  backend: "cpu",
  adapter: "wasm, simd128",
  notice: null,
  contextLength: 8192,
  nLayers: 30,
  stemLayers: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
  engramLayers: [1],
  hiddenSize: 576,
  vocabSize: 49152,
  coreBytes: 103e6,
  tableBytes: 819e6,
  tablePages: 49152,
  gpuBytes: 0,
  wasmBytes: 150e6,
  cost: {
    core: 117e6,
    tables: 755e6,
    row_values_per_token: 15360,
    dense: 126e6,
    core_bytes: 103e6,
    read_bytes: 103e6,
    dense_bytes: 112e6,
    flops: 234e6,
    dense_flops: 252e6,
  },
  rows: {
    lookedUp: 1200,
    memory: 700,
    stored: 0,
    fetched: 500,
    requests: 31,
    bytesFetched: 9.1e6,
    stallMs: 412,
    bytesHeld: 9.1e6,
    recordBytes: 15840,
    tableBytes: 755e6,
  },
  engram: {
    lookedUp: 19200,
    memory: 12000,
    stored: 0,
    fetched: 7200,
    requests: 24,
    bytesFetched: 4.2e6,
    stallMs: 96,
    bytesHeld: 4.2e6,
    recordBytes: 580,
    tableBytes: 64e6,
  },
};

const MARKDOWN = `Plants drink through **xylem**: tubes of dead cells, open from end to end.

1. Water leaves the leaves.
2. The column above is *pulled* up; see [a page](https://example.org/xylem).

\`\`\`rust
fn rise(height: f32) -> f32 { height.sqrt() }
\`\`\`

| part | carries |
|---|---:|
| xylem | water |
| phloem | sugar |

> No pump is needed.`;

const HOSTILE = `<img src=x onerror="window.hit=1"> <script>window.hit=2</script>

[a](javascript:window.hit=3) [b](data:text/html,<script>window.hit=4</script>) ![c](https://tracker.invalid/p.png)
<a href="https://ok.invalid" onclick="window.hit=5">d</a> [e](JaVaScRiPt:window.hit=6) [f](/relative)

<iframe srcdoc="<script>parent.hit=7</script>"></iframe>

\`\`\`"><img src=x onerror=window.hit=8>
</code><img src=x onerror=window.hit=9>
\`\`\`
`;

export class Engine {
  #kind;
  #stopped = false;
  #answers = 0;
  #watching = false;

  prefetch() {}

  static async load(manifestUrl, { backend }, onProgress) {
    const engine = new Engine();
    engine.#kind = new URL(manifestUrl).pathname.split("/").at(-2);
    if (engine.#kind === "slow") {
      for (let done = 0; done <= 100; done += 1) {
        onProgress({ stage: "core", loadedBytes: done * 1e6, totalBytes: 100e6 });
        await sleep(100);
      }
    }
    if (engine.#kind === "no-gpu" && backend !== "cpu") throw new Error("GPU: the browser offers no adapter");
    onProgress({ stage: "ready", loadedBytes: 1, totalBytes: 1 });
    return engine;
  }

  info() {
    return INFO;
  }

  async chat(messages, settings, _edits, _knockOut, onEvent) {
    this.#stopped = false;
    this.#answers += 1;
    const question = messages.at(-1).content;
    if (this.#kind === "crash") throw new WebAssembly.RuntimeError("unreachable");
    if (this.#kind === "lost") throw new Error("GPU: the device was lost");
    if (this.#kind === "deaf") await new Promise(() => {});
    if (this.#kind === "flaky" && this.#answers === 1) throw new Error("the row store did not answer; try again");
    const whole =
      this.#kind === "markdown"
        ? MARKDOWN
        : this.#kind === "hostile"
          ? HOSTILE
          : this.#kind === "long"
            ? "word ".repeat(5000)
            : `${this.#answers}: ${question}\n\n~~~json\n${JSON.stringify({ messages, settings })}\n~~~`;
    const words = (said) => said.match(/\S+\s*/g) ?? [];
    const prompt = messages.flatMap(({ role, content }) => [`<|${role}|>`, ...words(content)]);
    const total = this.#kind === "markdown" ? prompt.length : 10;
    // What a step tells of its tokens; only one kind of text has tokens that are looked at.
    const step = (position, texts) => {
      if (!this.#watching || this.#kind !== "markdown") return;
      const seen = { tier: "memory", ms: 0, edited: [], contribution: null, gateOpen: null };
      const engram = [{ tier: "memory", ms: 0, edited: false, contribution: null, gate: null }];
      const tokens = texts.map((piece, id) => ({ id, text: piece, ...seen, engram }));
      onEvent({ type: "step", position, tokens, rowsMs: 0, forwardMs: 1 });
    };
    onEvent({ type: "prefill", done: total / 2, total });
    step(0, prompt);
    let text = "";
    let tokens = 0;
    for (const piece of whole.match(/\S*\s*/g)) {
      if (this.#stopped || tokens >= settings.maxTokens) break;
      text += piece;
      tokens += 1;
      onEvent({ type: "token", id: tokens, logProb: -1, text: piece });
      step(prompt.length + tokens - 1, [piece]);
      await sleep(this.#kind === "long" ? 50 : 1);
    }
    return {
      text,
      tokens: Array(tokens).fill(1),
      finish: this.#stopped ? "stopped" : tokens >= settings.maxTokens ? "length" : "stop",
      promptTokens: question.length,
      reusedTokens: 3,
      generatedTokens: tokens,
      timeToFirstTokenMs: 123,
      tokensPerSecond: 45.6,
      droppedTurns: this.#kind === "full" ? 2 : 0,
      seed: settings.seed ?? 7,
    };
  }

  async download() {}

  watch(on) {
    this.#watching = on;
  }

  async trace() {
    throw new Error("a look into the layers on a GPU is not supported (supported: the CPU backend)");
  }

  async card() {
    throw new Error("the stand-in has no layers");
  }

  // One token a name; the real engine's own tests say what edits do.
  makeEdits(subject, others, { scope, strength }) {
    const target = { tokens: { ids: [2], method: "one_to_one" } };
    return JSON.stringify([
      { on: true, label: `${subject} as ${others.join(" + ")}`, scope, source: [1], target, strength },
    ]);
  }

  previewEdits(file) {
    return JSON.parse(file).edits.map(({ label, layers }, group) => {
      const [subject, other] = label.split(" as ");
      const tokens = [{ text: ` ${subject}`, gets: { kind: "token", text: ` ${other}` } }];
      const methods = ["one_to_one", "pad", "copy", "subset", "average"];
      return { group, subject, with: other, tokens, ngrams: [], methods, layers: layers ?? INFO.stemLayers };
    });
  }

  stop() {
    this.#stopped = true;
  }
}

export default async function init() {}
