// What of the model is on this device, the download of the rest, and the way to be rid of it.

import { savesData } from "./connection";
import { h, keepFocus } from "./dom";
import type { EngineClient } from "./engine";
import { bytes, duration } from "./format";
import type { Download, EngineInfo, Kept } from "./protocol";
import { Rate } from "./rate";
import { read, write } from "./storage";

/** The address of the model whose download was under way when the page was left. */
const WANTED = "download";

export function devicePanel(engine: EngineClient): HTMLElement {
  const text = h("p", { class: "hint" });
  const bar = h("progress", { "aria-label": "Table on this device", max: 1 });
  const start = h(
    "button",
    { type: "button", class: "button quiet", onclick: () => run(true) },
    "Download the whole table",
  );
  const pause = h("button", { type: "button", class: "button quiet", onclick: () => run(false) }, "Pause the download");
  const forget = h("button", { type: "button", class: "button quiet", onclick: remove }, "Delete from this device");
  const element = h(
    "section",
    { class: "device", "aria-label": "On this device" },
    text,
    bar,
    h("div", { class: "row" }, start, pause, forget),
  );
  let rate = new Rate();
  let resumed = false;

  function run(on: boolean): void {
    write(WANTED, on ? engine.manifestUrl : null);
    rate = new Rate();
    engine.download(on);
    // The browser may ask the reader; without it the model is kept until room runs short.
    if (on) void navigator.storage?.persist?.();
  }

  function remove(): void {
    write(WANTED, null);
    engine.forget();
  }

  engine.kept.watch((kept) => {
    const info = engine.state.value.phase === "ready" ? engine.state.value.info : null;
    element.hidden = !kept || !info;
    if (!kept || !info) {
      resumed = false;
      return;
    }
    const total = info.tableBytes;
    const have = info.tablePages > 0 ? (kept.pages / info.tablePages) * total : 0;
    const { running } = kept.download;
    rate.add(performance.now(), have);
    text.textContent = words(kept, kept.download, info, have, rate.bytesPerSecond());
    bar.hidden = !running;
    bar.value = total > 0 ? have / total : 0;
    keepFocus(
      element,
      () => {
        start.hidden = running || total === 0 || have === total || kept.notice !== null;
        pause.hidden = !running;
        forget.disabled = kept.files + kept.pages === 0;
      },
      () => [pause, start, forget].find((button) => !button.hidden && !button.disabled)?.focus(),
    );
    const wanted = read(WANTED) === engine.manifestUrl;
    if (wanted && have === total) write(WANTED, null);
    else if (wanted && !resumed && !running && !savesData()) engine.download(true);
    resumed = true;
  });
  return element;
}

function words(kept: Kept, download: Download, info: EngineInfo, have: number, speed: number | null): string {
  if (kept.notice) return kept.notice;
  if (kept.files + kept.pages === 0) return "Nothing is kept on this device.";
  const table = `${bytes(have)} of ${bytes(info.tableBytes)} of its table`;
  if (download.running) {
    const left = speed ? ` · ${bytes(speed)}/s · ${duration((info.tableBytes - have) / speed)} left` : "";
    return `Downloading: ${table}${left}`;
  }
  const problem = download.problem ? ` The download stopped: ${download.problem}` : "";
  return `Kept on this device for the next visit: the core${info.rows ? `, and ${table}` : ""}.${problem}`;
}
