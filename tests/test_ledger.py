"""What is traced and compiled, and why; counted against JAX's own events."""

import logging
import re
import threading

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

import axonlike as al

KEY = jax.random.key(0)
X = jnp.ones((3, 4))
LOGGER = "jax._src.interpreters.partial_eval"


def scaling(**options):
    """A jitted function that nothing has called."""

    def scale(x, n=1):
        return x * n

    return jax.jit(scale, **options)


def whys(book):
    return [event.why for event in book.events if event.stage == "compile"]


# --- counts


def test_a_function_is_traced_and_compiled_once_for_one_shape():
    f = jax.jit(lambda x: x + 1)
    with al.ledger() as book:
        f(X)
        f(X + 1)
    assert (book.traces, book.compiles) == (1, 1)
    assert [(e.stage, e.function) for e in book.events] == [
        ("trace", "<lambda>"),
        ("compile", "<lambda>"),
    ]


def test_compilations_are_those_that_jax_reports():
    seen = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with al.ledger() as book:
            f = scaling(static_argnames="n")
            f(X)
            f(jnp.full((2, 3), 2.0), n=2)
            f(jnp.ones((2, 3), int), n=2)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    operations = [e for e in book.operations if e.stage == "compile"]
    assert book.compiles == seen.count("jit(scale)") == 3
    assert book.compiles + len(operations) == len(seen)


def test_operations_outside_of_jit_are_apart():
    f = jax.jit(lambda x: x + 1)
    with al.ledger() as book:
        f(jnp.full((2, 7), 3.0))
    assert book.compiles == 1
    assert {event.function for event in book.operations} >= {"broadcast_in_dim"}
    assert "outside of jit: broadcast_in_dim" in str(book)


def test_seconds_are_those_of_all_events():
    with al.ledger() as book:
        jax.jit(lambda x: x + 1)(X)
    assert book.seconds == pytest.approx(sum(e.seconds for e in book.events))
    assert all(e.seconds > 0 for e in book.events)


def test_tracing_alone_compiles_nothing():
    model = al.dense(8) >> jax.nn.relu >> al.dense(2)
    with al.ledger() as book:
        jax.jit(lambda x: x + 1).lower(X)
        model.output_spec(al.spec("b 4"))
    assert book.compiles == 0
    assert "<lambda>" in [event.function for event in book.events]


def test_equal_models_share_one_trace():
    """Axon and Thinc trace or build again what is rebuilt in a loop."""
    params, state = al.dense(2).init(KEY, (None, 4))
    with al.ledger() as book:
        for _ in range(3):
            jax.jit(al.dense(2).apply)(params, state, X)
    assert (book.traces, book.compiles) == (1, 1)
    assert book.events[0].function == "apply"


# --- why


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (jnp.ones((3, 5)), "x: float32[3, 4] -> float32[3, 5] (axis 1)"),
        (jnp.ones((2, 5)), "x: float32[3, 4] -> float32[2, 5] (axes 0, 1)"),
        (jnp.ones(4), "x: float32[3, 4] -> float32[4] (number of axes)"),
        (jnp.ones((3, 4), int), "x: float32[3, 4] -> int32[3, 4] (dtype)"),
    ],
)
def test_the_dim_or_dtype_that_changed_is_named(other, why):
    f = jax.jit(lambda x: x + 1)
    with al.ledger() as book:
        f(X)
        f(other)
    assert whys(book)[1] == why


def test_the_argument_is_named_inside_of_a_tree():
    f = jax.jit(lambda params, batch: batch["x"] @ params["w"])
    with al.ledger() as book:
        f({"w": jnp.ones((4, 2))}, {"x": X, "y": X})
        f({"w": jnp.ones((4, 2))}, {"x": jnp.ones((7, 4)), "y": X})
    assert whys(book)[1] == "batch['x']: float32[3, 4] -> float32[7, 4] (axis 0)"


