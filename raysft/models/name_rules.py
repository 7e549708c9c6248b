"""What decoder families call their parameters: prefixes, where the stack is, and which module kind a name means.

This is the one table of names. A family whose names are not understood gets a row here, and a line in the test that
reads the names from its `transformers` configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# Of wrappers (peft, data parallel), of multimodal models, and of the classes that hold the stack.
PREFIXES = (
    "base_model.model.",
    "module.",
    "language_model.",
    "text_model.",
    "model.",
    "transformer.",
    "gpt_neox.",
    "decoder.",
    "backbone.",
)
# Left by `torch.compile`, activation checkpointing, FSDP and peft anywhere in a name.
WRAPPERS = re.compile(r"\b(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|base_layer)\.")
# Called otherwise in files than in memory.
RENAMED = {"embed_out.": "lm_head."}
# What the stack of blocks is called.
STACK = re.compile(r"(?:layers|h|blocks|block)\.(\d+)\.(.+)")
# Stored by some families beside their parameters: masks and rotary frequencies.
BUFFER = re.compile(r"(?:.*\.)?(?:rotary_emb\.inv_freq|inv_freq|(?:attn|attention)\.(?:bias|masked_bias))")
# Families whose linear layers store (inputs, outputs), as `transformers.pytorch_utils.Conv1D`.
STORED_TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})

QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION = r"(?:.*\.)?(?:self_attn|self_attention|attn|attention)"
FEED_FORWARD = r"(?:.*\.)?(?:mlp|ffn|feed_forward|block_sparse_moe|experts(?:\.\d+)?)"


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules whose path matches `pattern` in full are of the kind `kind`.

    `parts`: what a fused projection holds, in its own order. `layout`: `blocks`, one part after the other, or `groups`,
    for each key head its queries, its key and its value.
    """

    pattern: str
    kind: str
    parts: tuple[str, ...] = ()
    layout: Literal["blocks", "groups"] = "blocks"


# Inside a layer; the first that matches counts, and what none matches is called by its last part.
IN_A_LAYER = (
    Rule(r"(?:.*\.)?\w*norm\w*(?:\.\w+)?|(?:.*\.)?ln_\w+", "norm"),
    Rule(rf"{ATTENTION}\.(?:qkv_proj|c_attn|Wqkv|W_pack)|att_proj", "qkv_proj", QKV),
    Rule(rf"{ATTENTION}\.(?:query_key_value|wqkv)", "qkv_proj", QKV, "groups"),
    Rule(rf"{ATTENTION}\.(?:q_proj|wq)", "q_proj"),
    Rule(rf"{ATTENTION}\.(?:k_proj|wk)", "k_proj"),
    Rule(rf"{ATTENTION}\.(?:v_proj|wv)", "v_proj"),
    Rule(rf"{ATTENTION}\.(?:o_proj|c_proj|dense|out_proj|wo)|attn_out", "o_proj"),
    Rule(r"(?:.*\.)?gate_up_proj", "gate_up_proj", ("gate_proj", "up_proj")),
    Rule(r"ff_proj", "gate_up_proj", ("up_proj", "gate_proj")),  # OLMo's own code gates by the second half
    Rule(rf"{FEED_FORWARD}\.(?:gate_proj|w1)", "gate_proj"),
    Rule(rf"{FEED_FORWARD}\.(?:up_proj|w3|c_fc|dense_h_to_4h|fc1|fc_in)|fc1", "up_proj"),
    Rule(rf"{FEED_FORWARD}\.(?:down_proj|w2|c_proj|dense_4h_to_h|fc2|fc_out)|fc2|ff_out", "down_proj"),
)
# The rows of a family, by its model_type, that stand before those above.
OF_FAMILY = {
    # Qwen 1 gates by its second matrix: w1(x) * silu(w2(x)).
    "qwen": (Rule(r"mlp\.w1", "up_proj"), Rule(r"mlp\.w2", "gate_proj")),
}
OUTSIDE = (
    Rule(r"\w*norm\w*|ln_\w+", "norm"),
    Rule(r"lm_head|output|ff_out", "output"),
    Rule(r"embed_\w+|wte|wpe|word_embeddings|tok_embeddings", "embedding"),
)
