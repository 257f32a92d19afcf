"""Device code: Triton kernels and the functions of a tile that they are made of.

Kernels are launched from `saccade.ops`. Triton reads them, not Python: nobody checks their types.
"""
