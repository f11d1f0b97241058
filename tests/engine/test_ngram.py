"""Guesses from what a text has said before."""

from tinyserve.engine.ngram import NgramIndex


def test_what_followed_the_last_time_is_guessed() -> None:
    assert NgramIndex().guess([1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == (4, 5)
    assert NgramIndex().guess([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == (5,)  # the latest, not the first


def test_new_or_few_tokens_give_no_guess() -> None:
    assert NgramIndex().guess([1, 2, 3, 4, 5], 4) == ()
    assert NgramIndex().guess([1, 2], 4) == ()
    assert NgramIndex().guess([1, 2, 3], 4) == ()


def test_a_guess_ends_where_the_text_ends_and_at_the_limit() -> None:
    assert NgramIndex().guess([7, 7, 7, 7], 5) == (7,)
    assert NgramIndex().guess([1, 2, 3, 4, 5, 6, 1, 2, 3], 0) == ()


def test_an_index_that_grows_with_the_text_guesses_what_a_new_one_does() -> None:
    text = [1, 2, 3, 1, 2, 3, 4, 2, 3, 1, 2, 3, 4, 4, 4, 4, 1, 2, 3]
    index = NgramIndex()
    for length in range(1, len(text) + 1):
        assert index.guess(text[:length], 3) == NgramIndex().guess(text[:length], 3)
