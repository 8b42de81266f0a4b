# make              programs, in build/release/bin
# make run          install what is missing, build, start a local cluster, answer on :8080 (MODEL=DIR or m3-tiny)
# make test         install what is missing, build, run every test (V=debug|asan|tsan make test)
# make check        what CI runs: lint, gcc and clang with -Werror, tests under the sanitizers
# make lint         include rules, header self-check, forbidden calls, formatting
# make test-cluster every chaos scenario on hosts of their own inside this machine (root), then here
# make test-clients the official OpenAI and Anthropic clients and two oracles against a local cluster (node, npm)
# make fuzz         libFuzzer, FUZZ_SECONDS (20) for each target in tests/fuzz
# make valgrind     the tiny model through the single process and the nodes, under memcheck
# make old-cpu      the same bits on an emulated CPU without AVX2
# make deps         only install what is missing (Debian 12)
# make format       clang-format over every source file
# make clean        remove build/
V    ?= release
CC   ?= cc
B    := build/$(V)
PKGS := libzmq libprotobuf-c libconfig libmicrohttpd jansson libxxhash libutf8proc libcurl libedit libsodium zlib
TEST_PKGS := libpcre2-8

WARN := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes \
        -Wpointer-arith -Wcast-qual -Wformat=2 -Wundef
FLAGS_release  := -O2
FLAGS_debug    := -O0
FLAGS_asan     := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
FLAGS_tsan     := -O1 -fsanitize=thread
FLAGS_clang    := -O2
FLAGS_valgrind := -O1
FLAGS_fuzz     := -O1 -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all
$(if $(FLAGS_$(V)),,$(error unknown variant V=$(V); one of release debug asan tsan clang valgrind fuzz))

COMMIT := $(shell git describe --always --dirty --abbrev=8 2>/dev/null || echo unknown)
CPPFLAGS += -D_GNU_SOURCE -I. -I$(B) $(shell pkg-config --cflags $(PKGS) $(TEST_PKGS) 2>/dev/null)
# -ffp-contract=off: the bits of an answer are defined by the source (ARCHITECTURE.md, "One answer").
CFLAGS   += -std=c11 -g -fno-omit-frame-pointer -ffp-contract=off $(FLAGS_$(V)) $(WARN) $(WERROR)
LDFLAGS  += $(FLAGS_$(V)) -rdynamic -Wl,--as-needed
LDLIBS    = $(shell pkg-config --libs $(PKGS)) -lopenblas -pthread -lm

# VERBOSE=1 shows whole command lines.
Q       := $(if $(VERBOSE),,@)
say      = @$(if $(VERBOSE),true,echo ' ')

