# Needs Rust and Python 3; nvcc is fetched into ./.cuda where there is none.
export PYTHON ?= python3
PROMPT ?= fox on a purple background

.PHONY: demo test test-clients test-page test-ray test-load release bench gpu-bundle fixtures nvcc

demo: release ## paint a picture with the model inside sdrt
	target/release/sdrt run --prompt "$(PROMPT)" --seed 0 --output sdrt-demo.png
	@echo "The picture is $(CURDIR)/sdrt-demo.png"

test: nvcc ## every test; those that need a GPU say so and skip without one
	cargo test --release

# The server as the outside sees it, with Python packages that tools/pytest.sh installs.
test-clients: release ## sdrt serve with the clients of OpenAI, A1111 and Prometheus, and against its description
	tools/pytest.sh tests/clients/requirements.txt tests/clients

test-page: ## the page of sdrt serve in headless Chromium, which must be there
	tools/pytest.sh tests/page/requirements.txt tests/page

test-ray: release ## the application for Ray Serve with replicas on CPUs, and the manifests for Kubernetes
	tools/pytest.sh deploy/requirements-test.txt deploy

test-load: ## the load test
	tools/pytest.sh tools/load_test/requirements-test.txt tools/load_test

release: nvcc
	cargo build --release

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
