// @ts-check
// Removes the token from the address bar, and so from the history, copied links and screenshots. It is kept in memory
// and, for a reload, in the tab's session storage.

const KEY = `rbkit token ${location.pathname}`;

/** The query string of the page's own requests. */
export const query = takeToken();

function takeToken() {
  const shown = new URL(location.href);
  const token = shown.searchParams.get("token");
  if (token === null || !("token" in document.documentElement.dataset)) return shown.search;
  const { search } = shown;
  sessionStorage.setItem(KEY, token);
  shown.searchParams.delete("token");
  history.replaceState(null, "", shown);
  return search;
}
