"""Builds the C extension; everything else about the package is in setup.cfg."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "detbox.kernel._native",
            sources=["detbox/kernel/_native.c"],
            depends=["detbox/guest/clock.c", *sorted(glob("detbox/kernel/*.c"))],  # the parts that it includes
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ]
)
