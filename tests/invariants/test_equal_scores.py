"""Shared beginnings and continuous batches give the scores and texts of lm-eval's own HF backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from raysft.evaluation import prefix_lm
from raysft.evaluation.masks import Masks
from raysft.evaluation.prefix_lm import PrefixLM
from raysft.evaluation.sharing import sharing_of
from raysft.evaluation.templated_lm import TemplatedLM
from raysft.spec.templates import Template
from tests.unit.tokenizers_in_miniature import byte_level, byte_level_without_bos, old_sentence_piece

pytestmark = pytest.mark.invariants

LENGTH = 96  # tokens that a model takes
WINDOW = 9
TOLERANCE = 1e-4

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}
CONFIGS: dict[str, Callable[[int], Any]] = {
    "grouped-query": lambda size: LlamaConfig(vocab_size=size, **SHAPE),
    "learned positions": lambda size: GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH),
    "sliding window": lambda size: MistralConfig(vocab_size=size, sliding_window=WINDOW, **SHAPE),
    "some layers with a window": lambda size: Qwen2Config(
        vocab_size=size, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, **SHAPE
    ),
    "windows and soft caps": lambda size: Gemma2Config(vocab_size=size, sliding_window=WINDOW, head_dim=8, **SHAPE),
}
UNSHARED: dict[str, Callable[[int], Any]] = {
    "counts places": lambda size: BloomConfig(vocab_size=size, hidden_size=32, n_layer=2, n_head=4),
    "local attention by places": lambda size: GPTNeoConfig(
        vocab_size=size,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=LENGTH,
    ),
    "recurrent": lambda size: MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2),
}
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "BOS": byte_level,
    "no BOS, pad is EOS": byte_level_without_bos,
    "space mark": old_sentence_piece,
}
EXAMPLES = "".join(f"Question: what is {n} plus {n}?\nAnswer: {2 * n}\n\n" for n in range(1, 4))
ITEMS = [
    ("Question: what is the capital of France?\nAnswer:", (" Paris", " Rome", " a question of taste", " P")),
    ("Question: what is 17 plus 4?\nAnswer:", (" 21", " 22", " 2", " twenty-one")),
    ("Name it ", ("Yes", "No", "Yes and no", "")),
]


def _model(config: Any) -> Any:
    """With weights so large that attention looks at few tokens, and each place and window matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module", params=[(family, kind) for family in CONFIGS for kind in TOKENIZERS], ids=", ".join)
def backends(request: pytest.FixtureRequest) -> tuple[HFLM, PrefixLM]:
    family, kind = request.param
    tokenizer = TOKENIZERS[kind]()
    model = _model(CONFIGS[family](len(tokenizer)))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=LENGTH, backend="causal")
    ours = PrefixLM(model, tokenizer, batch_size=3, token_budget=64)
    assert ours._sharing is not None
    assert (ours._sharing.masks.window is None) == (family in ("grouped-query", "learned positions"))
    return theirs, ours


def _ask(lm: HFLM, kind: str, arguments: list[Any]) -> list[Any]:
    requests = [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]
    answers: list[Any] = getattr(lm, kind)(requests)
    return answers


