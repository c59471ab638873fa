"""mvquant: quantize a language model without losing what it reads.

Importing it teaches transformers to load mvquant checkpoints:

    import mvquant
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("OUT")
"""

from importlib.metadata import version

from mvquant.checkpoint_hook import register_on_import

__version__ = version("mvquant")
__all__ = ["__version__"]

register_on_import()
