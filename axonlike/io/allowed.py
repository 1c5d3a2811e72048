"""What a file may name: axonlike's layers, JAX's functions of arrays, what the user gives.

A name in a file is looked up here and nowhere else, so that a file reaches nothing that
reads files, calls back into Python or runs text.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any, cast

from axonlike import values
from axonlike.errors import nearest
from axonlike.io.arrays import DTYPES
from axonlike.io.given import check_names
from axonlike.layer import lift
from axonlike.values import import_name

FUNCTIONS = {
    "jax.nn": """
        celu dot_product_attention elu gelu glu hard_sigmoid hard_silu hard_swish
        hard_tanh identity leaky_relu log1mexp log_sigmoid log_softmax logmeanexp
        logsumexp mish one_hot relu relu6 scaled_dot_general scaled_matmul selu
        sigmoid silu soft_sign softmax softplus sparse_plus sparse_sigmoid
        squareplus standardize swish tanh
    """,
    "jax.numpy": """
        abs absolute acos acosh add all allclose amax amin angle any append arccos
        arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argpartition
        argsort argwhere around asin asinh atan atan2 atanh atleast_1d atleast_2d
        atleast_3d average bincount bitwise_and bitwise_count bitwise_invert
        bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
        broadcast_arrays broadcast_to cbrt ceil clip column_stack concat concatenate
        conj conjugate convolve corrcoef correlate cos cosh count_nonzero cov cross
        cumprod cumsum cumulative_prod cumulative_sum deg2rad degrees diag diagflat
        diagonal diff digitize divide divmod dot dsplit dstack ediff1d einsum equal
        exp exp2 expand_dims expm1 fabs flatnonzero flip fliplr flipud float_power
        floor floor_divide fmax fmin fmod frexp full_like gcd gradient greater
        greater_equal heaviside hsplit hstack hypot i0 imag inner interp invert
        isclose iscomplex iscomplexobj isfinite isin isinf isnan isneginf isposinf
        isreal isrealobj kron lcm ldexp left_shift less less_equal log log10 log1p
        log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor
        matmul matrix_transpose matvec max maximum mean median min minimum mod modf
        moveaxis multiply nan_to_num nanargmax nanargmin nancumprod nancumsum nanmax
        nanmean nanmedian nanmin nanpercentile nanprod nanquantile nanstd nansum
        nanvar negative nextafter not_equal ones_like outer pad partition percentile
        permute_dims positive pow power prod ptp quantile rad2deg radians ravel real
        reciprocal remainder repeat reshape resize right_shift rint roll rollaxis
        roots rot90 round searchsorted sign signbit sin sinc sinh sort sort_complex
        spacing split sqrt square squeeze stack std subtract sum swapaxes take
        take_along_axis tan tanh tensordot tile trace transpose trapezoid tril triu
        true_divide trunc unstack unwrap vander var vdot vecdot vecmat vsplit vstack
        where zeros_like
    """,
    "jax.lax": """
        abs acos acosh add argmax argmin asin asinh atan atan2 atanh batch_matmul
        bessel_i0e bessel_i1e broadcast cbrt ceil clamp conj cos cosh cumlogsumexp
        cummax cummin cumprod cumsum digamma div dot dot_general eq erf erf_inv erfc
        exp exp2 expm1 floor ge gt imag is_finite le lgamma log log1p logistic lt
        max min mul ne neg nextafter pow ragged_dot real reciprocal rem rev round
        rsqrt select shift_left shift_right_arithmetic shift_right_logical sign sin
        sinh sort sqrt square squeeze stop_gradient sub tan tanh top_k transpose
    """,
    "jax.nn.initializers": """
        constant delta_orthogonal glorot_normal glorot_uniform he_normal he_uniform
        kaiming_normal kaiming_uniform lecun_normal lecun_uniform normal ones
        orthogonal truncated_normal uniform variance_scaling xavier_normal
        xavier_uniform zeros
    """,
    "jax.random": """
        ball bernoulli beta binomial categorical cauchy chisquare choice dirichlet
        double_sided_maxwell exponential f gamma generalized_normal geometric gumbel
        laplace loggamma logistic lognormal maxwell multinomial multivariate_normal
        normal orthogonal pareto permutation poisson rademacher randint rayleigh t
        triangular truncated_normal uniform wald weibull_min
    """,
    "jax.image": """
        resize scale_and_translate
    """,
    "jax.scipy.special": """
        bernoulli beta betainc betaln digamma entr erf erfc erfinv exp1 expi expit expn
        factorial gamma gammainc gammaincc gammaln i0 i0e i1 i1e kl_div log_ndtr
        log_softmax logit logsumexp multigammaln ndtr ndtri poch polygamma rel_entr
        softmax spence xlog1py xlogy zeta
    """,
    "jax.checkpoint_policies": """
        checkpoint_dots checkpoint_dots_with_no_batch_dims dots_saveable
        dots_with_no_batch_dims_saveable everything_saveable nothing_saveable
    """,
    "builtins": "bool complex float int",
}
"""By the module that has them: they take arrays and numbers and return such."""

ENUMS = {
    "jax.lax": "DotAlgorithmPreset FftType GatherScatterMode Precision RoundingMode"
}
"""Likewise, classes whose members are options."""

OURS = re.compile(
    r"axonlike\.(combinators|layers)\.[a-z]\w*|"
    r"axonlike\.models\.(blocks|decoders|encoders|recurrent|vision)"
)
"""Our own modules of layers, whose functions are what layers compute."""

Given = Iterable[Any] | Mapping[str, Any]


def by_name(verb: str, given: Given) -> dict[str, Any]:
    """What the user gives, by the name that a file has for it."""
    if isinstance(given, Mapping):
        check_names(verb, given, "names in the file")
        return dict(cast("Mapping[str, Any]", given))
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise TypeError(
            f"{verb}: expected a list of what the file may name, or a dict, got "
            f"{values.source(given)}."
        )
    found: dict[str, Any] = {}
    for value in given:
        name = import_name(value)
        if name is None:
            raise ValueError(
                f"{verb}: {values.source(value)} has no import name. "
                "Pass a dict: {name in the file: object}."
            )
        found[name] = value
    return found


def kind(name: str, given: Mapping[str, Any]) -> Any:
    """The factory of a layer."""
    if name in given:
        return given[name]
    if re.fullmatch(r"axonlike(\.[a-z]\w*)+", name) and "__" not in name:
        found = _attribute(name)
        ours = str(getattr(found, "__module__", "")).startswith("axonlike.")
        if found is lift or (ours and hasattr(found, "__axonlike_factory__")):
            return found
    raise ValueError(
        f"the kind {name!r:.80} is not known. {nearest(name, given) if given else ''} "
        "If it is yours, pass kinds=[its factory]."
    )


def _attribute(name: str) -> Any:
    """An attribute of one of axonlike's own modules, which this imports; None if none."""
    module, _, last = name.rpartition(".")
    if module not in sys.modules:
        try:
            spec = find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            return None
        importlib.import_module(module)
    return getattr(sys.modules[module], last, None)


