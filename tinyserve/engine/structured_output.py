"""Keeps the tokens of a request inside its grammar: a JSON schema, a regular expression or a context-free grammar.

llguidance compiles a grammar; constraint.py follows it through one text, and masks.py forbids what it does not allow. A
grammar that cannot be compiled, or not within the budget, is refused; one that becomes too complex later ends its own
request. What is done to the logits besides, and in which order, is sampler.py's business.
"""

import threading
import time

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from tinyserve.config import Grammar, SamplingParams
from tinyserve.engine.constraint import Constraint, shortened
from tinyserve.engine.tokenizer import Tokenizer

COMPILE_BUDGET_S = 0.05  # of processor time, which other work on the machine does not lengthen
LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,  # about 4 ms for one mask
    step_max_items=20_000,  # about 1 ms
    max_lexer_states=20_000,  # about 40 MB
    verbose_errors=False,
)


class GrammarError(ValueError):
    """A grammar that cannot be used; the text names the field of the request."""


class GrammarCompiler:
    """Makes constraints for one model. Safe to use from several threads at once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        # A configuration may name an end that the model's own vocabulary has not.
        self._eos_ids = sorted(token_id for token_id in tokenizer.eos_token_ids if token_id < vocab_size)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def load(self) -> LLTokenizer:
        """The vocabulary as llguidance wants it.

        The first time takes about half a second in which no other Python thread runs, so it belongs before the serving.
        Compiling and computing masks let the others run.

        Raises:
            ValueError: the tokenizer is not one of the Rust library.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = LLTokenizer(
                    self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=self._eos_ids or None
                )
            return self._vocabulary

    def compile(self, grammar: Grammar, params: SamplingParams) -> Constraint:
        """The beginning of a grammar, with the first mask already known.

        Raises:
            GrammarError: it cannot be compiled, or not within the budget.
        """
        try:
            vocabulary = self.load()
            start = time.thread_time()
            matcher = LLMatcher(vocabulary, _source(grammar), log_level=0, limits=LIMITS)
            constraint = Constraint(matcher, self._vocab_size, self._eos_ids, params)
            if not matcher.is_error():
                constraint.mask()
        except ValueError as error:
            raise GrammarError(f"{grammar.field} cannot be used: {shortened(str(error))}") from error
        if matcher.is_error():
            raise GrammarError(f"{grammar.field} cannot be used: {shortened(matcher.get_error())}")
        spent = time.thread_time() - start
        if spent > COMPILE_BUDGET_S:
            raise GrammarError(
                f"{grammar.field} takes {spent * 1e3:.0f} ms to compile; {COMPILE_BUDGET_S * 1e3:.0f} ms are allowed"
            )
        return constraint


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's terms. Raises ValueError where it can be seen already that it is wrong."""
    if grammar.kind == "json_schema":
        # Free whitespace is what a weak model repeats for ever. A schema may ask for it, in its own x-guidance.
        return LLMatcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_flexible": False})
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    try:
        return LLMatcher.grammar_from_lark(any_to_lark(grammar.text))
    except Exception as error:  # the converter's own, and whatever else a text makes it stumble over
        raise ValueError(str(error) or type(error).__name__) from error
