"""Models as pipes of the catalogue's layers, each with the names of its weights elsewhere.

A model is a layer like any other: `model = al.models.gpt2(num_layers=6)`. `mapping_of`
says under which names Hugging Face or PyTorch store its weights, `pretrained` reads a
folder that `save_pretrained` wrote, `generate` writes text.
"""

from axonlike.models.decoders import gpt2, llama
from axonlike.models.encoders import bert, transformer_encoder
from axonlike.models.families import from_config, mapping_of, pretrained
from axonlike.models.generation import generate
from axonlike.models.recurrent import stacked_gru, stacked_lstm
from axonlike.models.vision import resnet, vit

__all__ = [
    "bert",
    "from_config",
    "generate",
    "gpt2",
    "llama",
    "mapping_of",
    "pretrained",
    "resnet",
    "stacked_gru",
    "stacked_lstm",
    "transformer_encoder",
    "vit",
]
