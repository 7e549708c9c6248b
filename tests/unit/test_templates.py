"""Templates: whole conversations, what of them is supervised, and benchmarks that ask in the words of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from raysft.corpus.conversations import whole_conversation
from raysft.corpus.example import Example, examples_from_table, examples_to_table
from raysft.corpus.prompt import render_examples
from raysft.corpus.sources import all_examples
from raysft.corpus.tokenize import TokenisedRow, text_ids, tokenise_examples
from raysft.models.load import Base
from raysft.preflight import check_data, check_sweep
from raysft.session import Session
from raysft.spec.datasets import DatasetSpec
from raysft.spec.grid import Trial, expand
from raysft.spec.plan import make_plan
from raysft.spec.sweep import SpecError, load_sweep, parse_sweep
from raysft.spec.templates import Template
from raysft.store.layout import open_storage
from tests.unit.tokenizers_in_miniature import KINDS, Slow, byte_level

pytestmark = pytest.mark.unit

CHAT = Template("chat")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (  # writes a BOS, has no system role, puts a space before the reply and the EOS behind it
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
)
CONTEXT = Example("What is the capital of France?", "Paris.")
TALK = Example("and what is it?", "It is a question: yes.", (("hello", "What is it?"), ("Name it.", "21 é")), "Yes")
REPLIES = [reply for _, reply in TALK.turns]


def _tokenizer(kind: str, chat_template: str = CHATML, **settings: Any) -> Any:
    tokenizer = KINDS[kind](**settings)
    tokenizer.chat_template = chat_template
    return tokenizer


def _row(example: Example, tokenizer: Any, template: Template, max_length: int = 1000) -> TokenisedRow:
    [row] = tokenise_examples([example], tokenizer, template, max_length)
    return row


def _prompts(example: Example, tokenizer: Any) -> list[str]:
    """What a chat would give a model before each of its replies, by the tokenizer's own hand."""
    messages = [{"role": "system", "content": example.system}] if example.system else []
    prompts = []
    for asked, reply in example.turns:
        messages.append({"role": "user", "content": asked})
        prompts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        messages.append({"role": "assistant", "content": reply})
    return prompts