def function(name: str, given: Mapping[str, Any]) -> Any:
    """A function or a dtype."""
    if name in given:
        return given[name]
    module, _, last = name.rpartition(".")
    if last in FUNCTIONS.get(module, "").split():
        return values.imported(name)
    if OURS.fullmatch(module):
        found = _attribute(name)
        if inspect.isfunction(found) and found.__module__ == module:
            return found
    if module in ("numpy", "jax.numpy", "ml_dtypes") and last in (*DTYPES, "bool_"):
        return values.imported(name)
    raise ValueError(
        f"the function {name!r:.80} is not among those that a file may name. "
        "If you trust it, pass functions=[it]."
    )


def member(name: str, of: str, given: Mapping[str, Any]) -> Any:
    """A member of an enumeration of options."""
    module, _, last = of.rpartition(".")
    known = last in ENUMS.get(module, "").split()
    found = values.imported(of) if known else given.get(of)
    members: Mapping[str, Any] = getattr(found, "__members__", {})
    if name not in members:
        raise ValueError(
            f"the option {of!r:.80} {name!r:.40} is not among those that a file may name. "
            "If you trust it, pass functions=[its class]."
        )
    return members[name]


def record(name: str, given: Mapping[str, Any]) -> Any:
    """A class of the user's whose fields are config."""
    found = given.get(name)
    if not isinstance(found, type):
        raise ValueError(
            f"the class {name!r:.80} is not known. If it is yours, pass functions=[it]."
        )
    return found
