// Brings the view of lookups onto the page: its tab, its link, its tour.

import type { App } from "../app";
import type { Composer } from "../composer";
import type { EngineClient } from "../engine";
import { type Link, LinkBox } from "../link-box";
import type { SettingsStore } from "../settings";
import type { Asking } from "../side-by-side";
import { ChatHighlight } from "./chat-highlight";
import { placeIn, strongestColumn } from "./columns";
import { knockOuts } from "./knock-outs";
import { shown } from "./quantities";
import { fromHash, toHash } from "./share";
import { Tour, type TourStep } from "./tour";
import { LookupsView } from "./view";

export type Page = {
  app: App;
  engine: EngineClient;
  settings: SettingsStore;
  composer: Composer;
  edits: {
    /** What a link is to bring along; no part of it if there is nothing. */
    shared(): { part: string | null } & Pick<Link, "edits" | "taught">;
    /** Gives them as a file. */
    export(): void;
    /** Offers the reader what a link brought, which may be anything. */
    take(part: string): void;
    /** What an answer is to be given with; null for no edits at all. */
    inUse(): string | null;
  };
  asking: Asking;
  /** Shows the tab. */
  show(): void;
  /** Shows the tab of edits. */
  showEdits(): void;
  ask(question: string): void;
  /** A short message, with at most one thing to do about it. */
  say(sentence: string, action?: string, run?: () => void): void;
};

const EXAMPLE = "What is the capital of Spain?";
/** The token of it that the tour looks at. */
const NAME = " Spain";

export function lookups(page: Page): { element: HTMLElement; startTour: () => void } {
  const tour = new Tour(
    steps(page, () => view),
    page.show,
  );
  let highlight: ChatHighlight | null = null;
  const view = new LookupsView(page.engine, {
    link: new LinkBox(
      "Copy link",
      () => linkTo(page, view),
      () => page.edits.export(),
    ),
    tour: () => tour.start(),
    looked: (position) => highlight?.mark(position),
  });
  highlight = new ChatHighlight(view.log, () => page.app.conversation.turns);
  document.body.append(tour.element);
  view.element.append(knockOuts(page.engine, page.asking, page.edits.inUse));
  openLink(page, view);
  addEventListener("hashchange", () => openLink(page, view));
  return { element: view.element, startTour: () => tour.start() };
}

/** Takes up what the address says, if it says something. An answer under way goes on, and what is written comes back. */
function openLink(page: Page, view: LookupsView): void {
  const shared = fromHash(location.hash);
  if (!shared) return;
  page.settings.borrow(shared.settings);
  const takeBack = page.composer.fill(shared.question);
  if (shared.show) view.show(shared.show);
  if (shared.cell) view.want(shared.cell);
  if (shared.edits !== null) page.edits.take(shared.edits);
  const borrows = page.settings.borrowed.length > 0;
  const said = `A link brought this question${borrows ? " and its settings" : ""}. Send it to see what it shows.`;
  if (takeBack) {
    page.say(`${said} What you have written comes back then.`, "Undo", () => {
      takeBack();
      page.settings.giveBack();
    });
  } else if (borrows) {
    page.say(said, "Keep my settings", () => page.settings.giveBack());
  } else {
    page.say(said);
  }
  // Only what the reader does next counts.
  history.replaceState(null, "", location.pathname + location.search);
}

function linkTo({ app, settings, edits }: Page, view: LookupsView): Link {
  const question = app.conversation.lastQuestion?.content ?? "";
  const { part, ...which } = edits.shared();
  const hash = toHash({ question, settings: settings.value, edits: part, show: view.quantity, cell: view.pinned });
  return { address: new URL(hash, location.href).href, ...which };
}

function steps(page: Page, view: () => LookupsView): TourStep[] {
  const quantity = (id: string) => (): void => {
    page.show();
    view().show(id);
  };
  const pinned = (): string => {
    const { pinned: place, log } = view();
    const token = place && log.tokens[place.position];
    return token ? `of “${shown(token.text)}”` : "of a token";
  };
  return [
    {
      title: "A line for every word",
      text: () =>
        "The model reads tokens: words, or parts of words. Each line of this grid is one token, each column one of the " +
        "model's layers, which work from left to right. Lines come as the answer is written.",
      target: ".grid",
      before: () => {
        page.show();
        view().updateWatch();
        if (page.app.conversation.turns.length === 0) page.ask(EXAMPLE);
      },
    },
    {
      title: "Some layers look things up",
      text: () => {
        const { engram } = view().log.shape;
        return (
          "Tall cells are STEM layers. They don't compute what is known of a token: they take its row out of a table, like " +
          "an entry in a dictionary. The colour says where the row came from." +
          (engram.length > 0 ? " Diamonds are Engram layers: they look the last two and three tokens up together." : "")
        );
      },
      target: ".legend",
      before: quantity("tier"),
    },
    {
      title: "How much a layer does",
      text: () =>
        "Colours can show other things. Now it is how much each layer added to the model's picture of the text at this token: " +
        "the brighter, the more. Compare a name with a small word such as “the”.",
      target: ".colours",
      before: quantity("contribution"),
    },
    {
      title: "Open a row",
      text: () =>
        `This card is ${pinned()}: where its row lies in the files, which other rows are most like it, and which words it ` +
        "makes likelier. Click any cell for its own.",
      target: ".lookups .box summary",
      before: () => {
        page.show();
        const { log, pinned: place } = view();
        if (place || log.tokens.length === 0) return;
        const named = log.tokens.findLastIndex(({ text }) => text === NAME);
        const position = named >= 0 ? named : log.tokens.length - 1;
        view().pin(
          placeIn(log.shape, position, strongestColumn(log.shape, log.tokens[position]?.contribution ?? null)),
        );
      },
    },
    {
      title: "See where it was decided",
      text: () =>
        "Under “Next token” stands what the model expected after this token, and which layers spoke for what came. Now change " +
        "what it knows: let Germany's rows answer for Spain, and ask again.",
      target: ".lookups .box.next-box summary",
      before: () => {
        page.show();
        view().traceIfCheap();
      },
      onward: { label: "To the edits", go: () => page.showEdits() },
    },
  ];
}
