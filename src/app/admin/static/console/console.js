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

// `data-live` says how many seconds after an answer they are asked for again, by their id: where it is slow, less often.
const patience = 10_000;  // milliseconds
const stale = document.getElementById("console-stale");
const unheard = new Set();  // of these seconds, the last question had no answer
let heardAt = new Date();

function follow(seconds) {
  const look = async () => {
    await refresh(seconds).then((isHeard) => { if (isHeard) say(seconds, true); }, () => say(seconds, false));
    if (document.querySelector(`[data-live="${seconds}"]`)) setTimeout(look, seconds * 1000);
  };
  setTimeout(look, seconds * 1000);
}

// What is old looks old: nobody is to take it for how it is now.
function say(seconds, isHeard) {
  if (isHeard) unheard.delete(seconds);
  else unheard.add(seconds);
  const isStale = unheard.size > 0;
  if (isStale && stale.hidden) stale.querySelector("time").textContent = heardAt.toISOString().slice(11, 19);
  if (!isStale) heardAt = new Date();
  stale.hidden = !isStale;
  document.body.classList.toggle("console-stale", isStale);
}

// Returns whether there was an answer; not where nobody asks now. Throws when there was no answer, or not this page.
async function refresh(seconds) {
  if (document.hidden || document.querySelector(".modal.show")) return false;
  const signal = AbortSignal.timeout(patience);
  const answer = await fetch(location.href, { headers: { "X-Console-Live": "1" }, redirect: "manual", signal });
  if (answer.type === "opaqueredirect") {  // Signed out, or no superuser any more.
    location.reload();
    return false;
  }
  if (!answer.ok) throw new Error(answer.status);
  // Without its styles: their nonce is another one, and each would be a line in the browser's console.
  const text = (await answer.text()).replace(/<style\b[^]*?<\/style>/g, "");
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const old of document.querySelectorAll(`[data-live="${seconds}"]`)) {
    const now = page.getElementById(old.id);
    if (!now) throw new Error(`no ${old.id}`);
    replace(old, now);
  }
  return true;
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
  if (!now.dataset.live) delete old.dataset.live;  // What has ended does not change any more.
  old.querySelectorAll("details").forEach((part, n) => { part.open = openable[n]?.open ?? part.open; });
  makeReachable(old);
  old.querySelectorAll(".plot-numbers, .table-responsive").forEach((part, n) => part.scrollTo(...(scrolled[n] ?? [0, 0])));
  if (place >= 0) old.querySelectorAll(focusable)[place]?.focus({ preventScroll: true });
}

for (const seconds of new Set([...document.querySelectorAll("[data-live]")].map((part) => part.dataset.live))) {
  follow(seconds);
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
