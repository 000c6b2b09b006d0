"""Conversations: rendered, tokenised and marked as transformers does it, by templates that are not trusted."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_files import encoder_of, prose, write_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from moe_atlas.errors import InputRefused, ResourceExhausted
from moe_atlas.probes.documents import chat
from moe_atlas.probes.documents.chat import Renderer
from moe_atlas.probes.documents.chat_template import Template, find_template
from moe_atlas.probes.documents.encoding import Part
from moe_atlas.probes.documents.rows import Conversation, read_row

OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"

# Three habits of released templates, each with the blocks that say what the model writes; without them the product
# has to find out.
CHATML = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- if tools %}{{ '<tools>' + tools | tojson + '</tools>\\n' }}{% endif %}
{%- for m in messages if m.role != 'system' %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}GEN{{ m.content + '<|im_end|>' }}END{% else %}{{ m.content + '<|im_end|>' }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
REASONING = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}GEN
{%- if loop.index0 > ns.last %}{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}
{{- m.content + '<|im_end|>' }}END{% else %}{{ m.content + '<|im_end|>' }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
ALTERNATING = """\
{{- bos_token }}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- else %}GEN{{ ' ' + m.content | trim + eos_token }}END{% endif %}
{%- endfor %}"""

TALK = [
    {"role": "user", "content": "Hello, who are you?"},
    {"role": "assistant", "content": "  A machine. \n\nReally, café 🙂.", "reasoning_content": "short"},
    {"role": "user", "content": "And now?\n"},
    {
        "role": "assistant",
        "content": "Still the same <|im_start|> machine.\n",
        "thinking": "hm",
        "name": None,
    },
]


def plain(template: str) -> str:
    return template.replace("GEN", "").replace("END", "")


def tagged(template: str) -> str:
    return template.replace("GEN", OPEN).replace("END", CLOSE)


def save_tokenizer(folder: Path, template: str, **settings: Any) -> Any:
    """A byte-level tokenizer with special tokens, as transformers saves one; the oracle itself is given back."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
        **settings,
    )
    made.save_pretrained(folder)
    return made


def part_of(folder: Path, row: dict[str, Any], **choices: object) -> Part:
    encoder = encoder_of(folder, tokenizer="tokenizer.json", **choices)
    try:
        return encoder.part(read_row(row, "rows:1", "1"))
    finally:
        encoder.close()


@pytest.mark.parametrize(
    "template", [CHATML, REASONING, ALTERNATING], ids=["chatml", "reasoning", "alternating"]
)
@pytest.mark.parametrize("blocks", [True, False], ids=["generation blocks", "prefixes"])
def test_tokens_and_scored_turns_are_those_of_transformers(
    tmp_path: Path, template: str, blocks: bool
) -> None:
    oracle = save_tokenizer(tmp_path, tagged(template))
    wanted = oracle.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    if not blocks:
        (tmp_path / "chat_template.jinja").write_text(plain(template))
    part = part_of(tmp_path, {"messages": TALK})
    assert part.counted is not None
    assert part.tokens.tolist() == wanted["input_ids"]
    found, mask = part.counted.astype(int).tolist(), wanted["assistant_masks"]
    if blocks:
        assert found == mask
    else:  # what ends a turn belongs to it: ChatML's line break after the end token too
        text = oracle.convert_ids_to_tokens(part.tokens.tolist())
        assert {text[n] for n in range(len(mask)) if found[n] != mask[n]} <= {"Ċ"}
        assert all(found[n] for n in range(len(mask)) if mask[n])


