"""One pass over a dataset's rows, beside plain loops, lm-eval and a pass of its own for each number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from raysft.corpus.example import Example
from raysft.corpus.tokenize import TokenisedRow, tokenise_examples
from raysft.models import output_layer
from raysft.probes.data.perplexity import data_properties, example_table, fitting_rows
from raysft.probes.log_likelihood import log_likelihoods
from raysft.probes.scoring import centroid_of, read_rows, score_rows
from raysft.spec.templates import Template
from tests.invariants.tiny_models import random_rows, tiny_base
from tests.unit.tokenizers_in_miniature import (
    KINDS,
    byte_level,
    byte_level_without_bos,
    old_sentence_piece,
    sentence_piece,
)

pytestmark = pytest.mark.invariants

LENGTH = 128
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}
CONFIGS: dict[str, Callable[[int], Any]] = {
    "llama": lambda size: LlamaConfig(vocab_size=size, num_key_value_heads=2, **SHAPE),
    "mistral": lambda size: MistralConfig(vocab_size=size, num_key_value_heads=2, sliding_window=9, **SHAPE),
    "gemma2": lambda size: Gemma2Config(
        vocab_size=size, num_key_value_heads=2, head_dim=8, sliding_window=9, final_logit_softcapping=5.0, **SHAPE
    ),
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_embd=32, n_layer=3, n_head=4, n_positions=LENGTH),
    "gpt_neox": lambda size: GPTNeoXConfig(vocab_size=size, **SHAPE),
}
EXAMPLES = [
    Example("What is the capital of France?", "Paris"),
    Example("Name it.", "The capital of France is Paris, and it is a question: what is it?"),
    Example("Say nothing", "é"),
    Example("17 plus 4", "17 plus 4 equals 21.\n\nIt is 21, and 17 plus 4 equals 21."),
]
PAPER = Template("paper")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}</s>{% else %}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BUDGET = 96


def _model(family: str, size: int) -> Any:
    """A random model whose weights are so large that its predictions are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def _examples_under(model: Any, tokenizer: Any, examples: list[Example] = EXAMPLES) -> tuple[pa.Table, int]:
    rows = fitting_rows(model, tokenizer, examples, PAPER, LENGTH)
    reading = read_rows(model, rows.tokens, tokenizer.pad_token_id, BUDGET, rows.places)
    return example_table(rows, reading, tokenizer), rows.left_out


@torch.inference_mode()
def _plain_log_probabilities(model: Any, ids: list[int]) -> list[float]:
    """That of each token but the first, given those before it, from a pass over no more than these."""
    found = []
    for place in range(1, len(ids)):
        logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
        found.append(float(torch.log_softmax(logits, dim=0)[ids[place]]))
    return found


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_perplexities_are_those_of_a_plain_loop(family: str, kind: str) -> None:
    tokenizer = KINDS[kind]()
    model = _model(family, len(tokenizer))
    table, _ = _examples_under(model, tokenizer)
    tokens = tokenise_examples(EXAMPLES, tokenizer, PAPER, LENGTH)
    nats = bytes_said = count = 0.0
    for row, found, example in zip(tokens, table.to_pylist(), EXAMPLES, strict=True):
        plain = _plain_log_probabilities(model, row.ids.tolist())
        [(start, stop)] = row.spans
        response = -sum(plain[start - 1 : stop - 1])
        assert found["response_nll"] == pytest.approx(response, rel=1e-5)
        assert found["text_nll"] == pytest.approx(-sum(plain), rel=1e-5)
        assert (found["prompt_tokens"], found["response_tokens"]) == (start, stop - start)
        assert found["text_tokens"] == len(row.ids)
        text = f"###Question: {example.instruction}\n###Answer: {example.response}"
        unscored = "" if tokenizer.bos_token else tokenizer.decode(row.ids[:1])
        assert found["text_bytes"] == len(text.encode()) - len(unscored)
        assert found["response_bytes"] == len(f" {example.response}".encode())
        nats, count, bytes_said = nats + response, count + stop - start, bytes_said + found["response_bytes"]
    value = {(row["property"], row["statistic"]): row["value"] for row in data_properties(table, 0).to_pylist()}
    assert value["response_nll_per_token", None] == pytest.approx(nats / count, rel=1e-5)
    assert value["response_perplexity", None] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert value["response_bits_per_byte", None] == pytest.approx(nats / math.log(2) / bytes_said, rel=1e-5)