def _pairs(shots: str) -> list[tuple[str, str]]:
    return [(shots + question, choice) for question, choices in ITEMS for choice in choices if choice]


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(_pairs(""), id="zero-shot"),
        pytest.param(_pairs(EXAMPLES), id="few-shot"),
        pytest.param(_pairs(EXAMPLES * 4), id="longer than the model"),
        pytest.param([("", "Paris is a question"), ("", "P"), ("a", " b"), ("a ", "b")], id="hardly any context"),
    ],
)
def test_log_likelihoods_and_greedy_flags(backends: tuple[HFLM, PrefixLM], pairs: list[tuple[str, str]]) -> None:
    theirs, ours = (_ask(lm, "loglikelihood", pairs) for lm in backends)
    np.testing.assert_allclose([value for value, _ in ours], [value for value, _ in theirs], atol=TOLERANCE, rtol=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_what_is_greedy_is_flagged(backends: tuple[HFLM, PrefixLM]) -> None:
    _, ours = backends
    context = ours.tok_encode(EXAMPLES)
    said = list(context)
    with torch.no_grad():
        for _ in range(3):
            said.append(int(ours.model(torch.tensor([said])).logits[0, -1].argmax()))
    other = [*said[:-1], (said[-1] + 1) % len(ours.tokenizer)]
    asked = [(None, context, tokens[len(context) :]) for tokens in (said, other)]
    assert [greedy for _, greedy in ours._scored(ours._lay_out(asked), 2)] == [True, False]


def test_rolling_log_likelihoods(backends: tuple[HFLM, PrefixLM]) -> None:
    texts = [("What is it?",), (EXAMPLES,), (EXAMPLES * 4,), ("P",), (EXAMPLES,)]
    theirs, ours = (_ask(lm, "loglikelihood_rolling", texts) for lm in backends)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_generated_texts(backends: tuple[HFLM, PrefixLM], side: str) -> None:
    """Whatever the tokenizer pads on; more contexts than rows in flight, with ends of their own."""
    questions = [question for question, _ in ITEMS] + ["What", "a " * 40 + "b", EXAMPLES * 4]
    asked = [
        (shots + question, {"until": until, "max_gen_toks": most, "do_sample": False})
        for shots in ("", EXAMPLES)
        for question in questions
        for until, most in ((["e"], 12), (["\n\n", "an"], 7), ([], 20))
    ]
    for lm in backends:
        lm.tokenizer.padding_side = side
    theirs, ours = (_ask(lm, "generate_until", asked) for lm in backends)
    assert ours == theirs
    assert len(set(theirs)) > 4


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_what_does_not_fit_into_memory_is_done_in_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    model = _model(CONFIGS["grouped-query"](len(tokenizer)))
    options = {"until": ["e"], "max_gen_toks": 12}
    asked = _pairs(EXAMPLES) if kind == "loglikelihood" else [(question, options) for question, _ in ITEMS * 3]
    roomy = _ask(PrefixLM(model, tokenizer, batch_size=8, token_budget=4096), kind, asked)
    sizes = []
    forward = model.forward

    def scarce(input_ids: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **rest)

    lm = PrefixLM(model, tokenizer, batch_size=8, token_budget=4096)
    monkeypatch.setattr(model, "forward", scarce)
    monkeypatch.setattr(prefix_lm, "plant", partial(prefix_lm.plant, row_tokens=16))
    answers = _ask(lm, kind, asked)
    assert max(sizes) > 2
    if kind == "generate_until":
        assert answers == roomy
    else:
        np.testing.assert_allclose([value for value, _ in answers], [value for value, _ in roomy], atol=TOLERANCE)


@pytest.mark.parametrize("template", ["paper", "chat"])
def test_templates(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a template the same class answers as it does when lm-eval's backend computes all by itself."""
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = _model(CONFIGS["grouped-query"](len(tokenizer)))
    answers = []
    for shares in (True, False):
        lm = TemplatedLM(model, tokenizer, Template(template), batch_size=3, token_budget=64)
        if not shares:
            lm._sharing = None
        contexts = [lm.apply_chat_template([{"role": "user", "content": question}]) for question, _ in ITEMS]
        pairs = [(context, choice) for context in contexts for choice in ("Paris", "21", "Yes and no")]
        asked = [(context, {"until": ["e"], "max_gen_toks": 9}) for context in contexts]
        answers.append((_ask(lm, "loglikelihood", pairs), _ask(lm, "generate_until", asked)))
    (ours, our_texts), (theirs, their_texts) = answers
    np.testing.assert_allclose([value for value, _ in ours], [value for value, _ in theirs], atol=TOLERANCE)
    assert our_texts == their_texts


@pytest.mark.parametrize("family", UNSHARED)
def test_models_that_cannot_share_go_the_plain_way(family: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_level()
    model = _model(UNSHARED[family](len(tokenizer)))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert sharing_of(model) is None
    assert "is evaluated without sharing what prompts begin with" in caplog.text
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=LENGTH, backend="causal")
    ours = PrefixLM(model, tokenizer, batch_size=4, token_budget=64)
    ours._max_length = LENGTH
    pairs = _pairs(EXAMPLES)
    assert _ask(ours, "loglikelihood", pairs) == _ask(theirs, "loglikelihood", pairs)
    assert _ask(ours, "loglikelihood_rolling", [(EXAMPLES,)]) == _ask(theirs, "loglikelihood_rolling", [(EXAMPLES,)])
    asked = [(EXAMPLES, {"until": ["e"], "max_gen_toks": 5})]
    assert _ask(ours, "generate_until", asked) == _ask(theirs, "generate_until", asked)


@pytest.mark.parametrize("family", ["sliding window", "some layers with a window", "windows and soft caps"])
def test_a_window_that_is_not_kept_is_noticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question that every model is asked would find masks that are wrong."""
    model = _model(CONFIGS[family](100))
    assert sharing_of(model) is not None
    right = Masks._one

    def without(self: Masks, sees: Any, window: int | None, at: Any, keys_at: Any) -> torch.Tensor:
        return right(self, sees, None, at, keys_at)

    monkeypatch.setattr(Masks, "_one", without)
    assert sharing_of(model) is None


def test_requests_beyond_a_window_that_was_not_asked_about_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysft.evaluation.sharing._ASKED_WINDOW", WINDOW - 1)
    tokenizer = byte_level()
    model = _model(CONFIGS["sliding window"](len(tokenizer)))
    lm = PrefixLM(model, tokenizer, batch_size=4, token_budget=64)
    assert lm._sharing is not None
    assert lm._sharing.longest == WINDOW
    plain: list[int] = []

    def score(_: HFLM, asked: list[Any], **__: Any) -> list[tuple[float, bool]]:
        plain.append(len(asked))
        return [(1.0, True)] * len(asked)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", score)
    answers = _ask(lm, "loglikelihood", [("a", "b"), (EXAMPLES, " 21")])
    assert plain == [1]
    assert answers[1] == (1.0, True)


@pytest.mark.parametrize("options", [{"do_sample": True, "temperature": 0.7}, {"num_beams": 2}])
def test_what_is_not_greedy_is_left_to_the_backend(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    lm = PrefixLM(_model(CONFIGS["grouped-query"](len(tokenizer))), tokenizer, batch_size=4, token_budget=64)
    monkeypatch.setattr(HFLM, "generate_until", lambda self, asked, **_: ["theirs"] * len(asked))
    assert _ask(lm, "generate_until", [("a", {"until": [], "max_gen_toks": 2, **options})]) == ["theirs"]
    lm.model.generation_config.repetition_penalty = 1.1
    assert _ask(lm, "generate_until", [("a", {"until": [], "max_gen_toks": 2})]) == ["theirs"]


def test_weights_that_diverged_say_nothing_of_the_next_ones() -> None:
    tokenizer = byte_level()
    model = _model(CONFIGS["grouped-query"](len(tokenizer)))
    sound = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    assert PrefixLM(model, tokenizer, batch_size=4)._sharing is None
    model.load_state_dict(sound)
    assert PrefixLM(model, tokenizer, batch_size=4)._sharing is not None


def test_texts_are_laid_out_once_for_all_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    model = _model(CONFIGS["grouped-query"](len(tokenizer)))
    first = PrefixLM(model, tokenizer, batch_size=4, token_budget=64)
    before = _ask(first, "loglikelihood", _pairs(EXAMPLES))
    monkeypatch.setattr(prefix_lm, "plant", lambda requests: pytest.fail("laid out again"))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)  # another checkpoint
    second = PrefixLM(model, tokenizer, batch_size=4, token_budget=64, layouts=first._layouts)
    after = _ask(second, "loglikelihood", _pairs(EXAMPLES))
    assert before != after
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=LENGTH, backend="causal")
    wanted = _ask(theirs, "loglikelihood", _pairs(EXAMPLES))
    np.testing.assert_allclose([value for value, _ in after], [value for value, _ in wanted], atol=TOLERANCE)
