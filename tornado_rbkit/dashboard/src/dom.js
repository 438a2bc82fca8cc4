// Elements, in few words.

/** Make an element; properties beginning with "on" are listeners, the others attributes, unless null or false. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else setAttribute(element, name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function setAttribute(element, name, value) {
  if (value === null || value === false || value === undefined) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : value);
}

/** Set a text, if it is another one: what is selected or read out stays. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Disable a button with a reason, which it shows and tells; null enables it. Its focus and its place stay. */
export function setDisabled(button, reason, title = "") {
  setAttribute(button, "aria-disabled", reason === null ? null : "true");
  button.title = reason ?? title;
}

/** Give the browser a file to save. */
export function save(content, name) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content]));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Return a button that has the user choose a file. */
export function fileButton(label, title, accept, onfile) {
  const input = h("input", {
    type: "file",
    accept,
    hidden: true,
    "aria-label": label,
    onchange: () => {
      if (input.files.length) onfile(input.files[0]);
      input.value = "";
    },
  });
  return h("span", {}, h("button", { type: "button", title, onclick: () => input.click() }, label), input);
}

/** Resolve after the next frame, in a task of its own. */
export function nextFrame() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}