def test_the_closest_call_is_compared_with():
    f = jax.jit(lambda x, y: (x, y))
    with al.ledger() as book:
        f(X, X)
        f((X,), X)
        f(X, jnp.ones((9, 4)))
    assert whys(book)[2] == "y: float32[3, 4] -> float32[9, 4] (axis 0)"


def test_a_weak_type_is_a_reason():
    f = jax.jit(lambda x: x * 2)
    with al.ledger() as book:
        f(1.0)
        f(jnp.asarray(1.0, jnp.float32))
    assert whys(book)[1] == (
        "x: float32[] -> float32[] (weak type: a Python number or an array)"
    )


def test_a_static_argument_is_named_with_its_values():
    f = scaling(static_argnames="n")
    with al.ledger() as book:
        f(X, n=2)
        f(X, n=3)
    assert whys(book)[1] == "n: 2 -> 3 (static)"


def test_a_static_argument_by_position_is_named():
    f = scaling(static_argnums=1)
    with al.ledger() as book:
        f(X, 2)
        f(X, 3)
    assert whys(book)[1] == "n: 2 -> 3 (static)"


def test_a_long_static_value_is_cut():
    f = jax.jit(lambda x, n: x, static_argnames="n")
    with al.ledger() as book:
        f(X, n="a" * 500)
        f(X, n="b" * 500)
    assert len(whys(book)[1]) < 150


def test_a_setting_of_jax_is_a_reason():
    f = jax.jit(lambda x: x + 1)
    with al.ledger() as book:
        f(X)
        with jax.numpy_dtype_promotion("standard"):
            f(X)
    assert whys(book)[1] == "jax_numpy_dtype_promotion: strict -> standard"


def test_another_nesting_of_the_arguments_is_a_reason():
    f = jax.jit(lambda x: x)
    with al.ledger() as book:
        f({"a": X})
        f({"b": X})
        f((X, X))
    assert whys(book)[1] == "x: dict with ('a',) -> dict with ('b',)"
    assert whys(book)[2] == "x: dict -> tuple"


def test_an_option_given_and_left_out_is_a_reason():
    model = al.dense(2, name="given_and_left_out")
    params, state = model.init(KEY, (None, 4))
    apply = jax.jit(model.apply, static_argnames="train")
    with al.ledger() as book:
        apply(params, state, X)
        apply(params, state, X, train=True)
    assert whys(book)[1] == "arguments: with and without 'train'"


def test_a_function_made_anew_in_a_loop_is_told():
    with al.ledger() as book:
        for _ in range(2):
            jax.jit(lambda x: x + 1)(X)
    assert whys(book) == [
        "first call",
        "a new function, made again at this line: make it once, outside of the loop",
    ]


def test_what_was_lowered_before_is_compiled_without_a_trace():
    lowered = jax.jit(lambda x: x + 1).lower(X)
    with al.ledger() as book:
        lowered.compile()
    assert (book.traces, book.compiles) == (0, 1)
    assert whys(book) == [
        "no new trace: another transformation, sharding, device or compiler option"
    ]


def test_the_line_that_called_is_told():
    with al.ledger() as book:
        jax.jit(lambda x: x + 1)(X)
    file, line = book.events[0].where.rsplit(":", 1)
    assert file.endswith("test_ledger.py")
    here = test_the_line_that_called_is_told.__code__.co_firstlineno
    assert int(line) == here + 2


def test_a_function_that_calls_others_is_one():
    inner = jax.jit(lambda x: jnp.where(x > 0, x, -x))
    with al.ledger() as book:
        jax.jit(lambda x: inner(x) + jnp.mean(x))(X)
    assert (book.traces, book.compiles) == (1, 1)
    assert book.events[0].why == "first call"


def test_what_a_function_calls_does_not_say_why_it_is_traced():
    inner = jax.jit(lambda x: x + 1)
    outer = jax.jit(lambda x: inner(x).sum() + inner(x[:2]).sum())
    with al.ledger() as book:
        outer(X)
        outer(X[:, :3])
    assert [event.why for event in book.events[::2]] == [
        "first call",
        "x: float32[3, 4] -> float32[3, 3] (axis 1)",
    ]


