"""Model folders: reading any safetensors checkpoint, writing mvquant's own, and loading it in transformers.

Nothing is imported here: `hf_quantizer` is loaded while transformers itself is still being imported.
"""
