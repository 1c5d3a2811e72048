"""Decoding: a prompt, then a token at a time, is the pass over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from parity import close, drawn, normal, run

import axonlike as al

KEY = jax.random.key(0)
DECODE = {"decode": True}


def decoded(model, params, state, x, prompt):
    """Output for every token and the last state: prompt at once, the rest in a scan."""

    def step(state, token):
        y, state = model.apply(params, state, token[:, None], options=DECODE)
        return state, y[:, 0]

    @jax.jit
    def all_of_it(params, state, x):
        first, state = model.apply(params, state, x[:, :prompt], options=DECODE)
        state, rest = lax.scan(step, state, jnp.moveaxis(x[:, prompt:], 1, 0))
        return jnp.concatenate([first, jnp.moveaxis(rest, 0, 1)], 1), state

    return all_of_it(params, state, x)


def cached(num_heads=2, **options):
    return al.attention(num_heads, causal=True, cache_length=9, **options)


def block(**options):
    return al.residual(al.rms_norm() >> cached(**options))


MODELS = {
    "plain": cached(),
    "rotary": cached(rotary=al.rotary()),
    "shared keys, window": cached(
        4, num_kv_heads=2, rotary=al.rotary(), sliding_window=3
    ),
    "one key, values of their own width": cached(4, num_kv_heads=1, value_dim=3),
    "alibi, cap, norms": cached(alibi=True, soft_cap=2.0, normalize_qk=True),
    "jax.nn": cached(rotary=al.rotary(), implementation="xla"),
    "stacked": al.repeat(block(rotary=al.rotary()), 2),
    "unrolled": al.repeat(block(sliding_window=2), 2, stacked=False),
    "learned": al.learned_positions(9, keeps_position=True) >> block(),
    "sinusoidal": al.sinusoidal_positions(keeps_position=True) >> block(),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_prompt_and_tokens_are_the_full_pass(name):
    model, x = MODELS[name], jnp.asarray(normal(0, 2, 8, 8))
    params, state = model.init(KEY, x)
    params = drawn(params)
    y, after = decoded(model, params, state, x, 5)
    close(y, run(model, params, x, state))
    again, _ = decoded(model, params, state, x, 1)
    close(again, y)
    positions = [leaf for path, leaf in al.paths(after) if path.endswith("position")]
    assert positions
    assert all(np.all(np.asarray(p) == 8) for p in positions)


def test_a_prompt_in_parts_is_the_prompt():
    model, x = MODELS["rotary"], jnp.asarray(normal(0, 1, 6, 8))
    params, state = model.init(KEY, x)
    whole, end = model.apply(params, state, x, options=DECODE)
    first, state = model.apply(params, state, x[:, :4], options=DECODE)
    rest, state = model.apply(params, state, x[:, 4:], options=DECODE)
    close(jnp.concatenate([first, rest], 1), whole)
    close(state["cache"]["key"], end["cache"]["key"])


def test_a_short_prompt_is_filled_up_at_its_start_and_masked():
    model, x = cached(rotary=al.rotary()), jnp.asarray(normal(0, 2, 5, 8))
    params, state = model.init(KEY, x)
    short = run(model, params, x[1:, 2:], state)
    at = jnp.array([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    mask = jnp.ones((2, 1, 9), bool).at[1, :, :2].set(False)
    inputs = {"query": x, "mask": mask, "positions": at}
    y, _ = model.apply(params, state, inputs, options=DECODE)
    close(y[1:, 2:], short)
    close(y[:1], run(model, params, x[:1], state))


def test_there_is_no_state_unless_asked_for_and_it_stays_without_decoding():
    x = jnp.asarray(normal(0, 2, 3, 8))
    assert al.attention(2, causal=True).init(KEY, x)[1] == {}
    params, state = cached().init(KEY, x)
    y, after = cached().apply(params, state, x)
    jax.tree.map(np.testing.assert_array_equal, state, after)
    np.testing.assert_array_equal(
        y, al.attention(2, causal=True).predict(params, {}, x)
    )
    shapes = {path: leaf.shape for path, leaf in al.paths(state)}
    assert shapes == {
        "cache/key": (2, 2, 9, 4),
        "cache/position": (),
        "cache/value": (2, 2, 9, 4),
    }


def test_the_cache_may_be_stored_in_fewer_bits():
    layer, x = cached(cache_dtype=jnp.bfloat16), jnp.asarray(normal(0, 1, 4, 8))
    params, state = layer.init(KEY, x)
    assert state["cache"]["key"].dtype == jnp.bfloat16
    y, after = layer.apply(params, state, x, options=DECODE)
    assert y.dtype == jnp.float32
    assert after["cache"]["value"].dtype == jnp.bfloat16
    close(y, layer.predict(params, state, x), 0.02)


def test_too_many_tokens_give_nan_from_then_on():
    layer, x = cached(), jnp.asarray(normal(0, 1, 5, 8))
    params, state = layer.init(KEY, x)
    y, state = layer.apply(params, state, x, options=DECODE)
    y, state = layer.apply(params, state, x[:, :4], options=DECODE)
    assert np.all(np.isfinite(y))
    for _ in range(2):
        y, state = layer.apply(params, state, x[:, :1], options=DECODE)
        assert np.all(np.isnan(y))


def test_cross_attention_decodes_without_a_cache():
    def decoder(sub, x, memory):
        return sub.cross(sub.own(x), memory)

    model = al.wire(decoder, own=cached(), cross=al.attention(2))
    x, memory = jnp.asarray(normal(0, 2, 4, 8)), jnp.asarray(normal(1, 2, 3, 6))
    params, state = model.init(KEY, (x, memory))
    y, state = model.apply(params, state, (x[:, :3], memory), options=DECODE)
    last, _ = model.apply(params, state, (x[:, 3:], memory), options=DECODE)
    fresh = model.init(KEY, (x, memory))[1]
    full = model.predict(params, fresh, (x, memory))
    close(jnp.concatenate([y, last], 1), full)


def _apply(layer, x, made_for=None):
    params, state = layer.init(KEY, x if made_for is None else made_for)
    return layer.apply(params, state, x, options=DECODE)


ONE = jnp.ones((1, 3, 4))
ERRORS = {
    "tokens": (
        lambda: _apply(al.attention(2, causal=True, cache_length=2), ONE),
        "kv_cache: expected at most 2 tokens, got float32[1, 2, 3, 2]. "
        "Make the cache longer.",
    ),
    "batch": (
        lambda: _apply(cached(), ONE, jnp.ones((2, 3, 4))),
        "kv_cache: expected a batch of 2, got float32[1, 2, 3, 2]. "
        "Call init with the batch that decodes.",
    ),
    "no cache": (
        lambda: _apply(al.attention(2, causal=True), ONE),
        "attention: decoding needs the keys of earlier tokens, which are not kept. "
        "Build it with cache_length=.",
    ),
    "crossing": (
        lambda: _apply(cached(), (ONE, ONE)),
        "attention: a cache is for self-attention, got keys_values. "
        "Leave cache_length out: they are all there at every step.",
    ),
    "not causal": (
        lambda: al.attention(2, cache_length=3),
        "attention: cache_length needs causal=True, got False. Without it, earlier "
        "tokens would have to change when later ones come.",
    ),
    "length": (
        lambda: al.kv_cache(0),
        "kv_cache: length must be a positive int, got 0.",
    ),
    "rank": (
        lambda: al.kv_cache(2).output_spec(((1, 3, 4), (1, 3, 4))),
        "kv_cache: expected (batch, heads, time, head_dim), got float32[1, 3, 4]. "
        "Split the features into heads.",
    ),
    "positions": (
        lambda: _apply(al.learned_positions(5), ONE),
        "learned_positions: decoding starts each call at position 0. Build it with "
        "keeps_position=True, or pass positions.",
    ),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises(ValueError, match=r"attention|cache|positions") as error:
        build()
    assert str(error.value) == message


def test_an_unknown_batch_has_no_cache():
    with pytest.raises(al.ShapeError, match="declare its size"):
        cached().init(KEY, al.spec("b 3 4"))
