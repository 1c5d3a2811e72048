"""Models: the same outputs as transformers and PyTorch, and the same files again."""

import json
import math
import os
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_transformers import (
    CONFIGS,
    ENCODERS,
    LENGTHS,
    RECURRENT,
    filled_up,
    greedy,
    inputs,
    of_torch,
    outputs,
    write,
)
from parity import checkpoint, normal, reference
from safetensors.numpy import load_file, save_file

import axonlike as al

STEPS = 64
SLOW = ("llama linear", "bert labels", "gpt2 body", "vit body", "resnet body")
slow = pytest.mark.slow
CHECKPOINTS = [
    pytest.param(name, marks=slow if name in SLOW else ()) for name in CONFIGS
]
FAMILIES = {
    "gpt2": al.models.gpt2,
    "llama": al.models.llama,
    "bert": al.models.bert,
    "vit": al.models.vit,
    "resnet": al.models.resnet,
}


@pytest.fixture
def folder(tmp_path_factory):
    def find(name):
        place = tmp_path_factory.mktemp(name.replace(" ", "_"))
        return checkpoint(name.replace(" ", "_"), write(name), place)

    return find


def spec_of(name):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), inputs(name))


def same_files(a, b):
    """Equal tensors, byte for byte, under the same names."""
    ours, theirs = load_file(a), load_file(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        assert ours[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_transformers_gives_its_logits_and_is_saved_as_it_was(
    name, folder, tmp_path
):
    theirs = dict(reference(f"models/{name}", lambda: outputs(name)))
    filled = theirs.pop("filled up", None)
    place = folder(name)
    model, params, state = al.models.pretrained(place, spec=spec_of(name))
    with jax.default_matmul_precision("highest"):
        found = jax.jit(model.predict)(params, state, inputs(name))
    for ours, wanted in zip(jax.tree.leaves(found), theirs.values(), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    assert np.abs(theirs["y"]).max() > 0.3
    if filled is not None:  # what stands behind a text changes nothing in it
        tokens = filled_up(inputs(name))
        np.testing.assert_allclose(found[tokens], filled[tokens], rtol=0, atol=1e-5)
    like = place if name == "vit body" else None  # whose pooler is no part of the model
    names = al.models.mapping_of(model)
    names.save(tmp_path, model, params, state, like=like)
    same_files(tmp_path / "model.safetensors", place / "model.safetensors")


@pytest.mark.parametrize("name", ["gpt2", "bert masked"])
def test_unrolled_blocks_have_the_weights_that_stacked_ones_have(
    name, folder, tmp_path
):
    place = folder(name)
    options = {"spec": spec_of(name)}
    _, stacked, _ = al.models.pretrained(place, **options)
    model, params, state = al.models.pretrained(place, **options, stacked=False)
    again = al.stack(params, "blocks")
    assert jax.tree.structure(again) == jax.tree.structure(stacked)
    jax.tree.map(np.testing.assert_array_equal, again, stacked)
    al.models.mapping_of(model).save(tmp_path, model, params, state)
    same_files(tmp_path / "model.safetensors", place / "model.safetensors")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_greedy_text_of_64_steps_is_that_of_transformers(name, folder):
    theirs = reference(f"models/{name} text", lambda: greedy(name, STEPS))["tokens"]
    prompt = inputs(name)
    model, params, state = al.models.pretrained(
        folder(name), spec=spec_of(name), cache_length=prompt.shape[1] + STEPS - 1
    )
    with jax.default_matmul_precision("highest"):
        write = jax.jit(lambda p, s: al.models.generate(model, p, s, prompt, STEPS))
        ours = write(params, state)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(theirs)) > 8  # not one token over and over


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=slow)])
def test_prompts_of_different_lengths_are_gone_on_with(name, folder):
    """There they are filled up in front and masked, here at their ends."""
    steps = 12
    theirs = reference(
        f"models/{name} text of lengths", lambda: greedy(name, steps, LENGTHS)
    )["tokens"]
    prompt = inputs(name)
    model, params, state = al.models.pretrained(
        folder(name), spec=spec_of(name), cache_length=prompt.shape[1] + steps - 1
    )

    @jax.jit
    def write(params, state):
        return al.models.generate(
            model, params, state, prompt, steps, lengths=np.array(LENGTHS)
        )

    with jax.default_matmul_precision("highest"):
        ours = write(params, state)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(ours[row, :length], prompt[row, :length])
        written = theirs[row, prompt.shape[1] :]
        np.testing.assert_array_equal(ours[row, length : length + steps], written)


