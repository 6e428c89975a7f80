// Elements and numbers. Text is always set as text, never parsed as markup.

export const find = (selector) => document.querySelector(selector);

/** A new element: attributes by name (true: present; false or null: absent; on…: a listener), then text and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/** 0.834 -> "83.4 %"; what rounds to 0 or 100 without being it says so. */
export function percent(part) {
  if (part > 0 && part < 0.0005) return "< 0.1\u00a0%";
  if (part < 1 && part > 0.9995) return "> 99.9\u00a0%";
  return `${(100 * part).toFixed(1)}\u00a0%`;
}

/** The service's messages begin small and end bare; on a page they stand alone. */
export const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Offers text as a file. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
