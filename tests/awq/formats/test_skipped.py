"""Names of unquantized modules, as engines match them."""

import pytest

from awq.formats.skipped import skipped_parts

LLAMA = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj"]


@pytest.mark.parametrize(
    ("matrices", "quantized", "expected"),
    [
        ([], LLAMA, ["lm_head"]),
        (["model.embed_tokens", "lm_head"], LLAMA, ["lm_head", "embed_tokens"]),
        (
            ["vision_tower.encoder.layers.0.fc1", "vision_tower.encoder.layers.1.fc1", "projector.linear_1"],
            ["language_model.layers.0.q_proj"],
            ["lm_head", "vision_tower", "projector"],
        ),
        (  # a tower whose layers have the names of the quantized ones
            ["model.vision.layers.0.q_proj"],
            ["model.language.layers.0.q_proj"],
            ["lm_head", "vision"],
        ),
        (  # routers of every layer beside experts
            ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"],
            ["model.layers.0.mlp.experts.0.gate_proj"],
            ["lm_head", "mlp.gate"],
        ),
        (  # a router in one layer, a dense MLP in another
            ["model.layers.1.mlp.gate"],
            ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.experts.0.gate_proj"],
            ["lm_head", "1.mlp.gate"],
        ),
        (["model.embed_tokens"], [*LLAMA, "lm_head"], ["embed_tokens"]),
        (["a.gate"], ["a.gate_proj"], ["lm_head", "a.gate"]),  # no part is safe
    ],
)
def test_parts(matrices: list[str], quantized: list[str], expected: list[str]) -> None:
    assert skipped_parts(matrices, quantized) == expected
