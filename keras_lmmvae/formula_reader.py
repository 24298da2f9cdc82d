"""Tokens of a formula with their positions."""

import re
from dataclasses import dataclass
from typing import NoReturn

from keras_lmmvae.validation import received

__all__ = ["FormulaReader", "Token"]

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)
    |(?P<name>[^\W\d][\w.]*)
    |`(?P<quoted>[^`]+)`
    |(?P<text>"[^"]*"|'[^']*')
    |(?P<mark>\|\||\*\*|[-()|+/:^,=*~])
    |(?P<other>\S))""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    """A token of a formula.

    Attributes:
        kind: "name", "number", "text", "other", "end", or the mark itself, such as "+".
        value: Its text, without quotes.
        start: Position of its first character, counted from 0.
    """

    kind: str
    value: str
    start: int


def _tokens(formula: str) -> list[Token]:
    found = []
    for match in _TOKEN.finditer(formula):
        group = str(match.lastgroup)
        value, start = match.group(group), match.start(group)
        if group == "quoted":
            group = "name"
        elif group == "text":
            value = value[1:-1]
        found.append(Token(value if group == "mark" else group, value, start))
    return [*found, Token("end", "", len(formula))]


class FormulaReader:
    """Reads a formula from left to right with one token of lookahead.

    Args:
        formula: The formula.

    Example:
        >>> reader = FormulaReader("(1 | store)")
        >>> reader.skip("("), reader.take().value, reader.token.kind
        (True, '1', '|')
    """

    def __init__(self, formula: str) -> None:
        self.formula = formula
        self.tokens = _tokens(formula)

    @property
    def token(self) -> Token:
        """The next token."""
        return self.tokens[0]

    def fail(self, problem: str, start: int | None = None) -> NoReturn:
        """Raises a ValueError that shows the position, by default that of the next token."""
        start = self.token.start if start is None else start
        rest = self.formula[start:].strip()
        at = f"at character {start + 1}, {rest[:20]!r}" if rest else "at the end"
        raise ValueError(f"The formula {problem} ({at}). " + received(formula=self.formula))

    def take(self) -> Token:
        """Returns the next token and moves on. The token "end" is returned again and again."""
        return self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]

    def expect(self, kind: str, problem: str) -> Token:
        """Returns the next token, which must be of this kind, and moves on."""
        if self.token.kind != kind:
            self.fail(problem)
        return self.take()

    def skip(self, kind: str) -> bool:
        """Returns whether the next token is of this kind. If so, moves on."""
        return self.token.kind == kind and bool(self.take())
