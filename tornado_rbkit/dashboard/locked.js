// The script of the 401 page: retry with the token in the tab's session storage, or ask for one.
const key = `rbkit token ${location.pathname}`;
/** @param {string} token */
const open = (token) => {
  const url = new URL(location.href);
  url.searchParams.set("token", token);
  location.replace(url);
};
const kept = sessionStorage.getItem(key);
if (new URL(location.href).searchParams.has("token")) sessionStorage.removeItem(key);
else if (kept !== null) open(kept);
document.forms[0].addEventListener("submit", (event) => {
  event.preventDefault();
  open(/** @type {HTMLInputElement} */ (document.querySelector("input")).value);
});