def test_lengths_that_only_a_run_knows_give_the_same_text():
    model = tiny("gpt2", cache_length=8)
    prompt = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    params, state = model.init(jax.random.key(0), prompt)

    def text(lengths):
        return al.models.generate(model, params, state, prompt, 4, lengths=lengths)

    np.testing.assert_array_equal(
        jax.jit(text)(jnp.array([4, 2])), jax.jit(lambda: text(np.array([4, 2])))()
    )
    np.testing.assert_array_equal(text([4, 2]), text(np.array([4, 2])))
    message = "generate: lengths must be from 1 to 4, the time of tokens."
    for wrong in ([0, 2], [2, 5]):
        with pytest.raises(ValueError, match=message):
            text(np.array(wrong))
    for wrong in (np.array([1.0, 2.0]), np.array([1]), 3, [None, 1], "ab"):
        with pytest.raises(al.ShapeError, match="expected lengths of 2 prompts"):
            text(wrong)


def test_a_checkpoint_as_bert_was_first_published(folder, tmp_path):
    """Norms have a gamma and a beta, and there is what the model was pretrained with."""
    place = folder("bert masked")
    spec = spec_of("bert masked")
    _, wanted, _ = al.models.pretrained(place, spec=spec)
    old = {}
    for name, tensor in load_file(place / "model.safetensors").items():
        gamma = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[gamma.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    old["cls.seq_relationship.weight"] = normal(0, 2, 16)
    save_file(old, tmp_path / "model.safetensors")
    config = (place / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    _, params, _ = al.models.pretrained(tmp_path, spec=spec)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    old["bert.pooler.dense.weight"] = normal(1, 16, 16)
    save_file(old, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"'bert\.pooler\.dense\.weight'.* is for"):
        al.models.pretrained(tmp_path, spec=spec)
    _, params, _ = al.models.pretrained(tmp_path, spec=spec, strict=False)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.mark.parametrize("name", ["llama tied", "bert masked", "resnet basic", "vit"])
def test_a_checkpoint_becomes_a_whole_model_of_ours(name, folder, tmp_path):
    model, params, state = al.models.pretrained(folder(name), spec=spec_of(name))
    al.save_model(tmp_path / "model", model, params, state)
    again, theirs, _ = al.load_model(tmp_path / "model")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, theirs, params)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_modules_of_pytorch(name, tmp_path):
    kind, options = RECURRENT[name]
    x = normal(0, 3, 7, 5)

    def make(nn):
        return getattr(nn, kind)(5, 4, batch_first=True, **options)

    answer = dict(reference(f"models/torch {name}", lambda: of_torch(make, x)))
    y = answer.pop("y")
    tensors = {key[2:]: value for key, value in answer.items()}
    options = dict(options)
    bias = options.pop("bias", True)
    factory = getattr(al.models, f"stacked_{kind.lower()}")
    model = factory(4, **options, use_bias=bias)
    names = al.models.mapping_of(model)
    params, state = names.load(tensors, model, x)
    np.testing.assert_allclose(jax.jit(model.predict)(params, state, x), y, atol=1e-6)
    names.save(tmp_path, model, params, state)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == tensors.keys()
    assert all(saved[k].tobytes() == tensors[k].tobytes() for k in tensors)


@pytest.mark.parametrize("name", ENCODERS)
def test_transformer_encoder_of_pytorch(name, tmp_path):
    options = ENCODERS[name]
    x = normal(0, 2, 6, 8)
    mask = np.ones((2, 6), bool)
    mask[0, 4:] = False

    def make(nn):
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, batch_first=True, **options
        )
        norm = nn.LayerNorm(8) if name == "norms first" else None
        return nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)

    def compute():
        import torch

        return of_torch(make, x, src_key_padding_mask=torch.tensor(~mask))

    answer = dict(reference(f"models/encoder {name}", compute))
    y = answer.pop("y")
    tensors = {key[2:]: value for key, value in answer.items()}
    exact = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu}
    model = al.models.transformer_encoder(
        2,
        2,
        features=8,
        hidden_features=12,
        activation=exact[options["activation"]],
        norm_first=options["norm_first"],
        use_norm=name == "norms first",
        use_bias=options.get("bias", True),
    )
    names = al.models.mapping_of(model)
    params, state = names.load(tensors, model, x)
    found = jax.jit(model.predict)(params, state, (x, mask))
    np.testing.assert_allclose(found[mask], y[mask], rtol=0, atol=1e-5)
    names.save(tmp_path, model, params, state)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == tensors.keys()
    assert all(saved[k].tobytes() == tensors[k].tobytes() for k in tensors)