def test_means_and_quantiles_are_over_rows() -> None:
    tokenizer = byte_level()
    table, _ = _examples_under(_model("llama", len(tokenizer)), tokenizer)
    properties = data_properties(table, 3).to_pylist()
    value = {(row["property"], row["statistic"]): row["value"] for row in properties}
    per_token = np.array(table["text_nll"]) / (np.array(table["text_tokens"]) - 1)
    assert value["text_nll_per_token", "mean"] == pytest.approx(per_token.mean())
    assert value["text_nll_per_token", None] != pytest.approx(per_token.mean(), rel=1e-4)
    bits = np.array(table["response_nll"]) / math.log(2) / np.array(table["response_bytes"])
    for share in (5, 25, 50, 75, 95):
        assert value["text_nll_per_token", f"q{share:02d}"] == pytest.approx(np.quantile(per_token, share / 100))
        assert value["response_bits_per_byte", f"q{share:02d}"] == pytest.approx(np.quantile(bits, share / 100))
        lengths = np.quantile(np.array(table["prompt_tokens"]), share / 100)
        assert value["prompt_tokens", f"q{share:02d}"] == pytest.approx(lengths)
    assert value["prompt_tokens", None] == pytest.approx(np.mean(np.array(table["prompt_tokens"])))
    assert {(row["n"], row["left_out"]) for row in properties} == {(4, 3)}


