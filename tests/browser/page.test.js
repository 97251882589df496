// Row K5: the page, in a real Chromium, at phone width, against the real binary and a real gateway.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, beforeEach, describe, test } from "node:test";
import axe from "axe-core";
import {
  Browser, Enforcer, PATIENCE_MS, PHONE, Server, confirm, review, shot, signIn, until,
} from "./stage.js";

let browser;
before(async () => { browser = await Browser.start(); });
after(async () => { await browser?.stop(); });
beforeEach(() => { browser.wrong.length = 0; });

/** Runs with a server of its own, and sees that the browser had nothing to complain about. */
function staged(name, run, options) {
  test(name, { timeout: 3 * PATIENCE_MS }, async () => {
    const server = await Server.start(options);
    try {
      await run(server);
      assert.deepEqual(browser.wrong, []);
    } finally {
      await Promise.all(browser.browser.contexts().map((context) => context.close()));
      await server.stop();
    }
  });
}

const state = (page) => page.locator("#state h1");

async function accessible(page) {
  await page.evaluate(() => document.fonts.ready);
  // As the browser's own tools do: the page's policy is not to be weakened for a test.
  const session = await page.context().newCDPSession(page);
  const run = `${axe.source}; axe.run(document, { resultTypes: ["violations"] }).then((found) => JSON.stringify(
    found.violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html + " " + node.failureSummary)])))`;
  const { result, exceptionDetails } = await session.send("Runtime.evaluate", {
    expression: run, awaitPromise: true, returnByValue: true,
  });
  assert.equal(exceptionDetails, undefined, JSON.stringify(exceptionDetails));
  assert.deepEqual(JSON.parse(result.value), []);
}

/** Nothing sticks out sideways, and nothing to tap is smaller than 44 px. */
async function fitsAFinger(page) {
  const wrong = await page.evaluate(() => {
    const found = [];
    if (document.documentElement.scrollWidth > innerWidth) {
      found.push(`${document.documentElement.scrollWidth} px wide`);
    }
    for (const element of document.querySelectorAll("a, button, input, textarea, .chip, .pick")) {
      const box = element.getBoundingClientRect();
      const inText = element.matches("p a, li p a");
      const hidden = element.matches(".skip, [type=hidden]") || box.width === 0 || element.closest("[hidden]");
      const inLabel = element.matches(".pick input");
      if (!hidden && !inText && !inLabel && box.height < 44) {
        found.push(`${element.outerHTML.slice(0, 120)}: ${box.height} px high`);
      }
    }
    return found;
  });
  assert.deepEqual(wrong, []);
}