objs     = $(patsubst %.c,$(B)/%.o,$(wildcard $(1)/*.c))
PROTOS  := $(wildcard proto/*.proto)
LAYERS  := base model engine rpc
ROOMS   := coordinator attn_node expert_node
SUITES  := unit kernel sim cluster reference
FUZZERS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))

.PHONY: all run test run-tests test-cluster test-clients check lint fuzz valgrind old-cpu deps format clean help bin FORCE
.SECONDARY:
.DELETE_ON_ERROR:
all: $(ROOMS:%=$(B)/bin/%) $(B)/bin/polymath

# One archive per layer and per program: what a program links is what it depends on.
$(foreach l,$(LAYERS),$(eval $(B)/$(l).a: $(call objs,$(l))))
$(foreach r,$(ROOMS),$(eval $(B)/$(r).a: $(filter-out $(B)/$(r)/main.o,$(call objs,$(r)))))
$(B)/rpc.a: $(PROTOS:%.proto=$(B)/%.pb-c.o)
$(B)/%.a: ; @rm -f $@ && ar rcs $@ $^

FLOORS := $(B)/rpc.a $(B)/engine.a $(B)/model.a $(B)/base.a
# The coordinator embeds the attention side.
$(B)/bin/coordinator: $(B)/coordinator/main.o $(B)/coordinator.a $(B)/attn_node.a $(FLOORS)
$(B)/bin/attn_node:   $(B)/attn_node/main.o $(B)/attn_node.a $(FLOORS)
$(B)/bin/expert_node: $(B)/expert_node/main.o $(B)/expert_node.a $(FLOORS)
# Plans and simulations run the coordinator's placement and the attention side's choice.
$(B)/bin/polymath:    $(call objs,tools) $(B)/coordinator.a $(B)/attn_node.a $(FLOORS)
$(B)/bin/tests: $(foreach s,$(SUITES),$(call objs,tests/$(s))) $(call objs,tests/lib) \
                $(patsubst tests/fuzz/%.c,$(B)/tests/fuzz/%.o,$(wildcard tests/fuzz/*.c)) \
                $(filter-out $(B)/tools/polymath.o,$(call objs,tools)) \
                $(B)/coordinator.a $(B)/attn_node.a $(B)/expert_node.a $(FLOORS)
$(B)/bin/tests: LDLIBS += $(shell pkg-config --libs $(TEST_PKGS))
$(B)/bin/%:
	@mkdir -p $(@D)
	$(say) link $@
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
# V=fuzz CC=clang, by tests/fuzz/run.sh: one libFuzzer program for each target.
build/fuzz/bin/fuzz_request build/fuzz/bin/fuzz_log: $(B)/coordinator.a $(B)/attn_node.a
build/fuzz/bin/fuzz_%: build/fuzz/tests/fuzz/fuzz_%.o $(FLOORS)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ -Wl,--start-group $^ -Wl,--end-group $(LDLIBS)
build/fuzz/tests/fuzz/%.o: CPPFLAGS += -DFUZZ_LIBFUZZER

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(say) $(CC) $<
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(ISA) -MMD -MP -c -o $@ $<
# A level's files alone may use its instructions; kernels.c asks the processor first.
AVX2   := -mavx2 -mfma -mf16c
AVX512 := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
$(patsubst %.c,$(B)/%.o,$(wildcard engine/kernels_avx2*.c)): ISA := $(AVX2)
$(patsubst %.c,$(B)/%.o,$(wildcard engine/kernels_avx512*.c)): ISA := $(AVX512)
$(B)/engine/kernels_amx.o: ISA := $(AVX512) -mamx-tile -mamx-int8
$(B)/tools/bench_probe_avx2.o: ISA := -mavx2 -mfma
$(B)/tools/bench_probe_avx512.o: ISA := -mavx512f -mavx512vnni
$(B)/tools/bench_probe_amx.o: ISA := -mamx-tile -mamx-int8
$(B)/base/version.o: CPPFLAGS += -DBUILD_COMMIT='"$(COMMIT)"' -DBUILD_VARIANT='"$(V)"'
$(B)/base/version.o: $(B)/.commit
$(B)/.commit: FORCE
	@mkdir -p $(@D); echo '$(COMMIT)' | cmp -s - $@ || echo '$(COMMIT)' >$@

# The pages are part of the program (.incbin).
$(B)/coordinator/web.o: $(wildcard coordinator/web/*)

# Generated code is not committed and not warned about.
$(B)/proto/%.pb-c.c $(B)/proto/%.pb-c.h: proto/%.proto
	@mkdir -p $(@D) && protoc-c --proto_path=proto --c_out=$(@D) $<
$(B)/proto/%.o: $(B)/proto/%.c
	$(say) $(CC) $<
	$(Q)$(CC) $(CPPFLAGS) -g $(FLAGS_$(V)) -w -c -o $@ $<
$(call objs,rpc): | $(PROTOS:%.proto=$(B)/%.pb-c.h)

deps:
	@deploy/install-debian.sh
# A second make, because pkg-config is asked while the first one reads this file.
run: deps
	@$(MAKE) --no-print-directory -j$$(nproc) V=$(V) all
	@tools/run.sh $(B)/bin $(MODEL)
test: deps
	@$(MAKE) --no-print-directory -j$$(nproc) V=$(V) run-tests
run-tests: all $(B)/bin/tests
	$(B)/bin/tests $(TESTS)
check: lint
	$(MAKE) V=clang CC=clang WERROR=-Werror all build/clang/bin/tests
	$(MAKE) V=release WERROR=-Werror run-tests
	$(MAKE) V=asan WERROR=-Werror run-tests TESTS='unit kernel sim reference cluster'
	$(MAKE) V=tsan WERROR=-Werror run-tests TESTS='unit sim cluster'
lint:
	@tests/lint/lint.sh
test-cluster: deps
	@$(MAKE) --no-print-directory -j$$(nproc) V=$(V) all && tests/cluster/run.sh $(B)/bin $(CHAOS)
test-clients: deps
	@deploy/install-debian.sh --clients
	@$(MAKE) --no-print-directory -j$$(nproc) V=$(V) all && tests/clients/run.sh $(B)/bin $(TESTS)
fuzz: deps
	@tests/fuzz/run.sh $(or $(FUZZ_SECONDS),20) $(FUZZERS)
valgrind: deps
	@$(MAKE) --no-print-directory V=valgrind all && tests/valgrind.sh build/valgrind/bin
old-cpu: deps
	@$(MAKE) --no-print-directory -j$$(nproc) V=$(V) all
	@tests/old_cpu.sh $(B)/bin
format:
	@find base model engine rpc $(ROOMS) tools tests -name '*.[ch]' | xargs clang-format -i
clean:
	rm -rf build
help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile
-include $(shell find $(B) -name '*.d' 2>/dev/null)
