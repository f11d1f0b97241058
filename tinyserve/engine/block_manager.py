"""Which blocks of the KV cache belong to which request, and which hold a prefix that another request can use.

A full block whose tokens are computed is known by the hash of everything up to its end, so two requests that begin
alike read the same blocks; a block that is still being written has one owner. What nobody uses any more keeps its
content until the memory is wanted, least recently used first. Ids only; the tensors live in kv_cache.py.
"""

from array import array
from collections import OrderedDict
from hashlib import blake2b

from tinyserve.engine.request import Request

KEY_BYTES = 16  # 2^64 tries for a collision: nobody reads another's prompt by finding one


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens each.

    Args:
        keeps_prefixes: False: nothing is shared, a block is empty once its owner has left.
    """

    def __init__(self, num_blocks: int, block_size: int, keeps_prefixes: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._keeps_prefixes = keeps_prefixes
        self._empty = list(range(num_blocks - 1, -1, -1))  # a stack: a block just freed is the warmest in the caches
        self._idle: OrderedDict[int, None] = OrderedDict()  # full blocks that nobody uses, least recently used first
        self._num_users = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks  # of full blocks that can be found
        self._by_key: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be had at once, whatever they still hold."""
        return len(self._empty) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Free blocks whose content can still be used."""
        return len(self._idle)

    def num_missing(self, request: Request, num_tokens: int) -> int:
        """Blocks that `request` lacks to hold `num_tokens`."""
        return max(0, -(-num_tokens // self.block_size) - len(request.block_ids))

    def try_start(self, request: Request, reserve: int) -> bool:
        """Gives a request without blocks all that its tokens need; those of a known prefix count as computed.

        At least one token is left to compute, since its output is the next token.

        Args:
            reserve: blocks that must stay free.

        Returns:
            False when blocks are short; nothing has changed then.
        """
        shared = self._known_prefix(request)
        num_new = self.num_missing(request, request.num_tokens) - len(shared)
        if num_new + sum(self._num_users[block] == 0 for block in shared) + reserve > self.num_free:
            return False
        for block in shared:
            self._idle.pop(block, None)
            self._num_users[block] += 1
        request.block_ids += shared
        request.num_computed = len(shared) * self.block_size
        request.num_known_blocks = len(shared)
        request.block_ids += [self._take() for _ in range(num_new)]
        return True

    def try_grow(self, request: Request, num_tokens: int) -> bool:
        """Gives `request` room for `num_tokens`; changes nothing when blocks are short."""
        missing = self.num_missing(request, num_tokens)
        if missing > self.num_free:
            return False
        request.block_ids += [self._take() for _ in range(missing)]
        return True

    def keep(self, request: Request) -> None:
        """Lets others find the blocks of `request` that have become full of computed tokens.

        Only of tokens that the host knows: of one that it does not, it cannot tell what another prompt would have.
        """
        num_full = min(request.num_computed, len(request.token_ids)) // self.block_size
        if not self._keeps_prefixes or num_full == request.num_known_blocks:
            return
        for index in range(request.num_known_blocks, num_full):
            key, block = self._key(request, index), request.block_ids[index]
            if key not in self._by_key:  # else a twin was faster, and this copy stays its owner's alone
                self._by_key[key] = block
                self._keys[block] = key
        request.num_known_blocks = num_full

    def release(self, request: Request) -> None:
        """Takes every block back; the request has to be computed again, as far as its blocks have been given away."""
        self.keep(request)
        for block in reversed(request.block_ids):  # a prefix without its beginning is useless: the end goes first
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                if self._keys[block] is None:
                    self._empty.append(block)
                else:
                    self._idle[block] = None
        request.block_ids.clear()
        request.num_computed = request.num_known_blocks = 0

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            key = self._keys[block]
            assert key is not None
            del self._by_key[key]
            self._keys[block] = None
        self._num_users[block] = 1
        return block

    def _known_prefix(self, request: Request) -> list[int]:
        """Blocks that hold the first tokens of `request`, all but one of them at most."""
        blocks: list[int] = []
        if self._keeps_prefixes:
            for index in range((request.num_tokens - 1) // self.block_size):
                block = self._by_key.get(self._key(request, index))
                if block is None:
                    break
                blocks.append(block)
        return blocks

    def _key(self, request: Request, index: int) -> bytes:
        """Hash of all tokens up to the end of a block, and of what some of them stand for."""
        keys = request.block_keys
        while len(keys) <= index:
            start, end = len(keys) * self.block_size, (len(keys) + 1) * self.block_size
            state = blake2b(keys[-1] if keys else b"", digest_size=KEY_BYTES)
            state.update(array("i", request.token_ids[start:end]).tobytes())
            for position, content in request.contents.items():
                if start <= position < end:
                    state.update(position.to_bytes(8, "little") + content)
            keys.append(state.digest())
        return keys[index]
