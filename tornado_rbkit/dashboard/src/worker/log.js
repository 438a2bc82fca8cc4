// A rate-limited, bounded log for the page's user.

const KEPT = 50;
const BURST = 10;
const PER_SECOND = 1;

/** Keeps the newest lines. After a burst of 10, lines beyond one per second are only counted. */
export class Log {
  lines = []; // {number, text}, newest last
  leftOut = 0;
  #number = 0;
  #room = BURST;
  #at = 0;

  /** Add a line at a monotonic time in seconds. */
  add(text, now = performance.now() / 1000) {
    this.#room = Math.min(BURST, this.#room + (now - this.#at) * PER_SECOND);
    this.#at = now;
    if (this.#room < 1) {
      this.leftOut++;
      return;
    }
    this.#room--;
    this.lines.push({ number: ++this.#number, text });
    if (this.lines.length > KEPT) this.lines.shift();
  }
}