# --- models are layers


def tiny(family, **options):
    small = {
        "gpt2": {"vocab_size": 11, "max_length": 16, "features": 8, "num_heads": 2},
        "llama": {
            "vocab_size": 11,
            "features": 8,
            "hidden_features": 8,
            "num_heads": 2,
        },
        "bert": {"vocab_size": 11, "features": 8, "hidden_features": 8, "num_heads": 2},
    }
    return FAMILIES[family](**small[family], num_layers=2, **options)


@pytest.mark.parametrize(
    "family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)]
)
def test_a_model_trains_with_dropout_and_no_param_lacks_a_gradient(family):
    model = tiny(family, dropout_rate=0.1)
    ids = np.arange(10, dtype=np.int32).reshape(2, 5)
    params, state = model.init(jax.random.key(0), ids)

    @jax.jit
    @jax.value_and_grad
    def loss(params, key):
        y, _ = model.apply(params, state, ids, key=key, train=True)
        return jnp.mean(y**2)

    (first, gradients), (second, _) = (loss(params, jax.random.key(i)) for i in (1, 2))
    assert first != second
    idle = {path for path, g in al.paths(gradients) if not np.abs(g).max() > 0}
    assert idle <= {"blocks/*/attn/key/bias"}  # softmax does not see it


def test_bert_takes_inputs_alone_in_a_tuple_or_by_name():
    model = tiny("bert")
    ids = np.arange(10, dtype=np.int32).reshape(2, 5)
    params, state = model.init(jax.random.key(0), ids)
    every = np.ones((2, 5), bool)
    run = jax.jit(model.predict)
    alone = run(params, state, ids)
    together = run(params, state, (ids, every))
    named = run(params, state, {"ids": ids, "types": np.zeros_like(ids)})
    np.testing.assert_allclose(alone, together, atol=1e-6)
    np.testing.assert_allclose(alone, named, atol=1e-6)
    with pytest.raises(al.ShapeError, match="bert: expected 'ids', and any of 'mask'"):
        model.predict(params, state, {"tokens": ids})


def test_an_image_has_as_many_patches_as_there_are_positions():
    model = al.models.vit(patch_size=8, features=8, num_heads=2, num_patches=4)
    with pytest.raises(al.ShapeError, match=r"an image of 4 patches, got 2\. Resize"):
        model.output_spec(al.spec("b 8 16 3"))


def test_a_mask_is_of_these_tokens():
    for model, x in (
        (tiny("bert"), jnp.ones((2, 3), int)),
        (al.models.transformer_encoder(2, 1, features=8), jnp.ones((2, 3, 8))),
    ):
        for shape in ((1, 3), (2, 1, 3)):
            mask = jax.ShapeDtypeStruct(shape, bool)
            with pytest.raises(al.ShapeError, match=r"mask: expected \(2, 3\), got"):
                model.output_spec((x, mask))


def test_models_are_shown_rebuilt_and_pickled_like_any_layer():
    import pickle

    model = tiny("llama", tied=True)
    assert repr(model).startswith("al.models.llama(vocab_size=11, features=8")
    assert eval(repr(model)) == model
    assert pickle.loads(pickle.dumps(model)) == model


def test_a_real_gpt2_has_124_million_params_and_a_real_llama_7_billion():
    spec = al.spec("b t", int, constraints=["t<=1024"])
    gpt2 = jax.eval_shape(al.models.gpt2().init, jax.random.key(0), spec)[0]
    llama = jax.eval_shape(al.models.llama().init, jax.random.key(0), spec)[0]
    assert al.count(gpt2) == 124_439_808
    assert al.count(llama) == 6_738_415_616


def test_a_real_resnet_50_and_vit_have_as_many_params_as_they_are_known_for():
    image = al.spec("b 224 224 3")
    resnet = jax.eval_shape(al.models.resnet().init, jax.random.key(0), image)[0]
    vit = jax.eval_shape(al.models.vit().init, jax.random.key(0), image)[0]
    assert al.count(resnet) == 25_557_032
    assert al.count(vit) == 86_567_656


# --- text


