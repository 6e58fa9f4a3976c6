// Which bundle to load: `model/` beside the page, or the one that `?model=` names.

export type ModelAddress = {
  manifestUrl: string;
  /** Where it comes from, if the address chose it: a link may name any host, and the reader should see which. */
  shown: string | null;
};

/** `?model=` takes the address of a manifest (`….json`) or of the folder that holds `manifest.json`. */
export function modelAddress(): ModelAddress {
  const chosen = new URLSearchParams(location.search).get("model");
  const own = new URL("./model/manifest.json", document.baseURI).href;
  if (!chosen || !URL.canParse(chosen, document.baseURI)) return { manifestUrl: own, shown: null };
  const url = new URL(chosen, document.baseURI);
  if (!/^https?:$/.test(url.protocol)) return { manifestUrl: own, shown: null };
  if (!url.pathname.endsWith(".json")) url.pathname = `${url.pathname.replace(/\/$/, "")}/manifest.json`;
  return { manifestUrl: url.href, shown: url.origin === location.origin ? url.pathname : url.href };
}
