"""The embeddings of an image are memory of its own: a cache that keeps one image does not keep its whole batch."""

import pytest
import torch

from tinyserve.models import tiles
from tinyserve.models.image_spec import ImageSpec

TOWER = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
GRID = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [[28, 56], [56, 28]]}


@pytest.mark.parametrize(
    "config",
    [{"image_aspect_ratio": "pad"}, {**GRID, "mm_patch_merge_type": "spatial_unpad"}],
    ids=["flat", "spatial_unpad"],
)
def test_no_image_holds_its_neighbours(config: dict[str, object]) -> None:
    spec = ImageSpec.from_hf(config, None, TOWER)
    count = spec.num_tiles(28, 56)
    batch = torch.randn(8 * count, 4, 3)
    newline = torch.zeros(3) if spec.newline else None
    merged = tiles.merge(batch.split(count)[5], (28, 56), spec, newline)
    assert merged.shape == (spec.num_tokens(28, 56), 3)
    assert merged.untyped_storage().nbytes() == merged.nbytes