def test_operations_have_no_part_in_a_gradient_outside_of_jit():
    f = jax.jit(lambda x: (x**2).sum())
    with al.ledger() as book:
        jax.grad(f)(X)
    assert {event.function for event in book.events} == {"<lambda>"}
    assert (book.compiles, book.events[0].why) == (2, "first call")


def test_functions_given_to_operations_are_theirs():
    with al.ledger() as book:
        for _ in range(2):
            jax.lax.scan(lambda c, x: (c + x, c), 0.0, X[0])
        jax.lax.cond(True, lambda x: x, lambda x: x * 2, 1.0)
    found = [(e.function, e.why[:14]) for e in book.events if e.stage == "compile"]
    assert found == [
        ("scan", "first call"), ("scan", "a new function"), ("cond", "first call"),
    ]  # fmt: skip


def test_callables_without_a_name_are_functions():
    class Doubling:
        def __call__(self, x):
            return x * 2

    with al.ledger() as book:
        jax.jit(Doubling())(X)
    assert (book.compiles, book.events[0].why) == (1, "first call")


def test_of_many_changes_some_are_listed():
    f = jax.jit(lambda xs: sum(x.sum() for x in xs))
    with al.ledger() as book:
        f([X] * 9)
        f([X.astype(jnp.bfloat16)] * 9)
    why = book.events[-1].why.split("; ")
    assert why[0] == "xs[0]: float32[3, 4] -> bfloat16[3, 4] (dtype)"
    assert (len(why), why[-1]) == (5, "5 more")
    assert repr(book) == "<ledger: 2 traces, 2 compiles>"


def test_the_report():
    f = scaling(static_argnames="n")
    with al.ledger() as book:
        f(X)
        f(X, n=2)
    head, first, second, *rest = str(book).splitlines()
    assert head.startswith("2 traces, 2 compiles, ")
    times = r"  scale: trace \d+\.\d+ s, compile \d+\.\d+ s: first call  \("
    assert re.match(times, first)
    assert "with and without 'n'" in second
    assert not rest
    assert repr(book) == "<ledger: 2 traces, 2 compiles>"


# --- nothing stays behind


def listeners():
    from jax._src import monitoring

    return list(monitoring.get_event_duration_listeners())


def leftovers():
    explaining = jax.config.values.get("jax_explain_cache_misses")
    return listeners(), list(logging.getLogger(LOGGER).filters), explaining


def test_nothing_is_left_after_it_closes():
    before = leftovers()
    with al.ledger() as book:
        assert leftovers() != before
        jax.jit(lambda x: x + 1)(X)
    assert leftovers() == before
    jax.jit(lambda x: x + 2)(X)
    assert book.compiles == 1


def test_nothing_is_left_after_an_error():
    before = leftovers()
    with pytest.raises(KeyError), al.ledger():
        raise KeyError("ours")
    with pytest.raises(RuntimeError, match="max_compiles"), al.max_compiles(0):
        jax.jit(lambda x: x + 1)(X)
    assert leftovers() == before


def test_jax_logs_nothing_that_nobody_asked_for(caplog):
    with caplog.at_level(logging.WARNING), al.ledger():
        jax.jit(lambda x: x + 1)(X)
    assert not caplog.records


def test_jax_still_explains_when_asked_to(caplog):
    with caplog.at_level(logging.WARNING), jax.explain_cache_misses(True):
        with al.ledger() as book:
            jax.jit(lambda x: x + 1)(X)
        jax.jit(lambda x: x + 1)(X)
    texts = [record.getMessage() for record in caplog.records]
    assert sum("TRACING CACHE MISS" in text for text in texts) == 2
    assert book.compiles == 1


