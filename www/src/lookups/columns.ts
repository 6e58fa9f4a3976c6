// The columns of the grid, in the order of the computation: a layer's memory of n-grams stands before the layer.

export type Kind = "stem" | "dense" | "engram";

/** One column: a layer's FFN, or an Engram layer's memory, `at` its place among these (−1 for an FFN). */
export type Column = { layer: number; kind: Kind; at: number };

/** A cell of the grid. */
export type Place = { position: number; layer: number; engram: boolean };

/** The layers of the model in question. */
export type Shape = {
  layers: number;
  stem: ReadonlySet<number>;
  engram: readonly number[];
  columns: readonly Column[];
};

export const KIND_NAMES: Record<Kind, string> = { stem: "STEM", dense: "dense", engram: "Engram" };

export function shapeOf(layers: number, stem: readonly number[], engram: readonly number[]): Shape {
  const isStem = new Set(stem);
  const columns: Column[] = [];
  for (let layer = 0; layer < layers; layer += 1) {
    const at = engram.indexOf(layer);
    if (at >= 0) columns.push({ layer, kind: "engram", at });
    columns.push({ layer, kind: isStem.has(layer) ? "stem" : "dense", at: -1 });
  }
  return { layers, stem: isStem, engram, columns };
}

export const NO_SHAPE = shapeOf(0, [], []);

/** The number of the place's column; −1 where the model has none. */
export function columnIndex({ columns }: Shape, { layer, engram }: Omit<Place, "position">): number {
  return columns.findIndex((column) => column.layer === layer && (column.kind === "engram") === engram);
}

/** The cell of token `position` in column `index`. */
export function placeIn({ columns }: Shape, position: number, index: number): Place {
  const column = columns[index];
  return { position, layer: column?.layer ?? 0, engram: column?.kind === "engram" };
}

/** The first column that looks something up, by preference a row of a token. */
export function firstColumn({ columns }: Shape): number {
  const first = columns.findIndex(({ kind }) => kind === "stem");
  return first >= 0
    ? first
    : Math.max(
        0,
        columns.findIndex(({ kind }) => kind === "engram"),
      );
}

/** The STEM column of token `position` in which its row did most by `added`; the first where that is not known. */
export function strongestColumn(shape: Shape, added: readonly number[] | null): number {
  const value = ({ kind, layer }: Column): number => (kind === "stem" ? (added?.[layer] ?? 0) : 0);
  const best = shape.columns.reduce(
    (most, column, i) => (value(column) > most.value ? { i, value: value(column) } : most),
    {
      i: firstColumn(shape),
      value: 0,
    },
  );
  return best.i;
}

export function isSame(a: Place | null, b: Place | null): boolean {
  return a?.position === b?.position && a?.layer === b?.layer && a?.engram === b?.engram;
}
