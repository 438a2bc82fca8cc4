// Short functions to create and change elements.

/** Create an element; properties starting with "on" are listeners, all others attributes (none if null or false). */
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

/** Set an element's text if it differs, so that a selection or screen reader is not disturbed. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Disable a button and show the reason; null enables it. It keeps its focus and its place. */
export function setDisabled(button, reason, title = "") {
  setAttribute(button, "aria-disabled", reason === null ? null : "true");
  button.title = reason ?? title;
}

/** Have the browser save a file. */
export function save(content, name) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content]));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Return a button that lets the user choose a file. */
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

/** Return a button that opens a panel of other elements; a click outside, Escape or a button in the panel closes it. */
export function menu(label, name, ...content) {
  const summary = h("summary", { "aria-label": name || null, title: name || null }, label);
  const box = h(
    "details",
    {
      class: "menu",
      onkeydown: ({ key }) => {
        if (key !== "Escape" || !box.open) return;
        box.open = false;
        summary.focus();
      },
      onclick: ({ target }) => {
        if (target.closest("button")) box.open = false;
      },
    },
    summary,
    h("div", { class: "panel" }, ...content),
  );
  document.addEventListener("pointerdown", ({ target }) => {
    if (!box.contains(target)) box.open = false;
  });
  return box;
}

/**
 * Return whether a click on a link is for the page: with another button or a key, the browser opens the link elsewhere.
 *
 * @param {MouseEvent} event
 */
export function isPlainClick(event) {
  return !(event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
}

/** Resolve in a separate task after the next frame. */
export function nextFrame() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}
