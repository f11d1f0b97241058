"""Text that leaves the engine: whole characters only, never a stop string, and the same as decoding all at once."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from tinyserve.engine.detokenizer import MAX_WINDOW, Detokenizer, IncrementalText, StopMatcher
from tinyserve.engine.tokenizer import Tokenizer

TEXTS = [
    "Plain words, a number 12345 and\n\n  spaces\tand tabs.",
    "Emoji 👩‍👩‍👧‍👦🇫🇷🏳️‍🌈😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀 and more",
    "东京都の天気は晴れです。오늘 날씨가 좋네요. Привет, мир! " * 4,
    "e\u0301 combining, \u202eright to left\u202c, \U0001f9d1\u200d\U0001f680",
    "ends in a real replacement character \ufffd\ufffd",
]


def pieces(tokenizer: Tokenizer, prompt: Sequence[int], token_ids: Sequence[int]) -> list[str]:
    text = IncrementalText(tokenizer, prompt)
    return [*(text.add(token) for token in token_ids), text.flush()]


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer as Llama 2's: words with a leading ▁ that vanishes at the start of a text, bytes for all else."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for word in ("▁Hello", "▁world", "▁the", "!", "▁"):
        vocab[word] = len(vocab)
    rust = RustTokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    folder = tmp_path_factory.mktemp("byte-fallback")
    PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="<unk>").save_pretrained(folder)
    return Tokenizer(Path(folder))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_pieces_add_up_to_the_text_and_none_is_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    got = pieces(tokenizer, tokenizer.encode("The prompt."), tokenizer.encode(text))
    assert "".join(got) == text
    for index, piece in enumerate(got[:-1]):
        assert not piece.endswith("\ufffd"), (index, piece)


def test_text_leaves_with_the_token_that_completes_it(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("one two three")
    got = pieces(tokenizer, [], token_ids)
    assert got[:-1] == [tokenizer.decode([token]) for token in token_ids]
    assert got[-1] == ""


def test_special_tokens_give_no_text(tokenizer: Tokenizer) -> None:
    special = min(tokenizer.special_ids)
    token_ids = [special, *tokenizer.encode("a b"), special, special, *tokenizer.encode(" c")]
    assert "".join(pieces(tokenizer, [special], token_ids)) == "a b c"


@pytest.mark.parametrize("seed", range(5))
def test_any_tokens_at_all_give_what_decoding_them_at_once_gives(tokenizer: Tokenizer, seed: int) -> None:
    random_ = random.Random(seed)
    ordinary = [token for token in range(49152) if token not in tokenizer.special_ids]
    token_ids = [random_.choice(ordinary) for _ in range(300)]
    assert "".join(pieces(tokenizer, [], token_ids)) == tokenizer.decode(token_ids)


def test_a_leading_space_depends_on_the_prompt(byte_fallback: Tokenizer) -> None:
    hello, world = (byte_fallback._hf.convert_tokens_to_ids(word) for word in ("▁Hello", "▁world"))
    assert "".join(pieces(byte_fallback, [], [hello, world])) == "Hello world"
    assert "".join(pieces(byte_fallback, [hello], [world] * 50)) == " world" * 50


def test_a_long_run_of_byte_tokens_is_not_torn(byte_fallback: Tokenizer) -> None:
    text = "😀东é" * 40
    token_ids = [byte + 1 for byte in text.encode()]
    assert "".join(pieces(byte_fallback, [], token_ids)) == text


def test_endless_garbage_is_sent_in_bounded_windows(byte_fallback: Tokenizer) -> None:
    text = IncrementalText(byte_fallback, [])
    got = "".join(text.add(0x80 + 1) for _ in range(4 * MAX_WINDOW))
    assert len(text._window) < MAX_WINDOW
    assert len(got) >= 3 * MAX_WINDOW
    assert set(got) == {"\ufffd"}


def stopped(stops: Sequence[str], parts: Sequence[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    out = []
    for part in parts:
        text, found = matcher.add(part)
        out.append(text)
        if found:
            return out, True
    return [*out, matcher.flush()], False


@pytest.mark.parametrize(
    ("stops", "parts", "out", "found"),
    [
        ((), ["a", "b"], ["a", "b", ""], False),
        (("END",), ["so E", "N", "D more"], ["so ", "", ""], True),
        (("END",), ["so E", "N", "E", "ND"], ["so ", "", "EN", ""], True),
        (("END",), ["so EN"], ["so ", "EN"], False),
        (("aab",), ["aaaaab"], ["aaa"], True),
        (("aab",), ["a", "a", "a", "a", "b"], ["", "", "a", "a", ""], True),
        (("long stop", "sto"), ["a long ", "stop"], ["a ", "long "], True),  # the one that is complete first
        (("b", "abb"), ["xabb"], ["xa"], True),
        (("ab", "xab"), ["_xab_"], ["_"], True),  # both end at once: the longer one
        (("\n\n",), ["a\n", "b\n", "\nc"], ["a", "\nb", ""], True),
        (("😀😀",), ["😀", "x😀", "😀"], ["", "😀x", ""], True),
    ],
)
def test_stop_strings(stops: Sequence[str], parts: Sequence[str], out: list[str], found: bool) -> None:
    assert stopped(stops, parts) == (out, found)


@pytest.mark.parametrize("seed", range(30))
def test_stop_strings_in_random_pieces_equal_a_plain_search(seed: int) -> None:
    random_ = random.Random(seed)
    text = "".join(random_.choice("ab") for _ in range(60))
    stops = ["".join(random_.choice("ab") for _ in range(random_.randint(2, 7))) for _ in range(3)]
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    end, negative_length = min(ends, default=(len(text), 0))
    expected = text[: end + negative_length]
    parts: list[str] = []
    rest = text
    while rest:
        size = random_.randint(1, 5)
        parts, rest = [*parts, rest[:size]], rest[size:]
    out, found = stopped(stops, parts)
    assert "".join(out) == expected
    assert found == bool(ends)


def test_what_is_held_back_leaves_at_the_end(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, [], [" three four"])
    out = [detokenizer.add(token)[0] for token in tokenizer.encode("one two three")]
    assert "".join(out) == "one two"
    assert detokenizer.flush() == (" three", False)