@pytest.mark.parametrize("template", [Template("paper"), Template("alpaca"), CHAT], ids=lambda template: template.name)
@pytest.mark.parametrize("chat_template", [CHATML, INST], ids=["ChatML", "INST"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_bos_where_texts_start_with_it_and_a_supervised_eos_last(
    kind: str, chat_template: str, template: Template
) -> None:
    tokenizer = _tokenizer(kind, chat_template)
    row = _row(CONTEXT, tokenizer, template)
    bos = tokenizer.convert_tokens_to_ids("<s>")
    starts = bos in tokenizer("")["input_ids"]
    assert (row.ids[0] == bos, list(row.ids).count(bos)) == (starts, int(starts))
    assert list(row.ids).count(tokenizer.eos_token_id) == 1
    assert row.ids[-1] == tokenizer.eos_token_id
    assert row.spans[-1][1] == len(row.ids)


def test_a_bos_that_only_the_template_writes_stays() -> None:
    """OLMo's tokenizer adds none, and its chat template begins with one: so do the prompts of whoever uses it."""
    tokenizer = _tokenizer("without BOS, pad is EOS", INST)
    tokenizer.bos_token = "<s>"
    assert tokenizer("")["input_ids"] == []
    assert _row(CONTEXT, tokenizer, CHAT).ids[:2].tolist() == tokenizer("<s>[")["input_ids"]
    assert tokenizer.bos_token_id not in _row(CONTEXT, tokenizer, Template("paper")).ids


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_exactly_what_the_assistant_says(kind: str) -> None:
    for eos, ends in (("<|im_end|>", ["<|im_end|>"] * 3), ("</s>", ["<|im_end|>"] * 2 + ["<|im_end|></s>"])):
        tokenizer = _tokenizer(kind, eos_token=eos)
        row = _row(TALK, tokenizer, CHAT)
        said = [tokenizer.decode(row.ids[start:stop]).strip() for start, stop in row.spans]
        assert said == [reply + end for reply, end in zip(REPLIES, ends, strict=True)]
        assert row.supervised == sum(stop - start for start, stop in row.spans)


@pytest.mark.parametrize("chat_template", [CHATML, INST], ids=["ChatML", "INST"])
@pytest.mark.parametrize("kind", ["byte-level", "without BOS, pad is EOS"])
def test_every_reply_follows_the_tokens_of_its_prompt(kind: str, chat_template: str) -> None:
    tokenizer = _tokenizer(kind, chat_template)
    talk = TALK if chat_template == CHATML else Example(TALK.instruction, TALK.response, TALK.history)
    row = _row(talk, tokenizer, CHAT)
    starts = [start for start, _ in row.spans]
    assert [list(row.ids[:start]) for start in starts] == [text_ids(p, tokenizer) for p in _prompts(talk, tokenizer)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_offsets_gives_the_same_rows(kind: str) -> None:
    tokenizer = _tokenizer(kind)
    for example, template in ((CONTEXT, Template("paper")), (TALK, CHAT)):
        assert _row(example, Slow(tokenizer), template) == _row(example, tokenizer, template)


def test_a_token_over_the_start_of_a_reply_is_the_replys_and_one_over_its_end_is_not() -> None:
    tokenizer = _tokenizer("byte-level", "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert tokenizer.tokenize("the capital of") == ["the", "Ġcapital", "Ġof"]
    row = _row(Example("the cap", "ital"), tokenizer, Template("{instruction}{response}"))
    assert tokenizer.decode(row.ids[row.spans[0][0] : -1]) == " capital"
    row = _row(Example("ital of", "Yes", (("What is ", "the cap"),)), tokenizer, CHAT)
    [(first, stop), _] = row.spans
    assert tokenizer.decode(row.ids[first:stop]) == " the"


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_reply() -> None:
    """A prompt that ends with a space is tokenised otherwise than the text in which a word follows that space."""
    spaced = INST.replace("{% endfor %}", "{% endfor %}{% if add_generation_prompt %} {% endif %}")
    tokenizer = _tokenizer("byte-level", spaced)
    for reply in ("Paris", "é"):  # the space is a part of a token, or a token
        row = _row(Example("hello", reply), tokenizer, CHAT)
        assert tokenizer.decode(row.ids[row.spans[0][0] :]) == f" {reply}</s>"


def test_what_a_template_writes_behind_the_eos_is_not_said() -> None:
    tokenizer = _tokenizer("byte-level", CHATML.replace("<|im_end|>", "{{ eos_token }}!"))
    row = _row(TALK, tokenizer, CHAT)
    said = [tokenizer.decode(row.ids[start:stop]) for start, stop in row.spans]
    assert said == [f"{reply}</s>" for reply in REPLIES]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_that_take_white_space_along_end_with_their_own_characters(kind: str) -> None:
    """As in Phi-3, whose marks swallow the line break after them."""
    tokenizer = _tokenizer(
        kind,
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    )
    marks = [AddedToken(f"<|{mark}|>", rstrip=True, special=True) for mark in ("system", "user", "assistant", "end")]
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    row = _row(Example("q", "Yes", (("q", "  It is."),)), tokenizer, CHAT)  # the mark takes the reply's spaces as well
    before_and_said = [tokenizer.decode(row.ids[start - 1 : stop]).replace(" ", "") for start, stop in row.spans]
    assert before_and_said == ["<|assistant|>Itis.<|end|>", "<|assistant|>Yes<|end|></s>"]


@pytest.mark.parametrize(
    ("chat_template", "reason"),
    [
        (CHATML.replace("{{ message.content }}", "{{ message.content if loop.last else '...' }}"), "not prefix-safe"),
        (
            CHATML.replace("<|im_end|>", "{{ '!' if loop.last and message.role == 'assistant' }}"),
            "of reply 2 .* for '!",
        ),
        (CHATML.replace("assistant\n{% endif", "model\n{% endif"), r"prompt of that reply; .*'assistant.* for 'model"),
        ("{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + CHATML, "refuses it .too long"),
        (CHATML + "{{ strftime_now('%d %b') }}", "the day"),
        (CHATML + "{% if %}", "refuses it"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused_with_the_reason(chat_template: str, reason: str) -> None:
    tokenizer = _tokenizer("byte-level", chat_template)
    talk = Example(TALK.instruction, TALK.response, TALK.history)
    with pytest.raises(ValueError, match=reason) as caught:
        tokenise_examples([talk], tokenizer, CHAT, 1000)
    assert "\n" not in str(caught.value)


def test_what_is_refused_is_named_by_row() -> None:
    tokenizer = _tokenizer("byte-level", INST)
    with pytest.raises(ValueError, match=r"row 2: the chat template refuses it .no system role"):
        tokenise_examples([CONTEXT, TALK], tokenizer, CHAT, 1000)
    with pytest.raises(ValueError, match=r"row 2: template paper holds one turn, found 3 turns; use template: chat"):
        tokenise_examples([CONTEXT, TALK], tokenizer, Template("paper"), 1000)


def test_a_date_in_the_template_is_not_today() -> None:
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b') }}" + CHATML
    [rendered] = render_examples([CONTEXT], _tokenizer("byte-level", dated), CHAT)
    assert rendered.text.startswith("26 Jul 2024<|im_start|>")


def test_a_base_without_a_chat_template_takes_one_from_a_file_or_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML)
    bare, own = byte_level(), _tokenizer("byte-level", INST)
    bare.name_or_path = "models/bare"
    with pytest.raises(ValueError, match=r"tokenizer of 'models/bare' has no chat template; name a \.jinja file"):
        tokenise_examples([CONTEXT], bare, CHAT, 1000)
    with_file = Template("chat", file)
    assert _row(TALK, bare, with_file) == _row(TALK, own, with_file) == _row(TALK, _tokenizer("byte-level"), CHAT)


@pytest.mark.parametrize("length", [60, 40, 24])
def test_a_cut_conversation_keeps_the_spans_that_are_left(length: int) -> None:
    tokenizer = _tokenizer("byte-level")
    whole, row = _row(TALK, tokenizer, CHAT), _row(TALK, tokenizer, CHAT, length)
    assert list(row.ids) == list(whole.ids[:length])
    kept = [token for start, stop in whole.spans for token in range(start, stop) if token < length]
    assert [token for start, stop in row.spans for token in range(start, stop)] == kept
    assert kept


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": r, "content": t} for r, t in zip(("user", "assistant") * 2, "qarb", strict=True)]},
        {"conversations": [{"from": r, "value": t} for r, t in zip(("human", "gpt") * 2, "qarb", strict=True)]},
        {"conversations": ["q", "a", "r", "b"]},
        {"data": ["q", "a", "r", "b", "a last question without a reply"]},
    ],
)
def test_all_turns_of_the_known_layouts_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([row]))
    assert all_examples(DatasetSpec(name="mine", path=path)) == [Example("q", "a")]
    assert all_examples(DatasetSpec(name="mine", path=path, turns="all")) == [Example("r", "b", (("q", "a"),))]


def test_all_turns_of_a_single_turn_are_one(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"instruction": "q", "output": "a"}]))
    assert all_examples(DatasetSpec(name="mine", path=path, turns="all")) == [Example("q", "a")]


def _messages(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} text"} for role in roles]


def test_a_system_text_comes_first() -> None:
    talk = whole_conversation(_messages("system", "user", "assistant"))
    assert (talk.system, talk.instruction, talk.history) == ("system text", "user text", ())
    with pytest.raises(ValueError, match="turn 3 is of system, expected user"):
        whole_conversation(_messages("user", "assistant", "system", "user", "assistant"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_messages("user", "user", "assistant"), "turn 2 is of user, expected assistant"),
        (_messages("assistant", "user"), "turn 1 is of assistant, expected user"),
        (_messages("user", "assistant", "user", "tool"), "turn 4 is of 'tool'; known: system, user"),
        (_messages("system", "user"), "no reply in 2 turns"),
        (["q", "  "], r"turn 2 .assistant. has no text"),
        ([{"role": "user", "content": ["q"]}, "a"], r"turn 1 .user. has no text"),
        ("q", "expected a list of turns, found str"),
        ([], "no reply in 0 turns"),
    ],
)
def test_a_disordered_conversation_is_refused_by_row_or_dropped(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"messages": _messages("user", "assistant")}, {"messages": content}]))
    with pytest.raises(SpecError, match=rf"datasets\.mine: d\.json, row 2: {message}.*incomplete_rows: drop"):
        all_examples(DatasetSpec(name="mine", path=path, turns="all"))
    kept = all_examples(DatasetSpec(name="mine", path=path, turns="all", incomplete_rows="drop"))
    assert kept == [Example("user text", "assistant text")]


