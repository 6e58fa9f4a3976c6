// What Enter does in the field of a message: it sends, but on a touch screen, whose keyboard has no Shift and Enter together, it
// makes a new line.

/** A screen whose keyboard comes with the focus. */
const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");

export const isTouch = (): boolean => TOUCH.matches;

/** For the label of the key. */
export const enterKeyHint = (): string => (isTouch() ? "enter" : "send");

/** While an input method composes, Enter belongs to it. */
export function sends(event: KeyboardEvent): boolean {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch();
}
