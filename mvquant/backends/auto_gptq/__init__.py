"""auto-gptq (archived), in an environment of its own.

`adapter` is our side, `legacy_config` what its transformers 4.53 has to be told, `worker` the child process.
"""
