// Builds the page and connects its parts.

import { App } from "./app";
import { ChatStore } from "./chat-store";
import { ChatView } from "./chat-view";
import { Composer } from "./composer";
import { savesData } from "./connection";
import { devicePanel } from "./device-panel";
import { h, icon, iconButton } from "./dom";
import { EditsArchive } from "./edits/archive";
import { EditsPanel } from "./edits/panel";
import { selectionButton } from "./edits/selection";
import { decode, download, encode, offerLinked, takeLinked } from "./edits/share";
import { EditsStore } from "./edits/store";
import { EngineClient, type EngineState } from "./engine";
import { leftChats } from "./left-chats";
import { LoadView } from "./load-view";
import { lookups } from "./lookups/install";
import { modelAddress } from "./model-address";
import { modelPanel } from "./model-panel";
import { Panel } from "./panel";
import { SettingsStore, sampling } from "./settings";
import { settingsPanel } from "./settings-panel";
import { Toast } from "./toast";

const EXAMPLES = [
  "What is the capital of Spain?",
  "Why is the sky blue?",
  "Explain photosynthesis to a child.",
  "Write a short poem about a tree in winter.",
  "Name five things to pack for a hike.",
  "Which language is spoken in Brazil?",
];

const byId = (id: string): HTMLElement => {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element #${id}`);
  return element;
};

const address = modelAddress();
const settings = new SettingsStore();
const chats = new ChatStore();
const engine = new EngineClient(address.manifestUrl);
const edits = new EditsStore(new EditsArchive());
const app = new App(engine, settings, chats, edits, {
  changed: () => refresh(),
  announce: (sentence) => chat.announce(sentence),
});

const chat = new ChatView(() => app.conversation, byId("welcome"), {
  regenerate: () => {
    app.regenerate();
    chat.toEnd();
  },
  editLast: (question, text) => app.editLast(question, text),
});
const composer = new Composer({
  send: (text) => ask(text),
  stop: () => app.stop(),
  draft: (text) => {
    if (!savesData()) engine.prefetch(text);
  },
  editLast: () => chat.editLastQuestion(),
});
const loadView = new LoadView({
  load: () => app.load(),
  loadOnCpu: () => app.setBackend("cpu"),
  cancel: () => engine.unload(),
  leave: () => composer.takeFocus(),
});
const toast = new Toast(() => composer.takeFocus());

const asking = {
  lastPrompt: () => app.lastPrompt(),
  promptOf: (question: string) => app.promptOf(question),
  sampling: () => sampling(settings.value),
};
const editsPanel = new EditsPanel(edits, engine, {
  ...asking,
  again() {
    app.regenerate();
    showChat();
  },
  ask(question) {
    newChat();
    ask(question);
    showChat();
  },
  useCpu: () => app.setBackend("cpu"),
  async occurrences(source) {
    const messages = app.lastPrompt();
    if (!messages) return [];
    return engine.call("findOccurrences", messages, settings.value.maxTokens, Uint32Array.from(source));
  },
});
const editSelection = selectionButton(chat.element, (name) => {
  panel.show("edits");
  editsPanel.begin(name);
});

const about = byId("about") as HTMLDialogElement;
about.querySelector("button")?.append(icon("close"));
const openAbout = (): void => about.showModal();

const chip = h("button", { type: "button", class: "chip", onclick: () => panel.show("model") });
const panelButton = iconButton("panel", "Panel: model and settings", () => panel.toggle());
byId("bar").append(
  chip,
  iconButton("plus", "New chat", newChat),
  iconButton("help", "How it works", openAbout),
  panelButton,
);

byId("main").append(
  chat.element,
  h("div", { class: "dock" }, chat.jumpButton, editSelection, toast.element, loadView.element, composer.element),
);
byId("tour").addEventListener("click", () => startTour());
byId("examples").append(
  ...EXAMPLES.map((text) => h("button", { type: "button", class: "example", onclick: () => ask(text) }, text)),
);
byId("examples").after(
  leftChats(chats, {
    open: openLeft,
    removed(undo) {
      toast.show("The chat is deleted.", "Undo", undo);
      composer.focus();
    },
  }),
);