def test_a_system_turn_tools_and_sharegpt_spelling(tmp_path: Path) -> None:
    oracle = save_tokenizer(tmp_path, tagged(CHATML))
    tools = [{"type": "function", "function": {"name": "f<ü>", "parameters": {}}}]
    spelled = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
    ]
    messages = [
        {"role": role, "content": turn["value"]}
        for role, turn in zip(("system", "user", "assistant"), spelled, strict=True)
    ]
    wanted = oracle.apply_chat_template(messages, tools=tools, return_dict=True)["input_ids"]
    part = part_of(tmp_path, {"conversations": spelled, "tools": tools})
    assert part.tokens.tolist() == wanted
    assert part.counted is not None
    assert oracle.decode(part.tokens[part.counted]) == "Hello<|im_end|>"


@pytest.mark.parametrize("blocks", [True, False])
def test_the_turns_of_a_prompt_are_not_scored(tmp_path: Path, blocks: bool) -> None:
    oracle = save_tokenizer(tmp_path, tagged(CHATML) if blocks else plain(CHATML))
    part = part_of(tmp_path, {"prompt": TALK[:3], "completion": TALK[3:]})
    assert part.counted is not None
    scored = oracle.decode(part.tokens[part.counted]).rstrip("\n")
    assert scored == "Still the same <|im_start|> machine.\n<|im_end|>"


def test_reasoning_models_begin_after_the_header_that_a_server_writes(tmp_path: Path) -> None:
    oracle = save_tokenizer(tmp_path, plain(REASONING))
    part = part_of(tmp_path, {"messages": TALK})
    assert part.counted is not None
    edges = np.flatnonzero(np.diff(part.counted.astype(int), prepend=0, append=0)).reshape(-1, 2)
    turns = [oracle.decode(part.tokens[start:end]) for start, end in edges]
    assert turns == [
        "  A machine. \n\nReally, café 🙂.<|im_end|>\n",
        "<think>\nhm\n</think>\n\nStill the same <|im_start|> machine.\n<|im_end|>\n",
    ]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "before message 2 otherwise",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% if loop.last %}!{{ messages | length }}{% endif %}{% endfor %}",
            "message 2 otherwise",
        ),
        ("{% for m in messages %}{{ raise_exception('no ' + m.role) }}{% endfor %}", "no user"),
        ("{{ messages[0].missing.deeper }}", "has no attribute"),
        ("{% generation %}{% endgeneration %}{{ messages[0].content }}", "marks nothing"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ ''.__class__ }}{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("{% set _ = messages.append(1) %}", "SecurityError"),
        ("{{ 'a' * 1000000000000 }}", "memory"),
        (
            "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 9999 }}{% endfor %}",
            "longer than",
        ),
        ("{{ 9 ** 99999999 }}", "powers"),
        ("{{ '%999999999999d' % 1 }}", "refuses it"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
        ("{{ strftime_now('%999999999d') }}", "date format"),
        ("{{ messages | random }}", "no chat template"),
        ("{% for x in %}", "no chat template"),
        ("{% include '/etc/passwd' %}", "refuses it"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(tmp_path: Path, template: str, problem: str) -> None:
    talk = [*TALK[:2], {"role": "user", "content": "more"}]
    (tmp_path / "t.jinja").write_text(template)
    encoder = encoder_of(tmp_path, chat_template="t.jinja")
    with pytest.raises(InputRefused) as caught:
        encoder.part(read_row({"messages": talk}, "rows:7", "7"))
    encoder.close()
    assert caught.value.code == "E_PROBE_TEMPLATE"
    assert caught.value.where in ("rows:7", "t.jinja")
    assert problem in caught.value.problem


def test_a_template_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(chat, "SECONDS", 0.5)
    renderer = Renderer(Template("t.jinja", loop))
    try:
        with pytest.raises(InputRefused, match="does not end within 0.5 s") as caught:
            renderer.render(Conversation(tuple(TALK[:2])), "rows:3")
    finally:
        renderer.close()
    assert caught.value.where == "rows:3"
    assert renderer._process.returncode is not None


def test_a_template_without_a_process_to_render_it_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any, **__: Any) -> None:
        raise OSError(errno.EAGAIN, "no process left")

    monkeypatch.setattr(chat.subprocess, "Popen", none_left)
    with pytest.raises(ResourceExhausted, match=r"E_PROCESS .* cannot be started \(no process left\)"):
        chat._start()


def test_today_is_one_day_and_the_environment_is_not_there(tmp_path: Path) -> None:
    text = "{{ strftime_now('%d %b %Y') }}|{{ lipsum is defined }}|"
    text += "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"
    (tmp_path / "t.jinja").write_text(text + "{% generation %}x{% endgeneration %}")
    encoder = encoder_of(tmp_path, chat_template="t.jinja")
    part = encoder.part(read_row({"messages": TALK[:2]}, "rows:1", "1"))
    encoder.close()
    assert bytes(part.tokens.astype(np.uint8)) == b"26 Jul 2024|False|Hello, who are you?x"


@pytest.mark.parametrize("form", ["text", "list", "jinja", "json"])
def test_where_a_template_stands(tmp_path: Path, form: str) -> None:
    (tmp_path / "model").mkdir()
    listed = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    files = {
        "text": ("tokenizer_config.json", json.dumps({"chat_template": "yes"})),
        "list": (
            "tokenizer_config.json",
            json.dumps({"chat_template": listed, "bos_token": {"content": "<s>"}}),
        ),
        "jinja": ("chat_template.jinja", "yes"),
        "json": ("chat_template.json", json.dumps({"chat_template": "yes"})),
    }
    name, text = files[form]
    (tmp_path / "model" / name).write_text(text)
    found = find_template(tmp_path, "model/tokenizer.json", None)
    assert (found.file, found.text) == (name, "yes")
    assert found.special == ({"bos_token": "<s>"} if form == "list" else {})
    assert find_template(tmp_path, None, f"model/{name}").text == "yes"


def test_two_templates_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="there is no chat template") as caught:
        find_template(tmp_path, "tokenizer.json", None)
    assert caught.value.code == "E_PROBE_TEMPLATE"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "one"}))
    (tmp_path / "chat_template.jinja").write_text("one")
    assert find_template(tmp_path, "tokenizer.json", None).text == "one"
    (tmp_path / "chat_template.jinja").write_text("two")
    with pytest.raises(InputRefused, match="different chat templates"):
        find_template(tmp_path, "tokenizer.json", None)
    assert find_template(tmp_path, "tokenizer.json", "chat_template.jinja").text == "two"
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "rag", "template": "x"}]})
    )
    with pytest.raises(InputRefused, match="none called default"):
        find_template(tmp_path, "tokenizer.json", None)