def test_text_by_chance_depends_on_the_key_and_starts_with_the_prompt():
    model = tiny("gpt2", cache_length=12)
    prompt = jnp.array([[1, 2, 3]])
    params, state = model.init(jax.random.key(0), prompt)
    warm = jnp.float32(5.0)  # a number of JAX's is one too

    @jax.jit
    def text(key):
        return al.models.generate(
            model, params, state, prompt, 8, temperature=warm, key=key
        )

    first, second = text(jax.random.key(1)), text(jax.random.key(2))
    assert first.shape == (1, 11)
    assert first[0, :3].tolist() == [1, 2, 3]
    assert (first != second).any()


def test_a_cached_step_computes_what_the_whole_sequence_does():
    model = tiny("llama", cache_length=6)
    prompt = jnp.array([[1, 2, 3]])
    params, state = model.init(jax.random.key(0), prompt)

    @partial(jax.jit, static_argnames="steps")
    def write(state, tokens, steps):
        return al.models.generate(model, params, state, tokens, steps)

    text = write(state, prompt, 4)
    whole = jax.jit(model.predict)(params, state, text)
    np.testing.assert_array_equal(jnp.argmax(whole[:, 2:-1], -1), text[:, 3:])
    again = write(state, np.array(prompt, np.uint8), 4)
    np.testing.assert_array_equal(again, text)
    assert again.dtype == jnp.int32
    wide = np.array(prompt, np.int64)
    spec = jax.eval_shape(lambda: al.models.generate(model, params, state, wide, 4))
    assert spec.dtype == jnp.int32
    decode = jax.jit(partial(model.apply, options={"decode": True}))
    _, state = decode(params, state, prompt)
    on = write(state, text[:, 3:4], 3)
    np.testing.assert_array_equal(on, text[:, 3:])
    with pytest.raises(ValueError, match="7 tokens need to be kept, and the model"):
        al.models.generate(model, params, state, text[:, 3:4], 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cache_length": 4},
            "generate: 6 tokens need to be kept, and the model keeps 4. Build it with "
            "cache_length=6.",
        ),
        (
            {"cache_length": None},
            "generate: 6 tokens need to be kept, and the model keeps 0. Build it with "
            "cache_length=6.",
        ),
        (
            {"cache_length": 99, "steps": 31},
            "generate: 33 tokens have positions, and the model has 16. Write fewer.",
        ),
        (
            {"head": False},
            "generate: the model has no head, so it has no logits. Build it with "
            "head=True.",
        ),
        ({"steps": 0}, "generate: steps must be a positive int, got 0."),
        (
            {"temperature": 1.0},
            "generate: temperature must be 0, or positive with a key, got 1.0 and no key.",
        ),
        (
            {"temperature": math.nan},
            "generate: temperature must be 0, or positive with a key, got nan and no key.",
        ),
        (
            {"temperature": "hot"},
            "generate: temperature must be 0, or positive with a key, got 'hot' and no "
            "key.",
        ),
        (
            {"tokens": jnp.array([1, 2])},
            "generate: expected token ids, (batch, time), got int32[2]. Pass at least one "
            "token: tokens[None] for one sequence.",
        ),
    ],
)
def test_what_generate_refuses(change, message):
    options = {"cache_length": 6, "tokens": jnp.array([[1, 2, 3]]), "steps": 4}
    options |= {"temperature": 0.0} | change
    head = options.pop("head", True)
    model = tiny("gpt2", cache_length=options["cache_length"], head=head)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        al.models.generate(
            model,
            {},
            {},
            options["tokens"],
            options["steps"],
            temperature=options["temperature"],
        )


# --- configs