@pytest.mark.parametrize("make", [byte_level, sentence_piece, old_sentence_piece, byte_level_without_bos])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_log_likelihoods_are_lm_evals_rolling_ones(
    family: str, make: Callable[..., PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval puts BOS there itself, or EOS, and is told not to have the tokenizer put a second one."""
    tokenizer = make()
    model = _model(family, len(tokenizer))
    texts = ["What is it?", "The capital of France is Paris.", "Ah, é", "It is a question: 17 plus 4 equals 21. " * 2]
    how = {"batch_size": 2, "max_length": LENGTH, "backend": "causal"}
    lm = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=False, **how)
    asked = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for text in texts]
    theirs = lm.loglikelihood_rolling(asked, disable_tqdm=True)
    for numbers in (output_layer.MOST_LOGITS, 3 * len(tokenizer)):  # the second: the output layer in small parts
        monkeypatch.setattr(output_layer, "MOST_LOGITS", numbers)
        table = log_likelihoods(model, tokenizer, texts, LENGTH, tokenizer.pad_token_id, 64)
        np.testing.assert_allclose(table["log_likelihood"].to_pylist(), theirs, rtol=1e-5, atol=1e-4)
    assert table["bos"].to_pylist() == [make is not byte_level_without_bos] * 4
    assert table["tokens"].to_pylist() == [
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    ]


def test_without_bos_the_first_token_is_scored_after_eos_and_it_is_said() -> None:
    tokenizer = KINDS["without BOS, pad is EOS"]()
    model = _model("llama", len(tokenizer))
    text = "The capital of France"
    ids = tokenizer(text)["input_ids"]
    [row] = log_likelihoods(model, tokenizer, [text], LENGTH, tokenizer.pad_token_id, 64).to_pylist()
    behind_eos = [tokenizer.eos_token_id, *ids]
    assert row["log_likelihood"] == pytest.approx(sum(_plain_log_probabilities(model, behind_eos)), rel=1e-5)
    assert (row["bos"], row["tokens"], row["bytes"]) == (False, len(ids), len(text))


@pytest.mark.parametrize("family", list(CONFIGS))
@pytest.mark.parametrize("most_logits", [output_layer.MOST_LOGITS, 97 * 5])
def test_one_pass_gives_what_a_pass_for_each_number_gives(
    family: str, most_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of responses and texts, and centroids of hidden states without padding, and padded on the left."""
    monkeypatch.setattr(output_layer, "MOST_LOGITS", most_logits)
    model, rows = _model(family, 97), random_rows(9)
    whole = [TokenisedRow.from_token(row.ids, 1) for row in rows]
    hooks = _hooks(model)
    reading = read_rows(model, rows, 0, 60)
    assert _hooks(model) == hooks
    for found, apart in ((reading.responses, rows), (reading.texts, whole)):
        expected = score_rows(model, apart, 0, 1000)
        assert [one.tokens for one in found] == [one.tokens for one in expected] == [row.supervised for row in apart]
        np.testing.assert_allclose(
            [one.log_likelihood for one in found], [one.log_likelihood for one in expected], rtol=1e-5, atol=1e-4
        )
    assert np.array_equal(reading.centroid, centroid_of(model, rows, 0, 60))
    assert _hooks(model) == hooks
    alone = np.mean([_states(model, row, padding=0) for row in rows], axis=0)
    padded = np.mean([_states(model, row, padding=7) for row in rows], axis=0)
    assert reading.centroid.shape == (4, 32)
    np.testing.assert_allclose(reading.centroid, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reading.centroid, padded, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def _states(model: Any, row: TokenisedRow, padding: int) -> np.ndarray:
    """Mean over a row's tokens of every hidden state that `transformers` returns, with padding on the left."""
    own = torch.from_numpy(np.asarray(row.ids, np.int64))
    ids = torch.cat([torch.zeros(padding, dtype=torch.int64), own])[None]
    mask = torch.cat([torch.zeros(padding, dtype=torch.int64), torch.ones_like(own)])[None]
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    how = {"attention_mask": mask, "position_ids": places, "output_hidden_states": True, "use_cache": False}
    hidden = model(input_ids=ids, **how).hidden_states
    found: np.ndarray = torch.stack(hidden)[:, 0, padding:].double().mean(dim=1).numpy()
    return found


def _hooks(model: Any) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_a_model_that_does_more_to_its_logits_is_read_by_its_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch is then run twice, and pooled once."""
    model, rows = tiny_base("llama").model.eval(), random_rows(7)
    real = model.forward

    def forward(**given: torch.Tensor) -> object:
        output = real(**given)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(model, "forward", forward)
    expected = read_rows(model, rows, 0, 1000)
    monkeypatch.setattr(output_layer, "MOST_LOGITS", 97 * 5)
    found = read_rows(model, rows, 0, 1000)
    np.testing.assert_allclose(found.centroid, expected.centroid, rtol=1e-6)
    for ours, theirs in zip(found.texts, expected.texts, strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-5)


def _fixed_length_tokens(length: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are all strings of so many of 16 letters."""
    letters = "abcdefghijklmnop"
    strings = letters if length == 1 else [first + second for first in letters for second in letters]
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<unk>", *strings])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("." * length), "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.add_bos_token = True
    return wrapped


@pytest.mark.parametrize("length", [1, 2])
def test_bits_per_byte_of_uniform_letters_are_four_whatever_the_tokens(length: int) -> None:
    """A model that gives 16 letters, or their 256 pairs, equal shares and nothing to its marks."""
    tokenizer = _fixed_length_tokens(length)
    assert tokenizer("ab")["input_ids"][:1] == [0], "BOS comes first"
    model = AutoModelForCausalLM.from_config(
        PhiConfig(vocab_size=len(tokenizer), num_key_value_heads=4, **SHAPE)
    ).eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[:3] = -1e4
    table = log_likelihoods(model, tokenizer, ["abcdefgh", "ponm", "aabbccddeeffgg"], LENGTH, 1, 64)
    assert table["tokens"].to_pylist() == [8 // length, 4 // length, 14 // length]
    bits = -np.array(table["log_likelihood"]) / math.log(2) / np.array(table["bytes"])
    np.testing.assert_allclose(bits, 4.0, rtol=1e-6)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("start", ["", "<s>"])
def test_bytes_are_those_of_the_text_that_is_scored_whatever_special_tokens_are_called(kind: str, start: str) -> None:
    """A chat template that writes a BOS or not, and marks of turns: neither they nor EOS have bytes."""
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = start + CHAT
    model = _model("llama", len(tokenizer))
    examples = [Example("Name it.", "Yes, é", (("What is it?", "Paris"),))]
    rows = fitting_rows(model, tokenizer, examples, Template("chat"), LENGTH)
    [found] = example_table(rows, read_rows(model, rows.tokens, 3, BUDGET), tokenizer).to_pylist()
    said = ["user\nWhat is it?\n", "assistant\nParis\n", "user\nName it.\n", "assistant\nYes, é"]
    assert found["text_bytes"] == sum(len(part.encode()) for part in said)
    assert found["response_bytes"] == len("Paris") + len("Yes, é".encode())
    assert found["response_words"] == 3


# bad input


def test_rows_longer_than_the_context_are_left_out_and_counted() -> None:
    tokenizer = byte_level()
    model = _model("gpt2", len(tokenizer))
    long = Example("Name it", "x" * 2 * LENGTH)
    table, left_out = _examples_under(model, tokenizer, [EXAMPLES[0], long, EXAMPLES[1]])
    assert (table["row"].to_pylist(), left_out) == ([0, 2], 1)
    with pytest.raises(ValueError, match="each of 1 rows has more than the model's context of 128 tokens"):
        fitting_rows(model, tokenizer, [long], PAPER, 1000)
    with pytest.raises(ValueError, match="each of 1 rows has more than max_length 64 tokens"):
        fitting_rows(model, tokenizer, [long], PAPER, 64)


def test_a_likelihood_text_that_is_too_long_is_refused_by_number() -> None:
    tokenizer = byte_level()
    model = _model("gpt2", len(tokenizer))
    texts = ["What is it?", "x" * 2 * LENGTH]
    with pytest.raises(ValueError, match=r"text 2: 257 tokens; the model's context holds 128, so shorten the text"):
        log_likelihoods(model, tokenizer, texts, 1000, 3, 64)
    with pytest.raises(ValueError, match=r"text 1: \d+ tokens; valid: at most 4 \(probes.log_likelihood.max_length\)"):
        log_likelihoods(model, tokenizer, texts[:1], 4, 3, 64)


def test_a_text_that_the_tokenizer_makes_nothing_of_is_refused_by_number() -> None:
    tokenizer = KINDS["without BOS, pad is EOS"]()
    model = _model("llama", len(tokenizer))
    with pytest.raises(ValueError, match="text 2: the tokenizer makes no token of it that can be scored"):
        log_likelihoods(model, tokenizer, ["What is it?", ""], LENGTH, 3, 64)
    with pytest.raises(ValueError, match=r"text 1: the tokenizer makes no token of it$"):
        centroid_of(model, [TokenisedRow.from_token([], 1)], 0, 64)
    with pytest.raises(ValueError, match=r"text 8: the tokenizer makes no token of it$"):
        centroid_of(model, [TokenisedRow.from_token([], 1)], 0, 64, [7])
    with pytest.raises(ValueError, match="text 8: the tokenizer makes no token of it that can be scored"):
        read_rows(model, [TokenisedRow.from_token([2], 1)], 0, 64, [7])


def test_weights_that_are_not_numbers_give_no_numbers() -> None:
    tokenizer = byte_level()
    model = _model("llama", len(tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("é", add_special_tokens=False)["input_ids"][0]] = math.nan
    with pytest.raises(ValueError, match="text 3: its log-probability is not finite"):
        _examples_under(model, tokenizer)
    long = Example("Name it", "x" * 2 * LENGTH)
    with pytest.raises(ValueError, match="text 5: its log-probability is not finite"):  # by its place among all rows
        _examples_under(model, tokenizer, [long, EXAMPLES[0], long, EXAMPLES[1], EXAMPLES[2]])
    with pytest.raises(ValueError, match="hidden state 0 of 0 to 3 is not finite for one of the texts"):
        centroid_of(model, tokenise_examples(EXAMPLES, tokenizer, PAPER, LENGTH), 3, BUDGET)
    assert _examples_under(model, tokenizer, EXAMPLES[:2])[0].num_rows == 2


def test_a_response_without_bytes_has_none_per_byte() -> None:
    """Its EOS is a token all the same; without any response's bytes there is no number to give."""
    tokenizer, template = byte_level(), Template("{instruction}{response}")
    model = _model("llama", len(tokenizer))

    def table(*responses: str) -> pa.Table:
        rows = fitting_rows(model, tokenizer, [Example("Name it", one) for one in responses], template, LENGTH)
        return example_table(rows, read_rows(model, rows.tokens, 3, BUDGET), tokenizer)

    examples = table("Paris", "")
    assert examples["response_bytes"].to_pylist() == [5, 0]
    assert examples["response_tokens"].to_pylist()[1] == 1
    value = {(row["property"], row["statistic"]): row["value"] for row in data_properties(examples, 0).to_pylist()}
    first, second = examples["response_nll"].to_pylist()
    assert value["response_bits_per_byte", "mean"] == pytest.approx(first / math.log(2) / 5)
    assert value["response_bits_per_byte", None] == pytest.approx((first + second) / math.log(2) / 5)
    with pytest.raises(ValueError, match="no response has any text, so that there are no bits per byte"):
        data_properties(table("", ""), 0)