describe("at phone width", () => {
  staged("a halt takes two actions, shows what it will hit, and confirms itself live", async (server) => {
    const lead = await server.token("lena", "lead");
    const guard = await Enforcer.connect(server, {
      name: "checkout-agent-7", subjects: [{ session: "abc123" }], gaps: ["blocking work cannot be cancelled"],
    });
    await until("events", async () => (await server.api("POST", "/v1/events", [
      { kind: "audit", session_id: "abc123", user_id: "bob", agent_id: "checkout", tool: "mail.send" },
      { kind: "audit", session_id: "def456", user_id: "eve", agent_id: "checkout" },
    ])).status === 200);
    const page = await browser.person(server);
    await page.goto("/halt");
    await shot(page, "sign-in");
    await fitsAFinger(page);
    await accessible(page);
    await signIn(page, lead);
    assert.match(await state(page).innerText(), /Nothing is halted/);
    await shot(page, "halt-quiet");
    await fitsAFinger(page);
    await accessible(page);

    await review(page, { name: "abc123", reason: "sends the customer list to a paste site" });
    const hits = await page.locator(".hits").innerText();
    assert.match(hits, /1 session/);
    assert.match(hits, /2 enforcers[\s\S]*1 guard, 1 gateway/);
    assert.match(hits, /abc123\s+agent checkout, user bob/);
    assert.match(hits, /blocking work cannot be cancelled/);
    assert.deepEqual(await server.halts(), [], "looking halts nothing");
    await shot(page, "review");
    await fitsAFinger(page);
    await accessible(page);

    await confirm(page);
    await page.getByText("checkout-agent-7").waitFor();
    await page.getByText("no answer yet").waitFor();
    assert.match(await state(page).innerText(), /Stopping/);
    await shot(page, "follow-going");
    const [halt] = await server.halts();
    assert.equal(halt.scope, "session:abc123");
    assert.equal(halt.activated_by, "lena");
    await guard.confirm(halt.id, "refusing");
    await page.getByText("Refusing", { exact: true }).waitFor();
    await guard.confirm(halt.id, "settled", { steps_cancelled: 2, not_interruptible: ["a payment that was sent"] });
    await page.getByText("Stopped", { exact: true }).waitFor();
    await page.getByText("2 steps cancelled").waitFor();
    await page.getByText("could not interrupt: a payment that was sent").waitFor();
    await page.getByText("in the ledger").waitFor();
    await shot(page, "follow-stopped");
    await fitsAFinger(page);
    await accessible(page);

    await page.getByRole("link", { name: /Release it/ }).click();
    assert.equal(await page.getByRole("checkbox").isChecked(), true);
    await shot(page, "release");
    await fitsAFinger(page);
    await accessible(page);
    await page.getByLabel("Why is it safe").fill("the list was a test");
    await page.getByRole("button", { name: "Release the ticked halts" }).click();
    await page.getByText("The halt of session:abc123 is released.").waitFor();
    assert.deepEqual(await server.halts(), []);
    assert.match(await state(page).innerText(), /Nothing is halted/);
    await page.goto(`/halts/${halt.id}`);
    await page.getByText(/By\s+lena/).waitFor();
    await page.getByText("the list was a test").waitFor();
  });

  staged("it fits 320 px, in the dark, with many halts", async (server) => {
    for (let n = 0; n < 40; n += 1) await server.halt(`session:run-${n}-${"x".repeat(n * 5)}`, `reason ${n}`);
    const page = await browser.person(server, {
      viewport: { width: 320, height: 640 }, colorScheme: "dark", token: server.admin,
    });
    assert.match(await state(page).innerText(), /40 halts in force/);
    await page.getByText("And 10 older").waitFor();
    await fitsAFinger(page);
    await accessible(page);
    await shot(page, "halt-many-dark");
    await page.goto("/release");
    await fitsAFinger(page);
    await accessible(page);
  });

  staged("everything is halted from a wide window, too", async (server) => {
    const page = await browser.person(server, {
      viewport: { width: 1280, height: 800 }, token: server.admin,
    });
    await review(page, { kind: "Everything", reason: "the model answers in somebody else's voice" });
    await shot(page, "review-wide");
    await confirm(page);
    await page.getByText("Stopped", { exact: true }).waitFor();
    await page.goto("/halt");
    assert.match(await state(page).innerText(), /Everything is halted/);
    await accessible(page);
    await shot(page, "halt-wide");
    await page.goto("/halts");
    await accessible(page);
  });
});

