"use strict";

// The library's scripts look for the token of a change in a cookie; it stands in the page.
const csrfToken = document.querySelector('meta[name="csrf-token"]').content;
const readCookie = Cookies.get;
Cookies.get = (name) => (name === "starlette_admin_csrftoken" ? csrfToken : readCookie(name));

// What the policy does not let attributes do (app/admin/policy.py).
for (const element of document.querySelectorAll("[data-console-style]")) {
  element.style.cssText += element.dataset.consoleStyle;
}
const handlers = {
  "window.location = this.value": (element) => element.addEventListener("change", () => { location.href = element.value; }),
  "applyColumnVisibility()": (element) => element.addEventListener("click", () => applyColumnVisibility()),
};
for (const element of document.querySelectorAll("[data-console-on]")) {
  handlers[element.dataset.consoleOn]?.(element);
}

// ---- Parts of a page that are about now ----

// `data-live` says after how many seconds they are asked for again, by their id.
async function refresh(seconds) {
  if (document.hidden || document.querySelector(".modal.show")) return;
  const answer = await fetch(location.href, { headers: { "X-Console-Live": "1" }, redirect: "manual" });
  if (answer.type === "opaqueredirect") return location.reload();  // Signed out, or no superuser any more.
  if (!answer.ok) return;
  // Without its styles: their nonce is another one, and each would be a line in the browser's console.
  const text = (await answer.text()).replace(/<style\b[^]*?<\/style>/g, "");
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const old of document.querySelectorAll(`[data-live="${seconds}"]`)) {
    const now = page.getElementById(old.id);
    if (now) replace(old, now);
  }
}

// What somebody has opened stays open, and where they are by keyboard they stay; nobody's form is taken away.
function replace(old, now) {
  const active = old.contains(document.activeElement) ? document.activeElement : null;
  if (active?.matches("input, select, textarea, [aria-expanded=true]")) return;
  const openable = [...old.querySelectorAll("details")];
  const focusable = "a[href], button, summary, [tabindex]";
  const place = active ? [...old.querySelectorAll(focusable)].indexOf(active) : -1;
  const scrolled = [...old.querySelectorAll(".plot-numbers, .table-responsive")].map((part) => [part.scrollLeft, part.scrollTop]);
  old.replaceChildren(...now.childNodes);
  old.querySelectorAll("details").forEach((part, n) => { part.open = openable[n]?.open ?? part.open; });
  makeReachable(old);
  old.querySelectorAll(".plot-numbers, .table-responsive").forEach((part, n) => part.scrollTo(...(scrolled[n] ?? [0, 0])));
  if (place >= 0) old.querySelectorAll(focusable)[place]?.focus({ preventScroll: true });
}

for (const seconds of new Set([...document.querySelectorAll("[data-live]")].map((part) => part.dataset.live))) {
  setInterval(() => refresh(seconds).catch(() => {}), seconds * 1000);
}

// ---- By keyboard ----

// Tables that scroll inside can be scrolled with the arrow keys. Rows that a click opens are no stop of their own: the
// return key does nothing there, and their first link leads to the same page.
function makeReachable(root) {
  for (const row of root.querySelectorAll("tr.row-clickable")) row.removeAttribute("tabindex");
  for (const part of root.querySelectorAll(".table-responsive")) part.tabIndex = 0;
}
makeReachable(document);

// The space key does to what is called a button what it does to one.
document.addEventListener("keydown", (event) => {
  if (event.key === " " && event.target.matches('a[role="button"]')) {
    event.preventDefault();
    event.target.click();
  }
});
document.addEventListener("click", (event) => {
  if (event.target.closest('a[role="button"][href="#"]')) event.preventDefault();
});

// A form in a dialog is sent by the dialog's button; the return key would otherwise load this page with its values.
const dialog = document.getElementById("modal-action");
dialog?.addEventListener("submit", (event) => {
  event.preventDefault();
  dialog.querySelector('[data-sa-action="action-submit"]').click();
});
// It begins with its first field; without one, with what changes nothing.
dialog?.addEventListener("shown.bs.modal", () => {
  const field = dialog.querySelector("#modal-form :is(input, select, textarea):not([type=hidden])");
  (field ?? dialog.querySelector(".modal-footer [data-bs-dismiss]")).focus();
});
// When what was asked for could not be done, one is back where one was.
let opener = null;
dialog?.addEventListener("show.bs.modal", (event) => { opener = event.relatedTarget; });
document.getElementById("modal-loading")?.addEventListener("hidden.bs.modal", () => opener?.focus());

// The library's lists take the focus to their search on every load, past the menu: only for who is searching.
const search = document.querySelector('input[type="search"][name="q"]');
if (search && !search.value) {
  search.focus = () => {};
  $(() => { delete search.focus; });
}

document.getElementById("theme-toggle")?.addEventListener("click", () => consoleTheme.toggle());
