// Brings the view of lookups onto the page: its tab, its link, its tour.

import type { App } from "../app";
import type { Composer } from "../composer";
import type { EngineClient } from "../engine";
import { reasonOf } from "../format";
import type { Settings } from "../settings";
import type { Asking } from "../side-by-side";
import type { Signal } from "../signal";
import { ChatHighlight } from "./chat-highlight";
import { firstColumn, placeIn } from "./columns";
import { knockOuts } from "./knock-outs";
import { fromHash, toHash } from "./share";
import { Tour, type TourStep } from "./tour";
import { LookupsView } from "./view";

export type Page = {
  app: App;
  engine: EngineClient;
  settings: Signal<Settings>;
  composer: Composer;
  edits: {
    /** What a link is to bring along; null for none. Throws for edits that have no room in a link. */
    shared(): string | null;
    /** Offers the reader what a link brought, which may be anything. */
    take(part: string): void;
    /** What an answer is to be given with; null for no edits at all. */
    inUse(): string | null;
  };
  asking: Asking;
  /** Shows the tab. */
  show(): void;
  ask(question: string): void;
  say(sentence: string): void;
};

const EXAMPLE = "What is the capital of Spain?";

export function lookups(page: Page): LookupsView {
  const tour = new Tour(steps(page, () => view));
  let highlight: ChatHighlight | null = null;
  const view = new LookupsView(page.engine, {
    share: () => share(page, view),
    tour: () => tour.start(),
    looked: (position) => highlight?.mark(position),
  });
  highlight = new ChatHighlight(view.log, () => page.app.conversation.turns);
  document.body.append(tour.element);
  view.element.append(knockOuts(page.engine, page.asking, page.edits.inUse));
  const shared = fromHash(location.hash);
  if (shared) {
    page.settings.set({ ...page.settings.value, ...shared.settings });
    page.composer.fill(shared.question);
    if (shared.show) view.show(shared.show);
    if (shared.cell) view.pin(shared.cell);
    if (shared.edits !== null) page.edits.take(shared.edits);
    page.say("A link brought this question and its settings. Send it to see what it shows.");
    // Only what the reader does next counts.
    history.replaceState(null, "", location.pathname + location.search);
  }
  return view;
}

/** Copies the link; gives the reason if it can't. */
async function share({ app, settings, edits }: Page, view: LookupsView): Promise<string | null> {
  const question = app.conversation.turns.findLast(({ role }) => role === "user")?.content ?? "";
  try {
    const hash = toHash({
      question,
      settings: settings.value,
      edits: edits.shared(),
      show: view.quantity,
      cell: view.pinned,
    });
    await navigator.clipboard.writeText(new URL(hash, location.href).href);
    return null;
  } catch (cause) {
    return reasonOf(cause);
  }
}

function steps(page: Page, view: () => LookupsView): TourStep[] {
  const quantity = (id: string) => (): void => {
    page.show();
    view().show(id);
  };
  return [
    {
      title: "A text is a row of tokens",
      text:
        "A token is a word or a part of one. Here each token of the conversation is a line, and each of the model's layers a " +
        "column. Ask something, and the grid grows while the answer is written.",
      target: ".grid",
      before: () => {
        page.show();
        if (page.app.conversation.turns.length === 0) page.ask(EXAMPLE);
      },
    },
    {
      title: "Some layers look things up",
      text:
        "The tall cells are STEM layers. There a part of the computation is gone: the layer takes the token's row out of a " +
        "table. The colour says where the row came from: memory, this device, the network, or an edit of yours. Diamonds, " +
        "in a model that has them, are Engram layers: they look up the last tokens together.",
      target: ".legend",
      before: quantity("tier"),
    },
    {
      title: "How much a layer says",
      text:
        "Choose another quantity: how much each feed-forward block added to the state of the text, or how far its gate was " +
        "open. The gate decides, by the context, which parts of a row come through.",
      target: "#quantity",
      before: quantity("contribution"),
    },
    {
      title: "Pin a cell",
      text:
        "Click a cell, or press Enter on it. The card shows where the row lies in the files, which rows are most like it, and " +
        "which words this contribution makes likelier.",
      target: ".lookups .box",
      before: () => {
        page.show();
        const { log, pinned } = view();
        if (!pinned && log.tokens.length > 0) {
          view().pin(placeIn(log.shape, Math.max(0, log.tokens.length - 1), firstColumn(log.shape)));
        }
      },
    },
    {
      title: "See where it was decided",
      text:
        "Trace the text to see what was expected after each token, and which layers spoke for the one that came. Then change " +
        "what a name means under Edits, ask again, and look at the difference.",
      target: ".lookups .actions",
      before: () => page.show(),
    },
  ];
}
