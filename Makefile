# Needs Rust and Python 3; nvcc is fetched into ./.cuda where there is none.
export PYTHON ?= python3
PROMPT ?= fox on a purple background
# Targets of the kernels (build.rs): the chips of this machine's GPUs, or those that the environment names.
SDRT_CUDA_ARCHS ?= $(shell tools/gpu_targets.sh)
export SDRT_CUDA_ARCHS
# Binaries for other machines have kernels for every chip. `make release SDRT_CUDA_ARCHS=90a` chooses other targets.
release gpu-bundle: SDRT_CUDA_ARCHS = all

fetch_nvcc = @if [ -z "$$SDRT_CUDA_ARCHS" ]; then \
	echo "No GPU of sm_80 or later here: the build is for the CPU alone; make release builds for every GPU"; \
	else tools/install_nvcc.sh --if-missing || echo "Going on without nvcc: the build is for the CPU alone"; fi

.PHONY: demo build test test-clients test-page test-ray test-load environments release bench gpu-bundle fixtures

demo: build ## an image of the model inside sdrt
	target/release/sdrt run --prompt "$(PROMPT)" --seed 0 --output sdrt-demo.png
	@echo "The image is $(CURDIR)/sdrt-demo.png"

build: ## target/release/sdrt for this machine
	$(fetch_nvcc)
	cargo build --release

release: ## target/release/sdrt for every chip, from sm_80 to those that are still to come
	$(fetch_nvcc)
	cargo build --release

test: ## every test; those that need a GPU say so and skip without one
	$(fetch_nvcc)
	cargo test --release

# The server as the outside sees it, with Python packages that tools/pytest.sh installs.
test-clients: build ## sdrt serve with the clients of OpenAI, A1111 and Prometheus, and against its description
	tools/pytest.sh tests/clients/requirements.txt tests/clients

test-page: ## the page of sdrt serve in headless Chromium, which must be there
	tools/pytest.sh tests/page/requirements.txt tests/page

test-ray: build ## the application for Ray Serve with replicas on CPUs, and the manifests for Kubernetes
	tools/pytest.sh deploy/requirements-test.txt deploy

test-load: ## the load test
	tools/pytest.sh tools/load_test/requirements-test.txt tools/load_test

environments: ## the Python packages of the four above, without their tests
	tools/pytest.sh tests/clients/requirements.txt
	tools/pytest.sh tests/page/requirements.txt
	tools/pytest.sh deploy/requirements-test.txt
	tools/pytest.sh tools/load_test/requirements-test.txt

bench:
	$(fetch_nvcc)
	cargo bench

gpu-bundle: ## .gpu/: tests, benches and sdrt for a GPU machine without Rust
	$(fetch_nvcc)
	tools/gpu_bundle.sh

fixtures: .venv/made ## tests/fixtures anew, from torch and diffusers
	.venv/bin/python tools/make_fixtures.py

.venv/made: tools/requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --requirement $<
	touch $@
