// OpenAI's npm package in a page of another origin, in Chromium, against `mmx serve --cors`.
// usage: page_openai.mjs MMX MODEL; MODULES holds openai and playwright-core, CHROMIUM is the browser.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";

const [mmx, model] = process.argv.slice(2);
const modules = process.env.MODULES;
const { chromium } = createRequire(`${modules}/`)("playwright-core");

// the page and the package's own modules; "localhost" is another origin than the server's address
const types = { ".mjs": "text/javascript", ".html": "text/html" };
const files = http.createServer((request, response) => {
  const { pathname } = new URL(request.url, "http://x");
  if (pathname === "/") return response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><title>page</title><link rel=icon href=data:,>");
  const file = path.join(modules, path.normalize(pathname));
  if (!fs.existsSync(file)) return response.writeHead(404).end();
  response.writeHead(200, { "content-type": types[path.extname(file)] ?? "text/plain" }).end(fs.readFileSync(file));
});
await new Promise(ready => files.listen(0, "127.0.0.1", ready));
const origin = `http://localhost:${files.address().port}`;
const server = spawn(mmx, ["serve", model, "--name", "me/my-model", "--port", "0", "--cors", origin, "--api-key", "secret"]);
let browser;
try {
  const url = await new Promise((found, failed) => {
    let said = "";
    server.stderr.on("data", data => { said += data; const at = said.match(/at (http:\S+)/); if (at) found(at[1]); });
    server.on("exit", () => failed(new Error(said)));
  });
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
  const page = await browser.newPage();
  const faults = [];
  page.on("console", message => { if (message.type() === "error") faults.push(message.text()); });
  await page.goto(origin);
  const found = await page.evaluate(async ({ url, origin }) => {
    const { default: OpenAI } = await import(`${origin}/openai/index.mjs`);
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "secret", organization: "o", project: "p", dangerouslyAllowBrowser: true, maxRetries: 0 });
    const ask = { model: "me/my-model", messages: [{ role: "user", content: "你好" }], max_tokens: 24, seed: 3 };
    const models = (await client.models.list()).data.map(m => m.id);
    const one = await client.models.retrieve("me/my-model");
    const whole = await client.chat.completions.create(ask);
    let streamed = "", usage;
    for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
      streamed += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    const helper = await client.chat.completions.stream(ask).finalContent();
    const raw = await client.completions.create({ model: ask.model, prompt: "好", echo: true, logprobs: 1, max_tokens: 0 });
    let refused;
    try { await client.chat.completions.create({ ...ask, seed: -2 }); } catch (error) { refused = { status: error.status, param: error.param }; }
    const vectors = await client.embeddings.create({ model: ask.model, input: "hello" });
    return { models, one: one.id, whole: whole.choices[0].message.content, streamed, helper, usage, raw: raw.choices[0], refused, width: vectors.data[0].embedding.length };
  }, { url, origin });
  assert.deepEqual([found.models, found.one], [["me/my-model"], "me/my-model"]);
  assert.equal(found.streamed, found.whole);
  assert.equal(found.helper, found.whole);
  assert.ok(found.usage.completion_tokens > 0 && found.width > 8);
  assert.ok(found.raw.text === "好" && found.raw.logprobs.token_logprobs[0] === null);
  assert.deepEqual(found.refused, { status: 400, param: "seed" });
  assert.ok(faults.every(fault => fault.includes("400")), faults.join("\n"));
  // a page of an origin that nobody named is not let in
  const other = await browser.newPage();
  await other.goto(origin.replace("localhost", "127.0.0.1"));
  const stopped = await other.evaluate(url => fetch(`${url}/v1/models`, { headers: { authorization: "Bearer secret" } }).then(() => false, () => true), url);
  assert.ok(stopped, "another origin is stopped");
  const { version } = JSON.parse(fs.readFileSync(path.join(modules, "openai/package.json")));
  console.log(`page: openai ${version} from npm, Chromium ${browser.version()}`);
} finally {
  await browser?.close();
  server.kill();
  files.close();
}
