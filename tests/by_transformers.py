"""Tiny models with random weights, built and run by transformers and PyTorch."""

import os
import warnings

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24}
BERT = {**SMALL, "num_attention_heads": 2, "max_position_embeddings": 16}
CONFIGS = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 40, "n_positions": 80, "n_embd": 16, "n_layer": 2, "n_head": 2}
        | {"bos_token_id": 0, "eos_token_id": None},
    ),
    "llama": (
        "LlamaForCausalLM",
        {**SMALL, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "max_position_embeddings": 80}
        | {"bos_token_id": 0, "eos_token_id": None},
    ),
    "llama tied": (
        "LlamaForCausalLM",
        {**SMALL, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
        | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
        | {"bos_token_id": 0, "eos_token_id": None, "rms_norm_eps": 1e-5}
        | {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama linear": (
        "LlamaForCausalLM",
        {**SMALL, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"bos_token_id": 0, "eos_token_id": None}
        | {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
    ),
    "gpt2 body": (
        "GPT2Model",
        {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
    ),
    "llama body": (
        "LlamaModel",
        {**SMALL, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "bert": ("BertModel", {**BERT, "num_hidden_layers": 1}),
    "bert masked": ("BertForMaskedLM", {**BERT, "num_hidden_layers": 2}),
    "bert labels": (
        "BertForSequenceClassification",
        {**BERT, "num_hidden_layers": 1, "num_labels": 3, "hidden_act": "relu"},
    ),
    "vit": (
        "ViTForImageClassification",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 24, "image_size": 16, "patch_size": 8, "num_labels": 3},
    ),
    "vit body": (
        "ViTModel",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"intermediate_size": 24, "image_size": (16, 8), "patch_size": 8},
    ),
    "resnet body": (
        "ResNetModel",
        {"embedding_size": 4, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"},
    ),
    "resnet basic": (
        "ResNetForImageClassification",
        {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [2, 1]}
        | {"layer_type": "basic", "num_labels": 3, "downsample_in_first_stage": True},
    ),
    "resnet bottleneck": (
        "ResNetForImageClassification",
        {"embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 2]}
        | {"layer_type": "bottleneck", "num_labels": 3},
    ),
}  # fmt: skip


def built(name):
    """A model with weights that are not small: differences would not show in small ones."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        made, config = CONFIGS[name]
        cls = getattr(transformers, made)
        torch.manual_seed(0)
        model = cls(cls.config_class(**config)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.3 * torch.randn(tensor.shape))
        for key, tensor in model.named_buffers():
            if key.endswith("running_mean"):
                tensor.copy_(0.2 * torch.randn(tensor.shape))
            if key.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape))
    return model


def write(name):
    """What writes a model into a folder as transformers does."""

    def into(folder):
        model = built(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder)

    return into


def inputs(name):
    """Inputs as the model here takes them."""
    draw = np.random.default_rng(0)
    if name.startswith("vit"):
        size = (2, 16, 8, 3) if name == "vit body" else (2, 16, 16, 3)
        return draw.standard_normal(size).astype(np.float32)
    if name.startswith("resnet"):
        return draw.standard_normal((2, 32, 32, 3)).astype(np.float32)
    ids = draw.integers(0, 40, (2, 8)).astype(np.int32)
    if not name.startswith("bert"):
        return ids
    mask = np.ones((2, 8), np.int32)
    mask[0, 5:] = 0
    types = (np.arange(8) > 3).astype(np.int32)[None].repeat(2, 0)
    return ids, mask.astype(bool), types


def outputs(name):
    """What transformers makes of those inputs."""
    import torch

    x = inputs(name)
    if isinstance(x, tuple):
        keys = ("input_ids", "attention_mask", "token_type_ids")
        given = {k: torch.tensor(a).long() for k, a in zip(keys, x, strict=True)}
    elif x.ndim == 4:
        given = {"pixel_values": torch.tensor(x).permute(0, 3, 1, 2)}
    else:
        given = {"input_ids": torch.tensor(x).long()}
    model = built(name)
    with torch.no_grad():
        found = model(**given)
        if name == "bert":
            return {"y": found.last_hidden_state, "pooled": found.pooler_output}
        if name == "resnet body":
            return {"y": found.last_hidden_state.permute(0, 2, 3, 1)}
        if name.endswith("body"):
            return {"y": found.last_hidden_state}
        if name in ("gpt2", "llama"):
            mask = torch.tensor(filled_up(x)).long()
            filled = model(**given, attention_mask=mask)
            return {"y": found.logits, "filled up": filled.logits}
    return {"y": found.logits}


LENGTHS = (8, 5)


def filled_up(ids):
    """Where the tokens of two texts are, the second of which is shorter."""
    return np.arange(ids.shape[1])[None] < np.array(LENGTHS)[:, None]


def greedy(name, steps, lengths=None):
    """What transformers writes after prompts, those of less length filled up in front."""
    import torch

    prompt = inputs(name)
    mask = np.ones_like(prompt)
    for row, length in enumerate(lengths or ()):
        gap = prompt.shape[1] - length
        prompt[row] = np.concatenate([np.zeros(gap), prompt[row, :length]])
        mask[row, :gap] = 0
    with torch.no_grad():
        tokens = built(name).generate(
            torch.tensor(prompt).long(),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=steps,
            do_sample=False,
            pad_token_id=0,
        )
    return {"tokens": tokens}


RECURRENT = {
    "lstm": ("LSTM", {}),
    "lstm both ways": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "gru": ("GRU", {"num_layers": 2}),
    "gru both ways": ("GRU", {"bidirectional": True}),
    "gru without bias": ("GRU", {"bias": False}),
}
ENCODERS = {
    "norms last": {"norm_first": False, "activation": "relu"},
    "norms first": {"norm_first": True, "activation": "gelu"},
    "without bias": {"norm_first": True, "activation": "relu", "bias": False},
}


def of_torch(make, x, **named):
    """The tensors of a module with random weights, and what it makes of an input."""
    import torch

    module = make(torch.nn).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.dtype == torch.int64:
                continue
            tensor.copy_(0.5 * torch.rand(tensor.shape) + 0.1)
        given = map(torch.tensor, x if isinstance(x, tuple) else (x,))
        y = module(*given, **named)
    y = y[0] if isinstance(y, tuple) else y
    return {**{f"w {k}": v for k, v in module.state_dict().items()}, "y": y}