staged("with the keyboard alone, from signing in to the release", async (server) => {
  const page = await browser.person(server);
  await page.goto("/halt");
  const press = (key) => page.keyboard.press(key);
  const focused = () => page.evaluate(() => {
    const { id, name, innerText } = document.activeElement;
    const style = getComputedStyle(document.activeElement);
    const text = document.activeElement.matches("a, button") ? innerText : "";
    return { id, name, text, outline: style.outlineStyle };
  });
  /** Tabs on until the focus is where it should be. */
  const tabTo = async (is) => {
    for (let n = 0; n < 40; n += 1) {
      const now = await focused();
      if (is(now)) return now;
      await press("Tab");
    }
    throw new Error("the keyboard does not get there");
  };
  assert.equal((await focused()).id, "token", "the token is what is asked for");
  await page.keyboard.type(server.admin);
  await press("Enter");
  await page.getByRole("heading", { name: /Nothing is halted/ }).waitFor();
  await press("Tab");
  assert.match((await focused()).text, /Skip to the page/);
  await tabTo(({ name }) => name === "kind");
  await press("ArrowRight");
  assert.equal((await focused()).id, "kind-agent");
  await tabTo(({ id }) => id === "name");
  await page.keyboard.type("crm");
  const reason = await tabTo(({ id }) => id === "reason");
  assert.notEqual(reason.outline, "none", "the focus is in sight");
  await page.keyboard.type("answers nobody");
  await tabTo(({ text }) => text === "Show what this will hit");
  await press("Enter");
  await page.getByRole("heading", { name: /Halt agent:crm/ }).waitFor();
  await tabTo(({ id }) => id === "confirm");
  await press("Enter");
  await page.waitForURL(/\/halts\//);
  await tabTo(({ text }) => /Release it/.test(text));
  await press("Enter");
  await page.getByRole("heading", { name: /start again/ }).waitFor();
  await tabTo(({ id }) => id === "reason");
  await page.keyboard.type("it answers");
  await tabTo(({ text }) => text === "Release the ticked halts");
  await press("Enter");
  await page.getByText("The halt of agent:crm is released.").waitFor();
  assert.deepEqual(await server.halts(), []);
});

staged("without JavaScript it does the same, and loses nothing that is typed", async (server) => {
  const page = await browser.person(server, { javaScriptEnabled: false, token: server.admin });
  await page.getByText("This page does not reload itself").waitFor();
  assert.equal(await page.locator("meta[http-equiv=refresh]").count(), 0);
  await shot(page, "halt-without-script");
  await review(page, { name: "abc123", reason: "no script here" });
  await confirm(page);
  // The page reloads itself: the gateway's word is there without a hand.
  await page.getByText("Stopped", { exact: true }).waitFor();
  await page.getByText("in the ledger").waitFor();
  await page.goto("/halts");
  await server.halt("session:other", "by somebody else");
  await page.getByText("session:other").waitFor();
  await page.getByRole("link", { name: "Release", exact: true }).click();
  await page.getByRole("checkbox").nth(0).check();
  await page.getByRole("checkbox").nth(1).check();
  await page.getByLabel("Why is it safe").fill("over");
  await page.getByRole("button", { name: "Release the ticked halts" }).click();
  await page.getByText("The halt of session:other is released.").waitFor();
  assert.deepEqual(await server.halts(), []);
});

staged("script in every field that strangers fill stays text", async (server) => {
  const tag = `"><img/src=x/onerror=alert(1)><script>alert(2)</script><b/id=injected>`;
  const spaced = `'"--></style></title><svg onload=alert(3)><b id=injected>${"\u202e"}evil ${"\u200b"}`;
  const id = (n) => `${n}${tag}`.slice(0, 250);
  const enforcer = await Enforcer.connect(server, {
    name: spaced, gaps: [spaced, tag], subjects: [{ session: id("s"), agent: id("a") }], kind: "host", role: "enforcer",
  });
  await until("events", async () => (await server.api("POST", "/v1/events", [
    {
      kind: "audit", session_id: id("s"), user_id: id("u"), agent_id: id("a"), task_id: id("t"),
      requester_tenant_id: id("n"), tool: spaced, plugin: id("p"), plugin_version: tag, model: spaced, action: spaced,
    },
  ])).status === 200);
  const reason = `${spaced}\n${tag}`;
  const halt = await server.halt(`session:${id("s")}`, reason);
  await enforcer.confirm(halt, "settled", { containment: spaced, not_interruptible: [spaced, tag] });
  const page = await browser.person(server, { token: server.admin });
  const inert = async (what) => {
    await page.getByText("evil").first().waitFor();
    assert.equal(await page.locator("#injected, img, svg[onload], script:not([src])").count(), 0, what);
    const text = await page.locator("body").innerText();
    assert.match(text, /\\u\{202e\}/, `${what}: what turns text around is in sight`);
    assert.doesNotMatch(text, /[\u202e\u200b]/, what);
    assert.match(text, /<img\/src=x/, what);
  };
  const looks = async (path, what) => {
    await page.goto(path);
    await inert(what);
    await accessible(page);
    await fitsAFinger(page);
  };
  await looks("/halt", "the form");
  await looks("/halts", "the list");
  await looks(`/halts/${halt}`, "the halt");
  await looks(`/release?halt=${halt}`, "the release");
  await page.goto(`/halt?scope=${encodeURIComponent(`session:${id("s")}`)}&reason=${encodeURIComponent(reason)}`);
  assert.equal(await page.getByLabel("Its name").inputValue(), id("s"));
  await page.getByRole("button", { name: "Show what this will hit" }).click();
  await page.getByRole("heading", { name: /^Halt session/ }).waitFor();
  await inert("the review");
  await shot(page, "review-hostile");
  // What is live goes through the script, too.
  await page.goto("/halts");
  await server.halt("session:later", reason);
  await page.getByText("session:later").waitFor();
  await inert("the live list");
  for (const path of [
    `/halts/${encodeURIComponent(tag)}`, `/sign-in?next=${encodeURIComponent(tag)}`, `/halt?scope=${encodeURIComponent(tag)}`,
    `/halt/review?scope=${encodeURIComponent(spaced)}&reason=x`, `/release?halt=${encodeURIComponent(tag)}`,
  ]) {
    await page.goto(path);
    assert.equal(await page.locator("#injected, img, svg[onload], script:not([src])").count(), 0, path);
  }
});

staged("two operators at once: each sees the other's halt, and each halt has its own name", async (server) => {
  const [one, other] = [await server.token("rita", "responder"), await server.token("omar", "lead")];
  const rita = await browser.person(server, { token: one });
  const omar = await browser.person(server, { token: other });
  await Promise.all([rita, omar].map((page) => review(page, { name: "abc123", reason: "odd" })));
  await confirm(rita);
  await confirm(omar);
  await rita.getByText(/Also halted:.*by omar/).waitFor();
  await omar.getByText(/Also halted:.*by rita/).waitFor();
  assert.equal((await server.halts()).length, 2);
  assert.equal(await rita.getByRole("link", { name: /Release/ }).count(), 0, "a responder stops only");
  await rita.getByText("Releasing needs a lead").waitFor();
  await omar.goto("/halts");
  await omar.getByText("2 halts in force", { exact: true }).waitFor();
  await omar.getByRole("link", { name: "Release", exact: true }).click();
  const [first] = (await server.halts()).filter((halt) => halt.activated_by === "rita");
  await omar.locator(`input[value="${first.id}"]`).check();
  await omar.getByLabel("Why is it safe").fill("rita's was a mistake");
  await omar.getByRole("button", { name: "Release the ticked halts" }).click();
  await omar.getByText("1 halt in force", { exact: true }).waitFor();
  await rita.getByText("Released", { exact: true }).waitFor();
  await rita.getByText("rita's was a mistake").waitFor();
});

staged("two taps, back, and a reload give one halt", async (server) => {
  const page = await browser.person(server, { token: server.admin, javaScriptEnabled: false });
  await review(page, { name: "abc123", reason: "tapped twice" });
  const at = page.url();
  await page.locator("#confirm").dblclick({ noWaitAfter: true });
  await page.waitForURL(/\/halts\//);
  assert.equal((await server.halts()).length, 1);
  await page.goBack();
  await page.waitForURL(at);
  await page.reload();
  await page.getByText("This halt was given already").waitFor();
  await page.getByRole("link", { name: "Look at that halt" }).click();
  await page.waitForURL(/\/halts\//);
  assert.equal((await server.halts()).length, 1);
});

staged("a link alone never acts, and does not come past the form", async (server) => {
  const page = await browser.person(server);
  const link = "/halt/review?kind=global&scope=global&reason=click+me&order=01890a5d-ac96-774b-bcce-b302099a8057&seal=00";
  // Signed out first: the link is where one comes back to.
  await page.goto(link);
  await page.getByLabel("Personal token").fill(server.admin);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("check what the link filled in").waitFor();
  assert.equal(await page.locator("#confirm").count(), 0);
  assert.equal(await page.getByLabel("Everything").isChecked(), true);
  assert.equal(await page.getByLabel("Why?").inputValue(), "click me");
  for (const path of [link, "/halt?scope=session:abc&reason=x", "/release?halt=1", "/sign-out"]) await page.goto(path);
  assert.deepEqual(await server.halts(), []);
  await page.goto("/halt");
  await page.getByRole("heading", { name: /Nothing is halted/ }).waitFor();
});

staged("the server dies and comes back: a loud banner, then live again, still signed in", async (server) => {
  const page = await browser.person(server, { token: server.admin });
  const halt = await server.halt("session:kept", "outlives the server");
  await page.getByText("session:kept").waitFor();
  await server.kill();
  const banner = page.getByRole("alert");
  await banner.waitFor();
  await page.getByText(/Estoppel has not answered for \d+ s/).waitFor();
  await page.getByText("estoppel halt --local").waitFor();
  await shot(page, "stale");
  await fitsAFinger(page);
  await accessible(page);
  await server.run();
  await banner.waitFor({ state: "hidden" });
  await server.halt("session:after", "given after the restart");
  await page.getByText("session:after").waitFor();
  await page.getByText("session:kept").waitFor();
  await page.goto(`/halts/${halt}`);
  await page.getByText("Given before this server's last start").waitFor();
  await page.reload();
  assert.equal(page.url(), `${server.url}/halts/${halt}`, "no second sign-in");
});

staged("a halt that is sent while the server is away arrives when it is back, once", async (server) => {
  const page = await browser.person(server, { token: server.admin });
  await review(page, { name: "abc123", reason: "sent into the dark" });
  await server.kill();
  await page.locator("#confirm").click();
  await page.getByText(/it is sent again until there is one/).waitFor();
  await server.run();
  await page.waitForURL(/\/halts\//);
  const halts = await server.halts();
  assert.deepEqual(halts.map(({ scope, reason }) => [scope, reason]), [["session:abc123", "sent into the dark"]]);
});

staged("a token that is revoked ends its session at once, and the page says so", async (server) => {
  const { body } = await server.api("POST", "/v1/tokens", { name: "rita", role: "responder" });
  const page = await browser.person(server, { token: body.token });
  await review(page, { name: "abc123", reason: "about to be let go" });
  const { status } = await server.api("DELETE", `/v1/tokens/${body.id}`);
  assert.equal(status, 204);
  await page.locator("#confirm").click();
  await page.getByText("Nothing was done: you are signed out").waitFor();
  assert.deepEqual(await server.halts(), []);
  await page.getByRole("link", { name: "Sign in" }).click();
  await page.getByLabel("Personal token").fill(server.admin);
  await page.getByRole("button", { name: "Sign in" }).click();
  assert.equal(await page.getByLabel("Why?").inputValue(), "about to be let go", "what was typed is there again");
  const watching = await browser.person(server, { token: await server.token("vera", "viewer") });
  await watching.goto("/halts");
  const tokens = (await server.api("GET", "/v1/tokens")).body;
  await server.api("DELETE", `/v1/tokens/${tokens.find((token) => token.name === "vera").id}`);
  await watching.getByText("You are signed out: the session is over").waitFor();
  await watching.getByRole("link", { name: "Sign in again" }).waitFor();
});

test("the pictures in the documentation are there and small", () => {
  for (const name of ["halt-page-review", "halt-page-stopped"]) {
    const file = readFileSync(new URL(`../../docs/${name}.png`, import.meta.url));
    assert.ok(file.length > 5_000 && file.length < 120_000, `${name}: ${file.length} bytes`);
  }
  assert.equal(PHONE.width, 360);
});
