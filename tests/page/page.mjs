// The page of `mmx serve`, used as a person would: by keyboard, in both languages, dark, and on a phone's width.
// usage: page.mjs URL FOLDER; the folder gets screenshots. Ends with 1 at the first fault.
import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(`${process.env.MODULES}/`)("playwright-core");
const [url, shots] = process.argv.slice(2);
fs.mkdirSync(shots, { recursive: true });
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
let checks = 0;
const check = (ok, what) => { assert.ok(ok, what); checks += 1; };

async function open(options) {
  const context = await browser.newContext({ locale: "en-US", ...options });
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: url });
  const page = await context.newPage();
  page.faults = [];
  page.on("pageerror", error => page.faults.push(error.message));
  page.on("console", message => { if (message.type() === "error") page.faults.push(message.text()); });
  page.on("request", request => { if (!request.url().startsWith(url) && !request.url().startsWith("data:")) page.faults.push("asks " + request.url()); });
  await page.goto(url);
  await page.waitForFunction(() => document.querySelectorAll("#model option").length === 2);
  return page;
}
const done = page => page.waitForFunction(() => document.querySelector("#stop").hidden);
const answers = page => page.locator(".turn.assistant .text").allTextContents();

// a conversation by keyboard alone
const page = await open({ viewport: { width: 1100, height: 760 } });
await page.screenshot({ path: `${shots}/1-empty.png` });
check(await page.evaluate(() => document.activeElement.id) === "box", "the box has the focus");
await page.locator("#open").click();
await page.fill("#max_tokens", "40");
await page.fill("#seed", "3");
await page.fill("#temperature", "1");
await page.fill("#system", "Answer briefly.");
await page.screenshot({ path: `${shots}/2-settings.png` });
const lines = p => p.locator("#defaults").evaluate(e => Math.round((e.clientHeight - 10) / parseFloat(getComputedStyle(e).lineHeight)));
check((await lines(page)) === 1, "the button of defaults is one line");
await page.locator("#open").click();
await page.focus("#box");
let sent;
page.on("request", request => { if (request.method() === "POST") sent = JSON.parse(request.postData()); });
await page.keyboard.type("你好, hello");
await page.keyboard.press("Shift+Enter");
await page.keyboard.type("second line");
await page.keyboard.press("Enter");
await done(page);
check(sent.messages[0].role === "system" && sent.messages[0].content === "Answer briefly.", "the system prompt is sent");
check(sent.messages[1].content === "你好, hello\nsecond line", "Shift+Enter breaks the line");
check(sent.seed === 3 && sent.temperature === 1 && sent.max_tokens === 40, "the settings are sent");
let [first] = await answers(page);
check(first.length > 0, "an answer is shown");
check(/40 tokens · \d+\/s · read \d+ · cut at the limit/.test(await page.locator(".figures").last().textContent()), "figures: " + await page.locator(".figures").last().textContent());
await page.screenshot({ path: `${shots}/3-answer.png` });

// the same again, copied, edited
await page.locator(".again").click();
await done(page);
check((await answers(page)).length === 1 && (await answers(page))[0] === first, "the same seed regenerates the same");
await page.locator(".turn.assistant .copy").click();
check(await page.evaluate(() => navigator.clipboard.readText()) === first, "copied");
await page.locator(".edit-turn").click();
await page.keyboard.press("Control+a");
await page.keyboard.type("edited");
await page.keyboard.press("Enter");
await done(page);
check((await page.locator(".turn.user .text").allTextContents()).join() === "edited", "the edited message replaces the old one");
await page.reload();
await page.waitForFunction(() => document.querySelectorAll("#model option").length === 2);
check((await page.locator(".turn").count()) === 2, "a reload keeps the conversation");

// one token is no plural
await page.evaluate(() => { document.querySelector("#max_tokens").value = "1"; });
await page.fill("#box", "one");
await page.keyboard.press("Enter");
await done(page);
check(/^1 token ·/.test(await page.locator(".figures").last().textContent()), "one token: " + await page.locator(".figures").last().textContent());

