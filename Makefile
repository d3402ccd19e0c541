# Needs Rust and Python 3; nvcc is fetched into ./.cuda where there is none.
PYTHON ?= python3
PROMPT ?= fox on a purple background

.PHONY: demo test test-clients bench gpu-bundle fixtures nvcc

demo: nvcc ## paint a picture with the model inside sdrt
	cargo build --release
	target/release/sdrt run --prompt "$(PROMPT)" --seed 0 --output sdrt-demo.png
	@echo "The picture is $(CURDIR)/sdrt-demo.png"

test: nvcc ## every test; those that need a GPU say so and skip without one
	cargo test --release

test-clients: nvcc ## sdrt serve with the clients of OpenAI, A1111 and Prometheus, and against its description
	cargo build --release
	PYTHON=$(PYTHON) tests/clients/run.sh

bench: nvcc
	cargo bench

gpu-bundle: nvcc ## .gpu/: tests, benches and sdrt for a GPU machine without Rust
	tools/gpu_bundle.sh

fixtures: .venv/made ## tests/fixtures anew, from torch and diffusers
	.venv/bin/python tools/make_fixtures.py

.venv/made: tools/requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --requirement $<
	touch $@

nvcc:
	@tools/install_nvcc.sh --if-missing || echo "Going on without nvcc: the build is for the CPU alone"
