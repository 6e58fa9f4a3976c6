// The same question twice with the same seed: without the edits, and with them.

import type { EngineClient } from "../engine";
import { type Asking, sideBySide } from "../side-by-side";
import { section } from "./section";
import type { EditsStore } from "./store";

export function compareSection(store: EditsStore, engine: EngineClient, asking: Asking): HTMLElement {
  return section(
    "Before and after",
    ...sideBySide(engine, asking, {
      id: "compare",
      button: "Compare",
      titles: ["Without the edits", "With the edits"],
      ways() {
        const edits = store.fileInUse();
        if (!edits) throw new Error("No edit is switched on, so both answers would be the same.");
        return [
          { edits: null, knockOut: null },
          { edits, knockOut: null },
        ];
      },
    }),
  );
}
