"""The shape of nano: one vision tower design, one width, two small Qwen3 language models."""

from transformers import Qwen3VLConfig

WIDTH = 256
"""Width of the language models and of the merged visual tokens."""

HEADS, HEAD_WIDTH = 2, 128
"""Few wide heads: a head must tell thousands of word pieces apart by their content."""

ROTARY_BASE = 1e12
"""So large that two thirds of a head's dimensions hardly turn over twenty pages and can compare content."""

TOWER_WIDTH = 192
TOWER_DEPTH = 6
PATCH = 16
MERGE = 2
TOKEN_SIDE = PATCH * MERGE
"""Pixels along one side of a merged visual token."""


def nano_config(vocabulary_size: int, token_ids: dict[str, int], *, layers: int) -> Qwen3VLConfig:
    """The configuration of a nano model with `layers` language-model layers.

    `token_ids` maps the chat markers (``<|image_pad|>`` ...) to their ids.
    """
    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_WIDTH,
        "max_position_embeddings": 65_536,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": ROTARY_BASE,
            "mrope_section": [32, 16, 16],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "pad_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
    }
    vision = {
        "depth": TOWER_DEPTH,
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": 4 * TOWER_WIDTH,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
