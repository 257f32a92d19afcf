"""Kernels and the functions of a tile that they are made of: `cpu` in Numba, the others in Triton.

They are launched from `saccade.ops`. A compiler reads them, not Python: nobody checks their types.
"""
