"""GPTQModel: GPTQ and AWQ in their classic formats. `adapter` is for the parent process, `quantize` for the child."""