def test_nested_ledgers_both_see_what_is_inside():
    with al.ledger() as outer:
        jax.jit(lambda x: x + 1)(X)
        with al.ledger() as inner:
            jax.jit(lambda x: x + 1)(X)
        jax.jit(lambda x: x + 1)(X)
    assert (outer.compiles, inner.compiles) == (3, 1)


def test_one_ledger_counts_on_when_opened_again():
    book = al.ledger()
    for _ in range(2):
        with book:
            jax.jit(lambda x: x + 1)(X)
    assert book.compiles == 2
    with book, pytest.raises(RuntimeError, match="open already"):
        book.__enter__()


def test_threads_see_their_own():
    found, barrier = {}, threading.Barrier(2, timeout=30)

    def work(n):
        with al.ledger() as book:
            barrier.wait()
            for i in range(n):
                jax.jit(lambda x: x + 1)(jnp.ones(i + 1))
            barrier.wait()
        found[n] = book

    before = leftovers()
    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: book.compiles for n, book in found.items()} == {1: 1, 2: 2}
    assert leftovers() == before


def test_an_open_ledger_makes_nothing_compile_again():
    f = jax.jit(lambda x: x + 1)
    f(X)
    with al.ledger() as book:
        f(X)
    f(X)
    assert (book.traces, book.compiles) == (0, 0)


# --- max_compiles


def test_one_compilation_each_is_fine():
    f, g = jax.jit(lambda x: x + 1), jax.jit(lambda x: x + 2)
    with al.max_compiles(1) as book:
        for _ in range(3):
            f(X)
            g(X)
    assert book.compiles == 2


def test_models_are_told_apart():
    first, second = al.dense(2), al.dense(3)
    p, _ = first.init(KEY, (None, 4))
    q, _ = second.init(KEY, (None, 4))
    with al.max_compiles(1):
        jax.jit(first.apply)(p, {}, X)
        jax.jit(second.apply)(q, {}, X)


def test_one_too_many_says_what_and_why():
    f, other = scaling(), jnp.ones((5, 4))
    with al.max_compiles(1):
        f(X)
        with pytest.raises(RuntimeError) as caught:
            f(other)
    text = str(caught.value).splitlines()
    assert text[0] == "max_compiles: scale was compiled 2 times, at most 1 allowed."
    assert text[1].endswith(": x: float32[3, 4] -> float32[5, 4] (axis 0)")
    assert text[2] == (
        "Give it arguments of the same shapes, dtypes and static values; "
        "pad what varies."
    )


def test_a_loop_that_makes_its_function_anew_is_caught():
    def loop():
        for _ in range(2):
            jax.jit(lambda x: x + 1)(X)

    with pytest.raises(RuntimeError, match="again at this line"), al.max_compiles(1):
        loop()


def test_what_was_compiled_before_may_be_called_anywhere():
    f = jax.jit(lambda x: x + 1)
    f(X)
    with al.max_compiles(0):
        f(X)
    with (
        pytest.raises(RuntimeError, match="compiled once, at most 0 allowed"),
        al.max_compiles(0),
    ):
        f(jnp.ones(2))


def test_after_the_error_the_function_still_works():
    f = jax.jit(lambda x: x + 1)
    with pytest.raises(RuntimeError), al.max_compiles(0):
        f(X)
    assert f(X).shape == X.shape


@pytest.mark.parametrize("n", [-1, 1.5, True, None])
def test_a_limit_is_a_number(n):
    with pytest.raises(ValueError, match="max_compiles: n must be an int from 0 on"):
        al.max_compiles(n)


def test_a_wrong_layer_is_reported_with_no_compilation():
    """Thirty seeded mistakes are found with zero compilations; here is one of a row."""
    model = al.dense(8) >> al.dense(2)
    params, state = model.init(KEY, (None, 4))
    wrong = jax.ShapeDtypeStruct((3, 5), jnp.float32)
    with al.max_compiles(0), pytest.raises(TypeError, match="contracting dimensions"):
        jax.eval_shape(model.apply, params, state, wrong)
