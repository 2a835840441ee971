"""`calculate`: arithmetic in exact fractions, so that 0.1 + 0.2 is 0.3; what is irrational is right to 28 digits.

The expression is parsed as Python's, and its tree walked here: nothing is evaluated that is not named in this file.
Every number is bounded before it is made, so that no expression takes more than some milliseconds.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable
from decimal import Context, Decimal, DecimalException, DivisionByZero, InvalidOperation, Overflow, localcontext
from fractions import Fraction
from typing import Any, Final

from worker.tools.base import Tool, ToolContext, ToolError

MAX_EXPRESSION: Final = 1_000  # characters
MAX_DEPTH: Final = 50
MAX_BITS: Final = 4_096  # of a numerator or denominator: about 1,200 digits
MAX_MAGNITUDE: Final = 1_100  # power of ten of what is not whole
DIGITS: Final = 28  # shown
PRECISION: Final = 50  # worked with, where a result is irrational
MAX_ANGLE: Final = 10**6  # beyond it an angle has lost its meaning

_CONTEXT = Context(prec=PRECISION, Emax=9_999, Emin=-9_999, traps=[InvalidOperation, DivisionByZero, Overflow])
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
_E = Decimal("2.71828182845904523536028747135266249775724709369995957496697")
_CONSTANTS = {"pi": Fraction(_PI), "e": Fraction(_E)}
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "\n": " ", "\r": " ", "\t": " "})
_PERCENT = re.compile(r"(?<![\w.])(\d[\d_]*(?:\.\d+)?|\.\d+)\s*%(?=\s*(?:$|[),*/+]|-\s))")
_THOUSANDS = re.compile(r"\d,\d{3}(?!\d)")
_NO_COMMAS = "Write numbers without thousands separators: 1234.5, not 1,234.5."
_TOO_LARGE = "The numbers become too large; at most about 1,200 digits are handled."


def calculate(expression: str) -> str:
    """The value of an arithmetic expression as text. Raises ToolError with a sentence for the model."""
    if len(expression) > MAX_EXPRESSION:
        raise ToolError(f"The expression has {len(expression)} characters; at most {MAX_EXPRESSION} are read.")
    source = _PERCENT.sub(r"(\1/100)", expression.translate(_SIGNS).strip())
    if not source.isascii():
        raise ToolError("Only digits, + - * / // % **, parentheses and the named functions are understood.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser comments on what it finds odd
            tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(f"{expression[:100]!r} is no arithmetic expression; write it like 2 * (3 + 4.5).") from None
    try:
        with localcontext(_CONTEXT):
            return _shown(_Walk(source).value(tree.body, 0))
    except ZeroDivisionError:
        raise ToolError("The expression divides by zero.") from None
    except Overflow:
        raise ToolError(_TOO_LARGE) from None
    except DecimalException:
        raise ToolError("The expression has no value among the real numbers.") from None


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    with localcontext(Context(prec=DIGITS, Emax=9_999, Emin=-9_999)):
        number = (Decimal(value.numerator) / Decimal(value.denominator)).normalize()
    plain = f"{number:f}" if -8 < number.adjusted() < DIGITS else str(number)
    return plain if Fraction(number) == value else f"{plain} (rounded to {DIGITS} digits)"


def _bounded(value: Fraction) -> Fraction:
    """`value`; rounded to PRECISION when it is a fraction with too many digits, as compound interest soon is."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_BITS:
        return value
    if value.denominator == 1:
        raise ToolError(_TOO_LARGE)
    return _fraction(_decimal(value))


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def _fraction(value: Decimal) -> Fraction:
    if value.adjusted() > MAX_MAGNITUDE:
        raise ToolError(_TOO_LARGE)
    if value.adjusted() < -MAX_MAGNITUDE:
        raise ToolError("The numbers become too small to be told from zero.")
    return Fraction(value) if value else Fraction(0)


