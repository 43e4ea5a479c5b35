# `make demo`: fine-tune a small InternImage on real digits and use it. `make test`: check everything.
# `make kernel`: compile the DCNv3 kernel; `make test-kernel`: check it. All set up .venv first: 1 to 4 minutes and 6 GB, once.
PYTHON ?= python3
VENV := .venv
RUN := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python
# Tests side by side, each with one thread: they start more processes than they compute.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal
DIGITS := examples/image_classification

.PHONY: demo test test-slow kernel test-kernel publish-kernel check-official bench clean

demo: $(VENV)/installed
	@echo "== 1/2 Fine-tuning a small InternImage on the 1,437 training digits of scikit-learn (about a minute on 2 cores)"
	@echo "       A finished run is not repeated: delete outputs/digits to train again."
	@$(RUN) -m examples.image_classification.run_image_classification $(DIGITS)/digits.json
	@echo "== 2/2 Loading the saved model through pipeline(\"image-classification\") on held-out image files"
	@$(RUN) -m examples.image_classification.classify_digits --model outputs/digits

test: $(VENV)/installed-deploy
	@echo "== 1/2 Formatting and lint"
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@echo "== 2/2 Tests, without network"
	@OMP_NUM_THREADS=1 $(RUN) -m pytest $(SIDE_BY_SIDE) -m "not slow"

test-slow: $(VENV)/installed-examples
	@echo "== The tests that \`make test\` leaves out"
	@OMP_NUM_THREADS=1 $(RUN) -m pytest $(SIDE_BY_SIDE) -m slow

kernel: $(VENV)/installed
	@echo "== Building the DCNv3 kernel for the CPU, and for CUDA where nvcc is installed"
	@$(VENV)/bin/python hub_kernels/dcnv3/local_build.py

test-kernel: kernel
	@echo "== Tests of the DCNv3 kernel"
	@$(RUN) -m pytest hub_kernels/dcnv3/tests

# `make publish-kernel REPO=ORG/NAME` builds the kernel and shows what would be uploaded; with UPLOAD=1 it uploads.
publish-kernel: kernel
	@test -n "$(REPO)" || { echo "Name the repository: make publish-kernel REPO=ORG/NAME"; exit 1; }
	@$(VENV)/bin/python hub_kernels/dcnv3/publish.py $(REPO) --no-build $(if $(UPLOAD),--upload)

# Needs a network. `make check-official ONLY=T`: sizes or parts of names.
check-official: $(VENV)/installed
	@$(VENV)/bin/python -m conversion.check_official $(if $(ONLY),--only $(ONLY))

bench: $(VENV)/installed
	@echo "== Time and memory of InternImage-T on this CPU (about 10 minutes)"
	@$(RUN) -m examples.benchmark --output outputs/benchmark_cpu.json

clean:
	rm -rf $(VENV) outputs

$(VENV)/installed: setup.cfg constraints.txt pyproject.toml
	@echo "== Setting up $(VENV) with the versions in constraints.txt (1 to 4 minutes and 6 GB, once)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + \
	    ". Name another one: make PYTHON=python3.11 ...") if sys.version_info < (3, 10) else None'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# Only the tests need the runtimes of exported models: the demo does not wait for them.
$(VENV)/installed-deploy: $(VENV)/installed
	@echo "== Adding ONNX Runtime, OpenVINO and the tools for int8 (once)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[deploy]"
	@touch $@

# What the slow tests of search, the page, Ray Data and the recipes need.
$(VENV)/installed-examples: $(VENV)/installed-deploy
	@echo "== Adding what some examples need: FAISS, Gradio, Ray and others (once)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all-examples]"
	@touch $@
