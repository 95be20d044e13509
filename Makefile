# make demo, make test: all the set-up is done here; see README.md

PYTHON ?= python3
BIN := .venv/bin
APT := gcc make qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross libzstd-dev
OPENCL := pocl-opencl-icd ocl-icd-libopencl1 oclgrind
METAL := clang-19 libobjc-12-dev spirv-cross glslang-tools
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all check operators setup tools clean

demo: setup tools
	$(BIN)/python examples/demo.py

test: setup tools
	$(PYTEST) -n 2 -m "not slow"

test-all: setup tools
	$(PYTEST) -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Renews docs/operators.md and the expected results from ONNX's own node tests.
operators: setup
	$(BIN)/python -m c2c.tests.backend.report

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "c2c needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# Emulator and cross compiler: installed where we may, named where we may not (tests that need them then skip).
tools:
	@if command -v qemu-aarch64 >/dev/null && command -v aarch64-linux-gnu-gcc >/dev/null && command -v gcc >/dev/null && [ -e /usr/include/zstd.h ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(APT) >/dev/null; \
		dpkg --add-architecture arm64 && apt-get update -qq && apt-get install -y -qq --no-install-recommends libzstd-dev:arm64 >/dev/null \
			|| echo "no libzstd for arm64: tests of packed weights under emulation skip"; \
	else echo "for the emulated ARM part: sudo apt-get install $(APT)"; fi
	@if ldconfig -p 2>/dev/null | grep -q libOpenCL.so.1 && command -v oclgrind >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(OPENCL) >/dev/null; } \
			|| echo "no OpenCL on a processor: its tests skip"; \
	else echo "for OpenCL on a processor: sudo apt-get install $(OPENCL)"; fi
	@if command -v clang-19 >/dev/null && command -v spirv-cross >/dev/null && command -v glslangValidator >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(METAL) >/dev/null; } \
			|| echo "no emulator of Metal and CUDA: its tests skip"; \
	else echo "for Metal and CUDA by emulation: sudo apt-get install $(METAL)"; fi

clean:
	rm -rf .venv out build *.egg-info