def test_a_special_token_that_the_tokenizer_lacks_is_noticed(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, tagged(CHATML))
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<|begin|>"}))
    with pytest.raises(InputRefused, match="writes bos_token '<|begin|>'".replace("|", r"\|")):
        part_of(tmp_path, {"messages": TALK})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": []}, "messages must be a list of 1 to 10000 messages, found 0 of them"),
        ({"messages": "hi"}, "found str"),
        ({"messages": [{"role": "user", "content": "x"}]}, "has no assistant turn"),
        ({"messages": [{"content": "x"}]}, "messages[0] must have role and content, or from and value"),
        ({"messages": [{"role": 3}]}, "messages[0].role must be text, found int"),
        ({"messages": ["x"]}, "found 'str'"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "conversations[0].from is 'narrator'"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "conversations[0].value must be text, found int"),
        (
            {"conversations": [{"from": "gpt", "value": "x", "role": "user"}]},
            "must have role and content, or",
        ),
        ({"messages": TALK, "tools": "[]"}, "tools must be a list of objects, found str"),
        ({"messages": TALK, "text": "x"}, "found text and messages"),
        ({"prompt": TALK[:1], "completion": TALK[2:3]}, "has no assistant turn"),
    ],
)
def test_a_malformed_conversation_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputRefused) as caught:
        read_row(row, "rows:4", "4")
    assert (caught.value.code, caught.value.where) == ("E_PROBE_SOURCE", "rows:4")
    assert problem in caught.value.problem