def _session(content: dict[str, Any], **training: Any) -> tuple[Session, Trial, Base]:
    """A session, a trial of 32 rows of additions and a base without weights."""
    content["training"] = training
    content["grid"][0]["datasets"] = ["addition"]
    sweep = parse_sweep(content, "test")
    return Session(sweep, torch.device("cpu")), expand(sweep)[0][0], Base("base", None, byte_level(), {})


def test_a_trial_knows_how_many_of_its_rows_were_too_long(content: dict[str, Any]) -> None:
    session, trial, base = _session(content)
    lengths = sorted(row.spans[0][0] for row in session.rows(trial, base))
    assert session.rows(trial, base).dropped == 0
    assert lengths[0] < lengths[-1]

    session, trial, base = _session(content, max_length=lengths[-1])
    with pytest.raises(SpecError, match=r"datasets\.addition: row \d+: its prompt has .* max_length .*models\.tiny"):
        session.rows(trial, base)

    session, trial, base = _session(content, max_length=lengths[-1], overlong_rows="drop")
    rows = session.rows(trial, base)
    assert (len(rows), rows.dropped) == (sum(length < lengths[-1] for length in lengths), lengths.count(lengths[-1]))

    session, trial, base = _session(content, max_length=8, overlong_rows="drop")
    with pytest.raises(SpecError, match=r"datasets\.addition: max_length 8 leaves none of 32 rows a supervised token"):
        session.rows(trial, base)


