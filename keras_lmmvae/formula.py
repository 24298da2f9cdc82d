"""Random effects as users of lme4 write them: "(1 | store) + (1 + t | patient)"."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from keras_lmmvae.effects import RandomIntercept, RandomSlopes
from keras_lmmvae.effects.combined_keys import SEPARATOR
from keras_lmmvae.effects.random_effect import RandomEffect, term_classes
from keras_lmmvae.formula_reader import FormulaReader
from keras_lmmvae.validation import received

__all__ = ["as_terms", "random_effects_from_formula"]


def as_terms(random_effects: Sequence[RandomEffect] | str) -> Sequence[RandomEffect]:
    """The terms of a formula. Terms are returned as they are."""
    if isinstance(random_effects, str):
        return random_effects_from_formula(random_effects)
    return random_effects


def random_effects_from_formula(formula: str) -> list[RandomEffect]:
    """Makes the terms of a formula as in lme4.

        formula := term + term + ...
        term    := (slopes | groups)  or  name(column, ... [| group], option=value, ...)
        slopes  := 1, t, t^2, dose, ... joined by +; without the 1 there is an intercept, too
        groups  := column, or a:b (their joined keys), or a/b for a and a:b

        (1 | store)                  RandomIntercept("store")
        (1 | school:class)           RandomIntercept("school.class", name="school:class")
        (1 | school/class)           (1 | school) + (1 | school:class)
        (1 + t + t^2 | patient)      RandomSlopes("patient", time="t", degree=2)
        (1 + dose + age | patient)   RandomSlopes("patient", covariates=["dose", "age"])
        gp(lon, lat, kernel=rbf)     SpatialEffect(("lon", "lat"), kernel="rbf")

    Write powers as `t^2`, `I(t^2)` or `poly(t, 2)`, together with all lower powers. A single
    column, as in `(1 + t | patient)`, is the time of a straight line. Put names with spaces or
    signs in backquotes. Options of `gp` are the arguments of `SpatialEffect`. Any other subclass
    of `RandomEffect` has its `formula_name`. The combined column "school.class" is made from
    "school" and "class" if the data lack it; `tf.data` datasets and requests must contain it.

    There are no fixed effects, because the latent part takes their place. Every slope has an
    intercept, and the coefficients of one group are correlated. The formula is parsed, never
    executed.

    Args:
        formula: The formula.

    Returns:
        The terms, in the order of the formula.

    Raises:
        ValueError: If the formula cannot be read, or asks for what does not exist. The error says
            where, and what to write instead.

    Example:
        >>> import keras_lmmvae as lmm
        >>> terms = lmm.random_effects_from_formula("(1 | store) + (1 + t + t^2 | patient)")
        >>> [type(term).__name__ for term in terms], terms[1].degree
        (['RandomIntercept', 'RandomSlopes'], 2)

    References:
        - Bates, Maechler, Bolker & Walker (2015), Fitting linear mixed-effects models using
          lme4, table 2.
    """
    if not isinstance(formula, str):
        raise ValueError(
            "A formula must be a string such as '(1 | store)'. " + received(formula=formula)
        )
    return _Parser(formula).parse()


class _Parser(FormulaReader):
    """Makes the terms of a formula."""

    def __init__(self, formula: str) -> None:
        super().__init__(formula)
        self.groups: set[frozenset[str]] = set()

    def parse(self) -> list[RandomEffect]:
        for token in self.tokens:
            if token.kind == "~":
                problem = "must name the random effects only: leave out '~' and all before it"
                self.fail(problem, token.start)
        terms = self.term()
        while self.skip("+"):
            terms += self.term()
        if self.token.kind != "end":
            self.fail("must be terms joined by '+'")
        return terms

    def term(self) -> list[RandomEffect]:
        start = self.token
        is_call = len(self.tokens) > 1 and self.tokens[1].kind == "("
        kind = _called().get(start.value) if start.kind == "name" and is_call else None
        if kind is not None:
            return [self.call(kind)]
        if not self.skip("("):
            if start.kind in ("name", "number"):
                self.fail(
                    "has no fixed effects, because the latent part takes their place: put "
                    "columns among the features, or write a random effect such as '(1 | store)'"
                )
            self.fail("must have a term here, such as '(1 | store)' or 'gp(lon, lat)'")
        slopes = self.slopes()
        if self.token.kind == "||":
            self.fail("must join slopes and group by '|': correlations are learned, '||' is not")
        self.expect("|", "lacks a '|' between slopes and group, as in '(1 + t | patient)'")
        terms = [self.grouped(slopes, *group) for group in self.group_columns()]
        self.expect(")", "lacks a ')' after the group")
        return terms

    # Left of the bar ----------------------------------------------------------------------------

    def slopes(self) -> dict[str, int]:
        """Column -> its highest power."""
        powers: dict[str, list[int]] = {}
        first = self.token.start
        while True:
            start = self.token.start
            for column, power in self.slope():
                if power in powers.setdefault(column, []):
                    self.fail(f"must name every slope once, but '{column}' stands twice", start)
                powers[column].append(power)
            if not self.skip("+"):
                break
        if self.token.kind in ("-", "*", ":", "/"):
            self.fail(
                "must have sums only left of the bar: every slope has its intercept, and "
                "products have to be columns of their own"
            )
        for column, given in powers.items():
            if sorted(given) != list(range(1, len(given) + 1)):
                lower = " + ".join(_power(column, one) for one in range(1, max(given) + 1))
                self.fail(f"must have all lower powers of '{column}', as in '{lower}'", first)
        highest = {column: len(given) for column, given in powers.items()}
        if sum(power > 1 for power in highest.values()) > 1:
            self.fail(
                f"must have powers of one column a term, but has them of {list(highest)}: make "
                "columns of the others' powers",
                first,
            )
        return highest

    def slope(self) -> list[tuple[str, int]]:
        """One summand left of the bar, as powers of columns; none for the intercept."""
        token = self.token
        if token.kind == "number":
            if token.value != "1":
                self.fail(
                    "must have an intercept beside every slope: write 1 or nothing, as in "
                    "'(1 + t | patient)'"
                )
            self.take()
            return []
        if token.kind == "-":
            self.fail("must have an intercept beside every slope, as in '(1 + t | patient)'")
        if token.kind != "name":
            self.fail("must have 1 or a column's name here, as in '(1 + t | patient)'")
        self.take()
        if self.token.kind != "(":
            return [(token.value, self.power())]
        if token.value not in ("I", "poly"):
            self.fail(
                f"has no function '{token.value}': make a column of its values; there are "
                "I(t^2) and poly(t, 2)",
                token.start,
            )
        self.take()
        column = self.expect("name", f"must have a column's name in '{token.value}(...)'").value
        if token.value == "poly":
            self.expect(",", "must have the degree after the column, as in 'poly(t, 2)'")
            powers = [(column, power) for power in range(1, self.degree() + 1)]
        else:
            powers = [(column, self.power())]
        self.expect(")", f"lacks a ')' after '{token.value}(...'")
        return powers

    def power(self) -> int:
        """The power after a column, 1 if there is none."""
        return self.degree() if self.skip("^") or self.skip("**") else 1

    def degree(self) -> int:
        if not (self.token.kind == "number" and self.token.value.isdecimal()):
            self.fail("must have a whole number as a power, as in 't^2'")
        if not 1 <= int(self.token.value) <= 9:
            self.fail("must have powers from 1 to 9")
        return int(self.take().value)

    # Right of the bar ---------------------------------------------------------------------------

    def group_columns(self) -> list[tuple[list[str], int]]:
        """Columns of each group and their position. "a/b" gives the groups "a" and "a:b"."""
        start, columns = self.token.start, [self.interaction()]
        while self.skip("/"):
            columns.append([*columns[-1], *self.interaction()])
        if self.token.kind in ("+", "*"):
            self.fail("must have a term for each group, as in '(1 | a) + (1 | b) + (1 | a:b)'")
        return [(group, start) for group in columns]

    def interaction(self) -> list[str]:
        problem = "must have a column's name as group, as in '(1 | store)'"
        columns = [self.expect("name", problem).value]
        while self.skip(":"):
            columns.append(self.expect("name", problem).value)
        return columns

    def grouped(self, slopes: dict[str, int], group: list[str], start: int) -> RandomEffect:
        column, name = SEPARATOR.join(group), ":".join(group)
        if len(set(group)) < len(group):
            self.fail(f"must combine different columns, but has the group '{name}'", start)
        if frozenset(group) in self.groups:
            self.fail(
                f"must have one term for the group '{name}': put all its slopes there, as in "
                f"'(1 + t | {name})'",
                start,
            )
        self.groups.add(frozenset(group))
        if not slopes:
            return self.made(start, RandomIntercept, column, name=name)
        powered = [name for name, power in slopes.items() if power > 1]
        time = powered[0] if powered else next(iter(slopes)) if len(slopes) == 1 else None
        covariates = [name for name in slopes if name != time]
        degree = 1 if time is None else slopes[time]
        options = {"time": time, "degree": degree, "covariates": covariates, "name": name}
        return self.made(start, RandomSlopes, column, **options)

    # Terms that are called by a name ------------------------------------------------------------

    def call(self, kind: type[RandomEffect]) -> RandomEffect:
        """A term as `name(column, ... | group, option=value, ...)`."""
        start, name = self.token.start, self.take().value
        self.take()
        columns: list[str] = []
        options: dict[str, Any] = {}
        group: str | None = None
        while True:
            word = self.expect("name", f"must have a column's name here, as in '{name}(lon, lat)'")
            if not self.skip("="):
                if options or group is not None:
                    self.fail(f"must have the columns of '{name}' before its options", word.start)
                columns.append(word.value)
                if self.skip("|"):
                    problem = "must have a column's name as group, as in '(1 | store)'"
                    group = self.expect("name", problem).value
            else:
                allowed = _options(kind, len(columns), group is not None)
                if word.value not in allowed or word.value in options:
                    self.fail(
                        f"has the unknown or repeated option '{word.value}', expected each of "
                        f"{', '.join(allowed)} once at most",
                        word.start,
                    )
                options[word.value] = self.value()
            if not self.skip(","):
                break
        self.expect(")", f"lacks a ')' or ',' in '{name}(...'")
        return self.made(start, kind.from_formula, columns, group, **options)

    def value(self) -> Any:
        """An option's value: a number, `None`, or text with or without quotes."""
        token = self.token
        if token.kind == "number":
            self.take()
            return int(token.value) if token.value.isdecimal() else float(token.value)
        if token.kind not in ("name", "text"):
            self.fail("must have a number or a word after '='")
        self.take()
        return None if token.kind == "name" and token.value in ("None", "NULL") else token.value

    def made(
        self, start: int, make: Callable[..., RandomEffect], *arguments: Any, **options: Any
    ) -> RandomEffect:
        """A term; its own errors get the position in the formula."""
        try:
            term = make(*arguments, **options)
        except (TypeError, ValueError) as error:
            self.fail(f"asks for a term that cannot be made: {error}", start)
        return term


def _power(column: str, power: int) -> str:
    return column if power == 1 else f"{column}^{power}"


def _called() -> dict[str, type[RandomEffect]]:
    """Name in formulas -> class, for all terms with a name."""
    return {kind.formula_name: kind for kind in term_classes() if kind.formula_name is not None}


def _options(kind: type[RandomEffect], num_columns: int, has_group: bool) -> list[str]:
    """Arguments of a class of terms that are not columns."""
    taken = 1 + num_columns if has_group else 1
    return list(inspect.signature(kind).parameters)[taken:]