def test_a_config_is_a_dict_a_file_or_a_folder(folder):
    place = folder("gpt2")
    config = json.loads((place / "config.json").read_text())
    made = [al.models.from_config(c) for c in (config, place, place / "config.json")]
    assert made[0] == made[1] == made[2]
    assert al.models.from_config(config, num_layers=1).config["num_layers"] == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "t5"},
            "from_config: model_type should be one of bert, gpt2, llama, resnet, vit, "
            "got 't5'.",
        ),
        (
            {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
            "gpt2: config: scale_attn_by_inverse_layer_idx should be False, got True.",
        ),
        (
            {"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}},
            "llama: scaling: rope_type should be default, linear or llama3, got 'yarn'.",
        ),
        (
            {"model_type": "llama", "rope_scaling": {"rope_type": "linear"}},
            "llama: scaling: linear needs 'factor', got {'rope_type': 'linear'}.",
        ),
        (
            {"model_type": "llama", "rope_parameters": {"partial_rotary_factor": 0.5}},
            "llama: config: partial_rotary_factor should be 1.0, got 0.5.",
        ),
        (
            {"model_type": "resnet", "hidden_act": "gelu"},
            "resnet: config: hidden_act should be 'relu', got 'gelu'.",
        ),
        (
            {"model_type": "vit", "hidden_act": "quick_gelu"},
            "vit: config: an activation should be one of gelu, gelu_new, "
            "gelu_pytorch_tanh, relu, silu, swish, tanh, got 'quick_gelu'.",
        ),
        (
            {"model_type": "bert", "architectures": ["BertForQuestionAnswering"]},
            "bert: config: architectures should be one of BertModel, BertForMaskedLM, "
            "BertForSequenceClassification, got 'BertForQuestionAnswering'.",
        ),
        (
            {"model_type": "llama", "rope_scaling": "linear"},
            "llama: scaling: expected a dict with a 'rope_type', got 'linear'.",
        ),
        (
            {"model_type": "vit", "image_size": "large"},
            "from_config: an option of this vit is not what transformers writes: "
            "image_size should be one number or two, got 'large'.",
        ),
        (
            {"model_type": "resnet", "hidden_sizes": 8},
            "from_config: an option of this resnet is not what transformers writes: "
            "'int' object is not iterable.",
        ),
        (
            {"model_type": "gpt2", "architectures": "GPT2Model"},
            "from_config: an option of this gpt2 is not what transformers writes: "
            "architectures should be a list, got 'GPT2Model'.",
        ),
        (
            {"model_type": ["gpt2"]},
            "from_config: model_type should be one of bert, gpt2, llama, resnet, vit, "
            "got ['gpt2'].",
        ),
    ],
)
def test_a_config_that_is_not_known_here(config, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        al.models.from_config(config)


def test_the_mapping_of_a_foreign_model_is_asked_for_in_vain():
    with pytest.raises(
        ValueError, match=r"dense\(features=2\) is no model of al.models"
    ):
        al.models.mapping_of(al.dense(2))
    with pytest.raises(ValueError, match="bert: head must be None"):
        al.models.bert(head="token")
    with pytest.raises(ValueError, match="resnet: block must be 'basic'"):
        al.models.resnet(block="wide")
    with pytest.raises(ValueError, match="resnet: widths and depths need one number"):
        al.models.resnet(widths=(8,))
    message = r"resnet: widths must be a list of positive ints, got 8\."
    with pytest.raises(ValueError, match=message):
        al.models.resnet(widths=8)
    with pytest.raises(ValueError, match="vit: num_patches must be a positive int"):
        al.models.vit(num_patches="4")
    with pytest.raises(ValueError, match="features must be a positive int, got 0"):
        al.models.gpt2(hidden_features=0)
    with pytest.raises(TypeError, match="mapping_of: expected a layer, the model, got"):
        al.models.mapping_of("gpt2")
    with pytest.raises(TypeError, match="generate: expected a layer, the model, got"):
        al.models.generate("gpt2", {}, {}, jnp.ones((1, 1), int), 1)
    with pytest.raises(TypeError, match="from_config: expected a path, got"):
        al.models.pretrained(None)


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="A file of 27 GB that takes no room has holes, which only Linux always makes.",
)
def test_a_file_of_7_billion_params_is_checked_without_being_read(tmp_path):
    model, names = al.models.llama(), al.models.mapping_of(al.models.llama())
    tiny_model = al.models.llama(
        vocab_size=8, features=8, hidden_features=8, num_heads=2, num_layers=32
    )
    spec = al.spec("b t", int)
    params, state = tiny_model.init(jax.random.key(0), spec)
    names.save(tmp_path / "tiny.safetensors", tiny_model, params, state)
    sizes = {"embed_tokens": (32000, 4096), "lm_head": (32000, 4096)}
    sizes |= {"up_proj": (11008, 4096), "gate_proj": (11008, 4096)}
    sizes |= {"down_proj": (4096, 11008)}
    header, end = {}, 0
    for name, tensor in load_file(tmp_path / "tiny.safetensors").items():
        square = (4096, 4096) if tensor.ndim == 2 else (4096,)
        shape = sizes.get(name.split(".")[-2], square)
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    assert end == 4 * 6_738_415_616
    assert names.check(path, model, spec) == []


def test_every_mapping_has_at_most_25_rules_and_no_line_too_many():
    import inspect

    from axonlike.models import decoders, encoders, recurrent, vision

    for module in (decoders, encoders, recurrent, vision):
        source = inspect.getsource(module)
        for block in source.split(" = mapping(")[1:]:
            rules = block[: block.index("\n)\n")]
            assert rules.count("\n") <= 25
