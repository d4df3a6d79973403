// The AI SDK against `mmx serve`, by OpenAI's Responses and by Anthropic's Messages: ai_sdk.mjs URL NAME; MODULES is a
// node_modules folder that has it. The model is a tiny one with random answers, so what is compared is the protocol.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import assert from "node:assert/strict";

const require = createRequire(process.env.MODULES + "/none.js");
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { generateText, streamText, tool, stepCountIs, Output } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createAnthropic } = await load("@ai-sdk/anthropic");
const { z } = await load("zod");

const [url, name] = process.argv.slice(2);
const options = { baseURL: `${url}/v1`, apiKey: "none" };
const models = {
  "OpenAI's Responses": createOpenAI(options).responses(name),
  "Anthropic's Messages": createAnthropic(options)(name),
};
let failed = 0;
async function check(what, run) {
  try {
    console.log(`ok    AI SDK: ${what}: ${(await run()) ?? ""}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  AI SDK: ${what}\n${error.stack}\n${JSON.stringify(error.responseBody ?? error.data ?? "")}`);
  }
}

const weather = tool({
  description: "Tells the weather.",
  inputSchema: z.object({ city: z.enum(["北京", "Rome"]) }),
  execute: async ({ city }) => `sunny in ${city}`,
});

for (const [api, model] of Object.entries(models)) {
  await check(`${api}: a text, whole and streamed`, async () => {
    const ask = { model, system: "Be short.", prompt: "你好", maxOutputTokens: 24, temperature: 0 };
    const whole = await generateText(ask);
    assert.ok(whole.usage.inputTokens > 0 && whole.usage.outputTokens > 0, JSON.stringify(whole.usage));
    assert.ok(["stop", "length"].includes(whole.finishReason), whole.finishReason);
    const stream = streamText(ask);
    let text = "";
    for await (const part of stream.textStream) text += part;
    assert.equal(text, whole.text);
    assert.equal(await stream.finishReason, whole.finishReason);
    return `${whole.usage.outputTokens} tokens`;
  });
  await check(`${api}: a tool is called, run, and its result sent back`, async () => {
    const ask = { model, prompt: "x", tools: { weather }, maxOutputTokens: 64, temperature: 0 };
    const first = { stopWhen: stepCountIs(2), prepareStep: ({ stepNumber }) => (stepNumber ? { toolChoice: "none" } : { toolChoice: "required" }) };
    for (const run of [generateText, (ask) => streamText(ask)]) {
      const found = await run({ ...ask, ...first });
      const steps = await found.steps;
      if (found.consumeStream) await found.consumeStream();
      const results = steps[0].toolResults;
      assert.ok(results.length >= 1 && results[0].output.startsWith("sunny in "), JSON.stringify(steps[0].content));
      assert.equal(steps.length, 2, "the result was sent back");
    }
    return "whole and streamed";
  });
  await check(`${api}: an object of a schema`, async () => {
    const schema = z.object({ city: z.enum(["北京", "Rome"]), days: z.array(z.enum(["a", "b"])).max(2) });
    const found = await generateText({ model, prompt: "x", output: Output.object({ schema }), maxOutputTokens: 200, temperature: 0 });
    assert.ok(schema.safeParse(found.output).success, JSON.stringify(found.output));
    return JSON.stringify(found.output);
  });
  await check(`${api}: an error has its sentence`, async () => {
    await assert.rejects(generateText({ model, prompt: "x", topP: 7, maxRetries: 0 }), (error) => {
      assert.equal(error.statusCode, 400);
      assert.match(error.message, /top_p/);
      return true;
    });
  });
}
process.exit(failed ? 1 : 0);