def _whole(value: Fraction, what: str) -> int:
    if value.denominator != 1:
        raise ToolError(f"{what} takes a whole number.")
    return value.numerator


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 1:
        if base in (0, 1, -1) and exponent > 0:
            return base if exponent.numerator % 2 else abs(base)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
        if bits * abs(exponent.numerator) <= MAX_BITS:
            return _bounded(Fraction(base**exponent.numerator))
        if base.denominator == 1 and exponent > 0:
            raise ToolError(_TOO_LARGE)
        return _fraction(_decimal(base) ** _decimal(exponent))
    if base < 0:
        raise ToolError("A negative number has no real power with a fraction as exponent.")
    if base == 0:
        return 1 / base if exponent < 0 else base
    return _sqrt(base) if exponent == Fraction(1, 2) else _fraction(_decimal(base) ** _decimal(exponent))


def _sqrt(value: Fraction) -> Fraction:
    if value < 0:
        raise ToolError("A negative number has no real square root.")
    roots = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if roots[0] ** 2 == value.numerator and roots[1] ** 2 == value.denominator:
        return Fraction(*roots)
    return _fraction(_decimal(value).sqrt())


def _log(value: Fraction, base: Fraction | None = None) -> Fraction:
    if value <= 0 or (base is not None and (base <= 0 or base == 1)):
        raise ToolError("Logarithms take positive numbers, and a base other than 1.")
    logarithm = _decimal(value).ln()
    return _fraction(logarithm if base is None else (logarithm / _decimal(base).ln()).quantize(Decimal(1).scaleb(-40)))


def _wave(value: Fraction, start: int) -> Decimal:
    """Sine (`start` 1) or cosine (`start` 0) of an angle in radians, by its series."""
    if abs(value) > MAX_ANGLE:
        raise ToolError(f"Angles (in radians) may be at most {MAX_ANGLE}.")
    x = _decimal(value).remainder_near(2 * _PI)
    term = x if start else Decimal(1)
    total, n = term, start
    while abs(term) > Decimal("1e-48"):
        n += 2
        term *= -x * x / (n * (n - 1))
        total += term
    return total.quantize(Decimal("1e-40"))


def _tan(value: Fraction) -> Fraction:
    cosine = _wave(value, 0)
    if not cosine:
        raise ToolError("The tangent has no value at this angle.")
    return _fraction(_wave(value, 1) / cosine)


def _round(value: Fraction, digits: Fraction = Fraction(0)) -> Fraction:
    """Half away from zero, as at school."""
    places = _whole(digits, "The second argument of round")
    if abs(places) > 1_000:
        raise ToolError("round takes at most 1000 digits.")
    scale = Fraction(10) ** places
    return Fraction(math.floor(abs(value) * scale + Fraction(1, 2)) * (1 if value >= 0 else -1)) / scale


def _factorial(value: Fraction) -> Fraction:
    n = _whole(value, "factorial")
    if not 0 <= n <= 400:
        raise ToolError("factorial takes a whole number from 0 to 400.")
    return Fraction(math.factorial(n))


def _sum(*values: Fraction) -> Fraction:
    total = Fraction(0)
    for value in values:
        total = _bounded(total + value)
    return total


