"""Packages that take a whole model folder, each in a child process of its own.

`run` is what the pipeline calls; `backend` what an adapter says of its package; `source` the folder that a package
reads; `job` what the child is told; `programs` how children are started; `child` what all of them share; `packed` reads
the classic GPTQ and AWQ layouts; `results` gives modules back one by one.
"""
