# make serve   set up, build the book with every cell executed, serve it on this machine
# make test    set up and run every test
# make lab     set up and open JupyterLab on the labs and exercises
# Needs Python 3.11 or newer; everything else is installed into .venv and node_modules.

PYTHON ?= python3
PORT ?= 8000
WORKERS ?= 2
BIN := .venv/bin
BOOK := _build/html

.DEFAULT_GOAL := help
.PHONY: help serve book test format lab notebooks bench assets clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 4

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"efflab needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Say which to use: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "Python cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv"; rm -rf .venv; exit 1; }
	@echo "Installing into .venv: a few minutes, about 2 GB (more where PyTorch comes with CUDA)."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

node_modules/.installed: package.json .venv/.installed
	$(BIN)/python -c "from efflab.site import assets; raise SystemExit(assets.install())"
	@touch $@

assets: node_modules/.installed

# Built into a fresh folder: Sphinx forgets a warning on the second build.
book: assets
	@rm -rf _build/html _build/.doctrees && mkdir -p _build
	@echo "Building the book; every cell is executed."
	@$(BIN)/jupyter-book build . -W -n --keep-going --config _config.yml --toc _toc.yml --path-output . > _build/book.log 2>&1 || { cat _build/book.log; exit 1; }

serve: book
	@$(BIN)/python -m efflab.site.serve $(BOOK) $(PORT)

# Two workers share the tests by file, in order: a file's tests share fixtures, such as the built book.
test: assets
	$(BIN)/ruff check efflab tests bench
	$(BIN)/ruff format --check efflab tests bench
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports
	$(BIN)/python -m efflab.cli notebooks --check
	$(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder

format: .venv/.installed
	$(BIN)/ruff check --fix efflab tests bench
	$(BIN)/ruff format efflab tests bench

lab: .venv/.installed
	EFFLAB_LABBOOK="$${EFFLAB_LABBOOK:-$(CURDIR)/labbook}" $(BIN)/jupyter lab --notebook-dir .

notebooks: .venv/.installed
	$(BIN)/python -m efflab.cli notebooks

bench: book
	$(BIN)/python -m bench

clean:
	rm -rf _build node_modules .venv
