"""Runs CUDA kernel source on the CPU and checks every access to memory; see README.md."""

from cuda_host.build import KERNELS, ROOT, build
from cuda_host.library import IN_ORDER, Finding, Library, Report, Schedule
from cuda_host.mutation import Mutation, delete_each, replace

__all__ = [
    "IN_ORDER",
    "KERNELS",
    "ROOT",
    "Finding",
    "Library",
    "Mutation",
    "Report",
    "Schedule",
    "build",
    "delete_each",
    "replace",
]
