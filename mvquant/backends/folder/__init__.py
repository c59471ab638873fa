"""Packages that take a whole model folder, each in a child process of its own.

`run` is what the pipeline calls; `backend` what an adapter says of its package; `source` the folder that a package
reads; `job` what the child is told; `child` what all children share; `packed` reads the classic GPTQ and AWQ layouts;
`results` gives modules back one by one.
"""