const { element: lookupsView, startTour } = lookups({
  app,
  engine,
  settings,
  composer,
  asking,
  edits: {
    shared: () => encode(edits),
    export: () => download(edits),
    take: (part) => offerEdits(decode(part)),
    inUse: () => edits.fileInUse(),
  },
  show: () => panel.show("lookups"),
  showEdits: () => panel.show("edits"),
  ask,
  say: (sentence, action, run) => toast.show(sentence, action, run),
});
const panel = new Panel(
  [
    { id: "lookups", label: "Lookups", content: lookupsView },
    { id: "edits", label: "Edits", content: editsPanel.element },
    {
      id: "model",
      label: "Model",
      content: modelPanel(settings, engine.state, devicePanel(engine), address.shown, {
        setBackend: (backend) => app.setBackend(backend),
        restart: () => app.load(),
        unload: () => app.unload(),
      }),
    },
    { id: "settings", label: "Settings", content: settingsPanel(settings) },
  ],
  panelButton,
);
document.body.append(panel.element);

function ask(text: string): void {
  app.send(text);
  chat.toEnd();
}

function newChat(): void {
  if (app.conversation.turns.length === 0) return;
  const old = app.newChat();
  toast.show("A new chat has begun.", "Undo", () => app.restore(old));
  composer.focus();
}

/** Opens a chat that another tab left; the one before can be had back. */
function openLeft(chat: unknown): void {
  const before = app.conversation.turns.length > 0;
  app.openLeft(chat);
  composer.focus();
  if (before) offerLeft("The chat before is kept.", "Back to it");
}

function offerLeft(sentence: string, action: string): void {
  const last = chats.left.value.at(-1);
  if (last) toast.show(sentence, action, () => openLeft(last));
}

/** On a narrow screen the panel would cover the answer. */
function showChat(): void {
  if (panel.covers) panel.close();
}

/** The address may bring edits; they wait for the model, which checks them. */
function openLinkedEdits(): void {
  const linked = takeLinked();
  if (linked) offerEdits(linked);
}

function offerEdits(linked: Uint8Array): void {
  let offered = false;
  engine.state.watch((state) => {
    if (offered || state.phase !== "ready") return;
    offered = true;
    void offerLinked(linked, state.info.modelHash, engine, edits, () => panel.show("edits"));
  });
}

function refresh(): void {
  composer.setBusy(app.busy, app.stopping);
  chat.refresh();
  if (!app.kept) toast.show("The browser does not keep this chat: its storage is full or turned off.");
}

/** What a phone has room for, and what follows it elsewhere. */
function chipText(state: EngineState): [short: string, more: string] {
  switch (state.phase) {
    case "idle":
      return ["No model", ""];
    case "loading": {
      const { loadedBytes, totalBytes } = state.progress ?? { loadedBytes: 0, totalBytes: 0 };
      return ["Loading", totalBytes > 0 ? ` ${Math.round((100 * loadedBytes) / totalBytes)}%` : ""];
    }
    case "ready":
      return [state.info.backend.toUpperCase(), ` · ${state.info.adapter}`];
    case "failed":
      return ["Failed", ""];
  }
}

settings.watch(({ theme }) => {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
});
engine.state.watch((state) => {
  const [short, more] = chipText(state);
  chip.replaceChildren(short, h("span", { class: "wide" }, more));
  chip.title = `${chip.textContent}. Show the model`;
  chip.dataset.phase = state.phase;
  loadView.update(state, settings.value.backend !== "cpu");
});

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  const typing = event.target instanceof Element && event.target.matches("input, textarea, select");
  const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  if (event.key === "Escape") {
    if (panel.covers) panel.close();
    else app.stop();
  } else if (event.key === "/" && plain && !typing) {
    event.preventDefault();
    composer.focus();
  } else if (event.key === "?" && plain && !typing) {
    openAbout();
  }
});
addEventListener("pagehide", () => app.leave());

app.start();
openLinkedEdits();
addEventListener("hashchange", openLinkedEdits);
chat.draw();
// An empty chat shows them itself.
if (app.conversation.turns.length > 0 && toast.element.hidden) offerLeft("Another tab left a chat.", "Open it");
// A reader who asked the browser to save data decides on a hundred megabytes by hand.
if (!savesData()) app.load();
composer.takeFocus();

// Where there are no service workers (private windows, plain HTTP) the page just needs its host.
navigator.serviceWorker?.register(new URL("./offline.js", import.meta.url)).catch((cause: unknown) => {
  console.warn("The page will not open without its host:", cause);
});
