// In the page for a request without the right token: a reload finds the token that the tab has kept, others are asked for it.
const key = `rbkit token ${location.pathname}`;
const open = (token) => {
  const url = new URL(location.href);
  url.searchParams.set("token", token);
  location.replace(url);
};
const kept = sessionStorage.getItem(key);
if (new URL(location.href).searchParams.has("token")) sessionStorage.removeItem(key);
else if (kept !== null) open(kept);
document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  open(document.querySelector("input").value);
});
