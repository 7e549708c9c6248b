"""What a vLLM process answers is what the model in memory answers: the same requests, tokens, stops and marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from raysft.evaluation.prefix_lm import PrefixLM
from raysft.evaluation.templated_lm import TemplatedLM
from raysft.evaluation.token_lm import TokenLM
from raysft.evaluation.vllm_engine import VllmError
from raysft.evaluation.vllm_lm import Served, TemplatedVllmLM, VllmLM
from raysft.spec.templates import Template
from raysft.spec.vllm import VllmSpec
from tests.invariants.vllm_interpreters import VLLMS, vllm_settings
from tests.unit.test_templates import CHATML
from tests.unit.tokenizers_in_miniature import byte_level

pytestmark = pytest.mark.invariants

LENGTH = 96  # tokens that a model takes
TOLERANCE = 1e-4
SHAPE: dict[str, Any] = {  # heads are as wide as vLLM's kernels want them
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}
CONFIGS: dict[str, Callable[[int], Any]] = {
    "grouped-query": lambda size: LlamaConfig(vocab_size=size, **SHAPE),
    "tied": lambda size: Qwen2Config(vocab_size=size, tie_word_embeddings=True, **SHAPE),
    "learned positions": lambda size: GPT2Config(vocab_size=size, n_embd=128, n_layer=2, n_head=4, n_positions=LENGTH),
    "sliding window": lambda size: MistralConfig(vocab_size=size, sliding_window=9, head_dim=32, **SHAPE),
    "windows and soft caps": lambda size: Gemma2Config(vocab_size=size, sliding_window=9, head_dim=32, **SHAPE),
}
WHERE = [
    ("stand-in", "grouped-query"),
    ("stand-in", "tied"),
    *(("real", family) for family in CONFIGS if "real" in VLLMS),
]
EXAMPLES = "".join(f"Question: what is {n} plus {n}?\nAnswer: {2 * n}\n\n" for n in range(1, 4))
QUESTIONS = ("Question: what is the capital of France?\nAnswer:", "Question: what is 17 plus 4?\nAnswer:", "Name it ")
CHOICES = (" Paris", " 21", " P", " a question of taste, and what is it? It is a question of taste")
# Shorter and longer than the model takes; continuations that are scored token by token, and in one go.
PAIRS = [
    (shots + question, choice) for shots in ("", EXAMPLES, 4 * EXAMPLES) for question in QUESTIONS for choice in CHOICES
]
PAIRS += [("", "Paris is a question"), ("", "P"), ("a", " b"), ("a ", "b")]

Both = tuple[TokenLM, TokenLM]


@pytest.fixture(scope="module", params=WHERE, ids=", ".join)
def model(request: pytest.FixtureRequest) -> Iterator[tuple[Any, PreTrainedTokenizerFast, Served]]:
    """With weights so large that attention looks at few tokens, and a process that answers for it."""
    where, family = request.param
    tokenizer = byte_level()
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(CONFIGS[family](len(tokenizer))).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    with (
        pytest.MonkeyPatch.context() as patch,
        Served(network, VllmSpec(**vllm_settings(where, patch))) as served,
    ):
        yield network, tokenizer, served


@pytest.fixture(params=["plain", "paper", "chat"])
def both(model: Any, request: pytest.FixtureRequest) -> Both:
    """The model in memory, and the process for it, without a template and with one."""
    network, tokenizer, served = model
    if request.param == "plain":
        return PrefixLM(network, tokenizer, batch_size=4), VllmLM(served, tokenizer, batch_size=4)
    tokenizer.chat_template = CHATML
    template = Template(request.param)
    return (
        TemplatedLM(network, tokenizer, template, batch_size=4),
        TemplatedVllmLM(served, tokenizer, template, batch_size=4),
    )


def _ask(lm: TokenLM, kind: str, arguments: list[Any]) -> list[Any]:
    answers: list[Any] = getattr(lm, kind)([Instance(kind, {}, one, 0) for one in arguments])
    return answers


def _context(lm: TokenLM, question: str) -> str:
    is_templated = isinstance(lm, (TemplatedLM, TemplatedVllmLM))
    return lm.apply_chat_template([{"role": "user", "content": question}]) if is_templated else question


def test_log_likelihoods_and_greedy_flags(both: Both) -> None:
    asked = [[(_context(lm, context) if context else "", choice) for context, choice in PAIRS] for lm in both]
    theirs, ours = (_ask(lm, "loglikelihood", pairs) for lm, pairs in zip(both, asked, strict=True))
    np.testing.assert_allclose([value for value, _ in ours], [value for value, _ in theirs], atol=TOLERANCE, rtol=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_what_is_greedy_is_flagged(model: Any) -> None:
    """Of one token and of several, by themselves and at the end of a prompt."""
    network, tokenizer, served = model
    lm = VllmLM(served, tokenizer, batch_size=4)
    context = lm.tok_encode(QUESTIONS[0])
    said = list(context)
    with torch.no_grad():
        for _ in range(6):
            said.append(int(network(torch.tensor([said])).logits[0, -1].argmax()))
    last, middle = list(said), list(said)
    for tokens, at in ((last, -1), (middle, -4)):
        tokens[at] = (tokens[at] + 1) % len(tokenizer)
    asked = [(said, 6), (said, 1), (last, 6), (last, 1), (middle, 6)]
    flags = [greedy for _, greedy in lm._scored([(None, tokens[:-count], tokens[-count:]) for tokens, count in asked])]
    assert flags == [True, True, False, False, False]


def test_rolling_log_likelihoods(both: Both) -> None:
    texts = [("What is it?",), (EXAMPLES,), (4 * EXAMPLES,), ("P",), (EXAMPLES,)]
    theirs, ours = (_ask(lm, "loglikelihood_rolling", texts) for lm in both)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=1e-5)


def test_generated_texts_and_those_that_never_ended(both: Both) -> None:
    """With stop strings inside and across tokens, ends of their own, and contexts that are cut."""
    asked = [
        (question, {"until": until, "max_gen_toks": most, "do_sample": False})
        for question in (*QUESTIONS, EXAMPLES + QUESTIONS[0], 4 * EXAMPLES)
        for until, most in ((["e"], 12), (["\n\n", "an"], 7), ([], 20))
    ]
    wanted = [[(_context(lm, question), options) for question, options in asked] for lm in both]
    theirs, ours = (_ask(lm, "generate_until", one) for lm, one in zip(both, wanted, strict=True))
    assert ours == theirs
    assert len(set(theirs)) > 2
    assert both[1].endless == both[0].endless
    assert both[1].endless


def test_samples_differ_and_come_again(model: Any) -> None:
    _, tokenizer, served = model
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    asked = [(QUESTIONS[0], options)] * 4
    first, again = (_ask(VllmLM(served, tokenizer, batch_size=4), "generate_until", asked) for _ in range(2))
    assert len(set(first)) > 1
    assert again == first


def test_samples_of_a_task_do_not_depend_on_what_is_asked_beside_it(model: Any) -> None:
    """Such as the one of two tasks that is left after a kill, whose results must not be others than before."""
    _, tokenizer, served = model
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    tasks = {
        name: [
            Instance("generate_until", {}, (question, options), 0, metadata=(name, number, 1))
            for number, question in enumerate([QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]])
        ]
        for name in ("first", "second")
    }
    both = VllmLM(served, tokenizer, batch_size=4).generate_until(tasks["first"] + tasks["second"])
    alone = VllmLM(served, tokenizer, batch_size=4).generate_until(tasks["second"])
    assert both[3:] == alone
    assert both[:3] != alone, "another task is another sample"
    assert alone[0] != alone[2], "the same question again is another one too"


def test_what_vllm_does_not_do_is_refused_by_name(model: Any) -> None:
    _, tokenizer, served = model
    lm = VllmLM(served, tokenizer, batch_size=4)
    with pytest.raises(ValueError, match=r"generation with num_beams is not done under evaluation\.backend: vllm"):
        _ask(lm, "generate_until", [("a", {"until": [], "max_gen_toks": 2, "num_beams": 2})])
    with pytest.raises(ValueError, match="max_gen_toks is 96, and the model takes 96 tokens"):
        _ask(lm, "generate_until", [("a", {"until": [], "max_gen_toks": LENGTH})])


def test_a_request_longer_than_max_model_len_is_named(model: Any) -> None:
    _, tokenizer, served = model
    short = Served(served.model, served.spec.model_copy(update={"max_model_len": 8}))
    with pytest.raises(VllmError, match=r"tokens; raise evaluation\.vllm\.max_model_len, found 8"):
        _ask(VllmLM(short, tokenizer, batch_size=4), "loglikelihood", [(EXAMPLES, " 21")])
