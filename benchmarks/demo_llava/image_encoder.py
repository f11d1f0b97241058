"""The part of the model that sees: a small CLIP vision tower and LLaVA's projector into the language model's space.

It decides their shapes; training is elsewhere.
"""

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

SIDE, PATCH = 72, 12  # px; 36 patches, each one token of the language model
MEAN = STD = 0.5  # pixels reach the tower in -1..1
SELECT_LAYER = -1  # the last layer's output: nothing is computed for nothing


class ImageEncoder(nn.Module):
    """Pictures to token embeddings."""

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=768,
            projection_dim=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            image_size=SIDE,
            patch_size=PATCH,
            hidden_act="gelu",
        )
        config._attn_implementation = "eager"  # measured: the fastest on a CPU at 37 tokens
        self.tower = CLIPVisionModel(config)
        self.projector = nn.Sequential(
            nn.Linear(config.hidden_size, embedding_size), nn.GELU(), nn.Linear(embedding_size, embedding_size)
        )

    def features(self, pictures: Tensor) -> Tensor:
        """[B, 3, SIDE, SIDE] in 0..1 -> [B, patches, tower width], without the class token."""
        states = self.tower((pictures - MEAN) / STD).last_hidden_state
        return states[:, 1:]

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, SIDE, SIDE] in 0..1 -> [B, patches, embedding_size]."""
        return self.projector(self.features(pictures))
