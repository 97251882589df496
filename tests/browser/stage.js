// A server of the real binary on free ports, enforcers that connect to it, and a real browser.

import { spawn } from "node:child_process";
import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { randomBytes, randomUUID } from "node:crypto";
import { chromium } from "playwright-core";
import WebSocket from "ws";

const BINARY = process.env.ESTOPPEL_BINARY;
export const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
/** Liveness, not speed: ten times what anything here takes. */
export const PATIENCE_MS = 60_000;

/** Asks until there is an answer that counts. */
export async function until(what, ask) {
  const begun = Date.now();
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() - begun > PATIENCE_MS) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export class Server {
  static async start({ gateway = true } = {}) {
    const server = new Server();
    server.folder = mkdtempSync(join(tmpdir(), "estoppel-browser-"));
    server.port = await freePort();
    server.gatewayPort = gateway ? await freePort() : undefined;
    await server.run();
    return server;
  }

  get url() { return `http://127.0.0.1:${this.port}`; }

  async run() {
    const log = openSync(join(this.folder, "log"), "a");
    const gateway = this.gatewayPort
      ? ["--gateway-listen", `127.0.0.1:${this.gatewayPort}`]
      : ["--no-gateway"];
    this.child = spawn(
      BINARY,
      ["serve", "--listen", `127.0.0.1:${this.port}`, "--data", join(this.folder, "data"), ...gateway],
      { stdio: ["ignore", log, log] },
    );
    this.ended = new Promise((resolve) => this.child.once("exit", resolve));
    let over = false;
    this.ended.then(() => { over = true; });
    await until("the server", async () => {
      if (over) throw new Error(readFileSync(join(this.folder, "log"), "utf8"));
      return fetch(`${this.url}/healthz`).then((answer) => answer.ok, () => false);
    });
    this.admin = readFileSync(join(this.folder, "data", "admin.token"), "utf8");
    await until("recovery", async () => (await this.api("GET", "/v1/incidents")).status === 200);
    if (this.gatewayPort) {
      await until("the gateway", async () => {
        const { body } = await this.api("GET", "/v1/status");
        return body.enforcers.some((enforcer) => enforcer.connected && enforcer.lease_until);
      });
    }
  }

  enforcers = [];

  /** As a power cut does. */
  async kill() {
    this.child.kill("SIGKILL");
    await this.ended;
  }

  async stop() {
    for (const enforcer of this.enforcers) enforcer.close();
    await this.kill();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async api(method, path, body, token = this.admin) {
    const answer = await fetch(this.url + path, {
      method,
      headers: { authorization: `Bearer ${token}` },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    let json = text;
    try { json = JSON.parse(text); } catch { /* not every answer is JSON */ }
    return { status: answer.status, body: json };
  }

  async token(name, role) {
    const { status, body } = await this.api("POST", "/v1/tokens", { name, role });
    if (status !== 201) throw new Error(JSON.stringify(body));
    return body.token;
  }

  async halt(scope, reason) {
    const { status, body } = await this.api("POST", "/kill-switch", { scope, reason });
    if (status !== 202) throw new Error(JSON.stringify(body));
    return body.id;
  }

  async halts() {
    return (await this.api("GET", "/v1/halts")).body;
  }
}

/** An enforcer that says what it is told to say; it confirms when asked to. */
export class Enforcer {
  static async connect(server, { name, gaps = [], subjects = [], kind = "guard", role = "agent" }) {
    const enforcer = new Enforcer();
    server.enforcers.push(enforcer);
    const token = await server.token(`machine-${randomUUID().slice(0, 8)}`, role);
    enforcer.orders = [];
    enforcer.socket = new WebSocket(`${server.url.replace("http", "ws")}/v1/stream`, {
      headers: { authorization: `Bearer ${token}` },
    });
    const say = (frame) => enforcer.socket.send(JSON.stringify(frame));
    enforcer.say = say;
    const ready = new Promise((resolve, reject) => {
      enforcer.socket.on("error", reject);
      enforcer.socket.on("close", () => reject(new Error(`the stream was closed: ${enforcer.why}`)));
      enforcer.socket.on("message", (data) => {
        const frame = JSON.parse(data);
        if (frame.frame === "welcome" && frame.buckets) {
          const buckets = {};
          for (let bucket = 0; bucket < 256; bucket += 1) buckets[bucket] = [];
          say({ frame: "have", buckets });
        }
        if (frame.frame === "refused") enforcer.why = frame.reason;
        if (frame.frame === "in_sync") say({ frame: "ping", nonce: 1 });
        if (frame.frame === "pong") resolve();
        if (frame.frame === "orders") {
          for (const signed of frame.orders) enforcer.orders.push(JSON.parse(signed.order));
        }
      });
    });
    enforcer.socket.on("open", () => say({
      frame: "hello", protocol: 1, enforcer: randomUUID(), kind, name, subjects, gaps,
      key: randomBytes(32).toString("hex"), set: { count: 999, root: "0".repeat(64) },
    }));
    await ready;
    enforcer.pings = setInterval(() => say({ frame: "ping", nonce: 2 }), 1_000);
    return enforcer;
  }

  async confirm(order, stage, settlement) {
    await until("the order", () => this.orders.some((own) => own.id === order));
    const at = new Date().toISOString();
    this.say({ frame: "confirm", order, stage, at, after_us: 900, ...(settlement && { settlement }) });
  }

  close() {
    clearInterval(this.pings);
    this.socket.removeAllListeners("close");
    this.socket.terminate();
  }
}

export const PHONE = { width: 360, height: 740 };

/** A browser whose pages fail the test on any dialog, script error or request to elsewhere. */
export class Browser {
  static async start() {
    const own = new Browser();
    own.browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
    own.wrong = [];
    return own;
  }

  async person(server, { viewport = PHONE, javaScriptEnabled = true, colorScheme = "light", token } = {}) {
    const context = await this.browser.newContext({
      viewport, javaScriptEnabled, colorScheme, baseURL: server.url, hasTouch: true,
    });
    context.setDefaultTimeout(PATIENCE_MS / 2);
    const page = await context.newPage();
    page.on("dialog", (dialog) => {
      this.wrong.push(`dialog: ${dialog.message()}`);
      dialog.dismiss().catch(() => {});
    });
    page.on("pageerror", (error) => this.wrong.push(`script: ${error}`));
    page.on("console", (message) => {
      if (/Content Security Policy|Trusted Type/i.test(message.text())) this.wrong.push(message.text());
    });
    page.on("request", (request) => {
      if (!request.url().startsWith(server.url)) this.wrong.push(`elsewhere: ${request.url()}`);
    });
    if (token) await signIn(page, token);
    return page;
  }

  async stop() {
    await this.browser.close();
  }
}

export async function signIn(page, token, path = "/halt") {
  await page.goto(path);
  await page.getByLabel("Personal token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.waitForURL((url) => !url.pathname.startsWith("/sign-in"));
}

/** Fills the form in and looks at what it will hit: the first action. */
export async function review(page, { kind = "Session", name, reason }) {
  await page.getByRole("radio", { name: kind, exact: true }).check();
  if (name) await page.getByLabel("Its name").fill(name);
  await page.getByLabel("Why?").fill(reason);
  await page.getByRole("button", { name: "Show what this will hit" }).click();
  await page.getByRole("heading", { name: /^Halt / }).waitFor();
}

/** The second action. */
export async function confirm(page) {
  await page.locator("#confirm").click();
  await page.waitForURL(/\/halts\/[0-9a-f-]{36}/);
}

/** Keeps a picture for people, when a folder for them is named. */
export async function shot(page, name) {
  const folder = process.env.ESTOPPEL_SHOTS;
  if (folder) writeFileSync(join(folder, `${name}.png`), await page.screenshot({ fullPage: true }));
}
