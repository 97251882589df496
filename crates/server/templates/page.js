// What a page gains with a script: confirmations are live, times count on, a halt is sent again when
// the server was away. Everything else works without.
//
// The server's markup replaces our own by parts, in one place (`adopt`), through the one policy that
// the page's Content-Security-Policy allows. The server escapes; nothing here writes markup itself.

const POLL_MS = 2_000;
const ANSWER_MS_MAX = 5_000;
/** From here on the page says that it is not live. */
const STALE_MS = 8_000;
/** How long a halt is sent again and again while no answer comes. */
const SEND_MS_MAX = 60_000;

const $ = (id) => document.getElementById(id);
const policy = window.trustedTypes?.createPolicy("live", { createHTML: (html) => html }) ??
  { createHTML: (html) => html };
const source = document.querySelector("[data-live]");

/** When the last answer came, on two clocks: one may be set back, the other sleeps with the machine. */
let last = { wall: Date.now(), steady: performance.now() };
/** What the server's clock shows when ours shows zero. */
let ahead = 0;
let failures = 0;
let signedOut = false;
let polling = false;

const sinceLast = () =>
  Math.max(Date.now() - last.wall, performance.now() - last.steady, 0);

/** As the server says it; see `view.rs`. */
function span(ms) {
  const s = Math.floor(ms / 1_000);
  if (s < 60) return `${s} s`;
  if (s < 3_600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 172_800) return `${Math.floor(s / 3_600)} h ${Math.floor((s % 3_600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3_600)} h`;
}

function count(root) {
  const now = Date.now() + ahead;
  const set = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  for (const element of root.querySelectorAll("[data-since]")) {
    const ms = now - Number(element.dataset.since);
    set(element, ms < 1_000 ? "just now" : `${span(ms)} ago`);
  }
  for (const element of root.querySelectorAll("[data-until]")) {
    const ms = Number(element.dataset.until) - now;
    set(element, ms <= 0 ? "now" : `in ${span(ms + 999)}`);
  }
}

/** Puts the parts of an answer in place of ours; returns whether anything changed. */
function adopt(html) {
  const answer = new DOMParser().parseFromString(policy.createHTML(html), "text/html");
  const state = answer.querySelector("[data-now]");
  if (!state) throw new Error("not an answer of ours");
  ahead = Number(state.dataset.now) - Date.now();
  count(answer);
  const said = $("state").dataset.said;
  for (const part of answer.querySelectorAll("[data-part]")) {
    const own = $(part.id);
    if (!own) continue;
    // The moment of the answer alone is no change.
    own.dataset.now = part.dataset.now ?? "";
    part.dataset.now = own.dataset.now;
    if (own.outerHTML === part.outerHTML) continue;
    const focused = own.contains(document.activeElement) ? document.activeElement.id : "";
    own.replaceWith(document.adoptNode(part));
    if (focused) $(focused)?.focus({ preventScroll: true });
  }
  if ($("state").dataset.said !== said) $("announce").textContent = $("state").dataset.said;
  document.title = `${$("state").dataset.title} · Estoppel`;
}

async function poll() {
  if (!source || polling || signedOut) return;
  polling = true;
  try {
    const answer = await fetch(source.dataset.live, {
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(ANSWER_MS_MAX),
    });
    signedOut = answer.status === 401;
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    adopt(await answer.text());
    last = { wall: Date.now(), steady: performance.now() };
    failures = 0;
  } catch {
    failures += 1;
  } finally {
    polling = false;
    tick();
  }
}

/** Shows how old the page is, and says so loudly when it is too old or cut off. */
function tick() {
  count(document);
  if (!source) return;
  const age = sinceLast();
  const fresh = $("fresh");
  const text = age < 1_000 ? "Last update just now" : `Last update ${span(age)} ago`;
  if (fresh && fresh.textContent !== text) fresh.textContent = text;
  const stale = signedOut || age > STALE_MS || (failures >= 2 && age > POLL_MS);
  const banner = $("stale");
  if (stale) {
    $("stale-why").textContent = signedOut
      ? "You are signed out: the session is over, or its token was revoked."
      : `Estoppel has not answered for ${span(age)}.`;
    $("stale-at").textContent =
      `${new Date(Date.now() - age + ahead).toISOString().slice(11, 19)} UTC`;
    $("stale-sign-in").hidden = !signedOut;
  }
  if (banner.hidden === stale) {
    banner.hidden = !stale;
    document.body.classList.toggle("is-stale", stale);
    if (!stale) $("announce").textContent = "Live again.";
  }
}

/**
 * Sends a halt, and again while the server does not answer: its id makes it the same halt. What the
 * server answers otherwise, the browser shows by sending the form itself.
 */
async function send(event) {
  const form = event.target;
  if (!form.matches("form[data-order]")) return;
  event.preventDefault();
  if (form.getAttribute("aria-busy") === "true") return;
  form.setAttribute("aria-busy", "true");
  const say = (text) => { form.querySelector(".sending").textContent = text; };
  const body = new URLSearchParams(new FormData(form));
  const begun = Date.now();
  say("Sending ...");
  while (Date.now() - begun < SEND_MS_MAX) {
    try {
      const answer = await fetch(form.action, {
        method: "POST",
        body,
        credentials: "same-origin",
        redirect: "follow",
        signal: AbortSignal.timeout(ANSWER_MS_MAX),
      });
      if (answer.ok && answer.redirected) return location.assign(answer.url);
      if (![502, 503, 504].includes(answer.status)) return form.submit();
    } catch {
      // No answer: the server is away, or the network is.
    }
    const waited = Math.round((Date.now() - begun) / 1_000);
    say(`No answer for ${waited} s: it is sent again until there is one, and counts once. Without the server: estoppel halt --local on the agent's host.`);
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
  form.removeAttribute("aria-busy");
  say("No answer for a minute. Send it again, or stop the agent on its host: estoppel halt --local");
}

document.addEventListener("submit", send);
// What comes back out of the browser's memory is as old as it is.
for (const name of ["pageshow", "focus", "online"]) addEventListener(name, () => { tick(); poll(); });
document.addEventListener("visibilitychange", () => { tick(); if (!document.hidden) poll(); });
if (source) {
  ahead = Number($("state").dataset.now) - Date.now();
  setInterval(() => { if (!document.hidden) poll(); }, POLL_MS);
}
setInterval(tick, 1_000);
tick();
