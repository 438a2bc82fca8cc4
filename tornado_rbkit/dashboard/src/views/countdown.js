// The pause of a procedure, told in seconds while it lasts.

/**
 * Yield how many seconds are left, until they have passed by the clock: in a tab out of sight, the browser may call a
 * timer of a second once a minute.
 *
 * @param {number} seconds
 */
export async function* countdown(seconds) {
  const end = performance.now() + seconds * 1000;
  for (let left = seconds; left > 0; left = Math.ceil((end - performance.now()) / 1000)) {
    yield left;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
