// The CPU profiles of one process: one for each clock, since samples of different clocks cannot be added up.

import { CpuProfile } from "./profile.js";

const UNKNOWN = ""; // the clock before the first handshake

export class CpuProfiles {
  clock = UNKNOWN;
  #profiles = new Map([[UNKNOWN, new CpuProfile()]]);
  #previous = UNKNOWN; // the clock before
  #since = -Infinity; // ms, when the clock was found to be another one; earlier samples are of the clock before
  /** @type {{clock: string, profile: CpuProfile} | null} */
  #cleared = null;

  /** The profile of the process's clock. */
  get current() {
    return /** @type {CpuProfile} */ (this.#profiles.get(this.clock));
  }

  get canUndoClear() {
    return this.#cleared !== null;
  }

  /**
   * Return the profile of a clock, null if it was never chosen.
   *
   * @param {string} clock
   */
  of(clock) {
    return this.#profiles.get(clock) ?? null;
  }

  /** @param {import("../../connection/protocol.js").Sample} sample */
  add(sample) {
    const clock = sample.time < this.#since ? this.#previous : this.clock;
    const profile = /** @type {CpuProfile} */ (this.#profiles.get(clock));
    if (sample.tasks) profile.addTasks(sample.tasks);
    else profile.add(sample);
  }

  /**
   * Take the clock that a handshake reports; return whether it is another one than before.
   *
   * @param {string} clock
   * @param {number | null} time Of the handshake, in ms; null if not known.
   */
  use(clock, time) {
    if (this.clock === clock) {
      if (time !== null && time < this.#since) this.#since = -Infinity; // the process's time was set back
      return false;
    }
    const isFirst = this.clock === UNKNOWN;
    if (isFirst) this.#profiles = new Map([[clock, this.current]]);
    if (!this.#profiles.has(clock)) this.#profiles.set(clock, new CpuProfile());
    this.#previous = isFirst ? clock : this.clock;
    this.#since = time ?? -Infinity;
    this.clock = clock;
    return !isFirst;
  }

  /** Start a new profile; the one before can be brought back. */
  clear() {
    this.#cleared = { clock: this.clock, profile: this.current };
    this.#profiles.set(this.clock, new CpuProfile());
  }

  /** Continue the profile before the last `clear`. */
  undoClear() {
    if (this.#cleared) this.#profiles.set(this.#cleared.clock, this.#cleared.profile);
    this.#cleared = null;
  }
}
