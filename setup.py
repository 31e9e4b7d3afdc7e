"""Builds the C extension; everything else about the package is in setup.cfg."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "detbox.kernel._native",
            sources=["detbox/kernel/_native.c"],
            depends=[
                "detbox/guest/clock.c", "detbox/kernel/calls.c", "detbox/kernel/descriptors.c",
                "detbox/kernel/directories.c", "detbox/kernel/events.c", "detbox/kernel/exchange.c",
                "detbox/kernel/loops.c", "detbox/kernel/search.c", "detbox/kernel/status.c",
                "detbox/kernel/translate.c", "detbox/kernel/turns.c",
            ],  # fmt: skip
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ]
)
