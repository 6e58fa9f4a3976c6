// What the browser says of the connection, where it says anything.

/** Whether the reader asked the browser to save data. */
export function savesData(): boolean {
  return (navigator as { connection?: { saveData?: boolean } }).connection?.saveData === true;
}
