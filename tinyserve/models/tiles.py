"""How the features of an image's tiles become one sequence: LLaVA's `mm_patch_merge_type`.

It decides order only; how many tiles there are and which of their patches count is image_spec.py's decision.
"""

import torch
from torch import Tensor

from tinyserve.models.image_spec import ImageSpec


def merge(features: Tensor, size: tuple[int, int], spec: ImageSpec, newline: Tensor | None) -> Tensor:
    """The embeddings of one image, in the order in which they stand in a prompt.

    Args:
        features: [tiles, n, C]: the whole image, then with anyres its tiles row by row.
        size: (width, height) of the image in px.
        spec: the model's.
        newline: [C], follows each row of patches where `spec.newline` says so.

    Returns:
        [P, C], P being `spec.num_tokens(*size)`. Merging is that of transformers' LlavaNext and of LLaVA's llava_arch.
    """
    if spec.merge == "flat":
        return features.flatten(0, 1).clone()  # a view would keep the features of all images of its batch
    whole, width = features[0], features.shape[-1]
    columns, rows = spec.tiles(*size)
    # [rows of tiles, patches down, columns of tiles, patches across]: patch by patch as the image has them
    patches = features[1:].view(rows, columns, spec.grid, spec.grid, width).transpose(1, 2)
    patches = patches.reshape(rows * spec.grid, columns * spec.grid, width)
    if spec.merge == "spatial_unpad":
        top, left, height, across = spec.unpadded(*size)
        patches = patches[top : top + height, left : left + across]
    if newline is not None:
        patches = torch.cat([patches, newline.expand(patches.shape[0], 1, width)], dim=1)
    return torch.cat([whole, patches.flatten(0, 1)])