def test_half_a_surrogate_pair_in_a_message_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    encoder = encoder_of(tmp_path, chat_template="t.jinja")
    row = {"messages": [{"role": "assistant", "content": "a\ud800"}]}
    with pytest.raises(InputRefused, match="surrogate"):
        encoder.part(read_row(row, "rows:1", "1"))
    encoder.close()


def registered(folder: Path, domain: str, extra: str = "") -> Path:
    from moe_atlas.probes.template import TEMPLATE

    head = TEMPLATE.split("domains:")[0].replace("tokens: 512", "tokens: 24")
    policy = TEMPLATE[TEMPLATE.index("policy:\n") :]
    path = folder / "probes.yaml"
    path.write_text(f"{extra}{head}domains:\n  - {domain}\n{policy}")
    return path


def test_the_lock_names_template_and_text_and_notices_both(tmp_path: Path) -> None:
    from moe_atlas.probes.registration import load_registered, register

    save_tokenizer(tmp_path, tagged(CHATML))
    rows = [
        {
            "messages": [
                {"role": "user", "content": prose(n, 30)},
                {"role": "assistant", "content": prose(50 + n, 40)},
            ]
        }
        for n in range(6)
    ]
    write_rows(tmp_path / "chat.jsonl", list(rows))
    path = registered(tmp_path, "{name: chat, role: base, source: chat.jsonl, documents: 4}")
    body = register(path).body
    assert body["chat_template"]["file"] == "chat_template.jinja"
    assert len(body["domains"][0]["rendered_sha256"]) == 64
    windows = load_registered(path).windows
    assert all(len(window.tokens) == 24 and window.scored.any() for window in windows)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + "{# the same text #}")
    with pytest.raises(InputRefused, match="chat_template.sha256"):
        load_registered(path)


@pytest.mark.parametrize("text", [True, False], ids=["text", "chat"])
def test_bos_stands_in_front_of_every_window_once(tmp_path: Path, text: bool) -> None:
    from moe_atlas.probes.registration import load_registered, register

    oracle = save_tokenizer(tmp_path, tagged(CHATML))
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": prose(1, 90)}]
    write_rows(tmp_path / "a.jsonl", [{"text": prose(1, 90)} if text else {"messages": messages}])
    path = registered(tmp_path, "{name: a, role: base, source: a.jsonl}", "special_tokens: bos\n")
    path.write_text(path.read_text().replace("per_document: 1", "per_document: 3"))
    assert register(path).body["probes"]["special_tokens"] == "bos"
    windows = load_registered(path).windows
    for window in windows:
        assert window.tokens[0] == oracle.bos_token_id
        assert oracle.bos_token_id not in window.tokens[1:]
        assert (len(window.tokens), len(window.scored)) == (24, 23)
    assert len(windows) == 3
    if text:
        assert all(window.scored.all() for window in windows)


def test_a_bos_that_the_template_writes_is_not_doubled(tmp_path: Path) -> None:
    oracle = save_tokenizer(tmp_path, tagged(CHATML))
    plain_part = part_of(tmp_path, {"messages": TALK})
    part = part_of(tmp_path, {"messages": TALK}, special_tokens="bos")
    assert plain_part.tokens[0] == oracle.bos_token_id
    assert part.tokens.tolist() == plain_part.tokens[1:].tolist()
    assert part.counted is not None
    assert plain_part.counted is not None
    assert part.counted.tolist() == plain_part.counted[1:].tolist()


def test_bos_needs_a_tokenizer_that_has_one(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="needs a tokenizer.json"):
        encoder_of(tmp_path, special_tokens="bos")
    save_tokenizer(tmp_path, "x")
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": None}))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(InputRefused, match="no bos_token is named"):
        encoder_of(tmp_path, tokenizer="tokenizer.json", special_tokens="bos")
