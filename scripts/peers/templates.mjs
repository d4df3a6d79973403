// MODULES=NODE_MODULES node templates.mjs TEMPLATE CONVERSATIONS: what @huggingface/jinja makes of each, as a JSON list of texts.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { Template } = createRequire(process.env.MODULES + "/")("@huggingface/jinja");
const template = new Template(readFileSync(process.argv[2], "utf8"));
const texts = JSON.parse(readFileSync(process.argv[3], "utf8")).map((row) => {
  const context = { messages: row.messages, tools: row.tools ?? null, add_generation_prompt: row.add_generation_prompt };
  if (row.open_thinking !== undefined) context.open_thinking = row.open_thinking;
  try {
    return template.render(context);
  } catch (error) {
    return `error: ${error.message}`;
  }
});
console.log(JSON.stringify(texts));
