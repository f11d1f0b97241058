"""Which blocks of the KV cache belong to which request. Ids only; the tensors live in kv_cache.py.

A block is owned by exactly one request, so nothing is ever shared for writing.
"""

from tinyserve.engine.request import Request


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: a block just freed is the warmest in the caches

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_missing(self, request: Request, num_tokens: int) -> int:
        """Blocks that `request` lacks to hold `num_tokens`."""
        return max(0, -(-num_tokens // self.block_size) - len(request.block_ids))

    def try_grow(self, request: Request, num_tokens: int) -> bool:
        """Gives `request` room for `num_tokens`; changes nothing when blocks are short."""
        missing = self.num_missing(request, num_tokens)
        if missing > len(self._free):
            return False
        request.block_ids += [self._free.pop() for _ in range(missing)]
        return True

    def release(self, request: Request) -> None:
        """Takes every block back; the request has to be computed again from its first token."""
        self._free += reversed(request.block_ids)
        request.block_ids.clear()
        request.num_computed = 0