# name → function, fewest and most arguments (None: any number)
_FUNCTIONS: Final[dict[str, tuple[Callable[..., Fraction], int, int | None]]] = {
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "min": (lambda *values: min(values), 1, None),
    "max": (lambda *values: max(values), 1, None),
    "sum": (_sum, 1, None),
    "sqrt": (_sqrt, 1, 1),
    "exp": (lambda value: _fraction(_decimal(value).exp()), 1, 1),
    "log": (_log, 1, 2),
    "log10": (lambda value: _log(value, Fraction(10)), 1, 1),
    "log2": (lambda value: _log(value, Fraction(2)), 1, 1),
    "sin": (lambda value: _fraction(_wave(value, 1)), 1, 1),
    "cos": (lambda value: _fraction(_wave(value, 0)), 1, 1),
    "tan": (_tan, 1, 1),
    "floor": (lambda value: Fraction(math.floor(value)), 1, 1),
    "ceil": (lambda value: Fraction(math.ceil(value)), 1, 1),
    "factorial": (_factorial, 1, 1),
}
_OPERATIONS: Final[dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    ast.FloorDiv: lambda left, right: Fraction(left // right),
    ast.Mod: lambda left, right: left % right,
    ast.Pow: _power,
}


class _Walk:
    """One walk through a tree; `source` (ASCII) still has the digits that a float has lost."""

    def __init__(self, source: str) -> None:
        self._source = source

    def value(self, node: ast.expr, depth: int) -> Fraction:
        """The value of a node. Raises ToolError, ZeroDivisionError, DecimalException."""
        if depth > MAX_DEPTH:
            raise ToolError(f"The expression is nested more than {MAX_DEPTH} deep.")
        match node:
            case ast.Constant():
                return self._number(node)
            case ast.BinOp():
                return self._operation(node, depth)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                value = self.value(node.operand, depth + 1)
                return -value if isinstance(node.op, ast.USub) else value
            case ast.Call():
                return self._call(node, depth)
            case ast.Name():
                if node.id in _CONSTANTS:
                    return _CONSTANTS[node.id]
                raise ToolError(f"{node.id[:40]!r} is unknown; there are the constants pi and e.")
            case ast.Tuple():
                raise ToolError(_NO_COMMAS)
            case ast.Compare() | ast.BoolOp():
                raise ToolError("Comparisons are not calculated; ask for the difference.")
        raise ToolError("Only numbers, + - * / // % **, parentheses and the named functions are understood.")

    def _number(self, node: ast.Constant) -> Fraction:
        if type(node.value) is int:
            return _bounded(Fraction(node.value))
        if type(node.value) is float:
            return _fraction(Decimal(self._source[node.col_offset : node.end_col_offset]))
        raise ToolError("Only real numbers are calculated.")

    def _operation(self, node: ast.BinOp, depth: int) -> Fraction:
        # A long sum is a deep tree to the left; it is walked without recursion.
        chain = [node]
        while isinstance(chain[-1].left, ast.BinOp):
            chain.append(chain[-1].left)
        result = self.value(chain[-1].left, depth + 1)
        for step in reversed(chain):
            operation = _OPERATIONS.get(type(step.op))
            if operation is None:
                raise ToolError("Of the operators, + - * / // % and ** (power) are understood.")
            result = _bounded(operation(result, self.value(step.right, depth + 1)))
        return result

    def _call(self, node: ast.Call, depth: int) -> Fraction:
        if not isinstance(node.func, ast.Name):
            raise ToolError("Write multiplication with *, for example 2 * (3 + 4).")
        name = node.func.id
        if name not in _FUNCTIONS:
            raise ToolError(f"There is no function {name[:40]!r}; there are {', '.join(_FUNCTIONS)}.")
        function, fewest, most = _FUNCTIONS[name]
        given = node.args
        if most is None and len(given) == 1 and isinstance(given[0], ast.List | ast.Tuple):
            given = given[0].elts
        if node.keywords or len(given) < fewest or (most is not None and len(given) > most):
            hint = f" {_NO_COMMAS}" if _THOUSANDS.search(self._source) else ""
            raise ToolError(f"{name} takes {fewest}{_up_to(fewest, most)} numbers, not {len(given)}.{hint}")
        return _bounded(function(*(self.value(argument, depth + 1) for argument in given)))


def _up_to(fewest: int, most: int | None) -> str:
    return " or more" if most is None else "" if most == fewest else f" to {most}"


async def _run(arguments: dict[str, Any], _: ToolContext) -> str:
    return calculate(arguments["expression"])


CALCULATE = Tool(
    name="calculate",
    description=(
        "Exact arithmetic. Operators + - * / // % ** and parentheses, a percentage as 15%; constants pi, e; functions "
        + ", ".join(_FUNCTIONS)
        + ". round rounds half up, log(x) is natural, log(x, base) takes a base, angles are radians."
    ),
    parameters={
        "type": "object",
        "properties": {
            "expression": {"type": "string", "description": "For example: 1234.5 * 15% + sqrt(2)", "minLength": 1}
        },
        "required": ["expression"],
        "additionalProperties": False,
    },
    run=_run,
    timeout_s=5.0,
    output_characters=2_000,
)
