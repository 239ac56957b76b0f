# Every target sets up what it needs by itself, in .venv.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(wildcard csrc/*.h csrc/*/*)
CPP := $(SOURCES) $(wildcard tests/*.cpp tests/*.h benchmarks/*.cpp benchmarks/*.cu)
PROGRAMS := weibull_kernels python benchmarks tests setup.py

.PHONY: help demo test check bench papers recovery width-synthetic width-transfer gpu format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train a small model with the force budget on; print and draw it (runs/demo)"
	@echo "make test    every test"
	@echo "make check   lint, format, types, build, import"
	@echo "make bench   the benchmarks, written to benchmarks/results and README.md"
	@echo "make papers  every experiment of the papers but the recovery; the numbers, pictures and page (an hour)"
	@echo "make recovery  train six runs and compare recovered forces with the true ones (half an hour)"
	@echo "make width-synthetic  how the top singular value goes with lr, decay and width (an hour and a half)"
	@echo "make width-transfer   whether a narrow model's lr and decay hold on wider ones (an hour)"
	@echo "make gpu     everything that needs a GPU, with PYTHON's own torch ($(PYTHON))"
	@echo "make format  write the format that make check asks for"

.venv/ready: pyproject.toml setup.py constraints.txt $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/ready
	$(BIN)/python python/train_demo.py $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest $(ARGS)

check: .venv/ready
	$(BIN)/ruff check $(PROGRAMS)
	$(BIN)/ruff format --check $(PROGRAMS)
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/python benchmarks/readme_table.py --check
	$(BIN)/python python/reproduce.py page --check
	@# The CUDA kernels have been compiled for .venv.
	WEIBULL_KERNELS_CUDA=0 $(BIN)/python -m build --outdir dist .
	$(BIN)/python -c "import weibull_kernels as wk; print(wk.backends()); assert wk.backends()[1].available"
	! command -v nvcc >/dev/null || $(BIN)/python -c "import weibull_kernels._cuda"

bench: .venv/ready
	$(BIN)/python -m pytest benchmarks $(ARGS)
	$(BIN)/python benchmarks/readme_table.py

# One of them: make papers PAPERS=relaxation
PAPERS := four-seeds relaxation lr-sweep reconstruction coherence beyond
papers: .venv/ready
	for each in $(PAPERS); do $(BIN)/python python/reproduce.py $$each $(ARGS) || exit; done

recovery: .venv/ready
	$(BIN)/python python/reproduce.py recovery $(ARGS)

width-synthetic: .venv/ready
	$(BIN)/python python/width_synthetic.py $(ARGS)

width-transfer: .venv/ready
	$(BIN)/python python/width_transfer.py $(ARGS)

gpu:
	$(PYTHON) benchmarks/gpu.py $(ARGS)

format: .venv/ready
	$(BIN)/ruff check --fix $(PROGRAMS)
	$(BIN)/ruff format $(PROGRAMS)
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf .venv build dist *.egg-info weibull_kernels/*.so
