// Removes the token from the address bar, and so from the history, copied links and screenshots, where the page can be
// reloaded without it: the tab's session storage has it, or a cookie.

const KEY = `rbkit token ${location.pathname}`;

/** The query string of the page's own requests: the server adds to the address's what they need. */
export const query = new URL(import.meta.url).search;

const shown = new URL(location.href);
const { token: survives } = document.documentElement.dataset;
const token = shown.searchParams.get("token");
if (token !== null && survives) {
  if (survives === "tab") sessionStorage.setItem(KEY, token);
  shown.searchParams.delete("token");
  history.replaceState(null, "", shown);
}

/**
 * Return the part of an address that names a view and what is chosen in it: `#view?choices`.
 *
 * @param {string} view
 * @param {Record<string, string>} choices Empty ones are left out.
 */
export function hashOf(view, choices) {
  const chosen = String(new URLSearchParams(Object.entries(choices).filter(([, value]) => value !== "")));
  return `#${view}${chosen && `?${chosen}`}`;
}

const TAB_KEY = `rbkit tab ${location.pathname}`;

/** Return the name under which this tab keeps its sessions: another one unless the page was reloaded. */
export function tabName() {
  const [navigation] = /** @type {PerformanceNavigationTiming[]} */ (performance.getEntriesByType("navigation"));
  const kept = navigation?.type === "reload" ? sessionStorage.getItem(TAB_KEY) : null; // a copied tab has the same storage
  const name = kept ?? Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem(TAB_KEY, name);
  return name;
}
