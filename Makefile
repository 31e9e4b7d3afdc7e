# Everything is done with the project's own .venv, which the first target makes.
PYTHON = .venv/bin/python
DETBOX = .venv/bin/detbox
C_SOURCES = $(wildcard detbox/kernel/*.c detbox/guest/*.c detbox/guest/*.h)

# Runs of detbox use one processor each; two at a time are load for each other, too.
TWO_AT_A_TIME = -n 2 --dist worksteal

.PHONY: help demo test quick bench lint docs clean

help:
	@echo 'make demo    programs that differ on each run, a build and Debian packages, made identical'
	@echo 'make test    the whole test suite'
	@echo 'make quick   the unit tests and a few guest programs'
	@echo 'make bench   costs compared with native runs'
	@echo 'make lint    ruff and mypy'
	@echo 'make docs    renew the generated parts of docs/'

.venv/installed: setup.cfg setup.py pyproject.toml tools/make-venv.sh tools/debian-packages.sh $(C_SOURCES)
	tools/make-venv.sh

demo: .venv/installed
	tests/demo/run.sh $(DETBOX)
	tests/demo/debian.sh $(DETBOX)

# The servers that remote caches are tested against (each test starts its own; Debian's may be stopped), and what tests
# run that a small system has not got.
.venv/servers: .venv/installed
	tools/debian-packages.sh nginx redis-server xz-utils bzip2 git openssl procps strace
	touch $@

test: .venv/installed .venv/servers
	$(PYTHON) -m pytest $(TWO_AT_A_TIME) --durations=10 tests

quick: .venv/installed
	$(PYTHON) -m pytest $(TWO_AT_A_TIME) tests/unit
	$(PYTHON) -m pytest $(TWO_AT_A_TIME) -m quick tests/guest

bench: .venv/installed
	$(PYTHON) -m benchmarks

lint: .venv/installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

docs: .venv/installed
	$(PYTHON) tools/make_docs.py

clean:
	rm -rf .venv build *.egg-info detbox/kernel/*.so
