"""Chat templates in the style of well-known families, and conversations to write down with them."""

from cupola.chat.conversation import Conversation, Message
from cupola.chat.template import DEFAULT

HEADERS = """\
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today: ' + (date_string | default('1 Jan 2024')) + '\\n\\n' }}
{{- ns.system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
        {{- message['content'] | trim + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
"""Headers, as Llama 3 has them: a start token, trimmed contents, a date."""

LINES = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
<|assistant|>
{% generation %}
{{ message['content'] + eos_token }}
{% endgeneration %}
{% else %}{% continue %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
"""Lines, as Zephyr has them: roles in plain text, blocks on lines of their own."""

STANDING = """\
{%- if messages[0].role != 'system' -%}
    <|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        <|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>
{% endgeneration %}
    {%- else -%}
        <|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|im_start|>assistant
{% endif -%}
"""
"""A standing system message, as Qwen has it; the newline after an answer is learnt as well."""

TOOLS = """\
{%- if tools is not none and tools %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\n' + tools | map(attribute='name') | join(', ') + (tools[0] | tojson(indent=2)) }}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}{{ message.content }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""Tools as JSON and their results as a user's words, as Hermes and Qwen have them."""

TEMPLATES = {"default": DEFAULT, "headers": HEADERS, "lines": LINES, "standing": STANDING, "tools": TOOLS}

ASK, REPLY = Message("user", "How many words?"), Message("assistant", "Two, I think.")
CODE = Message("assistant", "    x = 'ü'\n\n\n\ty = 😀\n  # done 🏳️‍🌈")
CONVERSATIONS = {
    "one turn": Conversation((ASK, REPLY)),
    "two turns": Conversation((ASK, REPLY, Message("user", "Why? 天地玄黄"), CODE)),
    "a system": Conversation((Message("system", "  Be brief.\n"), ASK, CODE, ASK, REPLY)),
    "an empty system": Conversation((Message("system", ""), ASK, REPLY)),
    "the user's last word": Conversation((ASK, CODE, Message("user", "Thanks <3"))),
    "tools": Conversation(
        (ASK, Message("assistant", "f(1)"), Message("tool", "é < 1"), Message("tool", ""), REPLY),
        ({"name": "f", "text": "<b>'é'</b>"}, {"name": "g", "arguments": {"x": [1, None, True]}}),
    ),
}
