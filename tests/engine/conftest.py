"""A model small enough to run thousands of steps, with a real tokenizer, and engines on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llama
from grammars import VOCAB
from llama_model import load_llama
from tiny_model import save_tokenizer
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tinyserve.config import EngineConfig
from tinyserve.engine import kv_cache
from tinyserve.engine.engine import Engine
from tinyserve.engine.structured_output import GrammarCompiler
from tinyserve.engine.tokenizer import Tokenizer
from tinyserve.models.llama import LlamaModel


@pytest.fixture(scope="session")
def tiny_folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.save(tmp_path_factory.mktemp("tiny") / "tiny-llama", tokenizer=smollm2, vocab_size=49152)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> LlamaModel:
    return load_llama(tiny_folder, precision="W16A16", dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer(smollm2)


@pytest.fixture(scope="session")
def make_engine(tiny_folder: Path, tiny_model: LlamaModel, tokenizer: Tokenizer) -> Callable[..., Engine]:
    """An engine on the tiny model, with `num_blocks` blocks of KV cache and the given settings."""

    def make(
        num_blocks: int = 64,
        block_size: int = 8,
        max_batch_tokens: int = 512,
        model: LlamaModel = tiny_model,
        **settings: Any,
    ) -> Engine:
        config = EngineConfig(
            tiny_folder,
            precision="W16A16",
            dtype="float32",
            block_size=block_size,
            kv_cache_bytes=max(
                1 << 16, num_blocks * kv_cache.block_bytes(model, block_size, settings.get("kv_cache_dtype", "auto"))
            ),
            max_batch_tokens=max_batch_tokens,
            **{"max_num_requests": 16, **settings},
        )
        return Engine(config, model, tokenizer)

    return make


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    save_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="session")
def letters(bytes_tokenizer: Tokenizer) -> GrammarCompiler:
    """For a vocabulary of single bytes."""
    return GrammarCompiler(bytes_tokenizer, VOCAB)


@pytest.fixture(scope="session")
def words(tokenizer: Tokenizer) -> GrammarCompiler:
    """For a real vocabulary."""
    return GrammarCompiler(tokenizer, 49152)


@pytest.fixture(scope="session")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that puts <s> before every text and </s> behind it."""
    vocab = {"<s>": 0, "</s>": 1, "<unk>": 2, "hello": 3}
    rust = RustTokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    folder = tmp_path_factory.mktemp("with-bos")
    PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return Tokenizer(folder)