// stop, and thoughts
await page.evaluate(() => { document.querySelector("#max_tokens").value = ""; });
await page.route("**/v1/chat/completions", async route => {
  const data = JSON.parse(route.request().postData());
  await route.continue({ postData: JSON.stringify({ ...data, ignore_eos: true, max_tokens: 4000 }) });
});
await page.locator("#open").click();
check(await page.locator("#think-label").isVisible(), "thinking can be asked for");
await page.check("#think");
await page.locator("#open").click();
await page.fill("#box", "think");
// Escape comes with the first thought, from within the page: the tiny model may be done before a key gets here
await page.evaluate(() => new MutationObserver((_, observer) => {
  if (!document.querySelector("details.thought")) return;
  observer.disconnect();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
}).observe(document.querySelector("#log"), { childList: true, subtree: true }));
await page.keyboard.press("Enter");
await page.waitForSelector("details.thought");
await done(page);
check((await page.locator(".figures").last().textContent()).includes("stopped"), "Escape stops");
check(!(await page.locator("details.thought").last().evaluate(e => e.open)), "thoughts are folded");
await page.locator("details.thought summary").last().focus();
await page.keyboard.press("Enter");
check(await page.locator("details.thought").last().evaluate(e => e.open), "and open by keyboard");
await page.screenshot({ path: `${shots}/4-thought.png` });
await page.unroute("**/v1/chat/completions");

// another model, the other language, dark
await page.selectOption("#model", "second");
await page.locator("#lang").click();
check((await page.locator("#send").textContent()) === "发送", "Chinese");
await page.locator("#theme").click();
check((await page.evaluate(() => document.documentElement.dataset.theme)) === "dark", "dark");
await page.fill("#box", "用中文回答 `code`");
await page.keyboard.press("Enter");
await done(page);
check(sent.model === "second", "the chosen model is asked");
await page.screenshot({ path: `${shots}/5-chinese-dark.png` });
await page.locator("#new").click();
check((await page.locator(".turn").count()) === 0, "a new conversation is empty");

// what a model writes is text, never a part of the page
const hostile = await open({ viewport: { width: 700, height: 600 } });
await hostile.route("**/v1/chat/completions", route => route.fulfill({
  contentType: "text/event-stream",
  body: `: waiting\n\ndata: ${JSON.stringify({ choices: [{ delta: { content: "<img src=x onerror=alert(1)> ```js\n<script>alert(2)</" + "script>\n``` end" } }] })}\n\ndata: [DONE]\n\n`,
}));
await hostile.fill("#box", "x");
await hostile.keyboard.press("Enter");
await done(hostile);
check((await hostile.locator("#log img, #log script").count()) === 0, "HTML of a model is not run");
check((await hostile.locator("#log pre code").textContent()).includes("<script>"), "code is shown as code");
await hostile.screenshot({ path: `${shots}/6-code.png` });
await hostile.unroute("**/v1/chat/completions");
await hostile.route("**/v1/chat/completions", route => route.fulfill({ status: 429, contentType: "application/json", body: '{"error":{"message":"the queue is full"}}' }));
await hostile.fill("#box", "y");
await hostile.keyboard.press("Enter");
await done(hostile);
check((await hostile.locator(".error").last().textContent()) === "the queue is full", "a refusal is shown");
hostile.faults = hostile.faults.filter(fault => !fault.includes("429"));

// a phone
const phone = await open({ viewport: { width: 360, height: 720 }, isMobile: true, hasTouch: true, locale: "zh-CN", colorScheme: "dark" });
check((await phone.locator("#send").textContent()) === "发送", "the browser's language");
check((await phone.evaluate(() => document.documentElement.dataset.theme)) === "dark", "the system's colours");
await phone.fill("#box", "你好，写一段很长的话" + "好".repeat(60));
await phone.locator("#send").tap();
await done(phone);
check(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing is wider than the phone");
check(await phone.locator("#send").isVisible(), "the button is on the screen");
await phone.screenshot({ path: `${shots}/7-phone.png` });
await phone.locator("#open").tap();
await phone.screenshot({ path: `${shots}/8-phone-settings.png` });
check((await lines(phone)) === 1, "and so is it on a phone");
check(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nor are the settings");

for (const p of [page, hostile, phone]) assert.deepEqual(p.faults, [], "no error and no foreign request");
const version = browser.version();
await browser.close();
console.log(`page: ${checks} checks, Chromium ${version}; screenshots in ${shots}`);
