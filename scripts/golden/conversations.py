#!/usr/bin/env python3
"""conversations.py: writes into tests/fixtures/templates/conversations.json what Transformers (Jinja2) makes of each
conversation by mmx's own templates. The conversations stand there; only `minimind2` and `minimind3` of each are made. Run by a
Python with Transformers, from the repository's root."""
import json

from transformers.utils.chat_template_utils import render_jinja_template

FILE = "tests/fixtures/templates/conversations.json"
TEMPLATES = {name: open(f"converters/src/tokenizer/templates/{name}.jinja").read() for name in ("minimind2", "minimind3")}
OPTIONS = ("add_generation_prompt", "open_thinking")

rows = json.load(open(FILE))
for row in rows:
    for name, template in TEMPLATES.items():
        options = {key: row[key] for key in OPTIONS if key in row}
        rendered = render_jinja_template([row["messages"]], tools=row.get("tools"), chat_template=template, **options)
        row[name] = rendered[0][0]
with open(FILE, "w") as out:
    out.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
