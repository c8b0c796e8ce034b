"""Which answers may be handed to a scorer that evaluates them.

Some scorers of `reasoning_gym` call `eval` on an answer, or sympy's `parse_expr`, which does the same. A
policy that writes at random must not run code, nor stop training by a tower of powers. An answer is judged
here by its syntax alone; nothing of it is run.
"""

import ast

LONGEST = 1000
"""Characters of an answer that is evaluated."""
LARGEST_EXPONENT = 99
FUNCTIONS = ("Abs", "acos", "asin", "atan", "cos", "cosh", "exp", "log", "sin", "sinh", "sqrt", "tan", "tanh")
_LITERAL = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.USub)
_SUM = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.UAdd, ast.USub),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow),
)


def is_harmless_literal(answer: str) -> bool:
    """For `eval`: lists of numbers and texts. What Python can't read `eval` refuses by itself."""
    tree = _read(answer)
    return len(answer) <= LONGEST and (
        tree is None or all(isinstance(node, _LITERAL) for node in ast.walk(tree))
    )


def is_harmless_sum(answer: str) -> bool:
    """For `parse_expr`: numbers, +, -, *, / and small powers."""
    tree = _read(answer)
    return tree is not None and all(_is_arithmetic(node) for node in ast.walk(tree))


def is_harmless_formula(answer: str) -> bool:
    """For `parse_expr`: as a sum, with variables and functions of one argument."""
    tree = _read(answer)
    return tree is not None and all(_is_arithmetic(node) or _is_function(node) for node in ast.walk(tree))


def _is_function(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or node.keywords or len(node.args) != 1:
        return False
    return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_small(node)
    return isinstance(node, _SUM)


def _is_small(power: ast.BinOp) -> bool:
    """The exponent is small or has a variable, and no number is raised twice."""
    if _has(power.left, ast.Pow) and not _has(power.left, ast.Name):
        return False
    if _has(power.right, ast.Name) and not _has(power.right, ast.Pow):
        return True
    numbers = [node.value for node in ast.walk(power.right) if isinstance(node, ast.Constant)]
    operators = [node for node in ast.walk(power.right) if isinstance(node, ast.operator)]
    within = all(isinstance(n, int | float) and abs(n) <= LARGEST_EXPONENT for n in numbers)
    return within and all(isinstance(operator, ast.Div) for operator in operators)


def _has(tree: ast.AST, kind: type[ast.AST]) -> bool:
    return any(isinstance(node, kind) for node in ast.walk(tree))


def _read(answer: str) -> ast.Expression | None:
    """The answer as an expression; None: it is none, or a long one."""
    if len(answer) > LONGEST:
        return None
    try:
        return ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