def test_what_a_template_cannot_hold_is_refused_before_anything_starts(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"data": ["q", "a", "r", "b"]}]))
    content["datasets"] = [{"name": "mine", "path": str(path), "turns": "all"}]
    content["grid"][0]["sizes"] = ["all"]
    with pytest.raises(SpecError, match=r"datasets\.mine: row 1: template paper holds one turn, found 2 turns"):
        check_data(make_plan(parse_sweep(content, "test")))
    content["training"]["template"] = "chat"
    plan = make_plan(parse_sweep(content, "test"))
    check_data(plan)
    with pytest.raises(
        SpecError, match=r"training\.template: models\.tiny is pretrained here and has no chat template"
    ):
        check_sweep(plan, open_storage(content["storage"]))


def test_examples_come_back_from_arrow_and_blocks_agree() -> None:
    blocks = [examples_to_table([CONTEXT]), examples_to_table([TALK]), examples_to_table([])]
    assert len({str(block.schema) for block in blocks}) == 1
    assert [example for block in blocks for example in examples_from_table(block)] == [CONTEXT, TALK]


def _plan_keys(content: dict[str, Any], stage: str) -> set[str]:
    return {work.key for work in make_plan(parse_sweep(content, "test")).works() if work.stage == stage}


def test_defaults_are_in_no_key(content: dict[str, Any]) -> None:
    sweep = parse_sweep(content, "test")
    identity = expand(sweep)[0][0].identity
    assert not {"chat_template", "overlong_rows"} & set(identity["optimisation"])
    assert identity["optimisation"]["template"] == Template("paper").digest
    assert "turns" not in identity["dataset"]


def test_what_is_set_is_in_the_keys_of_what_it_changes(content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": _messages("user", "assistant")}))
    content["datasets"] = [{"name": "mine", "path": str(path)}]
    content["grid"][0]["sizes"] = ["all"]
    file = tmp_path / "t.jinja"
    trained = [_plan_keys(content, "train")]
    content["datasets"][0]["turns"] = "all"
    trained.append(_plan_keys(content, "train"))
    content["training"]["overlong_rows"] = "drop"
    trained.append(_plan_keys(content, "train"))
    content["training"]["template"] = "chat"
    trained.append(_plan_keys(content, "train"))
    for text in (CHATML, INST):
        file.write_text(text)
        content["training"]["chat_template"] = str(file)
        trained.append(_plan_keys(content, "train"))
    scored = [_plan_keys(content, "evaluate")]
    for template in ("alpaca", "chat"):
        content["evaluation"]["template"] = template
        scored.append(_plan_keys(content, "evaluate"))
    assert len(set.union(*trained)) == sum(map(len, trained))
    assert len(set.union(*scored)) == sum(map(len, scored))
    assert _plan_keys(content, "train") == trained[-1]


def test_a_chat_template_lies_beside_the_yaml_and_is_for_chat(content: dict[str, Any], tmp_path: Path) -> None:
    content["training"] = {"template": "chat", "chat_template": "t.jinja"}
    (tmp_path / "sweep.yaml").write_text(json.dumps(content))
    sweep = load_sweep(tmp_path / "sweep.yaml")
    assert sweep.training.chat_template == tmp_path.resolve() / "t.jinja"
    with pytest.raises(SpecError, match=r"training\.chat_template: no file"):
        expand(sweep)
    content["training"]["template"] = "paper"
    with pytest.raises(SpecError, match=r"training\.chat_template belongs to template: chat, found .*'paper'"):
        parse_sweep(content, "test")
    content["training"] = {}
    content["evaluation"]["template"] = "chart"
    with pytest.raises(SpecError, match=r"evaluation\.template: found 'chart'; valid: paper"):
        make_plan(parse_sweep(content, "test"))
