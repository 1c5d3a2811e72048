"""Checkpoints of transformers: their config makes the model, a mapping its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from axonlike.errors import nearest
from axonlike.io.given import check_layer, path_of
from axonlike.io.mapping import WeightMapping
from axonlike.io.notes import loads
from axonlike.layer import Layer
from axonlike.models import decoders, encoders, recurrent, vision
from axonlike.spec import spec as as_spec
from axonlike.types import Key, Params, PyTree, State


class Family(NamedTuple):
    """A model, the names of its weights, and how a config says what it is."""

    factory: Callable[..., Layer]
    mapping: WeightMapping
    options: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    headless: tuple[str, tuple[Any, ...]] = ("", ())
    """The argument, and its values, that make a model whose names have no prefix."""


_LABELS = ("num_labels", (None,))
_LOGITS = ("head", (False,))

FAMILIES = {
    "bert": Family(
        encoders.bert, encoders.BERT, encoders.bert_options, ("head", (None, "pooler"))
    ),
    "gpt2": Family(decoders.gpt2, decoders.GPT2, decoders.gpt2_options, _LOGITS),
    "llama": Family(decoders.llama, decoders.LLAMA, decoders.llama_options, _LOGITS),
    "resnet": Family(vision.resnet, vision.RESNET, vision.resnet_options, _LABELS),
    "stacked_gru": Family(recurrent.stacked_gru, recurrent.RECURRENT),
    "stacked_lstm": Family(recurrent.stacked_lstm, recurrent.RECURRENT),
    "transformer_encoder": Family(
        encoders.transformer_encoder, encoders.TRANSFORMER_ENCODER
    ),
    "vit": Family(vision.vit, vision.VIT, vision.vit_options, _LABELS),
}
"""Every model here, by its kind."""

Config = Mapping[str, Any] | str | os.PathLike[str]


def mapping_of(model: Layer) -> WeightMapping:
    """The names that the weights of a model here have elsewhere.

    Args:
        model: one of this module's.

    Returns:
        What `mapping` makes, with its `load`, `save` and `check`.

    Shapes:
        No arrays.

    Raises:
        ValueError: the model is none of these.

    Example:
        >>> import axonlike as al
        >>> names = al.models.mapping_of(al.models.stacked_gru(8))
    """
    check_layer("mapping_of", model)
    if model.kind not in FAMILIES:
        raise ValueError(
            f"mapping_of: {model.headline} is no model of al.models. "
            f"{nearest(model.kind, FAMILIES)} Write its names with mapping(...)."
        )
    family = FAMILIES[model.kind]
    argument, values = family.headless
    headless = argument in model.config and model.config[argument] in values
    return family.mapping.without_prefix() if headless else family.mapping


def from_config(config: Config, **options: Any) -> Layer:
    """The model that a config of transformers stands for.

    Dropout is off, as for inference: pass `dropout_rate=`.

    Args:
        config: the dict in a `config.json`; or the path of one, or of its folder.
        options: of the model, in place of what the config says.

    Shapes:
        No arrays.

    Raises:
        ValueError: there is no such model here, or not with such an option.

    Example:
        >>> import axonlike as al
        >>> config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2}
        >>> model = al.models.from_config(config, vocab_size=50)
        >>> model.config["num_layers"], model.config["vocab_size"]
        (2, 50)
    """
    found = _read(config)
    known = {kind: family for kind, family in FAMILIES.items() if family.options}
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(
            f"from_config: model_type should be one of {', '.join(known)}, got {kind!r}."
        )
    family = known[kind]
    read = cast("Callable[..., dict[str, Any]]", family.options)
    try:
        made = read(found)
    except (TypeError, AttributeError, LookupError) as error:
        # What is in a file may be of any type; those of transformers are what is read.
        raise ValueError(
            f"from_config: an option of this {kind} is not what transformers writes: "
            f"{error}."
        ) from error
    return family.factory(**{**made, **options})


def pretrained(
    folder: str | os.PathLike[str],
    *,
    spec: PyTree = None,
    dtype: Any = None,
    strict: bool = True,
    key: Key | None = None,
    shardings: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Layer, Params, State]:
    """The model in a folder that `save_pretrained` of transformers wrote.

    Args:
        folder: with `config.json` and safetensors files.
        spec: of the input; None: any batch of any length, or images as the config says. A
            model with a cache needs a batch of known size: `al.spec("1 t", int)`.
        dtype: of the params, as for the `load` of a mapping.
        strict: likewise; False for a folder that holds more than the model, such as a
            second head.
        key: likewise, for what the folder lacks.
        shardings: likewise.
        options: of the model, in place of what the config says.

    Returns:
        `(model, params, state)`.

    Shapes:
        As the model says.

    Raises:
        ValueError: there is no such model here, or the files are not as the config says.

    Example:
        >>> import axonlike as al
        >>> try:
        ...     model, params, state = al.models.pretrained("no/such/folder")
        ... except FileNotFoundError as error:
        ...     print(error)
        from_config: there is no no/such/folder/config.json.
    """
    config = _read(folder)
    model = from_config(config, **options)
    spec = _spec(model, config) if spec is None else spec
    how: dict[str, Any] = {"dtype": dtype, "strict": strict, "key": key}
    names = mapping_of(model)
    return model, *names.load(folder, model, spec, **how, shardings=shardings)


def _spec(model: Layer, config: Mapping[str, Any]) -> Any:
    if model.kind in ("vit", "resnet"):
        sizes = *vision.image_size(config), config.get("num_channels", 3)
        return as_spec(" ".join(map(str, ("b", *sizes))))
    return as_spec("b 1", int)


def _read(config: Config) -> Mapping[str, Any]:
    """A config, of a dict or a file."""
    if isinstance(config, Mapping):
        return config
    path = path_of("from_config", config)
    path = path if path.suffix == ".json" else path / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"from_config: there is no {path.as_posix()}.")
    try:
        found = loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"from_config: {path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"from_config: {path} is no table of options.")
    return cast("dict[str, Any]", found)
